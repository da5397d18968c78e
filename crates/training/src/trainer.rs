//! The loop, one step at a time: the caller decides when to go on, save, stop, and measures time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tunesmith_model::{Adapter, Decoder, ModelError, RankAllocator, peft};

use crate::adamw::AdamW;
use crate::checkpoint::{self, Parts, State};
use crate::clip;
use crate::config::TrainingConfig;
use crate::data::Dataset;
use crate::error::{Result, TrainingError};
use crate::evaluate::{self, ExampleLoss};
use crate::loraplus;
use crate::sampler::Sampler;
use crate::schedule::Schedule;
use crate::step::{Accumulated, accumulate};

/// What one optimizer step did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps completed, this one included.
    pub step: usize,
    /// Steps of the run.
    pub total: usize,
    /// Passes over the data completed, with fraction.
    pub epoch: f64,
    /// Mean negative log-likelihood per counted token before the update, in nats.
    pub loss: f64,
    /// What the method adds to the loss (AdaLoRA's orthogonality); 0 for most.
    pub regulariser: f64,
    /// Learning rate of this update.
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model.
    pub num_tokens: usize,
    /// Tokens that counted for the loss.
    pub num_targets: usize,
    /// Sequences of the step.
    pub num_sequences: usize,
}

/// A run of training.
pub struct Trainer {
    config: TrainingConfig,
    model: Arc<Decoder>,
    dataset: Dataset,
    adapter: Adapter,
    optimizer: AdamW,
    /// Which tensors learn fast (LoRA+).
    fast: Vec<bool>,
    /// AdaLoRA's budget.
    ranks: Option<RankAllocator>,
    sampler: Sampler,
    schedule: Schedule,
    step: usize,
    total: usize,
}

impl Trainer {
    /// A fresh run: the adapter starts from the seed.
    pub fn new(config: TrainingConfig, model: Arc<Decoder>, dataset: Dataset) -> Result<Self> {
        config.validate(model.config())?;
        let adapter = Adapter::new(config.adapter.clone(), &model, config.seed)?;
        Self::with_adapter(config, model, dataset, adapter)
    }

    /// A fresh run from a given adapter, whose settings replace those of `config`.
    pub fn with_adapter(
        mut config: TrainingConfig,
        model: Arc<Decoder>,
        dataset: Dataset,
        adapter: Adapter,
    ) -> Result<Self> {
        config.adapter = adapter.config().clone();
        config.validate(model.config())?;
        model.check_adapter(Some(&adapter))?;
        check_dataset(&model, &config, &dataset)?;
        let lengths: Vec<usize> = adapter.parameters().iter().map(|(_, tensor)| tensor.elem_count()).collect();
        let total = config.total_steps(dataset.len());
        config.check_total(total)?;
        Ok(Self {
            optimizer: AdamW::new(&lengths),
            fast: loraplus::fast(&adapter),
            ranks: RankAllocator::new(&adapter),
            sampler: Sampler::new(dataset.len(), config.seed),
            schedule: Schedule::new(config.schedule, config.learning_rate, config.warmup_ratio, total),
            step: 0,
            total,
            adapter,
            config,
            model,
            dataset,
        })
    }

    /// Continues from a checkpoint folder as if nothing had happened: on the same machine bit for bit. Dataset and base model
    /// must be those of the run.
    pub fn resume(folder: &Path, model: Arc<Decoder>, dataset: Dataset) -> Result<Self> {
        let stored = checkpoint::load(folder, model.config())?;
        let state = stored.state;
        let found = dataset.fingerprint();
        if state.dataset != found {
            return Err(TrainingError::DatasetMismatch { wanted: state.dataset, found });
        }
        let probe = probe(&model)?;
        let difference = probe.iter().zip(&state.base_probe).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        // processors round differently; another model differs by far more
        if probe.len() != state.base_probe.len() || difference.is_nan() || difference > 1e-2 {
            return Err(TrainingError::BaseModelMismatch { difference });
        }
        let mut trainer = Self::with_adapter(state.config, model, dataset, stored.adapter)?;
        let lengths = |moments: &[Vec<f32>]| moments.iter().map(Vec::len).collect::<Vec<_>>();
        for (name, moments) in [("exp_avg", &stored.optimizer.first), ("exp_avg_sq", &stored.optimizer.second)] {
            if lengths(moments) != lengths(&trainer.optimizer.first) {
                let reason = "the moments have other lengths than the adapter".to_owned();
                return Err(TrainingError::AdapterMismatch { name: name.to_owned(), reason });
            }
        }
        trainer.optimizer = stored.optimizer;
        trainer.ranks = stored.ranks;
        trainer.sampler = Sampler::at(trainer.dataset.len(), state.position);
        trainer.step = state.step;
        Ok(trainer)
    }

