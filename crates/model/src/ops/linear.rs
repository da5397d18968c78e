//! Frozen linear layers, several side by side in one matrix, each with an optional adapter.
//!
//! Forward: `y = x Wᵀ + b`, each adapter turning its own columns of `y` into its module's output: IA³ after the bias is added,
//! which it multiplies, the others before, since DoRA leaves it alone. Backward, in the reverse order:
//! adapters with a factor on the output turn their columns of `dy` into the gradient of the product, `dx = dy W`, terms of low
//! rank add to `dx`, factors on the input multiply their part of it. `W` and `b` are frozen and get no gradient. Query, key and value
//! (and gate and up) share one product, and `dx` of the three is summed by the product itself, unless one of them has an input of
//! its own (IA³ on a feed-forward module).
//! An adapter sees input and output gradient with the sequences' bounds, so that it can say what each example adds.
//! `W` may be quantised: [`crate::frozen`]. Shapes: `W` is `[out, in]` (Hugging Face layout), `b` is `[out]` and absent in most models, `x` is `[n, in]`, `y` is `[n, out]`.

use std::borrow::Cow;

use candle_core::Tensor;

use super::attention::Segments;
use super::gemm::{Threads, View, ViewMut, Write, gemm};
use super::{host, tensor};
use crate::adapters::gradient::TensorGradient;
use crate::adapters::{LayerAdapters, Module, ModuleAdapter};
use crate::error::Result;
use crate::frozen::{FrozenMatrix, FrozenWeight, Quantization};

/// The columns of the output that belong to one module.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Which projection.
    pub module: Module,
    /// First column.
    pub start: usize,
    /// Number of columns.
    pub len: usize,
}

/// A frozen matrix and the modules it consists of.
#[derive(Debug)]
pub struct AdaptedLinear {
    weight: FrozenWeight,
    bias: Option<Tensor>,
    parts: Vec<Part>,
}

/// The frozen matrix of one module: rows `start..start + len` of `weight`.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The joined matrix, `[out, in]`.
    pub weight: &'a FrozenWeight,
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}

/// What the backward pass needs beyond `x`: what the adapter of each part kept.
pub type Inner = Vec<Vec<Tensor>>;

/// Gradients of one module's adapter.
#[derive(Debug)]
pub struct ModuleGradient {
    /// Which projection.
    pub module: Module,
    /// One for each tensor, in the order of [`ModuleAdapter::parameters`].
    pub tensors: Vec<TensorGradient>,
}

/// What a backward pass is to produce besides the adapters' gradients.
#[derive(Debug, Clone, Copy)]
pub struct Wants<'a> {
    /// The gradient of the input.
    pub dx: WantsDx,
    /// The examples whose own gradients are to be measured; `None` costs nothing.
    pub norms_of: Option<&'a Segments>,
}

/// Whether the gradient of the input is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantsDx {
    /// Something with an adapter lies before this layer.
    Yes,
    /// Nothing trainable lies before.
    No,
}

impl AdaptedLinear {
    /// Joins matrices `[out_i, in]` into one, as f32.
    pub fn new(modules: &[(Module, Tensor)]) -> Result<Self> {
        let frozen = |(module, weight): &(Module, Tensor)| -> Result<(Module, FrozenMatrix)> {
            Ok((*module, FrozenMatrix::new(module.name(), weight.clone(), Quantization::None)?))
        };
        Self::join(modules.iter().map(frozen).collect::<Result<_>>()?)
    }

    /// Joins frozen matrices `[out_i, in]` into one.
    pub fn join(modules: Vec<(Module, FrozenMatrix)>) -> Result<Self> {
        let mut start = 0;
        let (parts, matrices) = modules
            .into_iter()
            .map(|(module, matrix)| {
                let part = Part { module, start, len: matrix.num_rows() };
                start += part.len;
                (part, matrix)
            })
            .unzip();
        Ok(Self { weight: FrozenWeight::join(matrices)?, bias: None, parts })
    }

