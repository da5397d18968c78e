//! The loop: steps, validation after each epoch, checkpoints, and going on from the last one.
//!
//! Every computation runs on a thread of its own, so that heartbeats, cap and notices are never late.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use tunesmith_contract::job::{MetricLine, TrainJob};
use tunesmith_model::{ModelError, peft};
use tunesmith_training::{Dataset, StepReport, Trainer, TrainingConfig, TrainingError, evaluate};

use crate::{
    base::Base,
    blocking::blocking,
    checkpoints::{BEST, Best, Checkpoints, RunState},
    context::Context,
    error::{Result, TrainerError},
    halt::Halt,
    metrics::Metrics,
    progress::Progress,
    settings::differences,
    store::Store,
};

/// What goes into training.
pub struct Inputs {
    /// The base model.
    pub base: Base,
    /// The training split.
    pub train: Dataset,
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

struct Run<'a> {
    context: &'a Context,
    base: Base,
    /// `None` only while a step is computed.
    trainer: Option<Trainer>,
    validation: Option<Arc<Dataset>>,
    steps_per_epoch: u32,
    checkpoint_every: u32,
    checkpoints: Checkpoints,
    metrics: Metrics,
    state: RunState,
    saved: Option<u32>,
    resumed_from: Option<u32>,
    progress: Progress,
    clock: Speed,
}

impl<'a> Run<'a> {
    async fn start(job: &TrainJob, inputs: Inputs, context: &'a Context) -> Result<Self, Halt> {
        let Inputs { base, train, validation, config } = inputs;
        let checkpoints = Checkpoints::new(context.store.clone(), &job.output, &context.scratch);
        let steps_per_epoch = count(train.len().div_ceil(config.sequences_per_step()));
        let checkpoint_every = count(config.checkpoint_every);
        let resuming = resume(&checkpoints, &base, &train, &config, context);
        let (trainer, state) = match context.stop.or(resuming).await?? {
            Some(found) => found,
            None => (Trainer::new(config, base.model.clone(), train)?, RunState::default()),
        };
        let step = count(trainer.num_steps_done());
        let resumed_from = (step > 0).then_some(step);
        let (num_parameters, steps) = (trainer.adapter().num_parameters(), trainer.total_steps());
        tracing::info!(run = %job.run, step, steps, num_parameters, "training starts");
        Ok(Self {
            metrics: Metrics::resume(&context.store, &job.output, step).await?,
            progress: Progress::new(step, count(steps)),
            clock: Speed::default(),
            trainer: Some(trainer),
            saved: resumed_from,
            context,
            base,
            validation,
            steps_per_epoch,
            checkpoint_every,
            checkpoints,
            state,
            resumed_from,
        })
    }

    async fn all_steps(&mut self) -> Result<(), Halt> {
        loop {
            if let Some(reason) = self.context.stop.asked() {
                self.save().await?;
                return Err(Halt::Stopped { reason, saved: self.saved });
            }
            // also after a resume: the step may have been saved before it was validated
            if self.validation_due() {
                self.validate().await?;
                continue;
            }
            if self.checkpoint_due() {
                self.save().await?;
            }
            if self.trainer()?.is_complete() {
                return Ok(());
            }
            self.one_step().await?;
        }
    }

    async fn one_step(&mut self) -> Result<()> {
        let mut trainer = self.trainer.take().ok_or_else(lost)?;
        let started = Instant::now();
        let (trainer, report) = blocking(move || {
            let report = trainer.step()?;
            Ok((trainer, report))
        })
        .await?;
        self.trainer = Some(trainer);
        let line = self.clock.line(&report, started);
        self.metrics.push(&line)?;
        self.progress.step(&line, self.context.spent());
        self.state.last = Some(line);
        Ok(())
    }

