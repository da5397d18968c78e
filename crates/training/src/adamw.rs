//! AdamW (Loshchilov and Hutter 2019) with moments that can be stored.
//!
//! `p ← p · (1 − lr · λ)`, `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`,
//! `p ← p − (lr / (1 − β₁ᵗ)) · m / (√v / √(1 − β₂ᵗ) + ε)`, in the order and precision of `torch.optim.AdamW` in f32.

use crate::config::TrainingConfig;
use crate::error::{Result, TrainingError};

/// The optimizer's state.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// First moment of each tensor.
    pub first: Vec<Vec<f32>>,
    /// Second moment of each tensor.
    pub second: Vec<Vec<f32>>,
    /// Updates made.
    pub num_updates: u64,
}

/// The numbers of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    keep: f32,
    step_size: f32,
    root_correction2: f32,
}

impl AdamW {
    /// Zero moments for tensors of these lengths.
    #[must_use]
    pub fn new(lengths: &[usize]) -> Self {
        let zeros: Vec<Vec<f32>> = lengths.iter().map(|length| vec![0.0; *length]).collect();
        Self { first: zeros.clone(), second: zeros, num_updates: 0 }
    }

    /// Counts an update and fixes its numbers.
    pub fn begin(&mut self, config: &TrainingConfig, learning_rate: f64) -> Update {
        self.num_updates += 1;
        self.at(config, learning_rate)
    }

    /// The numbers of the update that has begun, for tensors with another learning rate.
    #[must_use]
    pub fn at(&self, config: &TrainingConfig, learning_rate: f64) -> Update {
        let power = |beta: f64| 1.0 - beta.powf(self.num_updates as f64);
        Update {
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            epsilon: config.epsilon as f32,
            keep: (1.0 - learning_rate * config.weight_decay) as f32,
            step_size: (learning_rate / power(config.beta1)) as f32,
            root_correction2: power(config.beta2).sqrt() as f32,
        }
    }

    /// Updates tensor `index`.
    pub fn apply(&mut self, update: Update, index: usize, values: &mut [f32], gradient: &[f32]) -> Result<()> {
        let Update { beta1, beta2, epsilon, keep, step_size, root_correction2 } = update;
        let lengths = |found: usize| TrainingError::AdapterMismatch {
            name: format!("parameter {index}"),
            reason: format!("it has {} values, moments or gradient have {found}", values.len()),
        };
        let (Some(first), Some(second)) = (self.first.get_mut(index), self.second.get_mut(index)) else {
            return Err(lengths(0));
        };
        if first.len() != values.len() || second.len() != values.len() || gradient.len() != values.len() {
            return Err(lengths(first.len().min(gradient.len())));
        }
        for (((p, g), m), v) in values.iter_mut().zip(gradient).zip(first).zip(second) {
            *p *= keep;
            // torch computes the first moment as an interpolation
            *m += (g - *m) * (1.0 - beta1);
            *v = *v * beta2 + (1.0 - beta2) * g * g;
            *p -= step_size * (*m / (v.sqrt() / root_correction2 + epsilon));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_update_moves_by_the_learning_rate_against_the_gradient() {
        let config = TrainingConfig { weight_decay: 0.1, ..TrainingConfig::default() };
        let mut optimizer = AdamW::new(&[2]);
        let mut values = [1.0, 1.0];
        let update = optimizer.begin(&config, 0.01);
        optimizer.apply(update, 0, &mut values, &[5.0, -0.5]).unwrap();
        // bias correction makes the first step the sign of the gradient; decay takes 0.01 · 0.1 of the value
        assert!((values[0] - (0.999 - 0.01)).abs() < 1e-6 && (values[1] - (0.999 + 0.01)).abs() < 1e-6, "{values:?}");
    }

    #[test]
    fn a_gradient_of_another_length_is_refused() {
        let mut optimizer = AdamW::new(&[2]);
        let update = optimizer.begin(&TrainingConfig::default(), 0.1);
        assert!(optimizer.apply(update, 0, &mut [0.0; 2], &[0.0; 3]).is_err());
        assert!(optimizer.apply(update, 1, &mut [0.0; 2], &[0.0; 2]).is_err());
    }
}
