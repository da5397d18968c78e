//! Layer normalisation (Ba et al. 2016), as GPT-2 uses it.
//!
//! Forward, per row of `h` values: `μ = mean(x)`, `r = 1 / sqrt(mean((x − μ)²) + eps)`, `y = w · (x − μ) r + b`.
//! Backward, `w` and `b` frozen, with `x̂ = (x − μ) r` and `g = w · dy`: `dx = r · (g − mean(g) − x̂ · mean(g · x̂))`.
//! Shapes: `x`, `y`, `dx` are `[n, h]`, `w` and `b` are `[h]`; the statistics `[n, 2]` hold `μ` and `r` of each row.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{ROWS_PER_TASK, host, tensor, vectorised};
use crate::error::Result;

/// `y` and the statistics.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<(Tensor, Vec<f32>)> {
    let (n, h) = x.dims2()?;
    let (xs, w, b) = (host(x)?, host(weight)?, host(bias)?);
    let mut y = vec![0.0; n * h];
    let mut statistics = vec![0.0; n * 2];
    y.par_chunks_mut(ROWS_PER_TASK * h)
        .zip(statistics.par_chunks_mut(ROWS_PER_TASK * 2))
        .zip(xs.par_chunks(ROWS_PER_TASK * h))
        .for_each(|((y, statistics), x)| {
            for ((y, s), x) in y.chunks_exact_mut(h).zip(statistics.chunks_exact_mut(2)).zip(x.chunks_exact(h)) {
                statistics_of_row(s, x, eps);
                normalise_row(y, x, &w, &b, s);
            }
        });
    Ok((tensor(y, (n, h))?, statistics))
}

/// `y` again from what the forward pass kept.
pub fn recompute(x: &Tensor, weight: &Tensor, bias: &Tensor, statistics: &[f32]) -> Result<Tensor> {
    let (n, h) = x.dims2()?;
    let (xs, w, b) = (host(x)?, host(weight)?, host(bias)?);
    let mut y = vec![0.0; n * h];
    y.par_chunks_mut(ROWS_PER_TASK * h)
        .zip(xs.par_chunks(ROWS_PER_TASK * h))
        .zip(statistics.par_chunks(ROWS_PER_TASK * 2))
        .for_each(|((y, x), statistics)| {
            for ((y, x), s) in y.chunks_exact_mut(h).zip(x.chunks_exact(h)).zip(statistics.chunks_exact(2)) {
                normalise_row(y, x, &w, &b, s);
            }
        });
    tensor(y, (n, h))
}

/// `residual + dx`: the gradient that flows past the normalisation is added in the same pass.
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    statistics: &[f32],
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
        .zip(statistics.par_chunks(ROWS_PER_TASK * 2))
        .for_each(|(((dx, dy), x), statistics)| {
            let rows = dx.chunks_exact_mut(h).zip(dy.chunks_exact(h)).zip(x.chunks_exact(h));
            for (((dx, dy), x), s) in rows.zip(statistics.chunks_exact(2)) {
                backward_row(dx, dy, x, &w, s);
            }
        });
    tensor(dx, (n, h))
}

vectorised! {
fn statistics_of_row(statistics: &mut [f32], x: &[f32], eps: f32) {
    let mean = sum(x, |x| x) / x.len() as f32;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / x.len() as f32;
    statistics[0] = mean;
    statistics[1] = 1.0 / (variance + eps).sqrt();
}
}

vectorised! {
fn normalise_row(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], statistics: &[f32]) {
    let (mean, r) = (statistics[0], statistics[1]);
    for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
        *y = w * ((x - mean) * r) + b;
    }
}
}

vectorised! {
fn backward_row(dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], statistics: &[f32]) {
    let (mean, r, h) = (statistics[0], statistics[1], x.len() as f32);
    let (mut sums, mut pulls) = ([0.0f32; 16], [0.0f32; 16]);
    for ((dy, x), w) in dy.chunks(16).zip(x.chunks(16)).zip(w.chunks(16)) {
        for (i, ((dy, x), w)) in dy.iter().zip(x).zip(w).enumerate() {
            sums[i] += w * dy;
            pulls[i] += w * dy * ((x - mean) * r);
        }
    }
    let (mean_g, pull) = (sums.iter().sum::<f32>() / h, pulls.iter().sum::<f32>() / h);
    for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
        *dx += r * (w * dy - mean_g - (x - mean) * r * pull);
    }
}
}

/// Sixteen partial sums: the order is fixed, and the compiler keeps them in vector registers.
#[inline(always)]
fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; 16];
    for x in x.chunks(16) {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += of(*x);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, dot, random};

    #[test]
    fn backward_agrees_with_finite_differences() {
        let (x, dy) = (random(1, &[19, 36], 1.0), random(4, &[19, 36], 1.0));
        let (w, b) = (random(2, &[36], 1.0), random(3, &[36], 1.0));
        let (y, s) = forward(&x, &w, &b, 1e-5).unwrap();
        assert_eq!(recompute(&x, &w, &b, &s).unwrap().to_vec2::<f32>().unwrap(), y.to_vec2::<f32>().unwrap());
        let dx = backward(&dy, &x, &w, &s, None).unwrap();
        check_gradient(&x, &dx, 2e-3, |x| dot(&forward(x, &w, &b, 1e-5).unwrap().0, &dy));
        let residual = random(5, &[19, 36], 1.0);
        let with = backward(&dy, &x, &w, &s, Some(&residual)).unwrap();
        let without = (dx + residual).unwrap();
        for (a, b) in host(&with).unwrap().iter().zip(host(&without).unwrap().iter()) {
            assert!((a - b).abs() < 1e-5);
        }
    }

    #[test]
    fn rows_have_the_mean_and_spread_that_the_weights_say() {
        let x = (random(1, &[3, 50], 4.0) + 100.0).unwrap();
        let (w, b) = (tensor(vec![2.0; 50], 50).unwrap(), tensor(vec![-1.0; 50], 50).unwrap());
        for row in forward(&x, &w, &b, 0.0).unwrap().0.to_vec2::<f32>().unwrap() {
            let mean = row.iter().sum::<f32>() / 50.0;
            let variance = row.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / 50.0;
            assert!((mean + 1.0).abs() < 1e-4 && (variance - 4.0).abs() < 1e-3, "{mean} {variance}");
        }
    }
}
