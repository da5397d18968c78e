//! Speed of training steps and of generation on this machine, random tokens:
//! `cargo run -p tunesmith-training --example step-speed -- <base model folder> [sequences] [tokens per sequence] [steps] [quantization]`.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tunesmith_model::rng::Rng;
use tunesmith_model::{Decoder, Quantization};
use tunesmith_training::{Dataset, Sequence, Trainer, TrainingConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(base) = arguments.first().map(PathBuf::from) else {
        return Err(
            "usage: step-speed <base model folder> [sequences] [tokens per sequence] [steps] [quantization]".into()
        );
    };
    let number =
        |index: usize, default: usize| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (batch_size, length, steps) = (number(1, 8), number(2, 128), number(3, 10));
    let start = Instant::now();
    let quantization = arguments.get(4).map_or(Some(Quantization::None), |name| Quantization::from_name(name));
    let quantization = quantization.ok_or("quantization is none, nf4, q8_0 or q4_k")?;
    let model = Arc::new(Decoder::load_quantised(&base, quantization)?);
    println!("loaded {} parameters in {:.0} ms", model.config().num_parameters(), start.elapsed().as_secs_f64() * 1e3);
    let mut rng = Rng::new(1, 1);
    let vocabulary = model.config().vocab_size;
    let mut ids = |length: usize| -> Vec<u32> { (0..length).map(|_| rng.below(vocabulary) as u32).collect() };
    let sequences: Vec<Sequence> = (0..batch_size)
        .map(|example| Sequence { ids: ids(length), counted: (0..length).map(|index| index > 0).collect(), example })
        .collect();
    let config = TrainingConfig {
        quantization,
        batch_size,
        sequence_length: length,
        max_steps: Some(steps + 2),
        ..TrainingConfig::default()
    };
    let dataset = Dataset::from_sequences(sequences)?;
    let start = Instant::now();
    let batch = dataset.batch(&(0..batch_size).collect::<Vec<_>>())?;
    println!("assembling a batch of {} tokens: {:.1} us", batch.ids().len(), start.elapsed().as_secs_f64() * 1e6);
    let mut trainer = Trainer::new(config, Arc::clone(&model), dataset)?;
    trainer.step()?;
    trainer.step()?;
    let mut seconds: Vec<f64> = Vec::new();
    while !trainer.is_complete() {
        let start = Instant::now();
        trainer.step()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let (median, best) = (seconds[seconds.len() / 2], seconds[0]);
    let tokens = (batch_size * length) as f64;
    println!(
        "step of {batch_size} x {length}: median {:.1} ms, best {:.1} ms, {:.0} tokens/s (median), {:.0} (best)",
        median * 1e3,
        best * 1e3,
        tokens / median,
        tokens / best
    );
    let mut cache = model.new_cache();
    let start = Instant::now();
    model.advance(&mut cache, &ids(200), Some(trainer.adapter()))?;
    let prompt = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for id in ids(100) {
        model.advance(&mut cache, &[id], Some(trainer.adapter()))?;
    }
    let generated = start.elapsed().as_secs_f64();
    println!("prompt {:.0} tokens/s, generation {:.0} tokens/s", 200.0 / prompt, 100.0 / generated);
    Ok(())
}
