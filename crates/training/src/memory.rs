//! Memory of a run, predicted before its first step, and what follows from it: whether layers are recomputed.
//!
//! ```text
//! total = weights + adapter + max(step, evaluation)
//! weights      from the configuration: f32, or the projections quantised
//! adapter      P values as f32 six times (values, their start, gradients of a batch twice, their sum, a copy that is evaluated),
//!              and the optimizer's moments (8 bytes a value, in 8 bits 2.04); for AdaLoRA 8 bytes more
//! step         activations of the largest batch: `ModelConfig::activation_bytes`, with layers recomputed or not
//! evaluation   a forward pass over the tokens that are evaluated together
//! ```
//! Buffers that do not grow with the model (dequantised rows, tokens, the program) are not counted: leave them a tenth of the
//! machine.

use serde::{Deserialize, Serialize};
use tunesmith_model::{Card, ModelConfig, Quantization, Recompute, parts_at_once};

use crate::adamw::Optimizer;
use crate::config::TrainingConfig;
use crate::error::{Result, TrainingError};
use crate::evaluate::TOKENS_PER_BATCH;

/// Whether the backward pass computes layers again instead of keeping their activations. The result is the same to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecomputeSetting {
    /// Only when the memory limit asks for it.
    #[default]
    Auto,
    /// Always: least memory, one more forward pass a step.
    Layers,
    /// Never.
    Nothing,
}

/// Whose memory it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The machine's.
    Machine,
    /// That of its smallest GPU.
    Card,
}

/// Bytes that a run will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Of what.
    pub place: Place,
    /// The base model.
    pub weights: u64,
    /// Adapter, its gradients and the optimizer.
    pub adapter: u64,
    /// Activations of the largest batch when everything is kept.
    pub nothing: u64,
    /// The same with recomputed layers.
    pub layers: u64,
    /// Activations of an evaluation.
    pub evaluation: u64,
    /// Tokens of the largest batch.
    pub num_tokens: usize,
}

impl Memory {
    /// Of a run over sequences that have these lengths in tokens.
    #[must_use]
    pub fn predict(config: &TrainingConfig, model: &ModelConfig, lengths: &[usize]) -> Self {
        let num_tokens = largest_batch(config, lengths);
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let (parts, tokens) = parts_at_once(num_tokens, longest);
        // each part has logits of its own, and gradients until they are added up
        let of_part = 4 * config.adapter.num_parameters(model) as u64
            + model.activation_bytes(&config.adapter, 0, Recompute::Nothing);
        let step =
            |recompute| model.activation_bytes(&config.adapter, tokens, recompute) + (parts as u64 - 1) * of_part;
        Self {
            place: Place::Machine,
            weights: model.weight_bytes(config.quantization),
            adapter: adapter(config, model),
            nothing: step(Recompute::Nothing),
            layers: step(Recompute::Layers),
            evaluation: {
                let (_, tokens) = parts_at_once(evaluated_together(config), config.sequence_length);
                model.forward_bytes(&config.adapter, tokens)
            },
            num_tokens,
        }
    }

    /// What the same run takes of a card, where the base model lies in the card's values, and the adapter with its gradients beside it.
    #[must_use]
    pub fn predict_on(card: Card, config: &TrainingConfig, model: &ModelConfig, lengths: &[usize]) -> Self {
        let num_tokens = largest_batch(config, lengths);
        let on_card = |bytes: u64| bytes / 4 * card.value_bytes + card.logit_bytes;
        let step = |recompute| on_card(model.activation_bytes(&config.adapter, num_tokens, recompute));
        Self {
            place: Place::Card,
            weights: model.weight_bytes_on(config.quantization, card),
            adapter: config.adapter.num_parameters(model) as u64 * (card.value_bytes + 4),
            nothing: step(Recompute::Nothing),
            layers: step(Recompute::Layers),
            evaluation: on_card(model.forward_bytes(&config.adapter, evaluated_together(config))),
            num_tokens,
        }
    }

    /// What the same run takes of the machine beside its cards: the base, the adapter with its optimizer, and the gradients that each
    /// further card hands over.
    #[must_use]
    pub fn predict_beside(num_cards: usize, config: &TrainingConfig, model: &ModelConfig) -> Self {
        let further = (num_cards.saturating_sub(1) * 4 * config.adapter.num_parameters(model)) as u64;
        Self {
            place: Place::Machine,
            weights: model.weight_bytes(config.quantization),
            adapter: adapter(config, model) + further,
            nothing: 0,
            layers: 0,
            evaluation: 0,
            num_tokens: 0,
        }
    }

