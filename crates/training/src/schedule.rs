//! Learning rate over the steps: linear warm-up from 0, then what the schedule says.
//!
//! Step `s` counts from 0, `w` warm-up steps, `d` decay steps, `t` steps in all. Factor of the peak: `s / w` below `w`, then with
//! `p = (s − w) / (t − w)`: cosine `(1 + cos πp) / 2`, linear `1 − p`, constant 1. Warm-up–stable–decay (WSD, Hu et al. 2024,
//! arXiv 2404.06395) stays at 1 until `t − d` and then falls as `1 − √((s − t + d) / d)`, the shape that Hägele et al. 2024
//! (arXiv 2405.18392) found best. The same as `transformers` `get_cosine_schedule_with_warmup`, `get_linear_…`,
//! `get_constant_…`, and `get_wsd_schedule` with `decay_type="1-sqrt"`.

use serde::{Deserialize, Serialize};

/// Part of the steps in which WSD decays, unless settings say otherwise: where Hägele et al. saw no further gain.
pub const DECAY_RATIO: f64 = 0.2;

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
    /// No decay until the last steps, then down to 0.
    Wsd,
}

/// A schedule; without state, so that a resumed run needs only its step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    decay: Decay,
    peak: f64,
    warmup_steps: usize,
    decay_steps: usize,
    total_steps: usize,
}

impl Schedule {
    /// `warmup_ratio` of `total_steps` is rounded up, as `transformers` does.
    #[must_use]
    pub fn new(decay: Decay, peak: f64, warmup_ratio: f64, total_steps: usize) -> Self {
        let warmup_steps = (total_steps as f64 * warmup_ratio).ceil() as usize;
        Self { decay, peak, warmup_steps, decay_steps: 0, total_steps }.with_decay_ratio(DECAY_RATIO)
    }

    /// The same with another part of the steps, rounded up, in which WSD decays. The warm-up is never shortened by it.
    #[must_use]
    pub fn with_decay_ratio(self, decay_ratio: f64) -> Self {
        let decay_steps = (self.total_steps as f64 * decay_ratio).ceil() as usize;
        Self { decay_steps: decay_steps.min(self.total_steps.saturating_sub(self.warmup_steps)), ..self }
    }

    /// Learning rate of step `step`, counted from 0.
    #[must_use]
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let part = |from: usize, steps: usize| (step.saturating_sub(from) as f64 / steps.max(1) as f64).min(1.0);
        let span = self.total_steps.saturating_sub(self.warmup_steps);
        let progress = part(self.warmup_steps, span);
        self.peak
            * match self.decay {
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
                Decay::Linear => self.total_steps.saturating_sub(step) as f64 / span.max(1) as f64,
                Decay::Constant => 1.0,
                Decay::Wsd if step >= self.total_steps => 0.0,
                Decay::Wsd => 1.0 - part(self.total_steps.saturating_sub(self.decay_steps), self.decay_steps).sqrt(),
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

    #[test]
    fn wsd_is_stable_until_it_decays() {
        let schedule = Schedule::new(Decay::Wsd, 2.0, 0.1, 20).with_decay_ratio(0.25);
        assert_eq!([2, 9, 15].map(|step| schedule.learning_rate(step)), [2.0, 2.0, 2.0]);
        assert!(schedule.learning_rate(16) < 1.2 && schedule.learning_rate(19) > 0.0);
        assert_eq!(schedule.learning_rate(20), 0.0);
        // warm-up and decay that overlap: the warm-up keeps its steps
        let short = Schedule::new(Decay::Wsd, 1.0, 0.5, 4).with_decay_ratio(0.9);
        assert_eq!([0, 1, 2].map(|step| short.learning_rate(step)), [0.0, 0.5, 1.0]);
    }
}
