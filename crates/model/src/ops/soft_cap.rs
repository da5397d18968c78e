//! Soft cap (Bello et al. 2016, Gemma 2): scores and logits are bent below `c`, so that none can dominate.
//!
//! Forward, in place: `y = c · tanh(x / c)`. Backward, from `y` alone: `dx = dy · (1 − (y / c)²)`.

use super::{exp, vectorised};

vectorised! {
/// `x` becomes `y`.
pub fn forward(values: &mut [f32], cap: f32) {
    for value in values {
        *value = self::value(*value, cap);
    }
}
}

vectorised! {
/// `dy` becomes `dx`; `y` is what the forward pass gave.
pub fn backward(dy: &mut [f32], y: &[f32], cap: f32) {
    for (dy, y) in dy.iter_mut().zip(y) {
        *dy *= slope(*y, cap);
    }
}
}

/// `y`.
#[inline(always)]
pub(super) fn value(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

/// `dy/dx` at the capped value `y`.
#[inline(always)]
pub(super) fn slope(y: f32, cap: f32) -> f32 {
    let t = y / cap;
    1.0 - t * t
}

/// Absolute error below 2e-7, in a form that the compiler vectorises: a polynomial near 0 (Cephes `tanhf`), where the form with
/// the exponential cancels.
#[inline(always)]
#[allow(clippy::excessive_precision)] // the coefficients as published
fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_727_45e-3;
    let p = p * z + 2.063_908_879_54e-2;
    let p = p * z - 5.373_971_555_31e-2;
    let p = p * z + 1.333_144_220_36e-1;
    let p = p * z - 3.333_328_194_22e-1;
    let near = p * z * x + x;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, dot, random};
    use crate::ops::{host, tensor};
    use candle_core::Tensor;

    #[test]
    fn tanh_is_close_to_the_library() {
        for i in -100_000..100_000 {
            let x = i as f32 * 2e-4;
            let error = (f64::from(tanh(x)) - f64::from(x).tanh()).abs();
            assert!(error < 2e-7, "tanh({x}) off by {error}");
        }
        assert_eq!((tanh(1e9), tanh(-1e9)), (1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan(), "a failed computation stays visible");
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        let capped = |x: &Tensor| {
            let mut values = host(x).unwrap().to_vec();
            forward(&mut values, 1.5);
            tensor(values, x.dims()).unwrap()
        };
        let (x, dy) = (random(1, &[7, 33], 4.0), random(2, &[7, 33], 1.0));
        let mut dx = host(&dy).unwrap().to_vec();
        backward(&mut dx, &host(&capped(&x)).unwrap(), 1.5);
        let dx = tensor(dx, (7, 33)).unwrap();
        check_gradient(&x, &dx, 1e-3, |x| dot(&capped(x), &dy));
    }
}
