//! Ten LoRA steps equal PyTorch with `peft`: losses, gradients and every trained tensor. Goldens:
//! `tests/parity/make-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use tunesmith_model::{Adapter, Decoder, peft};
use tunesmith_training::adamw::AdamW;
use tunesmith_training::schedule::Schedule;
use tunesmith_training::step::accumulate;
use tunesmith_training::{Dataset, Decay, Sequence, TrainingConfig, clip};

#[derive(Deserialize)]
struct Settings {
    steps: usize,
    learning_rate: f64,
    weight_decay: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    warmup_ratio: f64,
    clip_norm: f64,
    batches: Vec<Vec<Vec<Tokens>>>,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    learning_rates: Vec<f64>,
}

#[derive(Deserialize)]
struct Tokens {
    ids: Vec<u32>,
    counted: Vec<bool>,
}

fn goldens(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens").join(path)
}

fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    parsed.tensors().into_iter().map(|(name, view)| (name, floats(view.data()))).collect()
}

fn values(adapter: &Adapter) -> Vec<(String, Vec<f32>)> {
    let flat = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    adapter.parameters().into_iter().map(|(name, t)| (format!("base_model.model.{name}"), flat(t))).collect()
}

/// Largest absolute difference over the largest value.
fn difference(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.0, "a golden of zeros proves nothing");
    got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max) / largest
}

fn ten_steps(name: &str) {
    let folder = goldens(name);
    let settings: Settings =
        serde_json::from_slice(&std::fs::read(folder.join("train/settings.json")).unwrap()).unwrap();
    let model = Decoder::load(&folder).unwrap();
    let mut adapter = peft::load(&folder.join("train/init"), model.config()).unwrap();
    let start = adapter.snapshot().unwrap();
    let config = TrainingConfig {
        weight_decay: settings.weight_decay,
        beta1: settings.beta1,
        beta2: settings.beta2,
        epsilon: settings.epsilon,
        ..TrainingConfig::default()
    };
    let schedule = Schedule::new(Decay::Cosine, settings.learning_rate, settings.warmup_ratio, settings.steps);
    let lengths: Vec<usize> = values(&adapter).iter().map(|(_, values)| values.len()).collect();
    let mut optimizer = AdamW::new(&lengths);
    for step in 0..settings.steps {
        let batches: Vec<_> = settings.batches[step]
            .iter()
            .map(|batch| {
                let sequence = |t: &Tokens| Sequence { ids: t.ids.clone(), counted: t.counted.clone(), example: 0 };
                let data = Dataset::from_sequences(batch.iter().map(sequence).collect()).unwrap();
                data.batch(&(0..batch.len()).collect::<Vec<_>>()).unwrap()
            })
            .collect();
        let mut result = accumulate(&model, &adapter, &batches).unwrap();
        let relative = (result.loss / settings.losses[step] - 1.0).abs();
        println!("{name} step {step}: loss {} relative difference {relative:e}", result.loss);
        assert!(relative <= 1e-4, "{name} step {step}: loss {} wanted {}", result.loss, settings.losses[step]);
        if step == 0 {
            let wanted = tensors(&folder.join("train/gradients.safetensors"));
            assert_eq!(wanted.len(), result.gradients.len());
            let mut worst = 0.0f32;
            for ((name, _), gradient) in values(&adapter).iter().zip(&result.gradients) {
                let difference = difference(gradient, &wanted[name]);
                worst = worst.max(difference);
                assert!(difference <= 1e-4, "gradient of {name}: {difference}");
            }
            println!("{name}: largest relative difference of a gradient {worst:e}");
        }
        let norm = clip::clip(&mut result.gradients, settings.clip_norm);
        assert!((norm / settings.grad_norms[step] - 1.0).abs() <= 1e-4, "{name} step {step}: norm {norm}");
        let learning_rate = schedule.learning_rate(step);
        assert!((learning_rate - settings.learning_rates[step]).abs() <= 1e-12);
        let update = optimizer.begin(&config, learning_rate);
        adapter
            .update(|index, values| optimizer.apply(update, index, values, &result.gradients[index]).unwrap())
            .unwrap();
    }
    assert!(settings.grad_norms.iter().any(|norm| *norm > settings.clip_norm), "clipping must have acted");
    let wanted = tensors(&folder.join("train/final/adapter_model.safetensors"));
    assert_eq!(wanted.len(), lengths.len());
    let mut worst = 0.0f32;
    for ((name, got), (_, before)) in values(&adapter).iter().zip(values(&start)) {
        let difference = difference(got, &wanted[name]);
        worst = worst.max(difference);
        assert!(difference <= 1e-4, "{name} after training: {difference}");
        assert_ne!(*got, before, "{name} did not move");
    }
    println!("{name}: largest relative difference of a trained tensor {worst:e}");
}

#[test]
fn ten_steps_equal_peft_on_all_seven_projections() {
    ten_steps("gqa-tied");
}

#[test]
fn ten_steps_equal_peft_with_rslora_on_three_projections() {
    ten_steps("llama3-untied");
}
