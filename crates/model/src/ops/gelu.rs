//! GELU by tanh (Hendrycks and Gimpel 2016), `gelu_new` and `gelu_pytorch_tanh` of Hugging Face: GPT-2's activation.
//!
//! Forward: `y = ½ x (1 + tanh u)` with `u = √(2/π) (x + 0.044715 x³)`. Since `½ (1 + tanh u) = σ(2u)`, that is `y = x σ(2u)`:
//! one exponential, and no cancellation where `tanh u` is near −1.
//! Backward: `dx = dy · (s + 2 x s (1 − s) u')` with `s = σ(2u)`, `u' = √(2/π) (1 + 3 · 0.044715 x²)`.
//! Shapes: all `[n, f]`. Nothing is kept beyond the input.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{ROWS_PER_TASK, exp, host, tensor, vectorised};
use crate::error::Result;

/// `√(2/π)`.
const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// `y` of shape `[n, f]`.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let (n, f) = x.dims2()?;
    let values = host(x)?;
    let mut y = vec![0.0; n * f];
    y.par_chunks_mut(ROWS_PER_TASK * f).zip(values.par_chunks(ROWS_PER_TASK * f)).for_each(|(y, x)| forward_row(y, x));
    tensor(y, (n, f))
}

/// Gradient with respect to `x`, `[n, f]`.
pub fn backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (n, f) = x.dims2()?;
    let (dys, values) = (host(dy)?, host(x)?);
    let mut dx = vec![0.0; n * f];
    dx.par_chunks_mut(ROWS_PER_TASK * f)
        .zip(dys.par_chunks(ROWS_PER_TASK * f))
        .zip(values.par_chunks(ROWS_PER_TASK * f))
        .for_each(|((dx, dy), x)| backward_row(dx, dy, x));
    tensor(dx, (n, f))
}

/// `gelu(x)`.
#[inline(always)]
pub(super) fn value(x: f32) -> f32 {
    let u = ROOT * (x + CUBE * x * x * x);
    x / (1.0 + exp(-2.0 * u))
}

/// `gelu'(x)`.
#[inline(always)]
pub(super) fn slope(x: f32) -> f32 {
    let u = ROOT * (x + CUBE * x * x * x);
    let s = 1.0 / (1.0 + exp(-2.0 * u));
    s + 2.0 * x * s * (1.0 - s) * ROOT * (1.0 + 3.0 * CUBE * x * x)
}

vectorised! {
fn forward_row(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = value(*x);
    }
}
}

vectorised! {
fn backward_row(dx: &mut [f32], dy: &[f32], x: &[f32]) {
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        *dx = dy * slope(*x);
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, dot, random};

    #[test]
    fn equals_the_formula() {
        for i in -600..600 {
            let x = f64::from(i) * 0.02;
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let wanted = 0.5 * x * (1.0 + u.tanh());
            let got = f64::from(value(x as f32));
            assert!((got - wanted).abs() < 1e-6 * (1.0 + wanted.abs()), "gelu({x}) = {got}, wanted {wanted}");
        }
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        let (x, dy) = (random(1, &[19, 13], 3.0), random(2, &[19, 13], 1.0));
        let dx = backward(&dy, &x).unwrap();
        check_gradient(&x, &dx, 1e-3, |x| dot(&forward(x).unwrap(), &dy));
    }

    #[test]
    fn extreme_values_stay_finite() {
        let x = tensor(vec![-1e4, 1e4], (1, 2)).unwrap();
        let dx = backward(&tensor(vec![1.0; 2], (1, 2)).unwrap(), &x).unwrap().to_vec2::<f32>().unwrap();
        assert!(dx[0][0].abs() < 1e-20 && dx[0][1] == 1.0, "{dx:?}");
        let y = forward(&x).unwrap().to_vec2::<f32>().unwrap();
        assert!(y[0][0].abs() < 1e-20 && y[0][1] == 1e4, "{y:?}");
    }
}
