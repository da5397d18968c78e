//! AdaLoRA (Zhang et al. 2023): the change in the form of a singular value decomposition, `y = x Wᵀ + k · ((x Aᵀ) ∘ e) Bᵀ`,
//! whose values `e` are set to zero where they matter least ([`super::rank_allocator`]).
//!
//! `k = alpha / (init_r + 10⁻⁵)`, in which `peft` never replaces the initial rank. Backward, with `u = x Aᵀ` kept and `w = u ∘ e`:
//! `dw = k · dy B`, `dB = k · dyᵀ w`, `de = Σ_n dw ∘ u`, `du = dw ∘ e`, `dA = duᵀ x`, `dx += du A`.
//! The loss gets a term that keeps the vectors orthogonal ([`add_orthogonality`]).
//! Shapes: `A` `[rank, in]`, `e` `[rank, 1]`, `B` `[out, rank]`.
//! Start as in `peft`: `A` and `B` normal with deviation 0.02, `e` zero, so that the start equals the base model.

use candle_core::Tensor;

use super::gradient::{TensorGradient, columns, outer};
use super::lora::{add_product, down, down_backward, up, up_backward};
use super::start::{Make, Start};
use crate::error::Result;
use crate::ops::attention::Segments;
use crate::ops::gemm::{Threads, View, ViewMut, Write, gemm};
use crate::ops::{host, tensor};

/// The decomposed change of one module.
#[derive(Debug, Clone)]
pub struct AdaLora {
    /// Right vectors, `[rank, in]`.
    pub a: Tensor,
    /// Left vectors, `[out, rank]`.
    pub b: Tensor,
    /// Values, `[rank, 1]`.
    pub e: Tensor,
    /// `k`.
    pub scale: f32,
}

impl AdaLora {
    /// `rank` may be 0: then everything of this module was dropped.
    pub(crate) fn build(rank: usize, scale: f32, [out, width]: [usize; 2], make: Make<'_>) -> Result<Self> {
        let a = make("lora_A", &[rank, width], Start::Normal(0.02))?;
        let b = make("lora_B", &[out, rank], Start::Normal(0.02))?;
        Ok(Self { a, b, e: make("lora_E", &[rank, 1], Start::Constant(0.0))?, scale })
    }

    pub(crate) fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("lora_A", &self.a), ("lora_B", &self.b), ("lora_E", &self.e)]
    }

    /// Adds `k · w Bᵀ` to the columns that `y` starts with; returns `u`.
    pub(crate) fn forward(&self, x: &Tensor, y: &mut [f32], row_stride: usize) -> Result<Tensor> {
        let u = down(x, &self.a)?;
        up(&self.times_e(&u)?, &self.b, self.scale, y, row_stride)?;
        Ok(u)
    }

    /// Gradients of `A`, `B` and `e`; adds `du A` to `dx` where one is wanted.
    pub(crate) fn backward(
        &self,
        dy: View<'_>,
        x: &Tensor,
        u: &Tensor,
        dx: Option<&mut [f32]>,
        examples: Option<&Segments>,
    ) -> Result<Vec<TensorGradient>> {
        let (n, rank) = u.dims2()?;
        let w = self.times_e(u)?;
        let dw = tensor(up_backward(dy, &self.b, self.scale)?, (n, rank))?;
        let (us, ws, dws) = (host(u)?, host(&w)?, host(&dw)?);
        let b = outer(self.scale, dy, View::new(&ws, n, rank, rank), examples)?;
        let (dw_view, u) = (View::new(&dws, n, rank, rank), View::new(&us, n, rank, rank));
        let e = columns(dw_view, u, None, self.e.dims(), examples)?;
        let du = self.times_e(&dw)?;
        let a = down_backward(&host(&du)?, x, &self.a, dx, examples)?;
        Ok(vec![a, b, e])
    }

    /// `W + k · B diag(e) A`.
    pub(crate) fn merge_into(&self, weight: &mut [f32]) -> Result<()> {
        let e = host(&self.e)?;
        add_product(weight, &self.a, &self.b, |rank| f64::from(e[rank]) * f64::from(self.scale))
    }

    /// The same change without the ranks whose value is zero.
    pub(crate) fn pruned(&self) -> Result<Self> {
        let e = host(&self.e)?;
        let alive: Vec<usize> = (0..e.len()).filter(|rank| e[*rank] != 0.0).collect();
        let ((_, width), (out, rank)) = (self.a.dims2()?, self.b.dims2()?);
        let (a, b) = (host(&self.a)?, host(&self.b)?);
        let a = alive.iter().flat_map(|k| a[k * width..(k + 1) * width].to_vec()).collect();
        let b = (0..out).flat_map(|row| alive.iter().map(move |k| row * rank + k)).map(|at| b[at]).collect();
        let values = alive.iter().map(|k| e[*k]).collect();
        let count = alive.len();
        Ok(Self {
            a: tensor(a, (count, width))?,
            b: tensor(b, (out, count))?,
            e: tensor(values, (count, 1))?,
            scale: self.scale,
        })
    }

    /// Every row of `rows` times `e`.
    fn times_e(&self, rows: &Tensor) -> Result<Tensor> {
        let (values, e) = (host(rows)?, host(&self.e)?);
        // a rank of zero has no values at all, and rows of no length cannot be counted
        let product = values.chunks_exact(e.len().max(1)).flat_map(|row| row.iter().zip(e.iter()).map(|(v, e)| v * e));
        tensor(product.collect(), rows.dims())
    }
}

