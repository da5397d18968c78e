//! Root-mean-square normalisation (Zhang and Sennrich 2019), as Llama uses it.
//!
//! Forward, per row of `h` values: `r = 1 / sqrt(mean(x²) + eps)`, `y = w · (x · r)`.
//! Backward, `w` frozen: `g = w · dy`, `dx = r · (g − x · r² · mean(g · x))`.
//! Shapes: `x`, `y`, `dx` are `[n, h]`, `w` is `[h]`, `r` is `[n]`. The normalised values are not kept: from `x` and `r` they
//! cost one multiplication.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{ROWS_PER_TASK, host, tensor, vectorised};
use crate::error::Result;

/// `y` and `r`.
pub fn forward(x: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Vec<f32>)> {
    let (n, h) = x.dims2()?;
    let (xs, w) = (host(x)?, host(weight)?);
    let mut y = vec![0.0; n * h];
    let mut inverse_rms = vec![0.0; n];
    y.par_chunks_mut(ROWS_PER_TASK * h)
        .zip(inverse_rms.par_chunks_mut(ROWS_PER_TASK))
        .zip(xs.par_chunks(ROWS_PER_TASK * h))
        .for_each(|((y, inverse_rms), x)| {
            for ((y, r), x) in y.chunks_exact_mut(h).zip(inverse_rms).zip(x.chunks_exact(h)) {
                *r = 1.0 / (dot(x, x) / h as f32 + eps).sqrt();
                scale_row(y, x, &w, *r);
            }
        });
    Ok((tensor(y, (n, h))?, inverse_rms))
}

/// `y` again from what the forward pass kept.
pub fn recompute(x: &Tensor, weight: &Tensor, inverse_rms: &[f32]) -> Result<Tensor> {
    let (n, h) = x.dims2()?;
    let (xs, w) = (host(x)?, host(weight)?);
    let mut y = vec![0.0; n * h];
    y.par_chunks_mut(ROWS_PER_TASK * h)
        .zip(xs.par_chunks(ROWS_PER_TASK * h))
        .zip(inverse_rms.par_chunks(ROWS_PER_TASK))
        .for_each(|((y, x), r)| {
            for ((y, x), r) in y.chunks_exact_mut(h).zip(x.chunks_exact(h)).zip(r) {
                scale_row(y, x, &w, *r);
            }
        });
    tensor(y, (n, h))
}

/// `residual + dx`: the gradient that flows past the normalisation is added in the same pass.
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    inverse_rms: &[f32],
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (n, h) = x.dims2()?;
    let (dys, xs, w) = (host(dy)?, host(x)?, host(weight)?);
    let mut dx = match residual {
        Some(residual) => host(residual)?.to_vec(),
        None => vec![0.0; n * h],
    };
    dx.par_chunks_mut(ROWS_PER_TASK * h)
        .zip(dys.par_chunks(ROWS_PER_TASK * h))
        .zip(xs.par_chunks(ROWS_PER_TASK * h))
        .zip(inverse_rms.par_chunks(ROWS_PER_TASK))
        .for_each(|(((dx, dy), x), r)| {
            for (((dx, dy), x), r) in dx.chunks_exact_mut(h).zip(dy.chunks_exact(h)).zip(x.chunks_exact(h)).zip(r) {
                backward_row(dx, dy, x, &w, *r);
            }
        });
    tensor(dx, (n, h))
}

vectorised! {
pub(super) fn scale_row(y: &mut [f32], x: &[f32], w: &[f32], r: f32) {
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = w * (x * r);
    }
}
}

vectorised! {
/// Adds to `dx`.
pub(super) fn backward_row(dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], r: f32) {
    let mut sums = [0.0f32; 16];
    let (dys, xs, ws) = (dy.chunks_exact(16), x.chunks_exact(16), w.chunks_exact(16));
    let tail = dys.remainder().iter().zip(xs.remainder()).zip(ws.remainder());
    let rest: f32 = tail.map(|((dy, x), w)| dy * x * w).sum();
    for ((dy, x), w) in dys.zip(xs).zip(ws) {
        for i in 0..16 {
            sums[i] += dy[i] * x[i] * w[i];
        }
    }
    let pull = r * r * ((sums.iter().sum::<f32>() + rest) / x.len() as f32);
    for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
        *dx += r * (w * dy - x * pull);
    }
}
}

vectorised! {
/// Sixteen partial sums: the order is fixed, and the compiler keeps them in vector registers.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a16.zip(b16) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, dot as inner, random};

    #[test]
    fn backward_agrees_with_finite_differences() {
        let (x, w, dy) = (random(1, &[5, 36], 1.0), random(2, &[36], 1.0), random(3, &[5, 36], 1.0));
        let (y, r) = forward(&x, &w, 1e-5).unwrap();
        assert_eq!(recompute(&x, &w, &r).unwrap().to_vec2::<f32>().unwrap(), y.to_vec2::<f32>().unwrap());
        let dx = backward(&dy, &x, &w, &r, None).unwrap();
        check_gradient(&x, &dx, 1e-3, |x| inner(&forward(x, &w, 1e-5).unwrap().0, &dy));
    }

    #[test]
    fn the_residual_gradient_is_added() {
        let (x, w, dy) = (random(1, &[3, 8], 1.0), random(2, &[8], 1.0), random(3, &[3, 8], 1.0));
        let (_, r) = forward(&x, &w, 1e-5).unwrap();
        let residual = random(4, &[3, 8], 1.0);
        let with = backward(&dy, &x, &w, &r, Some(&residual)).unwrap();
        let without = (backward(&dy, &x, &w, &r, None).unwrap() + residual).unwrap();
        for (a, b) in host(&with).unwrap().iter().zip(host(&without).unwrap().iter()) {
            assert!((a - b).abs() < 1e-6);
        }
    }
}
