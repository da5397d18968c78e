//! LoRA (Hu et al. 2021): `y = x Wᵀ + s · (x Aᵀ) Bᵀ` beside a frozen `W`, `s = alpha / rank` (rsLoRA, Kalajdzievski 2023:
//! `alpha / √rank`).
//!
//! Backward, with `u = x Aᵀ` kept: `du = s · dy B`, `dB = s · dyᵀ u`, `dA = duᵀ x`, `dx += du A`.
//! Shapes: `A` `[rank, in]`, `B` `[out, rank]`, `u` `[n, rank]`.
//! Start as in `peft`: `A` uniform in `±1/√in` (Kaiming with `a = √5`), `B` zero, so that the start equals the base model.

use candle_core::Tensor;

use super::gradient::{TensorGradient, outer};
use super::start::{Make, Start};
use crate::error::Result;
use crate::ops::attention::Segments;
use crate::ops::gemm::{self, Threads, View, ViewMut, Write, gemm};
use crate::ops::{host, tensor};

/// The two matrices of one module.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `A`, `[rank, in]`.
    pub a: Tensor,
    /// `B`, `[out, rank]`.
    pub b: Tensor,
    /// `s`.
    pub scale: f32,
}

impl Lora {
    pub(crate) fn build(rank: usize, scale: f32, [out, width]: [usize; 2], make: Make<'_>) -> Result<Self> {
        let a = make("lora_A.weight", &[rank, width], Start::Uniform(1.0 / (width as f32).sqrt()))?;
        let b = make("lora_B.weight", &[out, rank], Start::Constant(0.0))?;
        Ok(Self { a, b, scale })
    }

    pub(crate) fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("lora_A.weight", &self.a), ("lora_B.weight", &self.b)]
    }

    /// Adds `s · u Bᵀ` to the columns that `y` starts with (rows `row_stride` apart); returns `u`.
    pub(crate) fn forward(&self, x: &Tensor, y: &mut [f32], row_stride: usize) -> Result<Tensor> {
        let u = down(x, &self.a)?;
        up(&u, &self.b, self.scale, y, row_stride)?;
        Ok(u)
    }

    /// Gradients of `A` and `B`; adds `du A` to `dx` where one is wanted.
    pub(crate) fn backward(
        &self,
        dy: View<'_>,
        x: &Tensor,
        u: &Tensor,
        dx: Option<&mut [f32]>,
        examples: Option<&Segments>,
    ) -> Result<Vec<TensorGradient>> {
        let (n, rank) = u.dims2()?;
        let us = host(u)?;
        let du = up_backward(dy, &self.b, self.scale)?;
        let b = outer(self.scale, dy, View::new(&us, n, rank, rank), examples)?;
        let a = down_backward(&du, x, &self.a, dx, examples)?;
        Ok(vec![a, b])
    }

    /// `W + s · B A`. Sums in f64, so that their order does not matter at the precision of the result.
    pub(crate) fn merge_into(&self, weight: &mut [f32]) -> Result<()> {
        add_product(weight, &self.a, &self.b, |_| f64::from(self.scale))
    }
}

/// `u = x Aᵀ`.
pub(super) fn down(x: &Tensor, a: &Tensor) -> Result<Tensor> {
    let ((n, width), rank) = (x.dims2()?, a.dim(0)?);
    let (xs, a) = (host(x)?, host(a)?);
    let (x, a) = (View::new(&xs, n, width, width), View::new(&a, rank, width, width).t());
    tensor(gemm::product(1.0, x, a, Threads::Pool), (n, rank))
}

/// `y += s · u Bᵀ`.
pub(super) fn up(u: &Tensor, b: &Tensor, scale: f32, y: &mut [f32], row_stride: usize) -> Result<()> {
    let ((n, rank), out) = (u.dims2()?, b.dim(0)?);
    let (us, b) = (host(u)?, host(b)?);
    let (u, b) = (View::new(&us, n, rank, rank), View::new(&b, out, rank, rank).t());
    gemm(ViewMut::new(y, n, out, row_stride), Write::Add, scale, u, b, Threads::Pool);
    Ok(())
}

/// `du = s · dy B`, `[n, rank]`.
pub(super) fn up_backward(dy: View<'_>, b: &Tensor, scale: f32) -> Result<Vec<f32>> {
    let (out, rank) = b.dims2()?;
    let b = host(b)?;
    Ok(gemm::product(scale, dy, View::new(&b, out, rank, rank), Threads::Pool))
}

/// `dA = duᵀ x`; adds `du A` to `dx`.
pub(super) fn down_backward(
    du: &[f32],
    x: &Tensor,
    a: &Tensor,
    dx: Option<&mut [f32]>,
    examples: Option<&Segments>,
) -> Result<TensorGradient> {
    let ((n, width), rank) = (x.dims2()?, a.dim(0)?);
    let (xs, a) = (host(x)?, host(a)?);
    let du = View::new(du, n, rank, rank);
    let gradient = outer(1.0, du, View::new(&xs, n, width, width), examples)?;
    if let Some(dx) = dx {
        let a = View::new(&a, rank, width, width);
        gemm(ViewMut::new(dx, n, width, width), Write::Add, 1.0, du, a, Threads::Pool);
    }
    Ok(gradient)
}

/// `W + B diag(scale) A`; `scale` of each rank.
pub(super) fn add_product(weight: &mut [f32], a: &Tensor, b: &Tensor, scale: impl Fn(usize) -> f64) -> Result<()> {
    let (rank, width) = a.dims2()?;
    if rank == 0 {
        return Ok(()); // AdaLoRA may leave a module nothing
    }
    let (a, b) = (host(a)?, host(b)?);
    let mut sums = vec![0.0f64; width];
    for (row, factors) in weight.chunks_exact_mut(width).zip(b.chunks_exact(rank)) {
        sums.fill(0.0);
        for (k, (factor, a)) in factors.iter().zip(a.chunks_exact(width)).enumerate() {
            let factor = f64::from(*factor) * scale(k);
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * f64::from(*a));
        }
        row.iter_mut().zip(&sums).for_each(|(w, sum)| *w = (f64::from(*w) + sum) as f32);
    }
    Ok(())
}
