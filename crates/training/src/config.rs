//! Settings of a training run.

use serde::{Deserialize, Serialize};
use tunesmith_model::{AdapterConfig, Method, ModelConfig, Quantization};

use crate::adamw::Optimizer;
use crate::error::{Result, TrainingError};
use crate::memory::RecomputeSetting;
use crate::packing::pack;
use crate::sampler::Layout;
use crate::schedule::{DECAY_RATIO, Decay, Schedule};

/// Everything that fixes a run, beside base model and data. Absent settings take the defaults given here; unknown ones are
/// refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingConfig {
    /// Method and place of the adapter; default LoRA of rank 16 and alpha 32 on all seven projections of a Llama layer.
    pub adapter: AdapterConfig,
    /// How the projections of the base model are stored; default f32. The base model must be loaded so.
    pub quantization: Quantization,
    /// LoRA+: how many times as fast `B` learns as `A`; default 1.
    pub loraplus_lr_ratio: f64,
    /// Peak learning rate; default 2e-4, usual for LoRA.
    pub learning_rate: f64,
    /// How the learning rate falls after the warm-up; default cosine.
    pub schedule: Decay,
    /// Part of all steps in which the learning rate rises from 0; default 0.03.
    pub warmup_ratio: f64,
    /// Part of all steps in which schedule `wsd` decays; default 0.2. The other schedules do not use it.
    pub decay_ratio: f64,
    /// AdamW with moments in 32 or 8 bits; default 32.
    pub optimizer: Optimizer,
    /// Passes over the data; default 3. Ignored when `max_steps` is set.
    pub epochs: usize,
    /// Number of optimizer steps; default: as many as `epochs` take.
    pub max_steps: Option<usize>,
    /// Rows that go through the model together; default 8. A row is a sequence, or with `packing` up to `sequence_length`
    /// tokens of several. Changes memory, not the result, together with `accumulation`.
    pub batch_size: usize,
    /// Batches whose gradients make one optimizer step; default 1.
    pub accumulation: usize,
    /// Sequences share rows, so that batches are equally full; default true. They never see each other.
    pub packing: bool,
    /// Longest sequence in tokens; default 512. Longer texts are split, longer conversations refused.
    pub sequence_length: usize,
    /// Decoupled weight decay; default 0.
    pub weight_decay: f64,
    /// AdamW's decay of the first moment; default 0.9.
    pub beta1: f64,
    /// AdamW's decay of the second moment; default 0.999.
    pub beta2: f64,
    /// AdamW's epsilon; default 1e-8.
    pub epsilon: f64,
    /// Largest global gradient norm; default 1. Larger gradients are scaled down.
    pub clip_norm: f64,
    /// Fixes the start of the adapter and the order of the data; default 0.
    pub seed: u64,
    /// Whether layers are computed again in the backward pass; default when the memory limit asks for it. Changes memory and time,
    /// not the result.
    pub recompute: RecomputeSetting,
    /// What the run may take of memory, in MB of 1,048,576 bytes; default no limit.
    pub memory_limit_mb: Option<u64>,
    /// Steps between checkpoints; default 50. 0: only when the caller asks.
    pub checkpoint_every: usize,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            adapter: AdapterConfig::default(),
            quantization: Quantization::None,
            loraplus_lr_ratio: 1.0,
            learning_rate: 2e-4,
            schedule: Decay::Cosine,
            warmup_ratio: 0.03,
            decay_ratio: DECAY_RATIO,
            optimizer: Optimizer::AdamW,
            epochs: 3,
            max_steps: None,
            batch_size: 8,
            accumulation: 1,
            packing: true,
            sequence_length: 512,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: 1.0,
            seed: 0,
            recompute: RecomputeSetting::Auto,
            memory_limit_mb: None,
            checkpoint_every: 50,
        }
    }
}

