//! Trains an adapter for a few steps and writes what `tests/parity/check-adapter-in-peft.py` compares:
//! `cargo run -p tunesmith-training --example adapter-for-peft -- <base model folder> <output folder>` makes
//! `adapter/` (as `peft` reads it) and `logits.json` (token ids and our logits).

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use tunesmith_model::Decoder;
use tunesmith_model::rng::Rng;
use tunesmith_training::{Dataset, Sequence, Trainer, TrainingConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(base), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err("usage: adapter-for-peft <base model folder> <output folder>".into());
    };
    let model = Arc::new(Decoder::load(&base)?);
    let vocabulary = model.config().vocab_size;
    let mut rng = Rng::new(1, 1);
    let mut ids = |length: usize| -> Vec<u32> { (0..length).map(|_| rng.below(vocabulary) as u32).collect() };
    let sequences = (0..8).map(|example| {
        let ids = ids(30);
        Sequence { counted: (0..30).map(|index| index > 0).collect(), ids, example }
    });
    let dataset = Dataset::from_sequences(sequences.collect())?;
    let config = TrainingConfig {
        sequence_length: 64,
        max_steps: Some(8),
        learning_rate: 1e-2,
        target_modules: model.config().modules().to_vec(),
        ..TrainingConfig::default()
    };
    let mut trainer = Trainer::new(config, Arc::clone(&model), dataset)?;
    while !trainer.is_complete() {
        trainer.step()?;
    }
    trainer.save_adapter(&out.join("adapter"), &base.to_string_lossy())?;
    let ids = ids(60);
    let logits = model.logits(&ids, Some(trainer.adapter()))?.to_vec2::<f32>()?;
    std::fs::write(out.join("logits.json"), serde_json::to_vec(&serde_json::json!({ "ids": ids, "logits": logits }))?)?;
    Ok(())
}
