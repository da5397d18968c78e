//! The loop, one step at a time: the caller decides when to go on, save, stop, and measures time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tunesmith_model::{Adapter, Decoder, ModelError, RankAllocator, Recompute, peft};

use crate::adamw::{AdamW, Moments};
use crate::checkpoint::{self, Parts, State, Window};
use crate::clip;
use crate::config::TrainingConfig;
use crate::data::{Dataset, Sequence};
use crate::divergence::{LossWatch, Risen};
use crate::error::{Result, TrainingError};
use crate::evaluate::{self, ExampleLoss};
use crate::loraplus;
use crate::memory::{Memory, RecomputeSetting};
use crate::moved::MovedCheck;
use crate::packing::Packing;
use crate::sampler::{Position, Sampler};
use crate::schedule::Schedule;
use crate::step::Sums;

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
    underway: Option<Underway>,
    watch: LossWatch,
    /// Until the check is made.
    moved: Option<MovedCheck>,
    memory: Memory,
    recompute: Recompute,
    step: usize,
    total: usize,
}

/// A step of which some batches are done.
struct Underway {
    /// Where in the data the step begins.
    from: Position,
    rows: Vec<Vec<usize>>,
    rows_done: usize,
    sums: Sums,
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
        check(&model, &config, &dataset)?;
        let memory = Memory::predict(&config, model.config(), &dataset.lengths());
        let recompute = memory.choose(config.recompute, config.memory_limit())?;
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
            recompute,
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
        self.memory = Memory::predict(&config, self.model.config(), &self.dataset.lengths());
        self.recompute = self.memory.choose(recompute, config.memory_limit())?;
        self.config = config;
        Ok(())
    }

    /// One optimizer step; see [`Trainer::advance`].
    pub fn step(&mut self) -> Result<StepReport> {
        loop {
            if let Some(report) = self.advance()? {
                return Ok(report);
            }
        }
    }

    /// One batch, forward and backward; `Some` when it was the last of its optimizer step, which is then made. Between the
    /// batches of a step the run can be saved too.
    ///
    /// On an error the run should end: the adapter keeps its values from before the step, except for
    /// [`TrainingError::AdapterUnmoved`], which is found after it.
    pub fn advance(&mut self) -> Result<Option<StepReport>> {
        if self.is_complete() {
            return Err(TrainingError::Complete { total: self.total });
        }
        let mut underway = match self.underway.take() {
            Some(underway) => underway,
            None => self.next_window()?,
        };
        let end = (underway.rows_done + self.config.batch_size).min(underway.rows.len());
        let indices = underway.rows[underway.rows_done..end].concat();
        let batch = self.dataset.batch(&indices)?;
        let loss = underway.sums.add(&self.model, &self.adapter, &batch, self.recompute)?;
        if !loss.is_finite() {
            let examples = self.dataset.examples(&indices);
            return Err(TrainingError::NonFiniteLoss { step: self.step + 1, loss, examples });
        }
        underway.rows_done = end;
        if end < underway.rows.len() {
            self.underway = Some(underway);
            return Ok(None);
        }
        self.update(underway).map(Some)
    }

    fn next_window(&mut self) -> Result<Underway> {
        let from = self.sampler.position();
        let rows = self.sampler.next(self.config.rows_per_step());
        let num_targets = self.count(&rows, Sequence::num_targets);
        if num_targets == 0 {
            let num_tokens = self.count(&rows, |sequence| sequence.ids.len());
            return Err(TrainingError::AllLabelsMasked { num_examples: rows.concat().len(), num_tokens });
        }
        Ok(Underway { from, rows, rows_done: 0, sums: Sums::new(num_targets) })
    }

    fn count(&self, rows: &[Vec<usize>], of: impl Fn(&Sequence) -> usize) -> usize {
        rows.iter().flatten().filter_map(|index| self.dataset.sequences().get(*index)).map(of).sum()
    }

    fn update(&mut self, underway: Underway) -> Result<StepReport> {
        let Underway { rows, sums, .. } = underway;
        let (step, loss) = (self.step + 1, sums.loss());
        let (num_tokens, num_targets) =
            (self.count(&rows, |sequence| sequence.ids.len()), self.count(&rows, Sequence::num_targets));
        let indices = rows.concat();
        if let Some(Risen { to, from }) = self.watch.observe(loss) {
            let examples = self.dataset.examples(&indices);
            return Err(TrainingError::Diverged { step, to, from, examples });
        }
        let mut gradients = sums.gradients;
        let regulariser = self.adapter.regularise(&mut gradients)?;
        let grad_norm = clip::clip(&mut gradients, self.config.clip_norm);
        if !grad_norm.is_finite() {
            let examples = self.dataset.examples(&indices);
            return Err(TrainingError::NonFiniteGradient { step, norm: grad_norm, examples });
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
        self.step = step;
        if learning_rate > 0.0 {
            self.check_moved(&gradients)?;
        }
        if let Some(ranks) = &mut self.ranks {
            ranks.after_step(step, &mut self.adapter, &gradients)?;
        }
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

    /// Called right after the update, before anything else changes the adapter.
    fn check_moved(&mut self, gradients: &[Vec<f32>]) -> Result<()> {
        let Some(check) = self.moved.as_mut() else { return Ok(()) };
        if !check.count(&self.adapter, gradients)? {
            return Ok(());
        }
        let names = check.unmoved(&self.adapter);
        self.moved = None;
        if names.is_empty() { Ok(()) } else { Err(TrainingError::AdapterUnmoved { step: self.step, names }) }
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
            base_probe: probe(&self.model)?,
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

/// A few logits of the base model, by which another base of the same shape is recognised.
fn probe(model: &Decoder) -> Result<Vec<f32>> {
    let ids: Vec<u32> = (0..model.config().vocab_size.min(8) as u32).collect();
    let logits = model.advance(&mut model.new_cache(), &ids, None)?;
    Ok(logits.into_iter().take(16).collect())
}
