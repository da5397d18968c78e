//! The loop: batches, validation, checkpoints, early stopping, and going on from the last checkpoint.
//!
//! Every computation runs on a thread of its own, so that heartbeats, cap and notices are never late; between two batches,
//! also those of one step, the run can be left.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use tunesmith_contract::{
    DocumentId,
    job::{Location, MetricLine, TrainJob},
};
use tunesmith_model::peft;
use tunesmith_training::{Dataset, Patience, StepReport, Trainer, TrainingConfig, TrainingError, disk, evaluate};

use crate::{
    base::Base,
    blocking::blocking,
    checkpoints::{BEST, Best, Checkpoints, KEEP, RunState},
    clock::now,
    context::Context,
    error::{Result, TrainerError},
    halt::Halt,
    machine::MB,
    metrics::Metrics,
    progress::Progress,
    resume::resume,
};

/// What goes into training.
pub struct Inputs {
    /// The base model.
    pub base: Base,
    /// The training split.
    pub train: Dataset,
    /// The document that each of its examples comes from.
    pub documents: Vec<DocumentId>,
    /// The validation split, when it has text.
    pub validation: Option<Arc<Dataset>>,
    /// Settings.
    pub config: TrainingConfig,
}

/// What comes out.
#[derive(Debug)]
pub struct Trained {
    /// Folder of this machine with the adapter that validates best (the last one without a validation split).
    pub adapter: PathBuf,
    /// Steps done in all attempts.
    pub steps: u32,
    /// Loss of the last step.
    pub final_loss: f64,
    /// Step this attempt went on from.
    pub resumed_from: Option<u32>,
}

/// Trains until the last step, or until somebody asks to stop: then the state after the current step is saved.
pub async fn train(job: &TrainJob, inputs: Inputs, context: &Context) -> Result<Trained, Halt> {
    let mut run = Run::start(job, inputs, context).await?;
    let result = run.all_steps().await;
    run.progress.finish();
    result?;
    let adapter = run.finish()?;
    Ok(Trained {
        adapter,
        steps: run.step(),
        final_loss: run.state.last.as_ref().map_or(0.0, |line| line.loss),
        resumed_from: run.resumed_from,
    })
}

/// Steps done, and rows of the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    step: u32,
    rows: usize,
}

struct Run<'a> {
    context: &'a Context,
    base: Base,
    /// `None` only while a step is computed.
    trainer: Option<Trainer>,
    documents: Vec<DocumentId>,
    validation: Option<Arc<Dataset>>,
    validate_every: u32,
    patience: Patience,
    checkpoint_every: u32,
    checkpoints: Checkpoints,
    metrics: Metrics,
    state: RunState,
    saved: Option<Place>,
    resumed_from: Option<u32>,
    progress: Progress,
    clock: Speed,
}

impl<'a> Run<'a> {
    async fn start(job: &TrainJob, inputs: Inputs, context: &'a Context) -> Result<Self, Halt> {
        let Inputs { base, train, documents, validation, config } = inputs;
        let checkpoints = Checkpoints::new(context.store.clone(), &job.output, &context.scratch);
        let checkpoint_every = count(config.checkpoint_every);
        let resuming = resume(&checkpoints, &base, &train, &config, context);
        let (trainer, state) = match context.stop.or(resuming).await?? {
            Some(found) => found,
            None => (Trainer::new(config, base.model.clone(), train)?, RunState::default()),
        };
        require_room(&trainer, &context.scratch, &job.output)?;
        validation.as_ref().map_or(Ok(()), |validation| trainer.check_dataset(validation))?;
        let place = place(&trainer);
        let resumed = (place != Place { step: 0, rows: 0 }).then_some(place);
        let steps = count(trainer.total_steps());
        let (num_parameters, packing) = (trainer.adapter().num_parameters(), trainer.packing());
        let (recompute, quantization) = (trainer.recompute(), trainer.config().quantization);
        tracing::info!(
            run = %job.run,
            step = place.step,
            steps,
            num_parameters,
            sequences = packing.num_sequences,
            rows = packing.num_rows,
            rows_filled = packing.efficiency(),
            quantization = quantization.name(),
            ?recompute,
            memory_mb = trainer.memory().total(recompute).div_ceil(MB),
            memory_limit_mb = trainer.config().memory_limit_mb,
            devices = base.model.num_devices(Some(&trainer.config().adapter.method)),
            "training starts"
        );
        let settings = &job.training;
        let validate_every = match settings.evaluate_every {
            0 => count(trainer.steps_per_epoch()),
            steps => steps,
        };
        let patience =
            Patience { patience: settings.early_stopping_patience, min_delta: settings.early_stopping_min_delta };
        Ok(Self {
            metrics: Metrics::resume(&context.store, &job.output, place.step).await?,
            progress: Progress::new(place.step, steps),
            clock: Speed::default(),
            trainer: Some(trainer),
            saved: resumed,
            resumed_from: resumed.map(|place| place.step),
            context,
            base,
            documents,
            validation,
            validate_every,
            patience,
            checkpoint_every,
            checkpoints,
            state,
        })
    }

