//! Ten steps of every adapter method equal PyTorch with `peft`: losses, gradients, norms, every trained tensor, AdaLoRA's ranks.
//! Goldens: `tests/parity/make-adapter-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use tunesmith_model::{Adapter, Decoder, RankAllocator, peft};
use tunesmith_training::adamw::AdamW;
use tunesmith_training::schedule::Schedule;
use tunesmith_training::step::accumulate;
use tunesmith_training::{Dataset, Decay, Sequence, TrainingConfig, clip, loraplus};

const TOLERANCE: f32 = 1e-4;

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
    loraplus_lr_ratio: f64,
    batches: Vec<Vec<Vec<Tokens>>>,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    learning_rates: Vec<f64>,
    regularisers: Vec<f64>,
    ranks: Vec<BTreeMap<String, Vec<u8>>>,
}

#[derive(Deserialize)]
struct Tokens {
    ids: Vec<u32>,
    counted: Vec<bool>,
}

fn goldens(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens").join(path)
}

/// Shapes and values by name.
fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    parsed.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), floats(view.data())))).collect()
}

fn values(adapter: &Adapter) -> Vec<(String, Vec<f32>)> {
    let flat = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    adapter.parameters().into_iter().map(|(name, t)| (format!("base_model.model.{name}"), flat(t))).collect()
}

/// Largest absolute difference over the largest value.
fn difference(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    if largest == 0.0 { worst } else { worst / largest }
}

/// Compares every tensor; returns the largest difference.
fn compare(what: &str, got: &[(String, Vec<f32>)], wanted: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> f32 {
    assert_eq!(got.len(), wanted.len(), "{what}");
    got.iter().fold(0.0f32, |worst, (name, values)| {
        // gradients are stored under the names of the model, which has no `.weight` after DoRA's magnitude
        let wanted = wanted.get(name).or_else(|| wanted.get(&format!("{name}.weight")));
        let difference = difference(values, &wanted.unwrap_or_else(|| panic!("no golden of {name}")).1);
        assert!(difference <= TOLERANCE, "{what} {name}: {difference:e}");
        worst.max(difference)
    })
}

/// The golden model that `method` was trained on.
fn base(method: &str) -> PathBuf {
    match method.split_once('-') {
        Some((base, _)) => goldens("architectures").join(base),
        None => goldens("gqa-tied"),
    }
}

fn ten_steps(method: &str) {
    let folder = goldens("adapters").join(method);
    let settings: Settings = serde_json::from_slice(&std::fs::read(folder.join("settings.json")).unwrap()).unwrap();
    let model = Decoder::load(&base(method)).unwrap();
    let mut adapter = peft::load(&folder.join("init"), model.config()).unwrap();
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
    let (mut optimizer, fast) = (AdamW::new(&lengths), loraplus::fast(&adapter));
    let mut ranks = RankAllocator::new(&adapter);
    let mut worst_loss = 0.0f64;
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
        let regulariser = adapter.regularise(&mut result.gradients).unwrap();
        let relative = (result.loss / settings.losses[step] - 1.0).abs();
        worst_loss = worst_loss.max(relative);
        assert!(relative <= 1e-4, "{method} step {step}: loss {} wanted {}", result.loss, settings.losses[step]);
        if let Some(wanted) = settings.regularisers.get(step) {
            assert!((regulariser / wanted - 1.0).abs() <= 1e-4, "{method} step {step}: {regulariser} wanted {wanted}");
        }
        if step == 0 {
            let named =
                values(&adapter).into_iter().map(|(name, _)| name).zip(result.gradients.clone()).collect::<Vec<_>>();
            assert!(named.iter().all(|(_, gradient)| gradient.iter().any(|g| *g != 0.0)), "a gradient of zeros");
            let worst = compare("gradient of", &named, &tensors(&folder.join("gradients.safetensors")));
            println!("{method}: largest relative difference of a gradient {worst:e}");
        }
        let norm = clip::clip(&mut result.gradients, settings.clip_norm);
        assert!((norm / settings.grad_norms[step] - 1.0).abs() <= 1e-4, "{method} step {step}: norm {norm}");
        let learning_rate = schedule.learning_rate(step);
        assert!((learning_rate - settings.learning_rates[step]).abs() <= 1e-12);
        let slow = optimizer.begin(&config, learning_rate);
        let quick = optimizer.at(&config, learning_rate * settings.loraplus_lr_ratio);
        adapter
            .update(|index, values| {
                let update = if fast[index] { quick } else { slow };
                optimizer.apply(update, index, values, &result.gradients[index]).unwrap();
            })
            .unwrap();
        if let Some(ranks) = &mut ranks {
            ranks.after_step(step + 1, &mut adapter, &result.gradients).unwrap();
            for (name, values) in values(&adapter).iter().filter(|(name, _)| name.ends_with("lora_E")) {
                let alive: Vec<u8> = values.iter().map(|value| u8::from(*value != 0.0)).collect();
                assert_eq!(alive, settings.ranks[step][name], "ranks of {name} after step {}", step + 1);
            }
        }
    }
    assert!(settings.grad_norms.iter().any(|norm| *norm > settings.clip_norm), "clipping must have acted");
    for ((name, got), (_, before)) in values(&adapter).iter().zip(values(&start)) {
        assert_ne!(*got, before, "{name} did not move");
    }
    let whole = folder.join("final.safetensors");
    if whole.exists() {
        compare("after training", &values(&adapter), &tensors(&whole));
    }
    // what we write is what peft writes: the same names, shapes and values
    let written = tempfile::tempdir().unwrap();
    peft::save(&adapter.pruned().unwrap(), written.path(), "gqa-tied").unwrap();
    let (ours, theirs) =
        (tensors(&written.path().join(peft::WEIGHTS_FILE)), tensors(&folder.join("final/adapter_model.safetensors")));
    let shapes = |tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>| {
        tensors.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect::<Vec<_>>()
    };
    assert_eq!(shapes(&ours), shapes(&theirs), "{method}");
    let ours: Vec<_> = ours.into_iter().map(|(name, (_, values))| (name, values)).collect();
    let worst = compare("trained", &ours, &theirs);
    println!("{method}: largest relative difference of a loss {worst_loss:e}, of a trained tensor {worst:e}");
}

#[test]
fn ten_steps_of_dora_equal_peft() {
    ten_steps("dora");
}

#[test]
fn ten_steps_of_loraplus_with_dora_and_rslora_equal_peft() {
    ten_steps("loraplus");
}

#[test]
fn ten_steps_of_adalora_equal_peft_with_orthogonality_importance_and_budget() {
    ten_steps("adalora");
}

#[test]
fn ten_steps_of_ia3_equal_peft() {
    ten_steps("ia3");
}

#[test]
fn ten_steps_of_every_method_equal_peft_on_fused_transposed_projections_with_biases() {
    for method in ["gpt2-dora", "gpt2-adalora", "gpt2-ia3"] {
        ten_steps(method);
    }
}

#[test]
fn ten_steps_of_every_method_equal_peft_on_fused_projections() {
    for method in ["phi3-dora", "phi3-adalora", "phi3-ia3"] {
        ten_steps(method);
    }
}
