//! Rotary position embedding (Su et al. 2021) in the half-split form of Hugging Face Llama.
//!
//! For pair `i < d/2` of a head at position `p`: `θ = p · f_i`, `(a, b) = (x_i, x_{i+d/2})` becomes
//! `(a·cos θ − b·sin θ, b·cos θ + a·sin θ)`; the frequencies `f_i` are those of [`super::rope_scaling`], and some scalings multiply
//! cosines and sines by a constant.
//!
//! The backward pass is the rotation by `−θ`, with the same constant.

use candle_core::Tensor;
use rayon::prelude::*;

use super::rope_scaling::{attention_factor, frequencies};
use super::{ROWS_PER_TASK, update, vectorised};
use crate::config::Rotary;
use crate::error::Result;

/// Which way to rotate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Forward pass.
    Forward,
    /// Gradient: the inverse rotation.
    Backward,
}

/// Cosines and sines of every position.
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Computes the table for heads of `head_dim` values: `2 · num_positions · d/2` values.
    #[must_use]
    pub fn new(rotary: &Rotary, head_dim: usize, num_positions: usize) -> Self {
        let half = head_dim / 2;
        let frequencies = frequencies(head_dim, rotary);
        let factor = attention_factor(&rotary.scaling);
        // the product in f32, as the peer computes it: at position 100,000 a product in f64 differs visibly
        let angles = (0..num_positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|angle| (angle.cos() * factor, angle.sin() * factor)).unzip();
        Self { cos, sin, half }
    }

    /// Cosines and sines, `[positions, d/2]` each, and `d/2`.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn values(&self) -> (&[f32], &[f32], usize) {
        (&self.cos, &self.sin, self.half)
    }
}

/// Rotates, in place, the first `heads` heads of every row of `x` `[n, ≥ heads·d]` (queries and keys lie first in a fused
/// projection; values behind them stay). `positions` has `n` entries below the table's size.
pub fn rotate(x: &Tensor, heads: usize, positions: &[u32], table: &RopeTable, direction: Direction) -> Result<()> {
    let (_, width) = x.dims2()?;
    let half = table.half;
    update(x, |values| {
        values.par_chunks_mut(ROWS_PER_TASK * width).zip(positions.par_chunks(ROWS_PER_TASK)).for_each(
            |(rows, positions)| {
                for (row, position) in rows.chunks_exact_mut(width).zip(positions) {
                    let from = *position as usize * half;
                    let (cos, sin) = (&table.cos[from..from + half], &table.sin[from..from + half]);
                    match direction {
                        Direction::Forward => turn(&mut row[..heads * 2 * half], cos, sin, 1.0),
                        Direction::Backward => turn(&mut row[..heads * 2 * half], cos, sin, -1.0),
                    }
                }
            },
        );
    })
}

vectorised! {
fn turn(heads: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    for head in heads.chunks_exact_mut(2 * cos.len()) {
        let (a, b) = head.split_at_mut(cos.len());
        for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            let (x, y, sin) = (*a, *b, sign * sin);
            *a = x * cos - y * sin;
            *b = y * cos + x * sin;
        }
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RopeScaling;
    use crate::ops::testing::{check_gradient, dot, random};

    fn table() -> RopeTable {
        RopeTable::new(&Rotary { theta: 10_000.0, scaling: RopeScaling::Default }, 8, 64)
    }

    fn rotated(x: &Tensor, direction: Direction) -> Tensor {
        let copy = x.copy().unwrap();
        rotate(&copy, 2, &[0, 7, 63], &table(), direction).unwrap();
        copy
    }

    #[test]
    fn backward_agrees_with_finite_differences_and_values_stay() {
        let (x, dy) = (random(1, &[3, 24], 1.0), random(2, &[3, 24], 1.0));
        let dx = rotated(&dy, Direction::Backward);
        check_gradient(&x, &dx, 1e-3, |x| dot(&rotated(x, Direction::Forward), &dy));
        let y = rotated(&x, Direction::Forward).to_vec2::<f32>().unwrap();
        assert_eq!(y[1][16..], x.to_vec2::<f32>().unwrap()[1][16..]);
        assert_eq!(y[0], x.to_vec2::<f32>().unwrap()[0], "position 0 is not rotated");
    }
}