    /// One optimizer step. On an error the adapter keeps its values from before the step and the run should end.
    pub fn step(&mut self) -> Result<StepReport> {
        if self.is_complete() {
            return Err(TrainingError::Complete { total: self.total });
        }
        let indices = self.sampler.next(self.config.sequences_per_step());
        let batches = indices.chunks(self.config.batch_size).map(|indices| self.dataset.batch(indices));
        let batches = batches.collect::<Result<Vec<_>>>()?;
        let Accumulated { loss, mut gradients, num_tokens, num_targets } =
            accumulate(&self.model, &self.adapter, &batches)?;
        let step = self.step + 1;
        if !loss.is_finite() {
            return Err(TrainingError::NonFiniteLoss { step, loss, batch: indices });
        }
        let regulariser = self.adapter.regularise(&mut gradients)?;
        let grad_norm = clip::clip(&mut gradients, self.config.clip_norm);
        if !grad_norm.is_finite() {
            return Err(TrainingError::NonFiniteGradient { step, norm: grad_norm, batch: indices });
        }
        if grad_norm == 0.0 {
            return Err(TrainingError::NoGradient { step });
        }
        let learning_rate = self.schedule.learning_rate(self.step);
        let slow = self.optimizer.begin(&self.config, learning_rate);
        let fast = self.optimizer.at(&self.config, learning_rate * self.config.loraplus_lr_ratio);
        let (optimizer, is_fast) = (&mut self.optimizer, &self.fast);
        let mut outcome = Ok(());
        self.adapter.update(|index, values| {
            let gradient = gradients.get(index).map_or(&[][..], Vec::as_slice);
            if outcome.is_ok() {
                let update = if is_fast.get(index) == Some(&true) { fast } else { slow };
                outcome = optimizer.apply(update, index, values, gradient);
            }
        })?;
        outcome?;
        if let Some(ranks) = &mut self.ranks {
            ranks.after_step(step, &mut self.adapter, &gradients)?;
        }
        self.step = step;
        Ok(StepReport {
            step,
            total: self.total,
            epoch: self.sampler.epochs(),
            loss,
            regulariser,
            learning_rate,
            grad_norm,
            num_tokens,
            num_targets,
            num_sequences: indices.len(),
        })
    }

    /// Writes a checkpoint `{folder}/{step}` and returns its path; see [`crate::checkpoint`].
    pub fn save(&self, folder: &Path) -> Result<PathBuf> {
        let state = State {
            step: self.step,
            total: self.total,
            config: self.config.clone(),
            position: self.sampler.position(),
            dataset: self.dataset.fingerprint(),
            base_probe: probe(&self.model)?,
        };
        let parts =
            Parts { state: &state, adapter: &self.adapter, optimizer: &self.optimizer, ranks: self.ranks.as_ref() };
        checkpoint::save(folder, &parts)
    }

    /// Writes the adapter as Python `peft` reads it, without ranks that AdaLoRA has set to zero.
    pub fn save_adapter(&self, folder: &Path, base_model: &str) -> Result<()> {
        Ok(peft::save(&self.adapter.pruned()?, folder, base_model)?)
    }

    /// Loss per example with the adapter as it is now.
    pub fn evaluate(&self, dataset: &Dataset) -> Result<Vec<ExampleLoss>> {
        evaluate::evaluate(&self.model, Some(&self.adapter), dataset)
    }

    /// Whether a checkpoint is due after the last step.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        let every = self.config.checkpoint_every;
        self.step > 0 && (self.is_complete() || (every > 0 && self.step.is_multiple_of(every)))
    }

    /// Whether all steps are done.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.step >= self.total
    }

    /// Steps completed.
    #[must_use]
    pub fn num_steps_done(&self) -> usize {
        self.step
    }

    /// Steps of the run.
    #[must_use]
    pub fn total_steps(&self) -> usize {
        self.total
    }

    /// The adapter as it is now.
    #[must_use]
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The optimizer's state.
    #[must_use]
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &TrainingConfig {
        &self.config
    }

    /// The base model.
    #[must_use]
    pub fn model(&self) -> &Arc<Decoder> {
        &self.model
    }
}

/// Everything that can be known before the first step.
fn check_dataset(model: &Decoder, config: &TrainingConfig, dataset: &Dataset) -> Result<()> {
    let vocabulary = model.config().vocab_size;
    for sequence in dataset.sequences() {
        let (length, limit) = (sequence.ids.len(), config.sequence_length);
        if length > limit {
            return Err(TrainingError::SequenceTooLong { example: sequence.example, length, limit });
        }
        if let Some(id) = sequence.ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(ModelError::TokenOutOfRange { id: *id, vocabulary }.into());
        }
    }
    Ok(())
}

/// A few logits of the base model, by which another base of the same shape is recognised.
fn probe(model: &Decoder) -> Result<Vec<f32>> {
    let ids: Vec<u32> = (0..model.config().vocab_size.min(8) as u32).collect();
    let logits = model.advance(&mut model.new_cache(), &ids, None)?;
    Ok(logits.into_iter().take(16).collect())
}
