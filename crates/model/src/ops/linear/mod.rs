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

mod own_inputs;
#[cfg(test)]
mod tests;

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
