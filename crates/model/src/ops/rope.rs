//! Rotary position embedding (Su et al. 2021) in the half-split form of Hugging Face Llama, with its scalings.
//!
//! For pair `i < d/2` of a head at position `p`: `θ = p · f_i`, `(a, b) = (x_i, x_{i+d/2})` becomes
//! `(a·cos θ − b·sin θ, b·cos θ + a·sin θ)`. `f_i = base^(−2i/d)`, changed by the scaling:
//! - linear: `f_i / factor`;
//! - llama3: wavelength `2π/f_i` above `original/low` → `f_i / factor`; below `original/high` → unchanged; smooth between
//!   (`transformers` `modeling_rope_utils.py`, `_compute_llama3_parameters`).
//!
//! The backward pass is the rotation by `−θ`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{ROWS_PER_TASK, update, vectorised};
use crate::config::{RopeScaling, Rotary};
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
        let frequencies = frequencies(head_dim, rotary.theta, &rotary.scaling);
        // the product in f32, as the peer computes it: at position 100,000 a product in f64 differs visibly
        let angles = (0..num_positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        Self { cos, sin, half }
    }
}

fn frequencies(head_dim: usize, theta: f64, scaling: &RopeScaling) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let frequency = 1.0 / theta.powf(2.0 * i as f64 / head_dim as f64);
            let scaled = match *scaling {
                RopeScaling::Default => frequency,
                RopeScaling::Linear { factor } => frequency / factor,
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                    let original = original_max_position_embeddings as f64;
                    let wavelength = 2.0 * std::f64::consts::PI / frequency;
                    if wavelength > original / low_freq_factor {
                        frequency / factor
                    } else if wavelength < original / high_freq_factor {
                        frequency
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                }
            };
            scaled as f32
        })
        .collect()
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

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let plain = frequencies(64, 500_000.0, &RopeScaling::Default);
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let scaled = frequencies(64, 500_000.0, &scaling);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[31] / scaled[31] - 8.0).abs() < 1e-4);
        assert!(scaled.iter().zip(&plain).any(|(s, p)| s < p && *s > p / 8.0 * 1.001), "some lie between");
    }
}
