//! Goldens, the small golden model, eleven sequences, settings; ten steps beside a golden.

// each test file uses a part
#![allow(dead_code)]

pub mod ten_steps;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use tunesmith_model::rng::Rng;
use tunesmith_model::{AdapterConfig, Decoder};
use tunesmith_training::{Dataset, Sequence, StepReport, Trainer, TrainingConfig};

pub fn goldens(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens").join(path)
}

/// Shapes and values by name.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// All tensors of a file, which are f32.
pub fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    parsed.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), floats(view.data())))).collect()
}

pub fn floats(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Largest absolute difference over the largest wanted value; where all wanted values are zero, the absolute one.
pub fn relative_difference(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let worst = got.iter().zip(wanted).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    if largest == 0.0 { worst } else { worst / largest }
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