impl TrainingConfig {
    /// Refuses what cannot be trained with, before anything is computed.
    pub fn validate(&self, model: &ModelConfig) -> Result<()> {
        self.adapter.validate(model.modules())?;
        let positive =
            |key, value: f64| check(key, value, value > 0.0 && value.is_finite(), "choose a positive number");
        let unit =
            |key, value: f64| check(key, value, (0.0..1.0).contains(&value), "choose a number from 0 to below 1");
        let some = |key, value: usize| check(key, value, value > 0, "choose 1 or more");
        positive("learning_rate", self.learning_rate)?;
        let ratio = self.loraplus_lr_ratio;
        positive("loraplus_lr_ratio", ratio)?;
        let has_b = !matches!(self.adapter.method, Method::Ia3(_));
        check(
            "loraplus_lr_ratio",
            ratio,
            has_b || ratio == 1.0,
            "IA³ has no matrix B: leave it 1 or choose another method",
        )?;
        positive("clip_norm", self.clip_norm)?;
        positive("epsilon", self.epsilon)?;
        unit("warmup_ratio", self.warmup_ratio)?;
        if self.schedule == Decay::Wsd {
            let (decays, warmup) = (self.decay_ratio, self.warmup_ratio);
            // the sum of two decimal fractions may miss 1 by a rounding
            let fits = decays > 0.0 && warmup + decays <= 1.0 + 1e-9;
            check("decay_ratio", decays, fits, "choose a number above 0 that is at most 1 together with warmup_ratio")?;
        }
        unit("beta1", self.beta1)?;
        unit("beta2", self.beta2)?;
        let decay = self.weight_decay;
        check("weight_decay", decay, decay >= 0.0 && decay.is_finite(), "choose 0 or a positive number")?;
        some("epochs", self.epochs)?;
        some("batch_size", self.batch_size)?;
        some("accumulation", self.accumulation)?;
        if let Some(max_steps) = self.max_steps {
            some("max_steps", max_steps)?;
        }
        check("memory_limit_mb", 0, self.memory_limit_mb != Some(0), "choose 1 or more")?;
        let length = self.sequence_length;
        check("sequence_length", length, length >= 2, "choose 2 or more")?;
        let limit = model.max_position_embeddings;
        if length > limit { Err(TrainingError::SequenceBeyondModel { length, limit }) } else { Ok(()) }
    }

    /// AdaLoRA's budget is laid out for a number of steps, which must be that of the run.
    pub(crate) fn check_total(&self, total: usize) -> Result<()> {
        let Some(laid_out) = self.adapter.adalora().map(|ada| ada.total_step) else { return Ok(()) };
        let value = format!("{laid_out}, the run has {total} steps");
        check("total_step", value, laid_out == total, "set total_step of AdaLoRA to the steps of the run")
    }

    /// The memory limit in bytes.
    #[must_use]
    pub fn memory_limit(&self) -> Option<u64> {
        self.memory_limit_mb.map(|mb| mb.saturating_mul(1 << 20))
    }

    /// The same steps, divided into batches so that devices that compute one each have the fewest rows one after the other.
    #[must_use]
    pub fn spread(self, num_devices: usize) -> Self {
        let rows_in_turn =
            |batch_size: usize| (self.rows_per_step() / batch_size).div_ceil(num_devices.max(1)) * batch_size;
        let divisors = (1..=self.batch_size).rev().filter(|size| self.batch_size.is_multiple_of(*size));
        // of equals the largest batch, which comes first
        let batch_size = divisors.min_by_key(|size| rows_in_turn(*size)).unwrap_or(self.batch_size);
        Self { batch_size, accumulation: self.rows_per_step() / batch_size.max(1), ..self }
    }

    /// Rows of one optimizer step.
    #[must_use]
    pub fn rows_per_step(&self) -> usize {
        self.batch_size * self.accumulation
    }

    /// Optimizer steps of one pass over `num_rows` rows.
    #[must_use]
    pub fn steps_per_epoch(&self, num_rows: usize) -> usize {
        num_rows.div_ceil(self.rows_per_step().max(1))
    }

