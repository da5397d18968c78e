use super::*;
use crate::adapters::AdapterConfig;
use crate::adapters::testing::every_method;
use crate::config::{Activation, Biases, Layout, NormKind, Positions};
use crate::frozen::{FrozenMatrix, FrozenWeight};
use crate::ops::testing::random;

pub fn tiny_model() -> Decoder {
    model(ModelConfig::tiny())
}

/// Random weights for any configuration; those of a name do not depend on the order of loading.
pub fn model(config: ModelConfig) -> Decoder {
    quantised_model(config, Quantization::None)
}

/// The same with quantised projections.
pub fn quantised_model(config: ModelConfig, quantization: Quantization) -> Decoder {
    let of = config.clone();
    Decoder::from_source(config, quantization, &|name, shape| Ok(random_weight(&of, name, shape))).unwrap()
}

fn random_weight(config: &ModelConfig, name: &str, shape: &[usize]) -> Tensor {
    let one = if config.norm == NormKind::RmsPlusOne { 0.0 } else { 1.0 };
    let seed = name.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let around = if name.ends_with("norm.weight") || name.contains("ln_") { one } else { 0.0 };
    let scale = if name.contains("embed_tokens") { 1.0 } else { 0.3 };
    (random(seed, shape, scale) + around).unwrap()
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

/// LoRA on every module, none of whose gradients is zero.
pub fn busy_adapter(model: &Decoder) -> Adapter {
    every_method(model).remove(0).1
}

/// Two sequences with a gap in the targets.
pub fn batch() -> Batch {
    let ids: Vec<u32> = (0..23).map(|i| i * 7 % 48).collect();
    let mut targets: Vec<u32> = (0..23).map(|i| (i * 5 + 1) % 48).collect();
    targets[4] = cross_entropy::IGNORE;
    Batch::new(ids, targets, vec![9, 14]).unwrap()
}

#[test]
fn recomputed_layers_give_the_same_gradients_and_norms_to_the_bit() {
    for (variant, config) in variants() {
        let model = model(config);
        for (method, adapter) in every_method(&model) {
            let run = |recompute| {
                let result = model.loss_gradients_and_norms(&batch(), &adapter, 1.0, recompute).unwrap();
                let bits = |gradient: &Tensor| host(gradient).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                (result.row_losses, result.gradients.iter().map(bits).collect::<Vec<_>>(), result.example_norms)
            };
            assert!(run(Recompute::Nothing) == run(Recompute::Layers), "{variant} {method}");
        }
    }
}

#[test]
fn quantised_models_compute_what_their_dequantised_weights_compute_with_every_method() {
    for (variant, config) in variants() {
        // q4_k wants rows of 256 values; its products are those of every format (frozen/tests.rs)
        for quantization in [Quantization::Nf4, Quantization::Q8_0] {
            let config = ModelConfig { intermediate_size: 64, ..config.clone() };
            if quantization == Quantization::Q8_0 && config.head_dim == 6 {
                continue; // the width of o_proj would be 24
            }
            let stored = quantised_model(config.clone(), quantization);
            // a model of f32 weights that hold the same values
            let read = Decoder::from_source(config.clone(), Quantization::None, &|name, shape| {
                let value = random_weight(&config, name, shape);
                if !Module::ALL.iter().any(|module| name.ends_with(&format!("{}.weight", module.path()))) {
                    return Ok(value);
                }
                let transposed = name.starts_with("transformer");
                let matrix = if transposed { value.t()?.contiguous()? } else { value };
                let (rows, width) = matrix.dims2()?;
                let frozen = FrozenWeight::join(vec![FrozenMatrix::new(name, matrix, quantization)?])?;
                let mut values = vec![0.0; rows * width];
                frozen.read_rows(0, &mut values)?;
                let matrix = tensor(values, (rows, width))?;
                if transposed { Ok(matrix.t()?.contiguous()?) } else { Ok(matrix) }
            })
            .unwrap();
            for (method, adapter) in every_method(&stored) {
                let run = |model: &Decoder| {
                    let result = model.loss_and_gradients(&batch(), &adapter, 1.0, Recompute::Nothing).unwrap();
                    let values = result.gradients.iter().flat_map(|gradient| host(gradient).unwrap().to_vec());
                    (result.row_losses, values.collect::<Vec<_>>())
                };
                let ((losses, gradients), (wanted_losses, wanted)) = (run(&stored), run(&read));
                let near =
                    |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-5 * b.abs().max(1.0));
                assert!(near(&losses, &wanted_losses), "{variant} {quantization:?} {method}");
                assert!(near(&gradients, &wanted), "{variant} {quantization:?} {method}");
            }
        }
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
fn an_adapter_for_another_model_and_too_long_a_text_are_refused() {
    let model = tiny_model();
    for (method, adapter) in every_method(&model) {
        let mut other = tiny_model();
        other.config.hidden_size = 64;
        other.config.intermediate_size = 80;
        let refused = other.check_adapter(Some(&adapter));
        assert!(matches!(refused, Err(ModelError::AdapterMismatch { .. })), "{method}");
    }
    let gate = Module::from_name("gate", &Module::LLAMA).unwrap_err().to_string();
    assert!(gate.contains("\"gate\"") && gate.contains("gate_proj up_proj"), "{gate}");
    let rank_zero = AdapterConfig::lora(0, 1.0);
    assert!(Adapter::new(rank_zero, &model, 1).unwrap_err().to_string().contains("rank = 0"));
    assert!(matches!(model.logits(&[1; 257], None), Err(ModelError::TooManyPositions { length: 257, limit: 256 })));
    assert!(matches!(model.logits(&[48], None), Err(ModelError::TokenOutOfRange { id: 48, vocabulary: 48 })));
    assert!(matches!(model.logits(&[], None), Err(ModelError::EmptyBatch)));
}

#[test]
fn targets_that_the_model_does_not_have_are_refused_with_those_that_it_has() {
    let phi3 = model(ModelConfig { layout: Layout::Phi3, ..ModelConfig::tiny() });
    let llama = tiny_model();
    let on_llama = Adapter::new(AdapterConfig::default(), &llama, 1).unwrap();
    for error in [
        Adapter::new(AdapterConfig::default(), &phi3, 1).unwrap_err(),
        phi3.logits(&[1, 2], Some(&on_llama)).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("q_proj") && error.contains("qkv_proj o_proj gate_up_proj down_proj"), "{error}");
    }
}

#[test]
fn a_batch_of_several_parts_gives_the_bits_of_any_number_of_threads() {
    let model = tiny_model();
    let adapter = busy_adapter(&model);
    let longest = model.config().max_position_embeddings;
    // three parts, the second without a single target
    let lengths = vec![longest; 1500usize.div_ceil(longest)];
    let num_tokens: usize = lengths.iter().sum();
    let ids: Vec<u32> = (0..num_tokens as u32).map(|index| index * 7 % 48).collect();
    let targets = (0..num_tokens).map(|row| if (400..1100).contains(&row) { cross_entropy::IGNORE } else { ids[row] });
    let batch = Batch::new(ids.clone(), targets.collect(), lengths.clone()).unwrap();
    let run = |num_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        pool.install(|| {
            let result = model.loss_gradients_and_norms(&batch, &adapter, 1.0 / 800.0, Recompute::Nothing).unwrap();
            let gradients: Vec<Vec<f32>> = result.gradients.iter().map(|g| host(g).unwrap().to_vec()).collect();
            (result.row_losses, result.num_targets, gradients, result.example_norms)
        })
    };
    let wanted = run(1);
    assert_eq!((wanted.0.len(), wanted.1), (num_tokens, batch.num_targets()));
    assert!(wanted.3.iter().all(|norms| norms.len() == lengths.len()));
    assert_eq!(wanted.0, model.row_losses(&batch, Some(&adapter)).unwrap());
    for num_threads in [2, 3, 7] {
        assert!(run(num_threads) == wanted, "{num_threads} threads");
    }
    // the sum of what each sequence gives alone
    let mut sums: Vec<Vec<f32>> = wanted.2.iter().map(|gradient| vec![0.0; gradient.len()]).collect();
    for (ids, targets) in batch.ids().chunks(longest).zip(batch.targets().chunks(longest)) {
        let alone = Batch::new(ids.to_vec(), targets.to_vec(), vec![longest]).unwrap();
        let result = model.loss_and_gradients(&alone, &adapter, 1.0 / 800.0, Recompute::Nothing).unwrap();
        for (sum, gradient) in sums.iter_mut().zip(&result.gradients) {
            sum.iter_mut().zip(host(gradient).unwrap().iter()).for_each(|(sum, value)| *sum += value);
        }
    }
    for (sum, gradient) in sums.iter().zip(&wanted.2) {
        let length = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        let off = length(&mut sum.iter().zip(gradient).map(|(a, b)| a - b)) / length(&mut gradient.iter().copied());
        assert!(off < 1e-5, "off by {off}");
    }
}