/// Which vectors of a matrix are to be orthogonal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vectors {
    /// The rows, of `A`.
    Rows,
    /// The columns, of `B`.
    Columns,
}

/// `c · ‖M‖` with `M = A Aᵀ − I` (of `B`: `Bᵀ B − I`) and the Frobenius norm; adds its gradient, `2c/‖M‖ · M A` (`2c/‖M‖ · B M`),
/// to `gradient`.
pub(crate) fn add_orthogonality(matrix: &Tensor, vectors: Vectors, c: f64, gradient: &mut [f32]) -> Result<f64> {
    let (rows, cols) = matrix.dims2()?;
    let values = host(matrix)?;
    let view = View::new(&values, rows, cols, cols);
    let (left, right, rank) = match vectors {
        Vectors::Rows => (view, view.t(), rows),
        Vectors::Columns => (view.t(), view, cols),
    };
    let mut m = vec![0.0; rank * rank];
    gemm(ViewMut::new(&mut m, rank, rank, rank), Write::Replace, 1.0, left, right, Threads::Pool);
    (0..rank).for_each(|k| m[k * rank + k] -= 1.0);
    let norm = m.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        let m = View::new(&m, rank, rank, rank);
        let (a, b) = match vectors {
            Vectors::Rows => (m, view),
            Vectors::Columns => (view, m),
        };
        let factor = (2.0 * c / norm) as f32;
        gemm(ViewMut::new(gradient, rows, cols, cols), Write::Add, factor, a, b, Threads::Pool);
    }
    Ok(c * norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, random};

    #[test]
    fn the_orthogonality_term_agrees_with_finite_differences() {
        for (shape, vectors) in [([3, 7], Vectors::Rows), ([7, 3], Vectors::Columns)] {
            let matrix = random(1, &shape, 0.7);
            let mut gradient = vec![0.0; 21];
            add_orthogonality(&matrix, vectors, 0.5, &mut gradient).unwrap();
            let gradient = tensor(gradient, &shape[..]).unwrap();
            check_gradient(&matrix, &gradient, 1e-3, |changed| {
                add_orthogonality(changed, vectors, 0.5, &mut [0.0; 21]).unwrap()
            });
        }
    }

    #[test]
    fn orthogonal_vectors_cost_nothing() {
        let eye = tensor(vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0], (2, 3)).unwrap();
        let mut gradient = vec![0.0; 6];
        assert_eq!(add_orthogonality(&eye, Vectors::Rows, 1.0, &mut gradient).unwrap(), 0.0);
        assert_eq!(gradient, [0.0; 6]);
    }

    #[test]
    fn dropping_dead_ranks_changes_nothing() {
        let e = tensor(vec![0.5, 0.0, -0.25], (3, 1)).unwrap();
        let whole = AdaLora { a: random(1, &[3, 5], 1.0), b: random(2, &[4, 3], 1.0), e, scale: 2.0 };
        let pruned = whole.pruned().unwrap();
        assert_eq!((pruned.a.dims(), pruned.b.dims(), pruned.e.dims()), (&[2, 5][..], &[4, 2][..], &[2, 1][..]));
        let merged = |adapter: &AdaLora| {
            let mut weight = vec![1.0; 20];
            adapter.merge_into(&mut weight).unwrap();
            weight
        };
        assert_eq!(merged(&whole), merged(&pruned));
    }
}