    /// The same with a bias `[out]` over all parts.
    #[must_use]
    pub fn with_bias(self, bias: Tensor) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// `y`, and what the backward pass needs.
    pub fn forward(&self, x: &Tensor, adapters: Option<&LayerAdapters>) -> Result<(Tensor, Inner)> {
        let (n, width) = x.dims2()?;
        let [out, _] = self.weight.shape();
        let mut y = if self.has_own_inputs(adapters) {
            self.product_by_part(x, adapters)?
        } else {
            self.weight.forward(View::new(&host(x)?, n, width, width))?
        };
        let bias = self.bias.as_ref().map(host).transpose()?;
        let mut inner = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let (adapter, columns) = (adapter(adapters, part), &mut y[part.start..]);
            let bias = bias.as_ref().map(|bias| &bias[part.start..part.start + part.len]);
            let scales_bias = adapter.is_some_and(|adapter| adapter.scales_bias().is_some());
            add_bias(columns, out, bias.filter(|_| scales_bias));
            inner.push(match adapter {
                Some(adapter) => adapter.forward(self.site(part), x, columns, out)?,
                None => Vec::new(),
            });
            add_bias(columns, out, bias.filter(|_| !scales_bias));
        }
        Ok((tensor(y, (n, out))?, inner))
    }

    /// `dx` where it is wanted, and the gradients of the adapters.
    pub fn backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        inner: &Inner,
        adapters: Option<&LayerAdapters>,
        wants: Wants<'_>,
    ) -> Result<(Option<Tensor>, Vec<ModuleGradient>)> {
        let (n, out) = dy.dims2()?;
        let [_, width] = self.weight.shape();
        let dys = host(dy)?;
        let mut dy = Cow::Borrowed(&dys[..]);
        let carried =
            || self.parts.iter().zip(inner).filter_map(|(part, kept)| Some((part, kept, adapter(adapters, part)?)));

        let mut of_outputs = Vec::new();
        for (part, kept, adapter) in carried() {
            of_outputs.push(match adapter.scales_outputs() {
                true => {
                    let columns = &mut dy.to_mut()[part.start..];
                    adapter.backward_outputs(self.site(part), columns, out, kept, wants.norms_of)?
                }
                false => None,
            });
        }

        let (mut dx, mut of_inputs) = (None, Vec::new());
        if self.has_own_inputs(adapters) {
            let (sum, gradients) = self.backward_by_part(&dy, x, adapters, wants)?;
            (dx, of_inputs) = (Some(sum), gradients);
        } else if wants.dx == WantsDx::Yes {
            dx = Some(self.weight.backward(View::new(&dy, n, out, out))?);
        }

        let mut gradients = Vec::new();
        let mut of_inputs = of_inputs.into_iter();
        for ((part, kept, adapter), of_output) in carried().zip(of_outputs) {
            let dy = View::new(&dy[part.start..], n, part.len, out);
            let mut tensors = adapter.backward_low_rank(dy, x, kept, dx.as_deref_mut(), wants.norms_of)?;
            tensors.extend(of_output);
            if adapter.scales_inputs() {
                tensors.extend(of_inputs.next());
            }
            gradients.push(ModuleGradient { module: part.module, tensors });
        }
        let dx = dx.filter(|_| wants.dx == WantsDx::Yes).map(|dx| tensor(dx, (n, width))).transpose()?;
        Ok((dx, gradients))
    }

    /// What it consists of, for an engine that keeps its own copy.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn frozen(&self) -> (&FrozenWeight, Option<&Tensor>, &[Part]) {
        (&self.weight, self.bias.as_ref(), &self.parts)
    }

    /// Length of each row of the module's matrix; `None` when the module is not part of this layer.
    pub(crate) fn row_norms(&self, module: Module) -> Option<Result<Vec<f32>>> {
        let part = self.parts.iter().find(|part| part.module == module)?;
        let norms = || {
            let mut row = vec![0.0; self.weight.shape()[1]];
            let norm = |index| -> Result<f32> {
                self.weight.read_rows(index, &mut row)?;
                Ok(crate::adapters::dora::norm(&row))
            };
            (part.start..part.start + part.len).map(norm).collect()
        };
        Some(norms())
    }

    /// `y` when modules have different inputs: one product each.
    fn product_by_part(&self, x: &Tensor, adapters: Option<&LayerAdapters>) -> Result<Vec<f32>> {
        let ((n, width), [out, _]) = (x.dims2()?, self.weight.shape());
        let mut y = vec![0.0; n * out];
        for part in &self.parts {
            let scaled = adapter(adapters, part).map(|adapter| adapter.scaled_input(x)).transpose()?.flatten();
            let xs = host(scaled.as_ref().unwrap_or(x))?;
            let y = ViewMut::new(&mut y[part.start..], n, part.len, out);
            self.weight.product(y, View::new(&xs, n, width, width), part.start..part.start + part.len)?;
        }
        Ok(y)
    }

    /// `dx` and the gradients of the factors on inputs, part by part.
    fn backward_by_part(
        &self,
        dy: &[f32],
        x: &Tensor,
        adapters: Option<&LayerAdapters>,
        wants: Wants<'_>,
    ) -> Result<(Vec<f32>, Vec<TensorGradient>)> {
        let ((n, width), [out, _]) = (x.dims2()?, self.weight.shape());
        let (mut dx, mut gradients) = (vec![0.0; n * width], Vec::new());
        for part in &self.parts {
            let dy = View::new(&dy[part.start..], n, part.len, out);
            let rows = part.start..part.start + part.len;
            let Some(adapter) = adapter(adapters, part).filter(|adapter| adapter.scales_inputs()) else {
                self.weight.input_gradient(ViewMut::new(&mut dx, n, width, width), Write::Add, dy, rows)?;
                continue;
            };
            let mut own = vec![0.0; n * width];
            self.weight.input_gradient(ViewMut::new(&mut own, n, width, width), Write::Replace, dy, rows)?;
            gradients.extend(adapter.backward_inputs(&mut own, x, wants.norms_of)?);
            dx.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        Ok((dx, gradients))
    }

    fn has_own_inputs(&self, adapters: Option<&LayerAdapters>) -> bool {
        self.parts.iter().any(|part| adapter(adapters, part).is_some_and(ModuleAdapter::scales_inputs))
    }

    fn site(&self, part: &Part) -> Site<'_> {
        Site { weight: &self.weight, start: part.start, len: part.len }
    }
}

