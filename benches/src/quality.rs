//! What a method learns: a whole training run on a task of `quality/tasks.py`, then perplexity on its test split and the share of
//! questions that are answered to the letter.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use tunesmith_model::{Adapter, Decoder, ModelError};
use tunesmith_training::{Dataset, Sequence, Trainer, TrainingConfig, evaluate};

use crate::process;

/// A job.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    /// Folder of the base model.
    model: PathBuf,
    /// File of the task.
    data: PathBuf,
    /// How to train.
    config: Box<TrainingConfig>,
}

/// The file of a task.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    train: Vec<Tokens>,
    test: Vec<Tokens>,
    questions: Vec<Question>,
    /// The token that ends an answer.
    end: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    ids: Vec<u32>,
    counted: Vec<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    prompt: Vec<u32>,
    /// With the token that ends it.
    answer: Vec<u32>,
}

impl Quality {
    /// Trains and examines.
    pub fn run(self) -> Result<Value, Box<dyn Error>> {
        let task: Task = serde_json::from_slice(&std::fs::read(&self.data)?)?;
        let model = Arc::new(Decoder::load_quantised(&self.model, self.config.quantization)?);
        let test = dataset(task.test)?;
        let base = perplexity(&model, None, &test)?;
        let mut trainer = Trainer::new(*self.config, Arc::clone(&model), dataset(task.train)?)?;
        let (start, mut last_loss) = (Instant::now(), f64::NAN);
        while !trainer.is_complete() {
            last_loss = trainer.step()?.loss;
        }
        let seconds = start.elapsed().as_secs_f64();
        let peak = process::peak_bytes();
        let adapter = trainer.adapter();
        Ok(json!({
            "steps": trainer.num_steps_done(),
            "seconds": seconds,
            "last_loss": last_loss,
            "peak_bytes": peak,
            "trainable": adapter.num_parameters(),
            "base_perplexity": base,
            "perplexity": perplexity(&model, Some(adapter), &test)?,
            "score": score(&model, adapter, &task.questions, task.end)?,
        }))
    }
}

fn dataset(sequences: Vec<Tokens>) -> Result<Dataset, tunesmith_training::TrainingError> {
    let numbered = sequences.into_iter().enumerate();
    Dataset::from_sequences(
        numbered.map(|(example, Tokens { ids, counted })| Sequence { ids, counted, example }).collect(),
    )
}

/// Of the counted tokens together.
fn perplexity(model: &Decoder, adapter_opt: Option<&Adapter>, test: &Dataset) -> Result<f64, Box<dyn Error>> {
    let losses = evaluate(model, adapter_opt, test)?;
    let (nll, count) = losses.iter().fold((0.0, 0), |(nll, count), l| (nll + l.nll, count + l.num_targets));
    Ok((nll / count as f64).exp())
}

/// Share of the questions whose greedy answer is the wanted one, its end included; `None` without questions.
fn score(model: &Decoder, adapter: &Adapter, questions: &[Question], end: u32) -> Result<Option<f64>, Box<dyn Error>> {
    let mut right = 0;
    for Question { prompt, answer } in questions {
        right += usize::from(greedy(model, adapter, prompt, answer.len(), end)? == *answer);
    }
    Ok((!questions.is_empty()).then(|| right as f64 / questions.len() as f64))
}

/// The most likely tokens up to `end`, at most `most`.
fn greedy(model: &Decoder, adapter: &Adapter, prompt: &[u32], most: usize, end: u32) -> Result<Vec<u32>, ModelError> {
    let (mut cache, mut answer) = (model.new_cache(), Vec::new());
    let mut logits = model.advance(&mut cache, prompt, Some(adapter))?;
    while answer.len() < most && answer.last() != Some(&end) {
        let best = (0..logits.len()).reduce(|best, id| if logits[id] > logits[best] { id } else { best });
        let next = best.unwrap_or(0) as u32;
        answer.push(next);
        logits = model.advance(&mut cache, &[next], Some(adapter))?;
    }
    Ok(answer)
}
