//! IA³ (Liu et al. 2022): a learned vector `l` multiplies the outputs of a module (keys, values), or the inputs of a
//! feed-forward module.
//!
//! Outputs: `y = l ∘ (x Wᵀ)`, a bias of the layer included. Backward, with `v = x Wᵀ` kept: `dl_j = Σ_n dy_nj v_nj`,
//! `dv = l ∘ dy`. Inputs: `y = (l ∘ x) Wᵀ`. Backward, with `dx' = dy W`: `dl_i = Σ_n dx'_ni x_ni`, `dx = l ∘ dx'`.
//! Shapes, as in `peft`: `l` is `[out, 1]` for outputs, `[1, in]` for inputs. Start: all ones, so that the start equals the base
//! model.

use candle_core::Tensor;

use super::factor::{scale, scale_and_keep};
use super::gradient::{TensorGradient, columns};
use super::start::{Make, Start};
use crate::error::Result;
use crate::ops::attention::Segments;
use crate::ops::gemm::View;
use crate::ops::{host, tensor};

/// What the vector multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// Outputs of the module.
    Outputs,
    /// Inputs of the module, one of `peft`'s `feedforward_modules`.
    Inputs,
}

/// The vector of one module.
#[derive(Debug, Clone)]
pub struct Ia3 {
    /// `l`.
    pub l: Tensor,
    /// What it multiplies.
    pub scales: Scales,
}

impl Ia3 {
    pub(crate) fn build(scales: Scales, [out, width]: [usize; 2], make: Make<'_>) -> Result<Self> {
        let shape = match scales {
            Scales::Outputs => [out, 1],
            Scales::Inputs => [1, width],
        };
        Ok(Self { l: make("ia3_l", &shape, Start::Constant(1.0))?, scales })
    }

    pub(crate) fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("ia3_l", &self.l)]
    }

    /// `l ∘ x`.
    pub(crate) fn scaled_input(&self, x: &Tensor) -> Result<Tensor> {
        let (mut scaled, l) = (host(x)?.to_vec(), host(&self.l)?);
        scale(&mut scaled, l.len(), &l);
        tensor(scaled, x.dims())
    }

    /// Multiplies the columns of `y`, which hold `v`; returns `v`.
    pub(crate) fn forward_outputs(&self, y: &mut [f32], row_stride: usize) -> Result<Tensor> {
        let l = host(&self.l)?;
        let v = scale_and_keep(y, row_stride, &l);
        let n = v.len() / l.len().max(1);
        tensor(v, (n, l.len()))
    }

    /// The gradient of `l`; turns the columns of `dy` into `dv`.
    pub(crate) fn backward_outputs(
        &self,
        dy: &mut [f32],
        row_stride: usize,
        v: &Tensor,
        examples: Option<&Segments>,
    ) -> Result<TensorGradient> {
        let ((n, len), vs, l) = (v.dims2()?, host(v)?, host(&self.l)?);
        let dy_view = View::new(dy, n, len, row_stride);
        let gradient = columns(dy_view, View::new(&vs, n, len, len), None, self.l.dims(), examples)?;
        scale(dy, row_stride, &l);
        Ok(gradient)
    }

    /// The gradient of `l`; turns `dx'` into `dx`.
    pub(crate) fn backward_inputs(
        &self,
        dx: &mut [f32],
        x: &Tensor,
        examples: Option<&Segments>,
    ) -> Result<TensorGradient> {
        let ((n, width), xs, l) = (x.dims2()?, host(x)?, host(&self.l)?);
        let (d, x) = (View::new(dx, n, width, width), View::new(&xs, n, width, width));
        let gradient = columns(d, x, None, self.l.dims(), examples)?;
        scale(dx, width, &l);
        Ok(gradient)
    }

    /// `diag(l) W` or `W diag(l)`; with outputs a bias of the layer must be multiplied too.
    pub(crate) fn merge_into(&self, weight: &mut [f32], width: usize) -> Result<()> {
        let l = host(&self.l)?;
        for (index, row) in weight.chunks_exact_mut(width).enumerate() {
            match self.scales {
                Scales::Outputs => row.iter_mut().for_each(|w| *w *= l[index]),
                Scales::Inputs => row.iter_mut().zip(l.iter()).for_each(|(w, l)| *w *= l),
            }
        }
        Ok(())
    }
}