fn adapter<'a>(adapters: Option<&'a LayerAdapters>, part: &Part) -> Option<&'a ModuleAdapter> {
    adapters?.get(part.module)
}

fn add_bias(y: &mut [f32], row_stride: usize, bias_opt: Option<&[f32]>) {
    let Some(bias) = bias_opt else { return };
    y.chunks_mut(row_stride).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
}

/// Sizes of a product `[n, width] · [out, width]ᵀ`.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub n: usize,
    pub out: usize,
    pub width: usize,
}

/// `y = x Wᵀ`.
pub(crate) fn product(y: &mut [f32], x: &[f32], w: &[f32], sizes: Sizes) {
    let Sizes { n, out, width } = sizes;
    let (x, w) = (View::new(x, n, width, width), View::new(w, out, width, width).t());
    gemm(ViewMut::new(y, n, out, out), Write::Replace, 1.0, x, w, Threads::Pool);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::adalora::AdaLora;
    use crate::adapters::dora::Dora;
    use crate::adapters::ia3::{Ia3, Scales};
    use crate::adapters::lora::Lora;
    use crate::ops::testing::{check_gradient, dot, random};

    const WIDTH: usize = 5;

    fn frozen() -> AdaptedLinear {
        let weights = [(Module::Q, random(1, &[6, WIDTH], 1.0)), (Module::K, random(2, &[4, WIDTH], 1.0))];
        AdaptedLinear::new(&weights).unwrap()
    }

    fn lora(seed: u64, out: usize) -> Lora {
        Lora { a: random(seed, &[2, WIDTH], 1.0), b: random(seed + 1, &[out, 2], 1.0), scale: 3.0 }
    }

    /// Every method beside a neighbour without an adapter, and LoRA on both.
    fn cases() -> Vec<(&'static str, LayerAdapters)> {
        let on_k = |adapter| {
            let mut adapters = LayerAdapters::default();
            adapters.set(Module::K, adapter);
            adapters
        };
        let mut both = on_k(ModuleAdapter::Lora(lora(5, 4)));
        both.set(Module::Q, ModuleAdapter::Lora(lora(3, 6)));
        let e = random(9, &[3, 1], 1.0);
        let ada = AdaLora { a: random(7, &[3, WIDTH], 1.0), b: random(8, &[4, 3], 1.0), e, scale: 0.5 };
        let none = AdaLora {
            a: random(7, &[0, WIDTH], 1.0),
            b: random(8, &[4, 0], 1.0),
            e: random(9, &[0, 1], 1.0),
            scale: 1.0,
        };
        let outputs = Ia3 { l: random(10, &[4, 1], 1.0), scales: Scales::Outputs };
        let inputs = Ia3 { l: random(11, &[1, WIDTH], 1.0), scales: Scales::Inputs };
        vec![
            ("lora", both),
            ("dora", on_k(ModuleAdapter::Dora(Dora::new(lora(5, 4), random(12, &[4], 1.0))))),
            ("adalora", on_k(ModuleAdapter::AdaLora(ada))),
            ("adalora of rank 0", on_k(ModuleAdapter::AdaLora(none))),
            ("ia3 on outputs", on_k(ModuleAdapter::Ia3(outputs))),
            ("ia3 on inputs", on_k(ModuleAdapter::Ia3(inputs))),
        ]
    }

    #[test]
    fn every_method_equals_its_merged_matrix_with_and_without_a_bias() {
        let (bias, x) = (random(40, &[10], 1.0), random(20, &[3, WIDTH], 1.0));
        for (linear, of_k) in [(frozen(), Tensor::zeros_like(&bias).unwrap()), (frozen().with_bias(bias.clone()), bias)]
        {
            let of_k = of_k.narrow(0, 6, 4).unwrap();
            for (name, adapters) in cases() {
                let (y, _) = linear.forward(&x, Some(&adapters)).unwrap();
                let adapter = adapters.get(Module::K).unwrap();
                let mut weight = host(&random(2, &[4, WIDTH], 1.0)).unwrap().to_vec();
                adapter.merge_into(&mut weight, WIDTH).unwrap();
                let merged = tensor(weight, (4, WIDTH)).unwrap();
                // DoRA adds the bias as it is, IA³ on outputs multiplies it
                assert_eq!(adapter.scales_bias().is_some(), name == "ia3 on outputs");
                let bias = match adapter.scales_bias() {
                    Some(factors) => (&of_k * factors.flatten_all().unwrap()).unwrap(),
                    None => of_k.clone(),
                };
                let wanted = x.matmul(&merged.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
                for (row, wanted) in y.to_vec2::<f32>().unwrap().iter().zip(wanted.to_vec2::<f32>().unwrap()) {
                    for (a, b) in row[6..].iter().zip(wanted) {
                        assert!((a - b).abs() < 1e-5, "{name}");
                    }
                }
            }
        }
    }

    /// The same adapter with another tensor at `index`; DoRA's norm stays what it was, as its backward pass assumes.
    fn with(adapter: &ModuleAdapter, index: usize, value: &Tensor) -> ModuleAdapter {
        let mut changed = adapter.clone();
        let tensor = match (&mut changed, index) {
            (ModuleAdapter::Lora(lora), 0) => &mut lora.a,
            (ModuleAdapter::Lora(lora), _) => &mut lora.b,
            (ModuleAdapter::Dora(dora), 0) => &mut dora.lora.a,
            (ModuleAdapter::Dora(dora), 1) => &mut dora.lora.b,
            (ModuleAdapter::Dora(dora), _) => &mut dora.magnitude,
            (ModuleAdapter::AdaLora(ada), 0) => &mut ada.a,
            (ModuleAdapter::AdaLora(ada), 1) => &mut ada.b,
            (ModuleAdapter::AdaLora(ada), _) => &mut ada.e,
            (ModuleAdapter::Ia3(ia3), _) => &mut ia3.l,
        };
        *tensor = value.clone();
        changed
    }

    #[test]
    fn every_gradient_agrees_with_finite_differences() {
        let (x, dy) = (random(20, &[3, WIDTH], 1.0), random(21, &[3, 10], 1.0));
        let linear = frozen().with_bias(random(40, &[10], 1.0));
        for (name, adapters) in cases() {
            let (_, inner) = linear.forward(&x, Some(&adapters)).unwrap();
            let wants = Wants { dx: WantsDx::Yes, norms_of: None };
            let (dx, gradients) = linear.backward(&dy, &x, &inner, Some(&adapters), wants).unwrap();
            let loss = |x: &Tensor, adapters: &LayerAdapters| dot(&linear.forward(x, Some(adapters)).unwrap().0, &dy);
            check_gradient(&x, &dx.unwrap(), 1e-3, |x| loss(x, &adapters));
            for gradient in gradients {
                let adapter = adapters.get(gradient.module).unwrap();
                let parameters = adapter.parameters();
                assert_eq!(gradient.tensors.len(), parameters.len(), "{name}");
                for (index, ((_, value), gradient_of)) in parameters.iter().zip(&gradient.tensors).enumerate() {
                    assert_eq!(value.dims(), gradient_of.value.dims(), "{name}");
                    check_gradient(value, &gradient_of.value, 1e-3, |changed| {
                        let mut adapters = adapters.clone();
                        adapters.set(gradient.module, with(adapter, index, changed));
                        loss(&x, &adapters)
                    });
                }
            }
        }
    }

    #[test]
    fn factors_on_inputs_get_a_gradient_even_where_nobody_wants_dx() {
        let (linear, x, dy) = (frozen(), random(20, &[3, WIDTH], 1.0), random(21, &[3, 10], 1.0));
        let adapters = cases().pop().unwrap().1;
        let (_, inner) = linear.forward(&x, Some(&adapters)).unwrap();
        let run = |dx| linear.backward(&dy, &x, &inner, Some(&adapters), Wants { dx, norms_of: None }).unwrap();
        let ((dx, some), (none, same)) = (run(WantsDx::Yes), run(WantsDx::No));
        assert!(dx.is_some() && none.is_none());
        let values = |gradients: &[ModuleGradient]| gradients[0].tensors[0].value.to_vec2::<f32>().unwrap();
        assert_eq!(values(&some), values(&same));
    }

    #[test]
    fn the_norm_of_dora_is_measured_again_after_a_change_and_for_another_weight() {
        let mut adapters = LayerAdapters::default();
        adapters.set(Module::K, ModuleAdapter::Dora(Dora::new(lora(5, 4), random(12, &[4], 1.0))));
        let x = random(20, &[3, WIDTH], 1.0);
        let y = |linear: &AdaptedLinear, adapters: &LayerAdapters| {
            linear.forward(&x, Some(adapters)).unwrap().0.to_vec2::<f32>().unwrap()
        };
        let (linear, before) = (frozen(), y(&frozen(), &adapters));
        assert_eq!(y(&linear, &adapters), before);
        let other = AdaptedLinear::new(&[(Module::K, random(30, &[4, WIDTH], 1.0))]).unwrap();
        let fresh = |linear| {
            let mut fresh = LayerAdapters::default();
            fresh.set(Module::K, adapters.get(Module::K).unwrap().snapshot().unwrap());
            y(linear, &fresh)
        };
        assert_eq!(y(&other, &adapters), fresh(&other));
        let adapter = adapters.get(Module::K).unwrap();
        crate::ops::update(adapter.parameters()[1].1, |b| b.iter_mut().for_each(|b| *b *= 2.0)).unwrap();
        adapter.changed();
        assert_eq!(y(&linear, &adapters), fresh(&linear));
        assert_ne!(y(&linear, &adapters), before);
    }
}
