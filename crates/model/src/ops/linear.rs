//! Frozen linear layers, several side by side in one matrix, each with an optional adapter.
//!
//! Forward: `y = x Wᵀ + b`, then each adapter adds its part to its own columns of `y`. Backward: `dx = dy W + Σ dx of adapters`;
//! `W` and `b` are frozen and get no gradient. Query, key and value (and gate and up) share one product: `dx` of the three is then
//! summed by the product itself.
//! Shapes: `W` is `[out, in]` (Hugging Face layout), `b` is `[out]` and absent in most models, `x` is `[n, in]`, `y` is `[n, out]`.

use candle_core::Tensor;

use super::gemm::{Threads, View, ViewMut, Write, gemm};
use super::{host, tensor};
use crate::adapters::Module;
use crate::adapters::lora::{self, LayerAdapters, LoraPair};
use crate::error::Result;

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
    weight: Tensor,
    bias: Option<Tensor>,
    parts: Vec<Part>,
}

/// What the backward pass needs beyond `x`: for each part with an adapter its inner product `x Aᵀ`.
pub type Inner = Vec<Option<Tensor>>;

/// Gradients of one module's adapter.
#[derive(Debug)]
pub struct PairGradient {
    /// Which projection.
    pub module: Module,
    /// Gradient of `A`, `[rank, in]`.
    pub a: Tensor,
    /// Gradient of `B`, `[out, rank]`.
    pub b: Tensor,
}

impl AdaptedLinear {
    /// Joins matrices `[out_i, in]` into one.
    pub fn new(modules: &[(Module, Tensor)]) -> Result<Self> {
        let mut parts = Vec::with_capacity(modules.len());
        let mut start = 0;
        for (module, weight) in modules {
            let len = weight.dim(0)?;
            parts.push(Part { module: *module, start, len });
            start += len;
        }
        let weight = match modules {
            [(_, weight)] => weight.clone(),
            _ => Tensor::cat(&modules.iter().map(|(_, weight)| weight).collect::<Vec<_>>(), 0)?,
        };
        Ok(Self { weight, bias: None, parts })
    }

    /// The same with a bias `[out]` over all parts.
    #[must_use]
    pub fn with_bias(self, bias: Tensor) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// `y`, and what the backward pass needs.
    pub fn forward(&self, x: &Tensor, adapters: Option<&LayerAdapters>) -> Result<(Tensor, Inner)> {
        let (n, _) = x.dims2()?;
        let (out, width) = self.weight.dims2()?;
        let mut y = vec![0.0; n * out];
        let mut inner = Vec::with_capacity(self.parts.len());
        {
            let (xs, w) = (host(x)?, host(&self.weight)?);
            product(&mut y, &xs, &w, Sizes { n, out, width });
        }
        if let Some(bias) = &self.bias {
            let bias = host(bias)?;
            y.chunks_exact_mut(out).for_each(|row| row.iter_mut().zip(&*bias).for_each(|(y, b)| *y += b));
        }
        for part in &self.parts {
            inner.push(match pair(adapters, part.module) {
                Some((pair, scale)) => Some(lora::forward(pair, scale, x, &mut y[part.start..], out)?),
                None => None,
            });
        }
        Ok((tensor(y, (n, out))?, inner))
    }