    fn validation_due(&self) -> bool {
        let step = self.step();
        let at_end = step > 0 && (step.is_multiple_of(self.steps_per_epoch.max(1)) || self.is_complete());
        self.validation.is_some() && at_end && self.state.validated != Some(step)
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
            return Err(TrainingError::NonFiniteLoss { step: step as usize, loss, batch: Vec::new() }.into());
        }
        let better = self.state.best.is_none_or(|best| loss < best.loss);
        if better {
            save_adapter(&adapter, &self.best_folder(), &self.base)?;
            self.state.best = Some(Best { step, loss });
        }
        self.state.validated = Some(step);
        tracing::info!(step, validation_loss = loss, best = better, "validated");
        Ok(())
    }

    fn checkpoint_due(&self) -> bool {
        let step = self.step();
        let due = step.is_multiple_of(self.checkpoint_every.max(1)) || self.is_complete();
        step > 0 && due && self.saved != Some(step)
    }

    /// Saves the state after the current step, unless it is saved.
    async fn save(&mut self) -> Result<()> {
        let step = self.step();
        if step == 0 || self.saved == Some(step) {
            return Ok(());
        }
        let started = Instant::now();
        self.trainer()?.save(self.checkpoints.scratch())?;
        // the lines before the checkpoint that claims their steps
        self.metrics.write().await?;
        let best = self.best_folder();
        let best = self.state.best.is_some().then_some(best.as_path());
        self.checkpoints.publish(step, &self.state, best).await?;
        self.saved = Some(step);
        tracing::info!(step, seconds = started.elapsed().as_secs_f64(), at = %self.checkpoints.location(step), "checkpoint");
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

    fn step(&self) -> u32 {
        self.trainer.as_ref().map_or(0, |trainer| count(trainer.num_steps_done()))
    }

    fn is_complete(&self) -> bool {
        self.trainer.as_ref().is_some_and(Trainer::is_complete)
    }
}

/// Goes on from the newest checkpoint that can be read; `None` when there is none.
async fn resume(
    checkpoints: &Checkpoints,
    base: &Base,
    train: &Dataset,
    config: &TrainingConfig,
    context: &Context,
) -> Result<Option<(Trainer, RunState)>> {
    for step in checkpoints.finished().await? {
        let location = checkpoints.location(step);
        match resume_from(checkpoints, step, base, train, &context.store, &context.scratch).await {
            Ok((trainer, state)) => {
                let differs = differences(trainer.config(), config);
                if !differs.is_empty() {
                    return Err(TrainerError::OtherSettings { location, differs: differs.join(", ") });
                }
                tracing::info!(step, from = %location, "resuming");
                return Ok(Some((trainer, state)));
            }
            Err(error) if is_damage(&error) => {
                tracing::warn!(%error, %location, "this checkpoint is damaged; trying the one before")
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

async fn resume_from(
    checkpoints: &Checkpoints,
    step: u32,
    base: &Base,
    train: &Dataset,
    store: &Store,
    scratch: &Path,
) -> Result<(Trainer, RunState)> {
    let (folder, state) = checkpoints.fetch(step).await?;
    let (from, model, train, config) = (folder.clone(), base.model.clone(), train.clone(), base.model.config().clone());
    let best = state.best.is_some().then(|| folder.join(BEST));
    let trainer = blocking(move || {
        if let Some(best) = best {
            peft::load(&best, &config)?;
        }
        Ok(Trainer::resume(&from, model, train)?)
    })
    .await?;
    if state.best.is_some() {
        store.upload_folder(&folder.join(BEST), &tunesmith_contract::job::Location::Local(scratch.join(BEST))).await?;
    }
    std::fs::remove_dir_all(&folder).map_err(TrainerError::io(&folder))?;
    Ok((trainer, state))
}

/// Damage that an older checkpoint may not have. Another dataset or base model is none: there every checkpoint is wrong.
fn is_damage(error: &TrainerError) -> bool {
    matches!(
        error,
        TrainerError::Training(TrainingError::CheckpointCorrupt { .. })
            | TrainerError::Model(ModelError::BadSafetensors { .. } | ModelError::Io { .. } | ModelError::Json { .. })
            | TrainerError::Missing { .. }
            | TrainerError::Json { .. }
    )
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
}

impl Speed {
    fn line(&mut self, report: &StepReport, started: Instant) -> MetricLine {
        let seconds = started.elapsed().as_secs_f64();
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
        }
    }
}