    /// Optimizer steps of the run for an epoch of `num_rows` rows.
    #[must_use]
    pub fn total_steps(&self, num_rows: usize) -> usize {
        self.max_steps.unwrap_or(self.epochs * self.steps_per_epoch(num_rows))
    }

    /// How sequences become rows.
    #[must_use]
    pub fn layout(&self) -> Layout {
        if self.packing { Layout::Packed { capacity: self.sequence_length } } else { Layout::Single }
    }

    /// Rows of an epoch of sequences that have these lengths in tokens.
    #[must_use]
    pub fn num_rows(&self, lengths: &[usize]) -> usize {
        if self.packing { pack(lengths, self.sequence_length).len() } else { lengths.len() }
    }

    /// The learning rate over `total_steps` steps.
    #[must_use]
    pub fn schedule(&self, total_steps: usize) -> Schedule {
        Schedule::new(self.schedule, self.learning_rate, self.warmup_ratio, total_steps)
            .with_decay_ratio(self.decay_ratio)
    }
}

fn check(key: &'static str, value: impl ToString, holds: bool, remedy: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(TrainingError::BadSetting { key, value: value.to_string(), remedy }) }
}

#[cfg(test)]
mod tests {
    use tunesmith_model::Module;

    use super::*;

    #[test]
    fn absent_settings_take_defaults_and_unknown_ones_are_refused() {
        let text = r#"{"adapter": {"method": {"lora": {"rank": 4, "alpha": 8.0}}, "target_modules": ["q_proj"]}}"#;
        let config: TrainingConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.adapter, AdapterConfig { target_modules: vec![Module::Q], ..AdapterConfig::lora(4, 8.0) });
        assert_eq!(config.loraplus_lr_ratio, 1.0);
        let error = serde_json::from_str::<TrainingConfig>(r#"{"learning_rat": 1}"#).unwrap_err().to_string();
        assert!(error.contains("learning_rat") && error.contains("learning_rate"), "{error}");
    }

    #[test]
    fn a_step_is_spread_over_devices_without_changing_its_rows() {
        let spread = |batch_size, accumulation, num_devices| {
            let config = TrainingConfig { batch_size, accumulation, ..TrainingConfig::default() }.spread(num_devices);
            (config.batch_size, config.accumulation)
        };
        assert_eq!(
            [spread(8, 1, 1), spread(8, 1, 4), spread(8, 2, 4), spread(8, 4, 4)],
            [(8, 1), (2, 4), (4, 4), (8, 4)]
        );
        // 6 rows on 4 cards: three batches of two, a card waits; 7 are two rounds of one
        assert_eq!([spread(6, 1, 4), spread(7, 1, 4), spread(1, 1, 8)], [(2, 3), (1, 7), (1, 1)]);
    }

    #[test]
    fn the_number_of_steps_counts_the_smaller_last_batch() {
        let config = TrainingConfig { batch_size: 4, accumulation: 2, epochs: 3, ..TrainingConfig::default() };
        assert_eq!(config.total_steps(17), 9);
        assert_eq!(TrainingConfig { max_steps: Some(5), ..config }.total_steps(17), 5);
    }

    #[test]
    fn warm_up_and_decay_of_wsd_must_fit_into_the_run() {
        let config = |warmup_ratio, decay_ratio, schedule| TrainingConfig {
            warmup_ratio,
            decay_ratio,
            schedule,
            sequence_length: 64,
            ..TrainingConfig::default()
        };
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/parity/goldens/gqa-tied/config.json");
        let model = ModelConfig::from_file(std::path::Path::new(golden)).unwrap();
        assert!(config(0.3, 0.7, Decay::Wsd).validate(&model).is_ok());
        let error = config(0.4, 0.7, Decay::Wsd).validate(&model).unwrap_err().to_string();
        assert!(error.contains("decay_ratio = 0.7"), "{error}");
        assert!(config(0.0, 0.0, Decay::Wsd).validate(&model).is_err());
        assert!(config(0.4, 0.7, Decay::Cosine).validate(&model).is_ok(), "the others do not use it");
    }
}
