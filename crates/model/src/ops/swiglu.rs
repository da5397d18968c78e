//! SwiGLU (Shazeer 2020): the gate of Llama's feed-forward layer.
//!
//! Forward: `y = silu(g) · u` with `silu(g) = g · σ(g)`; input `[n, 2f]` holds `g` then `u` in each row, `y` is `[n, f]`.
//! Backward: `dg = dy · u · σ(g) · (1 + g · (1 − σ(g)))`, `du = dy · silu(g)`, again side by side as `[n, 2f]`.
//! Nothing is kept beyond the input: recomputing `y` costs less than storing it.

use std::mem::MaybeUninit;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{ROWS_PER_TASK, check_shape, exp, filled, host, tensor, vectorised};
use crate::error::Result;

/// `y` of shape `[n, f]`.
pub fn forward(gate_up: &Tensor) -> Result<Tensor> {
    let (n, width) = gate_up.dims2()?;
    let f = width / 2;
    check_shape(gate_up, [n, 2 * f])?;
    let values = host(gate_up)?;
    let fill = |y: &mut [MaybeUninit<f32>]| {
        y.par_chunks_mut(ROWS_PER_TASK * f).zip(values.par_chunks(ROWS_PER_TASK * width)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(f).zip(x.chunks_exact(width)) {
                let (gate, up) = x.split_at(f);
                forward_row(y, gate, up);
            }
        });
    };
    // SAFETY: `y` has as many rows as the input, and `forward_row` writes whole rows.
    tensor(unsafe { filled(n * f, fill) }, (n, f))
}

/// Gradient with respect to `gate_up`, `[n, 2f]`.
pub fn backward(dy: &Tensor, gate_up: &Tensor) -> Result<Tensor> {
    let (n, width) = gate_up.dims2()?;
    let f = width / 2;
    let (dys, values) = (host(dy)?, host(gate_up)?);
    check_shape(dy, [n, f])?;
    check_shape(gate_up, [n, 2 * f])?;
    let fill = |dx: &mut [MaybeUninit<f32>]| {
        dx.par_chunks_mut(ROWS_PER_TASK * width)
            .zip(values.par_chunks(ROWS_PER_TASK * width))
            .zip(dys.par_chunks(ROWS_PER_TASK * f))
            .for_each(|((dx, x), dy)| {
                for ((dx, x), dy) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(f)) {
                    let (d_gate, d_up) = dx.split_at_mut(f);
                    let (gate, up) = x.split_at(f);
                    backward_row(d_gate, d_up, gate, up, dy);
                }
            });
    };
    // SAFETY: `dy` has as many rows as the input, and `backward_row` writes whole rows.
    tensor(unsafe { filled(n * width, fill) }, (n, width))
}

vectorised! {
fn forward_row(y: &mut [MaybeUninit<f32>], gate: &[f32], up: &[f32]) {
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        y.write(g / (1.0 + exp(-g)) * u);
    }
}
}

vectorised! {
fn backward_row(d_gate: &mut [MaybeUninit<f32>], d_up: &mut [MaybeUninit<f32>], gate: &[f32], up: &[f32], dy: &[f32]) {
    for ((((dg, du), g), u), dy) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(dy) {
        let sigmoid = 1.0 / (1.0 + exp(-g));
        dg.write(dy * u * sigmoid * (1.0 + g * (1.0 - sigmoid)));
        du.write(dy * g * sigmoid);
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, dot, random};

    #[test]
    fn backward_agrees_with_finite_differences() {
        let (x, dy) = (random(1, &[19, 26], 3.0), random(2, &[19, 13], 1.0));
        let dx = backward(&dy, &x).unwrap();
        check_gradient(&x, &dx, 1e-3, |x| dot(&forward(x).unwrap(), &dy));
    }

    #[test]
    fn extreme_gates_stay_finite() {
        let x = tensor(vec![-1e4, 1e4, 2.0, 3.0], (1, 4)).unwrap();
        let y = forward(&x).unwrap().to_vec2::<f32>().unwrap();
        assert!(y[0][0].abs() < 1e-30 && y[0][1] == 3e4, "{y:?}");
    }
}
