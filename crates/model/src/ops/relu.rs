//! Rectified linear unit: the activation of the first T5.
//!
//! Forward: `y = max(x, 0)`. Backward: `dx = dy` where `x > 0`, otherwise 0. Shapes: all `[n, f]`. Nothing is kept beyond the
//! input.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{ROWS_PER_TASK, host, tensor};
use crate::error::Result;

/// `y` of shape `[n, f]`.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let (n, f) = x.dims2()?;
    let mut y = host(x)?.to_vec();
    y.par_chunks_mut(ROWS_PER_TASK * f).for_each(|y| y.iter_mut().for_each(|y| *y = y.max(0.0)));
    tensor(y, (n, f))
}

/// Gradient with respect to `x`, `[n, f]`.
pub fn backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (n, f) = x.dims2()?;
    let (mut dx, xs) = (host(dy)?.to_vec(), host(x)?);
    dx.par_chunks_mut(ROWS_PER_TASK * f).zip(xs.par_chunks(ROWS_PER_TASK * f)).for_each(|(dx, x)| {
        dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = if *x > 0.0 { *dx } else { 0.0 });
    });
    tensor(dx, (n, f))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;

    #[test]
    fn passes_what_is_positive_and_its_gradient() {
        let x = tensor(vec![-1.0, 0.0, 2.0, -0.5], (2, 2)).unwrap();
        assert_eq!(forward(&x).unwrap().to_vec2::<f32>().unwrap(), [[0.0, 0.0], [2.0, 0.0]]);
        let dy = random(1, &[2, 2], 1.0);
        let (dx, dy) = (backward(&dy, &x).unwrap().to_vec2::<f32>().unwrap(), dy.to_vec2::<f32>().unwrap());
        assert_eq!(dx, [[0.0, 0.0], [dy[1][0], 0.0]]);
    }
}
