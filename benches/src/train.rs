//! Training steps, one by one, with the trainer that the product uses.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};
use tunesmith_model::{AdapterConfig, Decoder, ModelConfig, Recompute};
use tunesmith_training::{Dataset, Sequence, Trainer, TrainingConfig};

use crate::{flops, process};

/// A job; [`Layout`] says what becomes of the sequences.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Folder of the base model.
    model: PathBuf,
    /// JSON file: for each batch its sequences, each a list of token ids. Step `i` takes batch `i` modulo their number.
    batches: PathBuf,
    #[serde(default)]
    layout: Layout,
    /// Keep the inputs of layers only.
    #[serde(default)]
    recompute: bool,
    /// Steps before the clock starts.
    warmup: usize,
    /// Steps that are timed.
    steps: usize,
    /// Unix time in seconds at which the driver started this process.
    launched: f64,
    /// Where to write checkpoints and time that, after the steps.
    #[serde(default)]
    checkpoints: Option<PathBuf>,
}

/// How the sequences of the batches go through the model.
#[derive(Deserialize, Default, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Layout {
    /// Each batch as it is, sequences one after the other.
    #[default]
    Batches,
    /// Each sequence of a batch filled up to the length of its longest, as engines without packing do.
    Padded,
    /// All sequences of all batches shuffled and packed into rows of 1,024 tokens, two rows a step.
    Packed,
}

const ROW: usize = 1024;

impl Train {
    /// Seconds and counted tokens of each step, and what surrounds them.
    pub fn run(&self, entered: SystemTime) -> Result<Value, Box<dyn Error>> {
        let since_launch = |time: SystemTime| -> Result<f64, Box<dyn Error>> {
            Ok(time.duration_since(UNIX_EPOCH)?.as_secs_f64() - self.launched)
        };
        let model = Arc::new(Decoder::load(&self.model)?);
        let batches: Vec<Vec<Vec<u32>>> = serde_json::from_slice(&std::fs::read(&self.batches)?)?;
        let mut trainers = self.trainers(&model, &batches)?;
        let ready = SystemTime::now();

        let (mut seconds, mut targets, mut operations, mut losses) = (vec![], vec![], vec![], vec![]);
        let mut first_step_done = ready;
        let mut before = 0.0;
        let count = trainers.len();
        for step in 0..self.warmup + self.steps {
            if step == self.warmup {
                before = process::processor_seconds();
            }
            let trainer = &mut trainers[step % count];
            let start = Instant::now();
            let report = trainer.step()?;
            let elapsed = start.elapsed().as_secs_f64();
            if step == 0 {
                first_step_done = SystemTime::now();
            }
            losses.push(report.loss);
            if step >= self.warmup {
                seconds.push(elapsed);
                targets.push(report.num_targets);
                if self.layout != Layout::Packed {
                    let lengths: Vec<usize> = batches[step % batches.len()].iter().map(Vec::len).collect();
                    operations.push(flops::of_step(model.config(), trainer.adapter().num_parameters(), &lengths));
                }
            }
        }
        let processor_seconds = process::processor_seconds() - before;
        let peak = process::peak_bytes();
        Ok(json!({
            "seconds": seconds,
            "targets": targets,
            "flops": operations,
            "losses": losses,
            "processor_seconds": processor_seconds,
            "peak_bytes": peak,
            "launch": {
                "entered": since_launch(entered)?,
                "ready": since_launch(ready)?,
                "first_step": since_launch(first_step_done)?,
            },
            "checkpoint_seconds": self.time_checkpoints(&trainers[0])?,
            "checkpoint_every": trainers[0].config().checkpoint_every,
        }))
    }

    /// One trainer for each batch, so that a step has exactly the sequences that the peer gets; packed, one for all.
    fn trainers(&self, model: &Arc<Decoder>, batches: &[Vec<Vec<u32>>]) -> Result<Vec<Trainer>, Box<dyn Error>> {
        let all = [batches.concat()];
        let batches = if self.layout == Layout::Packed { &all } else { batches };
        let trainer = |batch: &Vec<Vec<u32>>| -> Result<Trainer, Box<dyn Error>> {
            let longest = batch.iter().map(Vec::len).max().unwrap_or(0);
            let length = if self.layout == Layout::Padded { longest } else { 0 };
            let sequences = batch.iter().enumerate().map(|(example, ids)| sequence(example, ids, length));
            let config = self.config(batch.len(), model.config());
            let dataset = Dataset::from_sequences(sequences.collect())?;
            let recompute = if self.recompute { Recompute::Layers } else { Recompute::Nothing };
            Ok(Trainer::new(config, Arc::clone(model), dataset)?.with_recompute(recompute))
        };
        batches.iter().map(trainer).collect()
    }

    fn config(&self, num_sequences: usize, model: &ModelConfig) -> TrainingConfig {
        let packing = self.layout == Layout::Packed;
        TrainingConfig {
            adapter: AdapterConfig::lora(16, 32.0),
            packing,
            batch_size: if packing { 2 } else { num_sequences },
            sequence_length: if packing { ROW } else { model.max_position_embeddings },
            max_steps: Some(self.warmup + self.steps),
            ..TrainingConfig::default()
        }
    }

    fn time_checkpoints(&self, trainer: &Trainer) -> Result<Vec<f64>, Box<dyn Error>> {
        let Some(folder) = &self.checkpoints else { return Ok(vec![]) };
        let time = |_| -> Result<f64, Box<dyn Error>> {
            let start = Instant::now();
            trainer.save(folder)?;
            Ok(start.elapsed().as_secs_f64())
        };
        (0..3).map(time).collect()
    }
}

/// Every token but the first counts, padding never.
fn sequence(example: usize, ids: &[u32], length: usize) -> Sequence {
    let mut counted: Vec<bool> = (0..ids.len()).map(|index| index > 0).collect();
    let mut ids = ids.to_vec();
    let padded = ids.len().max(length);
    ids.resize(padded, 0);
    counted.resize(padded, false);
    Sequence { ids, counted, example }
}