    /// Bytes of the run.
    #[must_use]
    pub fn total(&self, recompute: Recompute) -> u64 {
        self.weights + self.adapter + self.activations(recompute).max(self.evaluation)
    }

    /// What the setting means under a limit in bytes; without one nothing is recomputed unless the setting says so.
    ///
    /// # Errors
    /// [`TrainingError::OutOfMemory`] when the run would not fit.
    pub fn choose(&self, setting: RecomputeSetting, limit_opt: Option<u64>) -> Result<Recompute> {
        let fits = |recompute| limit_opt.is_none_or(|limit| self.total(recompute) <= limit);
        let chosen = match setting {
            RecomputeSetting::Nothing => Recompute::Nothing,
            RecomputeSetting::Auto if fits(Recompute::Nothing) => Recompute::Nothing,
            RecomputeSetting::Auto | RecomputeSetting::Layers => Recompute::Layers,
        };
        match limit_opt.filter(|_| !fits(chosen)) {
            None => Ok(chosen),
            Some(limit) => Err(TrainingError::OutOfMemory {
                needed_mb: mb(self.total(chosen)),
                limit_mb: mb(limit),
                weights_mb: mb(self.weights),
                adapter_mb: mb(self.adapter),
                activations_mb: mb(self.activations(chosen).max(self.evaluation)),
                num_tokens: self.num_tokens,
                place: match self.place {
                    Place::Machine => "the machine",
                    Place::Card => "the GPU",
                },
                else_remedy: match self.place {
                    Place::Machine => "raise memory_limit_mb on a machine that has it",
                    Place::Card => "choose a machine with a larger GPU",
                },
                remedy: match chosen {
                    _ if self.total(chosen) == self.weights + self.adapter => "lower the rank",
                    _ if self.evaluation >= self.activations(chosen) => {
                        "choose a smaller base model (evaluation needs most)"
                    }
                    Recompute::Nothing => "set recompute = \"auto\"",
                    Recompute::Layers => "lower batch_size and raise accumulation as much, lower sequence_length",
                },
            }),
        }
    }

    fn activations(&self, recompute: Recompute) -> u64 {
        match recompute {
            Recompute::Nothing => self.nothing,
            Recompute::Layers => self.layers,
        }
    }
}

/// Asks whether the base model can be loaded at all, before it is.
///
/// # Errors
/// [`TrainingError::BaseTooLarge`] with what other forms of storage would take.
pub fn check_base(model: &ModelConfig, quantization: Quantization, limit_opt: Option<u64>) -> Result<()> {
    let needed = |quantization| model.weight_bytes(quantization) + model.loading_bytes(quantization);
    match limit_opt.filter(|limit| needed(quantization) > *limit) {
        None => Ok(()),
        Some(limit) => Err(TrainingError::BaseTooLarge {
            needed_mb: mb(needed(quantization)),
            limit_mb: mb(limit),
            quantization: quantization.name(),
            nf4_mb: mb(needed(Quantization::Nf4)),
        }),
    }
}

/// Asks whether an export can be compared: the base and the model that is read back are in memory at once, both as f32.
///
/// # Errors
/// [`TrainingError::ExportTooLarge`].
pub fn check_export(model: &ModelConfig, limit_opt: Option<u64>) -> Result<()> {
    let needed = 2 * model.weight_bytes(Quantization::None) + model.loading_bytes(Quantization::None);
    match limit_opt.filter(|limit| needed > *limit) {
        None => Ok(()),
        Some(limit) => Err(TrainingError::ExportTooLarge { num_models: 2, needed_mb: mb(needed), limit_mb: mb(limit) }),
    }
}

