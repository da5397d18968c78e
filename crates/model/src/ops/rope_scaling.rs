//! Frequencies of the rotary embedding, with the scalings for longer contexts (`transformers` `modeling_rope_utils.py`).
//!
//! `f_i = base^(−2i/d)` for `i < d/2`, changed by the scaling:
//! - linear: `f_i / factor`;
//! - llama3: wavelength `2π/f_i` above `original/low` → `f_i / factor`; below `original/high` → unchanged; smooth between;
//! - yarn (Peng et al. 2023): `f_i (1 − r_i) + f_i/factor · r_i` with a ramp `r_i` from 0 to 1 between the dimensions that turn
//!   `beta_fast` and `beta_slow` times within the original context;
//! - longrope (Ding et al. 2024): `f_i / short_factor_i`.
//!
//! The last two multiply cosines and sines by a constant.

use std::f64::consts::PI;

use crate::config::{RopeScaling, Rotary};

/// `f_i` of every pair.
pub(crate) fn frequencies(head_dim: usize, rotary: &Rotary) -> Vec<f32> {
    let d = head_dim as f64;
    let frequency = |i: usize| 1.0 / rotary.theta.powf(2.0 * i as f64 / d);
    let scaled = |i: usize| match &rotary.scaling {
        RopeScaling::Default => frequency(i),
        RopeScaling::Linear { factor } => frequency(i) / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let (frequency, original) = (frequency(i), *original_max_position_embeddings as f64);
            let wavelength = 2.0 * PI / frequency;
            if wavelength > original / low_freq_factor {
                frequency / factor
            } else if wavelength < original / high_freq_factor {
                frequency
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_position_embeddings, .. } => {
            let original = *original_max_position_embeddings as f64;
            let dimension = |turns: f64| d * (original / (turns * 2.0 * PI)).ln() / (2.0 * rotary.theta.ln());
            let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(d - 1.0));
            if low == high {
                high += 0.001; // the peer's own way out of a division by zero
            }
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency(i) * (1.0 - ramp) + frequency(i) / factor * ramp
        }
        RopeScaling::LongRope { short_factor, .. } => frequency(i) / short_factor.get(i).copied().unwrap_or(1.0),
    };
    (0..head_dim / 2).map(|i| scaled(i) as f32).collect()
}

/// Factor of cosines and sines.
pub(super) fn attention_factor(scaling: &RopeScaling) -> f32 {
    match scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
            *attention_factor as f32
        }
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let of = |scaling| frequencies(64, &Rotary { theta: 500_000.0, scaling });
        let plain = of(RopeScaling::Default);
        let scaled = of(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        });
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[31] / scaled[31] - 8.0).abs() < 1e-4);
        assert!(scaled.iter().zip(&plain).any(|(s, p)| s < p && *s > p / 8.0 * 1.001), "some lie between");
    }
}