    async fn all_steps(&mut self) -> Result<(), Halt> {
        loop {
            if let Some(reason) = self.context.stop.asked() {
                self.save().await?;
                return Err(Halt::Stopped { reason, saved: self.saved.map(|place| place.step) });
            }
            // also after a resume: the step may have been saved before it was validated
            if self.validation_due() {
                self.validate().await?;
                continue;
            }
            if self.checkpoint_due() {
                self.save().await?;
            }
            if self.is_complete() {
                return Ok(());
            }
            self.one_batch().await?;
        }
    }

    async fn one_batch(&mut self) -> Result<()> {
        let mut trainer = self.trainer.take().ok_or_else(lost)?;
        let started = Instant::now();
        let (trainer, report) = blocking(move || {
            let report = trainer.advance();
            Ok((trainer, report))
        })
        .await?;
        self.trainer = Some(trainer);
        self.clock.add(started);
        let Some(report) = report.map_err(|error| self.named(error))? else { return Ok(()) };
        self.judge_base(&report);
        let line = self.clock.line(&report);
        self.progress.step(&line, self.context.spent());
        self.metrics.push(line.clone());
        self.state.last = Some(line);
        Ok(())
    }

    /// An error that ends the run, with the documents behind it and the checkpoint before it.
    fn named(&self, error: TrainingError) -> TrainerError {
        let (TrainingError::NonFiniteLoss { examples, .. }
        | TrainingError::NonFiniteGradient { examples, .. }
        | TrainingError::Diverged { examples, .. }) = &error
        else {
            return error.into();
        };
        let mut documents: Vec<DocumentId> =
            examples.iter().filter_map(|example| self.documents.get(*example)).cloned().collect();
        documents.dedup();
        let checkpoint_opt = self.saved.map(|place| self.checkpoints.location(place.step));
        TrainerError::Diverged { source: Box::new(error), documents, checkpoint_opt }
    }

    /// Before its first step the adapter changes nothing: this is the loss of the base model.
    fn judge_base(&self, report: &StepReport) {
        let guessing = (self.base.model.config().vocab_size as f64).ln();
        if report.step == 1 && report.loss > guessing {
            tracing::warn!(
                loss = report.loss,
                guessing,
                "the base model predicts these texts worse than guessing would: is this its tokenizer?"
            );
        }
    }

    fn validation_due(&self) -> bool {
        let step = self.step();
        let due = step > 0 && (step.is_multiple_of(self.validate_every.max(1)) || self.is_complete());
        self.validation.is_some() && due && self.state.validated != Some(step)
    }

    /// Scores the validation split and keeps the adapter when it is the best so far. A request to stop ends it at once: the
    /// step is validated after the resume.
    async fn validate(&mut self) -> Result<()> {
        let Some(validation) = self.validation.clone() else { return Ok(()) };
        let step = self.step();
        let (adapter, model) = (self.trainer()?.adapter().snapshot()?, self.base.model.clone());
        let scoring = blocking(move || {
            let losses = evaluate(&model, Some(&adapter), &validation)?;
            let (nll, tokens) = losses.iter().fold((0.0, 0), |(nll, n), loss| (nll + loss.nll, n + loss.num_targets));
            Ok((adapter, nll / tokens.max(1) as f64))
        });
        let Ok(scored) = self.context.stop.or(scoring).await else { return Ok(()) };
        let (adapter, loss) = scored?;
        if !loss.is_finite() {
            return Err(self.named(TrainingError::NonFiniteLoss { step: step as usize, loss, examples: Vec::new() }));
        }
        let better = self.state.best.is_none_or(|best| loss < best.loss);
        if better {
            save_adapter(&adapter, &self.best_folder(), &self.base)?;
            self.state.best = Some(Best { step, loss });
        }
        self.state.validated = Some(step);
        self.metrics.validated(step, loss);
        tracing::info!(step, validation_loss = loss, best = better, "validated");
        if self.state.early_stopping.observe(loss, self.patience) && !self.is_complete() {
            self.state.stopped_early = true;
            let Patience { patience, min_delta } = self.patience;
            tracing::info!(step, patience, min_delta, "early stopping: the validation loss no longer improves");
        }
        Ok(())
    }

