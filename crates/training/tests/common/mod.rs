//! The small golden model, eleven sequences, settings.

// each test file uses a part
#![allow(dead_code)]

use std::path::PathBuf;
use std::sync::Arc;

use tunesmith_model::rng::Rng;
use tunesmith_model::{AdapterConfig, Decoder};
use tunesmith_training::{Dataset, Sequence, StepReport, Trainer, TrainingConfig};

pub fn goldens(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens").join(path)
}

pub fn model() -> Arc<Decoder> {
    Arc::new(Decoder::load(&goldens("gqa-tied")).unwrap())
}

/// Eleven sequences of unequal length, some tokens masked.
pub fn dataset(seed: u64) -> Dataset {
    let mut rng = Rng::new(seed, 0);
    let mut sequence = |example| {
        let length = 5 + rng.below(40);
        let ids = (0..length).map(|_| rng.below(160) as u32).collect();
        Sequence { ids, counted: (0..length).map(|i| i > 0 && i % 4 != 2).collect(), example }
    };
    Dataset::from_sequences((0..11).map(&mut sequence).collect()).unwrap()
}

/// Each sequence a row.
pub fn config() -> TrainingConfig {
    TrainingConfig {
        adapter: AdapterConfig::lora(4, 32.0),
        max_steps: Some(10),
        batch_size: 2,
        accumulation: 2,
        packing: false,
        learning_rate: 5e-3,
        warmup_ratio: 0.2,
        weight_decay: 0.01,
        sequence_length: 64,
        seed: 9,
        ..TrainingConfig::default()
    }
}

pub fn run(trainer: &mut Trainer, steps: usize) -> Vec<StepReport> {
    (0..steps).map(|_| trainer.step().unwrap()).collect()
}

pub fn in_pool<R: Send>(num_threads: usize, job: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap().install(job)
}
