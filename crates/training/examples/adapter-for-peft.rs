//! Trains an adapter for a few steps and writes what `tests/parity/check-adapter-in-peft.py` compares:
//! `cargo run -p tunesmith-training --example adapter-for-peft -- <base model folder> <output folder> [method]` makes
//! `adapter/` (as `peft` reads it) and `logits.json` (token ids and our logits); `method` is lora (the default), rslora, dora,
//! adalora or ia3.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use tunesmith_model::rng::Rng;
use tunesmith_model::{AdaLoraConfig, AdapterConfig, Decoder, LoraConfig, Method, Module};
use tunesmith_training::{Dataset, Sequence, Trainer, TrainingConfig};

const STEPS: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(base), Some(out)) = (arguments.next().map(PathBuf::from), arguments.next().map(PathBuf::from)) else {
        return Err("usage: adapter-for-peft <base model folder> <output folder> [method]".into());
    };
    let model = Arc::new(Decoder::load(&base)?);
    let adapter = adapter(arguments.next().as_deref().unwrap_or("lora"), model.config().modules())?;
    let vocabulary = model.config().vocab_size;
    let mut rng = Rng::new(1, 1);
    let mut ids = |length: usize| -> Vec<u32> { (0..length).map(|_| rng.below(vocabulary) as u32).collect() };
    let sequences = (0..8).map(|example| {
        let ids = ids(30);
        Sequence { counted: (0..30).map(|index| index > 0).collect(), ids, example }
    });
    let dataset = Dataset::from_sequences(sequences.collect())?;
    let config = TrainingConfig {
        adapter,
        sequence_length: 64,
        max_steps: Some(STEPS),
        learning_rate: 1e-2,
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

fn adapter(method: &str, existing: &[Module]) -> Result<AdapterConfig, Box<dyn Error>> {
    let lora = |use_rslora, use_dora| Method::Lora(LoraConfig { use_rslora, use_dora, ..LoraConfig::default() });
    let all = |method| AdapterConfig { method, target_modules: existing.to_vec() };
    Ok(match method {
        "lora" => all(lora(false, false)),
        "rslora" => all(lora(true, false)),
        "dora" => all(lora(false, true)),
        // ranks go soon and often, so that some modules lose many
        "adalora" => all(Method::AdaLora(AdaLoraConfig { init_r: 6, target_r: 2, ..AdaLoraConfig::for_steps(STEPS) })),
        "ia3" => AdapterConfig::ia3(existing),
        other => return Err(format!("{other} is no method: lora, rslora, dora, adalora, ia3").into()),
    })
}
