//! What a forward and a backward pass give.

use candle_core::Tensor;

use crate::error::Result;
use crate::ops::{host, tensor};

/// Result of one forward and backward pass.
pub struct LossGradients {
    /// Negative log-likelihood of every row in nats; 0 where the row has no target.
    pub row_losses: Vec<f32>,
    /// Rows with a target.
    pub num_targets: usize,
    /// Gradients in the order of [`crate::Adapter::parameters`].
    pub gradients: Vec<Tensor>,
    /// For each gradient the squared norm of what each sequence of the batch adds to it; empty unless asked for.
    pub example_norms: Vec<Vec<f64>>,
}

impl LossGradients {
    /// What the next sequences of the same batch gave.
    pub(super) fn add(&mut self, next: Self) -> Result<()> {
        self.row_losses.extend(next.row_losses);
        self.num_targets += next.num_targets;
        for (sum, gradient) in self.gradients.iter_mut().zip(&next.gradients) {
            let values: Vec<f32> = host(sum)?.iter().zip(host(gradient)?.iter()).map(|(a, b)| a + b).collect();
            *sum = tensor(values, sum.shape())?;
        }
        for (norms, of_next) in self.example_norms.iter_mut().zip(next.example_norms) {
            norms.extend(of_next);
        }
        Ok(())
    }

    /// Sum of the losses.
    #[must_use]
    pub fn nll(&self) -> f64 {
        self.row_losses.iter().map(|loss| f64::from(*loss)).sum()
    }
}
