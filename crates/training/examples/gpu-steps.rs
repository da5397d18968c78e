//! Training steps on a card of NVIDIA, one by one, as `benches/gpu.py` asks for them: one argument, a job in JSON; the answer is one
//! line of JSON. `benches/gpu.sh build` makes it, in the profile of the tests, where what computes is optimised.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::json;
use tunesmith_model::cuda::{Stored, driver};
use tunesmith_model::{AdapterConfig, Decoder, Quantization, Recompute};
use tunesmith_training::{Dataset, Sequence, Trainer, TrainingConfig};

/// What to measure.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Job {
    /// Folder of the base model.
    model: PathBuf,
    /// JSON file with the sequences of a step, each a list of token ids.
    batch: PathBuf,
    /// `bf16` or `f32`.
    dtype: Dtype,
    /// `none` or `nf4`.
    quantization: Quantization,
    /// Keep the inputs of layers only.
    recompute: bool,
    /// Steps before the clock starts.
    warmup: usize,
    /// Steps that are timed.
    steps: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Dtype {
    Bf16,
    F32,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Some(job) = std::env::args().nth(1) else { return Err("usage: gpu-steps '<job in JSON>'".into()) };
    let job: Job = serde_json::from_str(&job)?;
    let stored = match job.dtype {
        Dtype::Bf16 => Stored::Bf16,
        Dtype::F32 => Stored::F32,
    };
    let (card, free_before, _) = driver::card(0)?;
    let model = Arc::new(Decoder::load_quantised(&job.model, job.quantization)?.on_gpu(0, stored)?);
    let batch: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(&job.batch)?)?;
    let sequence = |(example, ids): (usize, &Vec<u32>)| Sequence {
        counted: (0..ids.len()).map(|index| index > 0).collect(),
        ids: ids.clone(),
        example,
    };
    let dataset = Dataset::from_sequences(batch.iter().enumerate().map(sequence).collect())?;
    let config = TrainingConfig {
        adapter: AdapterConfig::lora(16, 32.0),
        quantization: job.quantization,
        packing: false,
        batch_size: batch.len(),
        sequence_length: batch.iter().map(Vec::len).max().unwrap_or(0),
        max_steps: Some(job.warmup + job.steps),
        ..TrainingConfig::default()
    };
    let recompute = if job.recompute { Recompute::Layers } else { Recompute::Nothing };
    let mut trainer = Trainer::new(config, model, dataset)?.with_recompute(recompute);
    let (mut seconds, mut losses) = (vec![], vec![]);
    for step in 0..job.warmup + job.steps {
        let start = Instant::now();
        // a step ends with gradients on the host, so the card has finished
        losses.push(trainer.step()?.loss);
        if step >= job.warmup {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    // another process may have given memory back meanwhile
    let peak = free_before.saturating_sub(driver::card(0)?.1);
    println!("{}", json!({ "card": card, "seconds": seconds, "losses": losses, "peak_bytes": peak }));
    Ok(())
}
