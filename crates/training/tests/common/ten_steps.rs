//! Ten steps beside PyTorch with `peft`: losses, gradients, norms, every trained tensor, AdaLoRA's ranks.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tunesmith_model::{Adapter, Batch, Decoder, RankAllocator, peft};
use tunesmith_training::adamw::AdamW;
use tunesmith_training::schedule::Schedule;
use tunesmith_training::step::accumulate;
use tunesmith_training::{Dataset, Decay, Sequence, TrainingConfig, clip, loraplus};

use super::{Tensors, goldens, relative_difference, tensors};

/// Of a tensor, relative to its largest value.
pub const TOLERANCE: f32 = 1e-4;

/// What PyTorch was given, and what it saw at each step.
#[derive(Deserialize)]
pub struct Golden {
    steps: usize,
    learning_rate: f64,
    weight_decay: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    warmup_ratio: f64,
    clip_norm: f64,
    loraplus_lr_ratio: Option<f64>,
    batches: Vec<Vec<Vec<Tokens>>>,
    pub losses: Vec<f64>,
    grad_norms: Vec<f64>,
    #[serde(default)]
    learning_rates: Vec<f64>,
    #[serde(default)]
    regularisers: Vec<f64>,
    #[serde(default)]
    ranks: Vec<BTreeMap<String, Vec<u8>>>,
}

#[derive(Deserialize)]
struct Tokens {
    ids: Vec<u32>,
    counted: Vec<bool>,
}

impl Golden {
    pub fn of(folder: &Path) -> Self {
        serde_json::from_slice(&std::fs::read(folder.join("settings.json")).unwrap()).unwrap()
    }

    fn config(&self) -> TrainingConfig {
        TrainingConfig {
            weight_decay: self.weight_decay,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            ..TrainingConfig::default()
        }
    }

    /// What the step goes over.
    pub fn batches(&self, step: usize) -> Vec<Batch> {
        let sequence = |t: &Tokens| Sequence { ids: t.ids.clone(), counted: t.counted.clone(), example: 0 };
        let batch = |tokens: &Vec<Tokens>| {
            let data = Dataset::from_sequences(tokens.iter().map(sequence).collect()).unwrap();
            data.batch(&(0..tokens.len()).collect::<Vec<_>>()).unwrap()
        };
        self.batches[step].iter().map(batch).collect()
    }
}

fn values(adapter: &Adapter) -> Vec<(String, Vec<f32>)> {
    let flat = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    adapter.parameters().into_iter().map(|(name, t)| (format!("base_model.model.{name}"), flat(t))).collect()
}

/// Compares every tensor; returns the largest difference.
fn compare(what: &str, got: &[(String, Vec<f32>)], wanted: &Tensors) -> f32 {
    assert_eq!(got.len(), wanted.len(), "{what}");
    got.iter().fold(0.0f32, |worst, (name, values)| {
        // gradients are stored under the names of the model, which has no `.weight` after DoRA's magnitude
        let wanted = wanted.get(name).or_else(|| wanted.get(&format!("{name}.weight")));
        let difference = relative_difference(values, &wanted.unwrap_or_else(|| panic!("no golden of {name}")).1);
        assert!(difference <= TOLERANCE, "{what} {name}: {difference:e}");
        worst.max(difference)
    })
}

/// What we write is what `peft` writes: the same names, shapes and values. Returns the largest difference.
fn compare_written(adapter: &Adapter, wanted: &Tensors) -> f32 {
    let folder = tempfile::tempdir().unwrap();
    peft::save(&adapter.pruned().unwrap(), folder.path(), "gqa-tied").unwrap();
    let written = tensors(&folder.path().join(peft::WEIGHTS_FILE));
    let shapes =
        |tensors: &Tensors| tensors.iter().map(|(n, (shape, _))| (n.clone(), shape.clone())).collect::<Vec<_>>();
    assert_eq!(shapes(&written), shapes(wanted));
    let written: Vec<_> = written.into_iter().map(|(name, (_, values))| (name, values)).collect();
    compare("written", &written, wanted)
}

/// Trains from `folder/init` as the golden was, and compares every step with it and the end with `folder/final`.
pub fn ten_steps(model: &Decoder, folder: &Path) {
    let name = folder.strip_prefix(goldens("")).unwrap().display();
    let golden = Golden::of(folder);
    let mut adapter = peft::load(&folder.join("init"), model.config()).unwrap();
    let start = adapter.snapshot().unwrap();
    let config = golden.config();
    let schedule = Schedule::new(Decay::Cosine, golden.learning_rate, golden.warmup_ratio, golden.steps);
    let lengths: Vec<usize> = values(&adapter).iter().map(|(_, values)| values.len()).collect();
    let (mut optimizer, fast) = (AdamW::new(&lengths), loraplus::fast(&adapter));
    let mut ranks = RankAllocator::new(&adapter);
    let mut worst_loss = 0.0f64;
    for step in 0..golden.steps {
        let mut result = accumulate(model, &adapter, &golden.batches(step)).unwrap();
        let regulariser = adapter.regularise(&mut result.gradients).unwrap();
        let relative = (result.loss / golden.losses[step] - 1.0).abs();
        worst_loss = worst_loss.max(relative);
        assert!(relative <= 1e-4, "{name} step {step}: loss {} wanted {}", result.loss, golden.losses[step]);
        if let Some(wanted) = golden.regularisers.get(step) {
            assert!((regulariser / wanted - 1.0).abs() <= 1e-4, "{name} step {step}: {regulariser} wanted {wanted}");
        }
        if step == 0 {
            let gradients: Vec<_> =
                values(&adapter).into_iter().map(|(name, _)| name).zip(result.gradients.clone()).collect();
            assert!(gradients.iter().all(|(_, gradient)| gradient.iter().any(|g| *g != 0.0)), "a gradient of zeros");
            let worst = compare("gradient of", &gradients, &tensors(&folder.join("gradients.safetensors")));
            println!("{name}: largest relative difference of a gradient {worst:e}");
        }
        let norm = clip::clip(&mut result.gradients, golden.clip_norm);
        assert!((norm / golden.grad_norms[step] - 1.0).abs() <= 1e-4, "{name} step {step}: norm {norm}");
        let learning_rate = schedule.learning_rate(step);
        if let Some(wanted) = golden.learning_rates.get(step) {
            assert!((learning_rate - wanted).abs() <= 1e-12);
        }
        let slow = optimizer.begin(&config, learning_rate);
        let quick = optimizer.at(&config, learning_rate * golden.loraplus_lr_ratio.unwrap_or(1.0));
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
                assert_eq!(alive, golden.ranks[step][name], "ranks of {name} after step {}", step + 1);
            }
        }
    }
    assert!(golden.grad_norms.iter().any(|norm| *norm > golden.clip_norm), "clipping must have acted");
    for ((name, got), (_, before)) in values(&adapter).iter().zip(values(&start)) {
        assert_ne!(*got, before, "{name} did not move");
    }
    // AdaLoRA's ranks that were taken away are not in what peft writes
    let whole = folder.join("final.safetensors");
    if whole.exists() {
        compare("after training", &values(&adapter), &tensors(&whole));
    }
    let worst = compare_written(&adapter, &tensors(&folder.join("final/adapter_model.safetensors")));
    println!("{name}: largest relative difference of a loss {worst_loss:e}, of a trained tensor {worst:e}");
}
