//! The loop, one step at a time: the caller decides when to go on, save, stop, and measures time.
//!
//! Here a run begins, is resumed, saved and asked; what a step does is in [`step`].

mod step;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tunesmith_model::{Adapter, Decoder, ModelError, RankAllocator, Recompute, peft};

use crate::adamw::{AdamW, Moments};
use crate::checkpoint::{self, Parts, State, Window};
use crate::config::TrainingConfig;
use crate::data::Dataset;
use crate::divergence::LossWatch;
use crate::error::{Result, TrainingError};
use crate::evaluate::{self, ExampleLoss};
use crate::loraplus;
use crate::memory::{Memory, RecomputeSetting};
use crate::moved::MovedCheck;
use crate::packing::Packing;
use crate::sampler::Sampler;
use crate::schedule::Schedule;
pub use step::StepReport;
use step::Underway;

/// A run of training.
pub struct Trainer {
    config: TrainingConfig,
    model: Arc<Decoder>,
    /// What a resumed run compares with its base.
    base_probe: Vec<f32>,
    dataset: Dataset,
    adapter: Adapter,
    optimizer: AdamW,
    /// Which tensors learn fast (LoRA+).
    fast: Vec<bool>,
    /// AdaLoRA's budget.
    ranks: Option<RankAllocator>,
    sampler: Sampler,
    schedule: Schedule,
    underway: Option<Underway>,
    watch: LossWatch,
    /// Until the check is made.
    moved: Option<MovedCheck>,
    memory: Memory,
    recompute: Recompute,
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
        config: TrainingConfig,
        model: Arc<Decoder>,
        dataset: Dataset,
        adapter: Adapter,
    ) -> Result<Self> {
        let base_probe = probe(&model)?;
        let mut trainer = Self::with_probe(config, model, dataset, adapter, base_probe)?;
        trainer.limit_memory(trainer.config.recompute, trainer.config.memory_limit_mb)?;
        Ok(trainer)
    }

    /// Before the memory is looked at: then layers are recomputed, which takes least.
    fn with_probe(
        mut config: TrainingConfig,
        model: Arc<Decoder>,
        dataset: Dataset,
        adapter: Adapter,
        base_probe: Vec<f32>,
    ) -> Result<Self> {
        config.adapter = adapter.config().clone();
        config.validate(model.config())?;
        model.check_adapter(Some(&adapter))?;
        check(&model, &config, &dataset)?;
        let memory = Memory::predict(&config, model.config(), &dataset.lengths());
        let adapter = adapter.on_base(&model);
        let lengths: Vec<usize> = adapter.parameters().iter().map(|(_, tensor)| tensor.elem_count()).collect();
        let sampler = Sampler::new(dataset.lengths(), config.layout(), config.seed);
        let total = config.total_steps(sampler.num_rows());
        config.check_total(total)?;
        Ok(Self {
            optimizer: AdamW::of(config.optimizer, &lengths),
            fast: loraplus::fast(&adapter),
            ranks: RankAllocator::new(&adapter),
            sampler,
            schedule: config.schedule(total),
            underway: None,
            watch: LossWatch::default(),
            moved: Some(MovedCheck::new(&adapter)?),
            memory,
            recompute: Recompute::Layers,
            step: 0,
            total,
            adapter,
            config,
            model,
            base_probe,
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
        // an adapter says which base it was trained on; older ones did not
        if stored.adapter.base_fingerprint().is_some_and(|wanted| wanted != model.fingerprint()) {
            let reason = format!("its fingerprint begins with {}", model.fingerprint());
            return Err(TrainingError::BaseModelMismatch { reason });
        }
        let probe = probe(&model)?;
        let difference = probe.iter().zip(&state.base_probe).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        // processors round differently; another model differs by far more
        if probe.len() != state.base_probe.len() || difference.is_nan() || difference > 1e-2 {
            return Err(TrainingError::BaseModelMismatch { reason: format!("logits differ by {difference}") });
        }
        let mut trainer = Self::with_probe(state.config, model, dataset, stored.adapter, probe)?;
        // the limit may be that of another machine: whoever knows this one's says it, and divides the step first if need be
        let _ = trainer.limit_memory(trainer.config.recompute, trainer.config.memory_limit_mb);
        let lengths: Vec<usize> = trainer.optimizer.moments.iter().map(Moments::len).collect();
        if !stored.optimizer.fits(trainer.config.optimizer, &lengths) {
            let reason = "the moments have another form than the adapter asks for".to_owned();
            return Err(TrainingError::AdapterMismatch { name: "exp_avg".to_owned(), reason });
        }
        trainer.optimizer = stored.optimizer;
        trainer.ranks = stored.ranks;
        trainer.sampler = trainer.sampler.at(state.position);
        trainer.step = state.step;
        trainer.watch = state.watch;
        if let Some(Window { rows_done, nll }) = state.window {
            let mut underway = trainer.next_window()?;
            underway.rows_done = rows_done;
            underway.sums.nll = nll;
            underway.sums.gradients = stored.gradients;
            trainer.underway = Some(underway);
        }
        Ok(trainer)
    }

    /// What the backward pass finds in memory. A choice of the machine and not of the run: gradients are the same to the bit, and no
    /// checkpoint remembers it.
    #[must_use]
    pub fn with_recompute(self, recompute: Recompute) -> Self {
        Self { recompute, ..self }
    }

    /// Another split of the same step, for a machine with more or less memory: every step keeps its rows, so the run goes on
    /// as before up to the order in which its sums are rounded. Refused when `batch_size · accumulation` would change.
    pub fn resplit(&mut self, batch_size: usize, accumulation: usize) -> Result<()> {
        if batch_size * accumulation != self.config.rows_per_step() {
            return Err(TrainingError::BadSetting {
                key: "batch_size x accumulation",
                value: format!("{batch_size} x {accumulation}"),
                remedy: "keep the product that the run was started with, so that every step keeps its examples",
            });
        }
        (self.config.batch_size, self.config.accumulation) = (batch_size, accumulation);
        Ok(())
    }

    /// Another memory limit, or another answer to it, for another machine. The result stays the same to the bit.
    ///
    /// # Errors
    /// [`TrainingError::OutOfMemory`] when the run would not fit; nothing is changed then.
    pub fn limit_memory(&mut self, recompute: RecomputeSetting, memory_limit_mb: Option<u64>) -> Result<()> {
        let config = TrainingConfig { recompute, memory_limit_mb, ..self.config.clone() };
        config.validate(self.model.config())?;
        (self.memory, self.recompute) = judge_memory(&config, &self.model, &self.dataset)?;
        self.config = config;
        Ok(())
    }

    /// Writes a checkpoint `{folder}/{step}` and returns its path; see [`crate::checkpoint`].
    pub fn save(&self, folder: &Path) -> Result<PathBuf> {
        let underway = self.underway.as_ref();
        let state = State {
            format: State::current_format(),
            step: self.step,
            total: self.total,
            config: self.config.clone(),
            position: underway.map_or(self.sampler.position(), |underway| underway.from),
            window: underway.map(|underway| Window { rows_done: underway.rows_done, nll: underway.sums.nll }),
            watch: self.watch,
            dataset: self.dataset.fingerprint(),
            base_probe: self.base_probe.clone(),
        };
        let gradients = underway.map_or(&[][..], |underway| underway.sums.gradients.as_slice());
        let (adapter, optimizer, ranks) = (&self.adapter, &self.optimizer, self.ranks.as_ref());
        let parts = Parts { state: &state, adapter, optimizer, ranks, gradients };
        checkpoint::save(folder, &parts)
    }

    /// Bytes of a checkpoint, at the most: adapter, moments, the sums of an unfinished step, and for AdaLoRA importance; the rest
    /// is small.
    #[must_use]
    pub fn checkpoint_bytes(&self) -> u64 {
        let per_value = if self.ranks.is_some() { 16 } else { 8 };
        (per_value * self.adapter.num_parameters() + self.optimizer.num_bytes() + (1 << 20)) as u64
    }

    /// Writes the adapter as Python `peft` reads it, without ranks that AdaLoRA has set to zero.
    pub fn save_adapter(&self, folder: &Path, base_model: &str) -> Result<()> {
        Ok(peft::save(&self.adapter.pruned()?, folder, base_model)?)
    }

    /// Whether another dataset, for evaluation, can be used with this model: known before the first step.
    pub fn check_dataset(&self, dataset: &Dataset) -> Result<()> {
        check(&self.model, &self.config, dataset)
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

    /// Rows of the step that is underway which are done; 0 between steps.
    #[must_use]
    pub fn num_rows_underway(&self) -> usize {
        self.underway.as_ref().map_or(0, |underway| underway.rows_done)
    }

    /// Steps of one pass over the data.
    #[must_use]
    pub fn steps_per_epoch(&self) -> usize {
        self.config.steps_per_epoch(self.sampler.num_rows())
    }

    /// How well the rows of an epoch are filled.
    #[must_use]
    pub fn packing(&self) -> Packing {
        self.sampler.packing()
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

    /// What the run will take of memory.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Whether layers are recomputed.
    #[must_use]
    pub fn recompute(&self) -> Recompute {
        self.recompute
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
fn check(model: &Decoder, config: &TrainingConfig, dataset: &Dataset) -> Result<()> {
    if config.quantization != model.quantization() {
        return Err(TrainingError::BadSetting {
            key: "quantization",
            value: format!(
                "{}, the base model was loaded as {}",
                config.quantization.name(),
                model.quantization().name()
            ),
            remedy: "load the base model with the quantization of the run",
        });
    }
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

/// What the run takes of the card that computes it, else of the machine, and what that means for its layers.
fn judge_memory(config: &TrainingConfig, model: &Decoder, dataset: &Dataset) -> Result<(Memory, Recompute)> {
    let (method, lengths) = (&config.adapter.method, dataset.lengths());
    let Some(card) = model.smallest_card(method) else {
        let memory = Memory::predict(config, model.config(), &lengths);
        return Ok((memory, memory.choose(config.recompute, config.memory_limit())?));
    };
    let beside = Memory::predict_beside(model.num_devices(Some(method)), config, model.config());
    beside.choose(config.recompute, config.memory_limit())?;
    let memory = Memory::predict_on(card, config, model.config(), &lengths);
    // the rest is for pieces that fit nowhere
    Ok((memory, memory.choose(config.recompute, Some(card.room / 20 * 19))?))
}

/// A few logits of the base model, by which another base of the same shape is recognised.
fn probe(model: &Decoder) -> Result<Vec<f32>> {
    let ids: Vec<u32> = (0..model.config().vocab_size.min(8) as u32).collect();
    let logits = model.advance(&mut model.new_cache(), &ids, None)?;
    Ok(logits.into_iter().take(16).collect())
}
