//! DoRA (Liu et al. 2024): LoRA for the direction of each row of the weight, a trained magnitude `m` for its length.
//!
//! `y = g ∘ v` with `v = x Wᵀ + s · (x Aᵀ) Bᵀ` and `g_j = m_j / ‖W_j + s · B_j A‖`. As in the paper (section 4.3) and in `peft`,
//! the norm counts as a constant in the backward pass: `dm_j = Σ_n dy_nj v_nj / ‖W_j + s B_j A‖`, and LoRA's backward gets
//! `dv = g ∘ dy` instead of `dy`, as does the frozen product. A bias of the layer is added after the scaling.
//! Shapes: `m` and `g` `[out]`; kept are `u = x Aᵀ` and `v`, since computing `v` again would cost the frozen product.
//! Start as in `peft`: LoRA's, and `m_j = ‖W_j‖`, so that the start equals the base model.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use rayon::prelude::*;

use super::factor::{scale, scale_and_keep};
use super::gradient::{TensorGradient, columns};
use super::lora::Lora;
use super::start::{Make, Start};
use crate::error::Result;
use crate::ops::attention::Segments;
use crate::ops::gemm::{Threads, View, ViewMut, Write, gemm};
use crate::ops::linear::Site;
use crate::ops::{host, tensor};

/// Rows of the weight that one task merges to measure them: 64 rows of 4,096 take 1 MB.
const ROWS: usize = 64;

/// Direction and magnitude of one module.
#[derive(Debug, Clone)]
pub struct Dora {
    /// Direction.
    pub lora: Lora,
    /// `m`, `[out]`.
    pub magnitude: Tensor,
    norms: Norms,
}

/// `‖W_j + s B_j A‖` of the last weight asked for, until `A` or `B` change: generation would spend more on it than on the
/// product itself. Shared by clones, as their tensors are.
#[derive(Debug, Clone, Default)]
struct Norms(Arc<Mutex<Option<Known>>>);

#[derive(Debug)]
struct Known {
    /// [`crate::frozen::FrozenWeight::id`].
    weight: u64,
    first_row: usize,
    norms: Arc<Vec<f32>>,
}

impl Dora {
    /// From tensors.
    #[must_use]
    pub fn new(lora: Lora, magnitude: Tensor) -> Self {
        Self { lora, magnitude, norms: Norms::default() }
    }

    pub(crate) fn build(rank: usize, scale: f32, shape: [usize; 2], make: Make<'_>) -> Result<Self> {
        let lora = Lora::build(rank, scale, shape, make)?;
        Ok(Self::new(lora, make("lora_magnitude_vector", &shape[..1], Start::RowNorms)?))
    }

    pub(crate) fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        let mut parameters = self.lora.parameters();
        parameters.push(("lora_magnitude_vector", &self.magnitude));
        parameters
    }

    /// Must be called when `A` or `B` have changed in place.
    pub(crate) fn forget_norms(&self) {
        *self.norms.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Turns the columns of `y`, which hold `x Wᵀ`, into `g ∘ v`; returns `u` and `v`.
    pub(crate) fn forward(&self, site: Site<'_>, x: &Tensor, y: &mut [f32], row_stride: usize) -> Result<Vec<Tensor>> {
        let u = self.lora.forward(x, y, row_stride)?;
        let v = scale_and_keep(y, row_stride, &self.factors(site)?);
        Ok(vec![u, tensor(v, (x.dim(0)?, site.len))?])
    }

    /// The gradient of `m`; turns the columns of `dy` into `dv`.
    pub(crate) fn backward_magnitude(
        &self,
        site: Site<'_>,
        dy: &mut [f32],
        row_stride: usize,
        v: &Tensor,
        examples: Option<&Segments>,
    ) -> Result<TensorGradient> {
        let (n, len) = v.dims2()?;
        let (vs, norms) = (host(v)?, self.norms(site)?);
        let inverse: Vec<f32> = norms.iter().map(|norm| 1.0 / norm).collect();
        let v = View::new(&vs, n, len, len);
        let gradient = columns(View::new(dy, n, len, row_stride), v, Some(&inverse), &[len], examples)?;
        scale(dy, row_stride, &self.factors(site)?);
        Ok(gradient)
    }

    /// `g ∘ (W + s · B A)`.
    pub(crate) fn merge_into(&self, weight: &mut [f32]) -> Result<()> {
        self.lora.merge_into(weight)?;
        let magnitude = host(&self.magnitude)?;
        let width = weight.len() / magnitude.len().max(1);
        for (row, magnitude) in weight.chunks_exact_mut(width).zip(magnitude.iter()) {
            let factor = f64::from(*magnitude) / f64::from(norm(row));
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
        }
        Ok(())
    }

    /// `g`.
    fn factors(&self, site: Site<'_>) -> Result<Vec<f32>> {
        Ok(host(&self.magnitude)?.iter().zip(self.norms(site)?.iter()).map(|(m, norm)| m / norm).collect())
    }

    fn norms(&self, site: Site<'_>) -> Result<Arc<Vec<f32>>> {
        let lock = || self.norms.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |known: &&Known| known.weight == site.weight.id() && known.first_row == site.start;
        if let Some(known) = lock().as_ref().filter(is_same) {
            return Ok(Arc::clone(&known.norms));
        }
        // measured without the lock: the thread pool may start another forward pass while this one waits for its tasks
        let norms = Arc::new(self.measure(site)?);
        *lock() = Some(Known { weight: site.weight.id(), first_row: site.start, norms: Arc::clone(&norms) });
        Ok(norms)
    }

    fn measure(&self, site: Site<'_>) -> Result<Vec<f32>> {
        let (rank, width) = self.lora.a.dims2()?;
        let (a, b) = (host(&self.lora.a)?, host(&self.lora.b)?);
        let (a, scale) = (View::new(&a, rank, width, width), self.lora.scale);
        let blocks = b.par_chunks(ROWS * rank).enumerate().map(|(index, b)| -> Result<Vec<f32>> {
            let count = b.len() / rank;
            let mut merged = vec![0.0; count * width];
            site.weight.read_rows(site.start + index * ROWS, &mut merged)?;
            let b = View::new(b, count, rank, rank);
            gemm(ViewMut::new(&mut merged, count, width, width), Write::Add, scale, b, a, Threads::One);
            Ok(merged.chunks_exact(width).map(norm).collect())
        });
        Ok(blocks.collect::<Result<Vec<_>>>()?.concat())
    }
}

/// Length of a row.
pub(crate) fn norm(row: &[f32]) -> f32 {
    row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt() as f32
}