/// Whole megabytes of 1,048,576 bytes, rounded up.
fn mb(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn adapter(config: &TrainingConfig, model: &ModelConfig) -> u64 {
    let moments = match config.optimizer {
        Optimizer::AdamW => 8.0,
        // two codes, and two scales for every 256 values
        Optimizer::AdamW8bit => 2.0 + 8.0 / 256.0,
    };
    let importance = if config.adapter.adalora().is_some() { 8.0 } else { 0.0 };
    (config.adapter.num_parameters(model) as f64 * (6.0 * 4.0 + moments + importance)) as u64
}

/// Tokens that are evaluated together, at the most.
fn evaluated_together(config: &TrainingConfig) -> usize {
    TOKENS_PER_BATCH.max(config.sequence_length)
}

/// Tokens that go through the model together, at the most.
fn largest_batch(config: &TrainingConfig, lengths: &[usize]) -> usize {
    let mut lengths = lengths.to_vec();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let all: usize = lengths.iter().sum();
    match config.packing {
        true => all.min(config.batch_size * config.sequence_length),
        false => lengths.iter().take(config.batch_size).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn memory() -> Memory {
        Memory {
            place: Place::Machine,
            weights: 100 * MB,
            adapter: 10 * MB,
            nothing: 80 * MB,
            layers: 20 * MB,
            evaluation: 5 * MB,
            num_tokens: 9,
        }
    }

    #[test]
    fn layers_are_recomputed_when_the_limit_asks_for_it() {
        let choose = |setting, limit: Option<u64>| memory().choose(setting, limit.map(|mb| mb * MB)).ok();
        use RecomputeSetting::{Auto, Layers, Nothing};
        for (setting, limit, wanted) in [
            (Auto, None, Some(Recompute::Nothing)),
            (Auto, Some(190), Some(Recompute::Nothing)),
            (Auto, Some(189), Some(Recompute::Layers)),
            (Auto, Some(130), Some(Recompute::Layers)),
            (Auto, Some(129), None),
            (Layers, None, Some(Recompute::Layers)),
            (Layers, Some(1000), Some(Recompute::Layers)),
            (Layers, Some(129), None),
            (Nothing, None, Some(Recompute::Nothing)),
            (Nothing, Some(189), None),
        ] {
            assert_eq!(choose(setting, limit), wanted, "{setting:?} {limit:?}");
        }
    }

    #[test]
    fn a_run_that_cannot_fit_is_refused_with_its_parts_and_the_remedy() {
        let text = |setting| memory().choose(setting, Some(120 * MB)).unwrap_err().to_string();
        for part in ["130 MB", "limit is 120 MB", "100 MB", "10 MB", "20 MB", "9 tokens", "batch_size", "quantization"]
        {
            assert!(text(RecomputeSetting::Auto).contains(part), "{part}: {}", text(RecomputeSetting::Auto));
        }
        assert!(text(RecomputeSetting::Nothing).contains("recompute = \"auto\""));
        assert!(text(RecomputeSetting::Nothing).contains("on the machine"));
        let card = Memory { place: Place::Card, ..memory() };
        let text_of = |memory: Memory| memory.choose(RecomputeSetting::Auto, Some(109 * MB)).unwrap_err().to_string();
        let text = text_of(card);
        assert!(text.contains("on the GPU") && !text.contains("memory_limit_mb"), "{text}");
        let beside = Memory { nothing: 0, layers: 0, evaluation: 0, ..memory() };
        assert!(text_of(beside).contains("lower the rank"));
        let huge = Memory { evaluation: 500 * MB, ..memory() };
        let text = huge.choose(RecomputeSetting::Auto, Some(200 * MB)).unwrap_err().to_string();
        assert!(text.contains("evaluation needs most"), "{text}");
    }

    #[test]
    fn a_card_with_values_of_two_bytes_takes_half_and_its_logits() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../trainer-image/base-model");
        let (config, model) = (TrainingConfig::default(), ModelConfig::from_file(&folder.join("config.json")).unwrap());
        let card = |value_bytes| Card { room: 0, value_bytes, logit_bytes: 1000 };
        let on = |value_bytes| Memory::predict_on(card(value_bytes), &config, &model, &[60; 20]);
        let host = Memory::predict(&config, &model, &[60; 20]);
        assert_eq!(on(4).weights, host.weights);
        assert_eq!(on(2).weights, host.weights / 2);
        assert_eq!(
            (on(4).nothing - 1000, on(4).layers - 1000),
            (2 * (on(2).nothing - 1000), 2 * (on(2).layers - 1000))
        );
        assert_eq!(on(2).adapter, config.adapter.num_parameters(&model) as u64 * 6);
    }

    #[test]
    fn the_largest_batch_has_the_longest_rows() {
        let config =
            |packing| TrainingConfig { batch_size: 2, sequence_length: 64, packing, ..TrainingConfig::default() };
        assert_eq!(largest_batch(&config(false), &[5, 60, 7, 40]), 100);
        assert_eq!(largest_batch(&config(true), &[5, 60, 7, 40]), 112);
        assert_eq!(largest_batch(&config(true), &[50; 9]), 128);
    }
}
