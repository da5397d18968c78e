//! Learning rate over the steps: linear warm-up from 0, then decay to 0.
//!
//! Step `s` counts from 0, `w` warm-up steps, `t` steps in all; factor `s / w` below `w`, then with `p = (s − w) / (t − w)`:
//! cosine `(1 + cos πp) / 2`, linear `1 − p`, constant 1. The same as `transformers` `get_cosine_schedule_with_warmup`,
//! `get_linear_schedule_with_warmup`, `get_constant_schedule_with_warmup`.

use serde::{Deserialize, Serialize};

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a cosine down to 0.
    Cosine,
    /// A straight line down to 0.
    Linear,
    /// No decay.
    Constant,
}

/// A schedule; without state, so that a resumed run needs only its step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    decay: Decay,
    peak: f64,
    warmup_steps: usize,
    total_steps: usize,
}

impl Schedule {
    /// `warmup_ratio` of `total_steps` is rounded up, as `transformers` does.
    #[must_use]
    pub fn new(decay: Decay, peak: f64, warmup_ratio: f64, total_steps: usize) -> Self {
        let warmup_steps = (total_steps as f64 * warmup_ratio).ceil() as usize;
        Self { decay, peak, warmup_steps, total_steps }
    }

    /// Learning rate of step `step`, counted from 0.
    #[must_use]
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let span = (self.total_steps.saturating_sub(self.warmup_steps)).max(1);
        let progress = ((step - self.warmup_steps) as f64 / span as f64).min(1.0);
        self.peak
            * match self.decay {
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
                Decay::Linear => 1.0 - progress,
                Decay::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls() {
        let schedule = Schedule::new(Decay::Cosine, 1.0, 0.2, 10);
        let rates: Vec<f64> = (0..10).map(|step| schedule.learning_rate(step)).collect();
        assert_eq!(rates[..3], [0.0, 0.5, 1.0]);
        assert!(rates[2..].windows(2).all(|pair| pair[1] < pair[0]), "{rates:?}");
        assert!((schedule.learning_rate(6) - 0.5).abs() < 1e-12, "half way down");
        assert_eq!(Schedule::new(Decay::Linear, 2.0, 0.0, 4).learning_rate(1), 1.5);
        assert_eq!(Schedule::new(Decay::Constant, 2.0, 0.0, 4).learning_rate(3), 2.0);
    }
}