    /// `dx` (unless `wants_dx` is [`WantsDx::No`]: below the first layer nobody needs it) and the adapters' gradients.
    pub fn backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        inner: &Inner,
        adapters: Option<&LayerAdapters>,
        wants_dx: WantsDx,
    ) -> Result<(Option<Tensor>, Vec<PairGradient>)> {
        let (n, out) = dy.dims2()?;
        let (_, width) = self.weight.dims2()?;
        let dys = host(dy)?;
        let mut dx = match wants_dx {
            WantsDx::Yes => {
                let mut dx = vec![0.0; n * width];
                let w = host(&self.weight)?;
                let (dy, w) = (View::new(&dys, n, out, out), View::new(&w, out, width, width));
                gemm(ViewMut::new(&mut dx, n, width, width), Write::Replace, 1.0, dy, w, Threads::Pool);
                Some(dx)
            }
            WantsDx::No => None,
        };
        let mut gradients = Vec::new();
        for (part, inner) in self.parts.iter().zip(inner) {
            if let (Some((pair, scale)), Some(inner)) = (pair(adapters, part.module), inner) {
                let dy = View::new(&dys[part.start..], n, part.len, out);
                let (a, b) = lora::backward(pair, scale, dy, x, inner, dx.as_deref_mut())?;
                gradients.push(PairGradient { module: part.module, a, b });
            }
        }
        let dx = dx.map(|dx| tensor(dx, (n, width))).transpose()?;
        Ok((dx, gradients))
    }
}

/// Whether the gradient of the input is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantsDx {
    /// Something with an adapter lies before this layer.
    Yes,
    /// Nothing trainable lies before.
    No,
}

fn pair(adapters: Option<&LayerAdapters>, module: Module) -> Option<(&LoraPair, f32)> {
    let adapters = adapters?;
    Some((adapters.get(module)?, adapters.scale()))
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
    use crate::adapters::lora::LoraConfig;
    use crate::ops::testing::{check_gradient, dot, random};

    fn layer() -> (AdaptedLinear, LayerAdapters) {
        let weights = [(Module::Q, random(1, &[6, 5], 1.0)), (Module::K, random(2, &[4, 5], 1.0))];
        let config = LoraConfig { rank: 2, alpha: 6.0, ..LoraConfig::default() };
        let mut adapters = LayerAdapters::empty(config.scale());
        adapters.set(Module::Q, LoraPair { a: random(3, &[2, 5], 1.0), b: random(4, &[6, 2], 1.0) });
        adapters.set(Module::K, LoraPair { a: random(5, &[2, 5], 1.0), b: random(6, &[4, 2], 1.0) });
        (AdaptedLinear::new(&weights).unwrap(), adapters)
    }

    #[test]
    fn equals_the_merged_matrix() {
        let (linear, adapters) = layer();
        let x = random(7, &[3, 5], 1.0);
        let (y, _) = linear.forward(&x, Some(&adapters)).unwrap();
        let k = adapters.get(Module::K).unwrap();
        let merged = (random(2, &[4, 5], 1.0) + (k.b.matmul(&k.a).unwrap() * 3.0).unwrap()).unwrap();
        let wanted = x.matmul(&merged.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        for (row, wanted) in y.to_vec2::<f32>().unwrap().iter().zip(wanted) {
            for (a, b) in row[6..].iter().zip(wanted) {
                assert!((a - b).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn every_gradient_agrees_with_finite_differences() {
        let (linear, adapters) = layer();
        let (x, dy) = (random(7, &[3, 5], 1.0), random(8, &[3, 10], 1.0));
        let (_, inner) = linear.forward(&x, Some(&adapters)).unwrap();
        let (dx, gradients) = linear.backward(&dy, &x, &inner, Some(&adapters), WantsDx::Yes).unwrap();
        let loss = |x: &Tensor, adapters: &LayerAdapters| dot(&linear.forward(x, Some(adapters)).unwrap().0, &dy);
        check_gradient(&x, &dx.unwrap(), 1e-3, |x| loss(x, &adapters));
        for gradient in gradients {
            let pair = adapters.get(gradient.module).unwrap().clone();
            check_gradient(&pair.a, &gradient.a, 1e-3, |a| {
                let mut changed = adapters.clone();
                changed.set(gradient.module, LoraPair { a: a.clone(), b: pair.b.clone() });
                loss(&x, &changed)
            });
            check_gradient(&pair.b, &gradient.b, 1e-3, |b| {
                let mut changed = adapters.clone();
                changed.set(gradient.module, LoraPair { a: pair.a.clone(), b: b.clone() });
                loss(&x, &changed)
            });
        }
    }
}
