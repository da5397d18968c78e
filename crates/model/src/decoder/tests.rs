use super::*;
use crate::adapters::lora::LoraConfig;
use crate::config::{Activation, Biases, Layout, NormKind, Positions};
use crate::ops::testing::{check_gradient, random};
use crate::rng::Rng;

pub fn tiny_model() -> Decoder {
    model(ModelConfig::tiny())
}

/// Random weights for any configuration; those of a name do not depend on the order of loading.
pub fn model(config: ModelConfig) -> Decoder {
    let one = if config.norm == NormKind::RmsPlusOne { 0.0 } else { 1.0 };
    Decoder::from_source(config, &|name, shape| {
        let seed = name.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let around = if name.ends_with("norm.weight") || name.contains("ln_") { one } else { 0.0 };
        let scale = if name.contains("embed_tokens") { 1.0 } else { 0.3 };
        Ok((random(seed, shape, scale) + around)?)
    })
    .unwrap()
}

/// One configuration for each variant of the layer, all tiny.
pub fn variants() -> Vec<(&'static str, ModelConfig)> {
    let tiny = ModelConfig::tiny;
    let all = Biases { qkv: true, o: true, mlp: true };
    let learned = ModelConfig { positions: Positions::Learned, layout: Layout::Gpt2, num_key_value_heads: 4, ..tiny() };
    vec![
        ("llama", tiny()),
        ("biases", ModelConfig { biases: all, ..tiny() }),
        ("windows", ModelConfig { sliding_windows: vec![Some(5), None], ..tiny() }),
        ("qk_norm", ModelConfig { qk_norm: true, head_dim: 6, ..tiny() }),
        ("phi3", ModelConfig { layout: Layout::Phi3, sliding_windows: vec![Some(7); 2], ..tiny() }),
        (
            "gemma2",
            ModelConfig {
                norm: NormKind::RmsPlusOne,
                post_norms: true,
                activation: Activation::GeGluTanh,
                embedding_scale: 2.0,
                attention_soft_cap: Some(1.5),
                final_soft_cap: Some(3.0),
                sliding_windows: vec![Some(6), None],
                ..tiny()
            },
        ),
        ("gpt2", ModelConfig { norm: NormKind::Layer, biases: all, activation: Activation::GeluTanh, ..learned }),
    ]
}

/// An adapter whose `B` is not zero, so that every gradient is.
pub fn busy_adapter(model: &Decoder) -> LoraAdapter {
    let target_modules = model.config().modules().to_vec();
    let config = LoraConfig { rank: 3, alpha: 6.0, target_modules, ..LoraConfig::default() };
    let mut adapter = LoraAdapter::new(config, model.config(), 1).unwrap();
    let mut rng = Rng::new(5, 5);
    adapter.update(|_, values| values.iter_mut().for_each(|v| *v = (rng.uniform() - 0.5) * 0.4)).unwrap();
    adapter
}

fn batch() -> Batch {
    let ids: Vec<u32> = (0..23).map(|i| i * 7 % 48).collect();
    let mut targets: Vec<u32> = (0..23).map(|i| (i * 5 + 1) % 48).collect();
    targets[4] = cross_entropy::IGNORE;
    Batch::new(ids, targets, vec![9, 14]).unwrap()
}

#[test]
fn every_adapter_gradient_agrees_with_finite_differences_in_every_variant() {
    for (variant, config) in variants() {
        let model = model(config);
        let adapter = busy_adapter(&model);
        let result = model.loss_and_gradients(&batch(), &adapter, 0.25, Recompute::Nothing).unwrap();
        let num_parameters = adapter.parameters().len();
        assert_eq!(result.gradients.len(), num_parameters);
        assert_eq!(result.num_targets, 22);
        for index in 0..num_parameters {
            let (name, value) = &adapter.parameters()[index];
            let gradient = &result.gradients[index];
            println!("{variant} {name}"); // the captured output of a failed test names the tensor
            assert_eq!(gradient.dims(), value.dims());
            assert!(host(gradient).unwrap().iter().any(|v| *v != 0.0), "no gradient");
            check_gradient(value, gradient, 5e-3, |changed| {
                let mut copy = adapter.snapshot().unwrap();
                let changed = host(changed).unwrap();
                copy.update(|i, values| {
                    if i == index {
                        values.copy_from_slice(&changed)
                    }
                })
                .unwrap();
                0.25 * model.row_losses(&batch(), Some(&copy)).unwrap().iter().map(|l| f64::from(*l)).sum::<f64>()
            });
        }
    }
}

#[test]
fn recomputed_layers_give_the_same_gradients_to_the_bit() {
    for (variant, config) in variants() {
        let model = model(config);
        let adapter = busy_adapter(&model);
        let run = |recompute| {
            let result = model.loss_and_gradients(&batch(), &adapter, 1.0, recompute).unwrap();
            let bits = |gradient: &Tensor| host(gradient).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            (result.row_losses, result.gradients.iter().map(bits).collect::<Vec<_>>())
        };
        assert!(run(Recompute::Nothing) == run(Recompute::Layers), "{variant}");
    }
}

#[test]
fn packed_sequences_equal_the_same_sequences_alone_in_every_variant() {
    for (variant, config) in variants() {
        let model = model(config);
        let adapter = busy_adapter(&model);
        let packed = model.row_losses(&batch(), Some(&adapter)).unwrap();
        let (ids, targets) = (batch().ids().to_vec(), batch().targets().to_vec());
        let mut alone = Vec::new();
        for range in [0..9, 9..23] {
            let one =
                Batch::new(ids[range.clone()].to_vec(), targets[range.clone()].to_vec(), vec![range.len()]).unwrap();
            alone.extend(model.row_losses(&one, Some(&adapter)).unwrap());
        }
        for (a, b) in packed.iter().zip(alone) {
            assert!((a - b).abs() < 1e-5, "{variant}: {a} {b}");
        }
    }
}

#[test]
fn gradients_are_the_same_to_the_bit_at_any_number_of_threads() {
    let model = tiny_model();
    let adapter = busy_adapter(&model);
    let run = |num_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        let result = pool.install(|| model.loss_and_gradients(&batch(), &adapter, 1.0, Recompute::Nothing)).unwrap();
        let values: Vec<Vec<f32>> = result.gradients.iter().map(|g| host(g).unwrap().to_vec()).collect();
        (result.row_losses, values)
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

#[test]
fn an_adapter_for_another_model_and_too_long_a_text_are_refused() {
    let model = tiny_model();
    let other = ModelConfig { hidden_size: 64, ..ModelConfig::tiny() };
    let adapter = LoraAdapter::new(LoraConfig::default(), &other, 1).unwrap();
    assert!(matches!(model.logits(&[1, 2], Some(&adapter)), Err(ModelError::AdapterMismatch { .. })));
    assert!(matches!(model.logits(&[1; 257], None), Err(ModelError::TooManyPositions { length: 257, limit: 256 })));
    assert!(matches!(model.logits(&[48], None), Err(ModelError::TokenOutOfRange { id: 48, vocabulary: 48 })));
    assert!(matches!(model.logits(&[], None), Err(ModelError::EmptyBatch)));
}

#[test]
fn targets_that_the_model_does_not_have_are_refused_with_those_that_it_has() {
    let phi3 = ModelConfig { layout: Layout::Phi3, ..ModelConfig::tiny() };
    let error = LoraAdapter::new(LoraConfig::default(), &phi3, 1).unwrap_err().to_string();
    assert!(error.contains("q_proj") && error.contains("qkv_proj, o_proj, gate_up_proj, down_proj"), "{error}");
}
