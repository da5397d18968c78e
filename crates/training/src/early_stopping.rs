//! Early stopping: no more steps when the validation loss has not improved for some evaluations.
//!
//! `patience` and `min_delta` as in Keras and Lightning: an evaluation improves when its loss lies more than `min_delta`
//! below the best that improved; after `patience` evaluations in a row without one the run ends. Small steps that add up to
//! `min_delta` therefore count as an improvement.

use serde::{Deserialize, Serialize};

/// When to give up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Patience {
    /// Evaluations without improvement that end the run; 0: never.
    pub patience: u32,
    /// What counts as an improvement, in nats per token.
    pub min_delta: f64,
}

/// What is remembered of the evaluations; part of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    best_opt: Option<f64>,
    without_improvement: u32,
}

impl EarlyStopping {
    /// Counts an evaluation; returns whether the run should end.
    pub fn observe(&mut self, loss: f64, limits: Patience) -> bool {
        if self.best_opt.is_none_or(|best| loss < best - limits.min_delta) {
            *self = Self { best_opt: Some(loss), without_improvement: 0 };
        } else {
            self.without_improvement += 1;
        }
        limits.patience > 0 && self.without_improvement >= limits.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops_at(losses: &[f64], patience: u32, min_delta: f64) -> Option<usize> {
        let mut state = EarlyStopping::default();
        losses.iter().position(|loss| state.observe(*loss, Patience { patience, min_delta }))
    }

    #[test]
    fn patience_counts_evaluations_in_a_row() {
        let losses = [3.0, 2.0, 2.1, 1.9, 2.0, 1.95, 1.94, 1.0];
        assert_eq!(stops_at(&losses, 2, 0.0), Some(5));
        assert_eq!(stops_at(&losses, 1, 0.0), Some(2));
        assert_eq!(stops_at(&losses, 3, 0.0), Some(6));
        assert_eq!(stops_at(&losses, 4, 0.0), None, "it improved again");
        assert_eq!(stops_at(&losses, 0, 0.0), None, "0 is never");
    }

    #[test]
    fn min_delta_is_measured_from_the_best_that_improved() {
        assert_eq!(stops_at(&[2.0, 1.96, 1.92, 1.88], 2, 0.05), None, "two small steps are one improvement");
        assert_eq!(stops_at(&[2.0, 1.98, 1.97, 1.96], 3, 0.05), Some(3));
    }

    #[test]
    fn not_a_number_is_no_improvement() {
        assert_eq!(stops_at(&[2.0, f64::NAN], 1, 0.0), Some(1));
    }
}
