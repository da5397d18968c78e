//! GeGLU (Shazeer 2020) with GELU by tanh: the gate of Gemma's feed-forward layer.
//!
//! Forward: `y = gelu(g) · u`; input `[n, 2f]` holds `g` then `u` in each row, `y` is `[n, f]`.
//! Backward: `dg = dy · u · gelu'(g)`, `du = dy · gelu(g)`, again side by side as `[n, 2f]`. `gelu` and `gelu'`: [`super::gelu`].
//! Nothing is kept beyond the input.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{ROWS_PER_TASK, gelu, host, tensor, vectorised};
use crate::error::Result;

/// `y` of shape `[n, f]`.
pub fn forward(gate_up: &Tensor) -> Result<Tensor> {
    let (n, width) = gate_up.dims2()?;
    let f = width / 2;
    let values = host(gate_up)?;
    let mut y = vec![0.0; n * f];
    y.par_chunks_mut(ROWS_PER_TASK * f).zip(values.par_chunks(ROWS_PER_TASK * width)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(f).zip(x.chunks_exact(width)) {
            let (gate, up) = x.split_at(f);
            forward_row(y, gate, up);
        }
    });
    tensor(y, (n, f))
}

/// Gradient with respect to `gate_up`, `[n, 2f]`.
pub fn backward(dy: &Tensor, gate_up: &Tensor) -> Result<Tensor> {
    let (n, width) = gate_up.dims2()?;
    let f = width / 2;
    let (dys, values) = (host(dy)?, host(gate_up)?);
    let mut dx = vec![0.0; n * width];
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
    tensor(dx, (n, width))
}

vectorised! {
fn forward_row(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = gelu::value(*g) * u;
    }
}
}

vectorised! {
fn backward_row(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], dy: &[f32]) {
    for ((((dg, du), g), u), dy) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(dy) {
        *dg = dy * u * gelu::slope(*g);
        *du = dy * gelu::value(*g);
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
}
