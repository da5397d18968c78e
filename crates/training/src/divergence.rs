//! Divergence: the loss is a number, but has left what it once was.
//!
//! Watched is the running mean `s ← s + (loss − s) · max(1/n, 1/50)` of the loss of the steps: about the last 50 of them, so that
//! neither one hard batch nor batches of one sequence set it off. It has diverged when `s > 1.5 · lowest s + 1 nat`. A run
//! that goes from 2 to a guess among 49,152 tokens (10.8) ends 13 steps later; a run that overfits never does, because its
//! training loss falls.

use serde::{Deserialize, Serialize};

/// Steps that the running mean remembers.
const MEMORY: f64 = 50.0;
/// Losses before the running mean says anything.
const SETTLED: u64 = 5;
/// How far above its lowest value the running mean may lie.
const FACTOR: f64 = 1.5;
/// The same where the lowest is near zero, in nats.
const MARGIN: f64 = 1.0;

/// What is remembered of the losses; part of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossWatch {
    num_losses: u64,
    smoothed: f64,
    lowest_opt: Option<f64>,
}

/// By how much the loss has risen, in nats per token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Risen {
    /// Running mean now.
    pub to: f64,
    /// Its lowest value.
    pub from: f64,
}

impl LossWatch {
    /// Counts the loss of a step; says when the run has diverged.
    pub fn observe(&mut self, loss: f64) -> Option<Risen> {
        self.num_losses += 1;
        self.smoothed += (loss - self.smoothed) * (1.0 / self.num_losses as f64).max(1.0 / MEMORY);
        if self.num_losses < SETTLED {
            return None;
        }
        let lowest = self.lowest_opt.map_or(self.smoothed, |lowest| lowest.min(self.smoothed));
        self.lowest_opt = Some(lowest);
        (self.smoothed > FACTOR * lowest + MARGIN).then_some(Risen { to: self.smoothed, from: lowest })
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_model::rng::Rng;

    use super::*;

    #[test]
    fn a_loss_that_jumps_to_guessing_is_noticed_after_thirteen_steps() {
        let mut watch = LossWatch::default();
        assert!((0..100).all(|_| watch.observe(2.0).is_none()));
        let steps = (1..).find(|_| watch.observe(10.8).is_some()).unwrap();
        assert_eq!(steps, 13);
    }

    #[test]
    fn noise_hard_batches_and_a_falling_loss_are_not() {
        let mut watch = LossWatch::default();
        let mut rng = Rng::new(1, 0);
        for step in 0..20_000 {
            // batches of one short answer: from 0 to twice the mean
            let mean = 0.3 + 3.0 * (-f64::from(step) / 4000.0).exp();
            let loss = if step % 500 == 499 { 9.0 } else { 2.0 * mean * f64::from(rng.uniform()) };
            assert_eq!(watch.observe(loss), None, "step {step}");
        }
    }

    #[test]
    fn the_watch_survives_storage_to_the_bit() {
        let mut watch = LossWatch::default();
        let mut rng = Rng::new(2, 0);
        for _ in 0..200 {
            watch.observe(f64::from(rng.uniform()) / 3.0);
            let stored = serde_json::to_string(&watch).unwrap();
            assert_eq!(serde_json::from_str::<LossWatch>(&stored).unwrap(), watch);
        }
    }
}