    fn checkpoint_due(&self) -> bool {
        let Place { step, rows } = self.place();
        let due = step.is_multiple_of(self.checkpoint_every.max(1)) || self.is_complete();
        step > 0 && rows == 0 && due && self.saved != Some(self.place())
    }

    /// Saves the state after the current batch, unless it is saved.
    async fn save(&mut self) -> Result<()> {
        let place = self.place();
        if place == (Place { step: 0, rows: 0 }) || self.saved == Some(place) {
            return Ok(());
        }
        let started = Instant::now();
        self.trainer()?.save(self.checkpoints.scratch())?;
        // the lines before the checkpoint that claims their steps
        self.metrics.write().await?;
        let best = self.best_folder();
        let best = self.state.best.is_some().then_some(best.as_path());
        self.checkpoints.publish(place.step, &self.state, best).await?;
        self.saved = Some(place);
        let (seconds, at) = (started.elapsed().as_secs_f64(), self.checkpoints.location(place.step));
        tracing::info!(step = place.step, rows_of_next = place.rows, seconds, %at, "checkpoint");
        Ok(())
    }

    fn finish(&self) -> Result<PathBuf> {
        let best = self.best_folder();
        if self.state.best.is_none() {
            save_adapter(self.trainer()?.adapter(), &best, &self.base)?;
        }
        Ok(best)
    }

    fn best_folder(&self) -> PathBuf {
        self.context.scratch.join(BEST)
    }

    fn trainer(&self) -> Result<&Trainer> {
        self.trainer.as_ref().ok_or_else(lost)
    }

    fn place(&self) -> Place {
        self.trainer.as_ref().map_or(Place { step: 0, rows: 0 }, place)
    }

    fn step(&self) -> u32 {
        self.place().step
    }

    fn is_complete(&self) -> bool {
        self.state.stopped_early || self.trainer.as_ref().is_some_and(Trainer::is_complete)
    }
}

fn place(trainer: &Trainer) -> Place {
    Place { step: count(trainer.num_steps_done()), rows: trainer.num_rows_underway() }
}

/// Asks for room before the first step: in the scratch folder for a checkpoint, the best adapter and a copy of both; in the
/// run's folder, when it is of this machine, for what is kept and the one that is being written.
fn require_room(trainer: &Trainer, scratch: &Path, output: &Location) -> Result<()> {
    let one = trainer.checkpoint_bytes();
    disk::require(scratch, 3 * one)?;
    if let Location::Local(folder) = output {
        disk::require(folder, (KEEP as u64 + 2) * one)?;
    }
    Ok(())
}

/// Without the ranks that AdaLoRA has set to zero.
fn save_adapter(adapter: &tunesmith_model::Adapter, folder: &Path, base: &Base) -> Result<()> {
    Ok(peft::save(&adapter.pruned()?, folder, base.name.as_str())?)
}

fn lost() -> TrainerError {
    TrainerError::Panicked { message: "a step ended without giving the trainer back".to_owned() }
}

fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Speed of this attempt.
#[derive(Debug, Default)]
struct Speed {
    steps: u32,
    seconds: f64,
    of_step: f64,
}

impl Speed {
    /// A batch that has just ended.
    fn add(&mut self, started: Instant) {
        self.of_step += started.elapsed().as_secs_f64();
    }

    /// The step that its last batch has ended.
    fn line(&mut self, report: &StepReport) -> MetricLine {
        let seconds = std::mem::take(&mut self.of_step);
        self.steps += 1;
        self.seconds += seconds;
        let per_step = self.seconds / f64::from(self.steps);
        MetricLine {
            step: count(report.step),
            steps: count(report.total),
            loss: report.loss,
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            tokens: report.num_targets as u64,
            tokens_per_second: report.num_tokens as f64 / seconds.max(1e-9),
            seconds_left: per_step * (report.total - report.step) as f64,
            at: Some(now()),
            validation_loss: None,
        }
    }
}
