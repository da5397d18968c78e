//! One step: batches, forward and backward, then clipping, the optimizer and the checks of what came out.

use serde::{Deserialize, Serialize};

use super::Trainer;
use crate::clip;
use crate::data::Sequence;
use crate::divergence::Risen;
use crate::error::{Result, TrainingError};
use crate::sampler::Position;
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

/// A step of which some batches are done.
pub(super) struct Underway {
    /// Where in the data the step begins.
    pub(super) from: Position,
    pub(super) rows: Vec<Vec<usize>>,
    pub(super) rows_done: usize,
    pub(super) sums: Sums,
}

impl Trainer {
    /// One optimizer step; see [`Trainer::advance`].
    pub fn step(&mut self) -> Result<StepReport> {
        loop {
            if let Some(report) = self.advance()? {
                return Ok(report);
            }
        }
    }

    /// One batch, forward and backward, or as many as the base model lies on cards; `Some` when the last of the optimizer step was
    /// among them: then it is made. In between the run can be saved too.
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
        let together = self.config.batch_size * self.model.num_devices(Some(&self.config.adapter.method));
        let end = (underway.rows_done + together).min(underway.rows.len());
        let rows = &underway.rows[underway.rows_done..end];
        let indices: Vec<Vec<usize>> = rows.chunks(self.config.batch_size).map(<[Vec<usize>]>::concat).collect();
        let batches = indices.iter().map(|indices| self.dataset.batch(indices)).collect::<Result<Vec<_>>>()?;
        let losses = underway.sums.add(&self.model, &self.adapter, &batches, self.recompute)?;
        if let Some((indices, loss)) = indices.iter().zip(losses).find(|(_, loss)| !loss.is_finite()) {
            let examples = self.dataset.examples(indices);
            return Err(TrainingError::NonFiniteLoss { step: self.step + 1, loss, examples });
        }
        underway.rows_done = end;
        if end < underway.rows.len() {
            self.underway = Some(underway);
            return Ok(None);
        }
        self.update(underway).map(Some)
    }

    pub(super) fn next_window(&mut self) -> Result<Underway> {
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
}
