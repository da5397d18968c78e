//! AdamW (Loshchilov and Hutter 2019) with moments that can be stored, in 32 or 8 bits.
//!
//! `p ← p · (1 − lr · λ)`, `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`,
//! `p ← p − (lr / (1 − β₁ᵗ)) · m / (√v / √(1 − β₂ᵗ) + ε)`, in the order and precision of `torch.optim.AdamW` in f32.
//!
//! In 8 bits the moments are kept block-wise quantised between updates (see [`crate::blockwise`]) and every update is the one
//! above: a block is read, updated in f32 together with its parameters, and written back, as `bitsandbytes.optim.AdamW8bit`
//! does. 2 bytes for each trained value instead of 8.

use serde::{Deserialize, Serialize};
use tunesmith_model::vectorised;

use crate::blockwise::{BLOCK, Blockwise, SIGNED, UNSIGNED};
use crate::config::TrainingConfig;
use crate::error::{Result, TrainingError};

/// Tensors with fewer values keep moments of 32 bits: nothing is saved there. As `min_8bit_size` of `bitsandbytes`.
const MIN_8BIT_SIZE: usize = 4096;

/// Which optimizer; both compute AdamW.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Optimizer {
    /// Moments in 32 bits.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// Moments in 8 bits.
    #[serde(rename = "adamw_8bit")]
    AdamW8bit,
}

/// The two moments of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Moments {
    /// In 32 bits.
    Full {
        /// Running mean of the gradient.
        first: Vec<f32>,
        /// Running mean of its square.
        second: Vec<f32>,
    },
    /// In 8 bits.
    Blockwise {
        /// Running mean of the gradient, signed code.
        first: Blockwise,
        /// Running mean of its square, unsigned code.
        second: Blockwise,
    },
}

impl Moments {
    fn zeros(optimizer: Optimizer, length: usize) -> Self {
        match optimizer {
            Optimizer::AdamW8bit if length >= MIN_8BIT_SIZE => {
                Self::Blockwise { first: Blockwise::zeros(length), second: Blockwise::zeros(length) }
            }
            _ => Self::Full { first: vec![0.0; length], second: vec![0.0; length] },
        }
    }

    /// Values of the tensor that these belong to.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Full { first, second } => first.len().min(second.len()),
            Self::Blockwise { first, second } => first.codes.len().min(second.codes.len()),
        }
    }

    /// Whether the tensor is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory and in a checkpoint.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Full { first, second } => 4 * (first.len() + second.len()),
            Self::Blockwise { first, second } => {
                [first, second].iter().map(|moment| moment.codes.len() + 4 * moment.absmax.len()).sum()
            }
        }
    }
}

/// The optimizer's state.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Of each tensor, in the order of the adapter's.
    pub moments: Vec<Moments>,
    /// Updates made.
    pub num_updates: u64,
}

/// The numbers of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    weight1: f32,
    beta2: f32,
    weight2: f32,
    epsilon: f32,
    keep: f32,
    step_size: f32,
    root_correction2: f32,
}

vectorised! {
fn apply(update: Update, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
    let Update { weight1, beta2, weight2, epsilon, keep, step_size, root_correction2 } = update;
    for (((p, g), m), v) in values.iter_mut().zip(gradient).zip(first).zip(second) {
        *p *= keep;
        // torch computes the first moment as an interpolation
        *m += (g - *m) * weight1;
        *v = *v * beta2 + weight2 * g * g;
        *p -= step_size * (*m / (v.sqrt() / root_correction2 + epsilon));
    }
}
}

impl AdamW {
    /// Zero moments of 32 bits for tensors of these lengths.
    #[must_use]
    pub fn new(lengths: &[usize]) -> Self {
        Self::of(Optimizer::AdamW, lengths)
    }

    /// Zero moments for tensors of these lengths.
    #[must_use]
    pub fn of(optimizer: Optimizer, lengths: &[usize]) -> Self {
        Self { moments: lengths.iter().map(|length| Moments::zeros(optimizer, *length)).collect(), num_updates: 0 }
    }

    /// Whether the moments are those of this optimizer for tensors of these lengths.
    #[must_use]
    pub fn fits(&self, optimizer: Optimizer, lengths: &[usize]) -> bool {
        let same = |moments: &Moments, length: &usize| {
            let wanted = Moments::zeros(optimizer, *length);
            moments.len() == *length && std::mem::discriminant(moments) == std::mem::discriminant(&wanted)
        };
        self.moments.len() == lengths.len() && self.moments.iter().zip(lengths).all(|(m, length)| same(m, length))
    }

    /// Bytes of all moments.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.moments.iter().map(Moments::num_bytes).sum()
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
            weight1: (1.0 - config.beta1) as f32,
            beta2: config.beta2 as f32,
            weight2: (1.0 - config.beta2) as f32,
            epsilon: config.epsilon as f32,
            keep: (1.0 - learning_rate * config.weight_decay) as f32,
            step_size: (learning_rate / power(config.beta1)) as f32,
            root_correction2: power(config.beta2).sqrt() as f32,
        }
    }

    /// Updates tensor `index`.
    pub fn apply(&mut self, update: Update, index: usize, values: &mut [f32], gradient: &[f32]) -> Result<()> {
        let found = self.moments.get(index).map_or(0, Moments::len);
        if found != values.len() || gradient.len() != values.len() {
            let reason = format!("it has {} values, moments {found}, gradient {}", values.len(), gradient.len());
            return Err(TrainingError::AdapterMismatch { name: format!("parameter {index}"), reason });
        }
        match self.moments.get_mut(index) {
            Some(Moments::Full { first, second }) => apply(update, values, gradient, first, second),
            Some(Moments::Blockwise { first, second }) => {
                let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
                for (block, (values, gradient)) in values.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK)).enumerate() {
                    let held = first.read(&SIGNED, block, &mut m);
                    second.read(&UNSIGNED, block, &mut v);
                    apply(update, values, gradient, &mut m[..held], &mut v[..held]);
                    first.write(&SIGNED, block, &m[..held]);
                    second.write(&UNSIGNED, block, &v[..held]);
                }
            }
            None => {}
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

    #[test]
    fn eight_bits_take_a_quarter_of_the_memory_where_it_matters() {
        let lengths = [10_000, 100];
        let (full, small) = (AdamW::new(&lengths), AdamW::of(Optimizer::AdamW8bit, &lengths));
        assert_eq!(full.num_bytes(), 80_800);
        assert_eq!(small.num_bytes(), 2 * (10_000 + 4 * 40) + 800);
        assert!(small.fits(Optimizer::AdamW8bit, &lengths) && !small.fits(Optimizer::AdamW, &lengths));
    }
}
