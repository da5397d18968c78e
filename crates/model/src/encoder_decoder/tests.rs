use candle_core::Tensor;

use super::*;
use crate::adapters::testing::every_config;
use crate::ops::activation::Activation;
use crate::ops::cross_entropy::IGNORE;
use crate::ops::testing::{check_gradient, random};
use crate::rng::Rng;

fn config(activation: Activation, num_decoder_layers: usize) -> EncoderDecoderConfig {
    EncoderDecoderConfig {
        vocab_size: 48,
        hidden_size: 12,
        intermediate_size: 20,
        num_layers: 2,
        num_decoder_layers,
        num_heads: 3,
        head_dim: 6,
        num_buckets: 8,
        max_distance: 20,
        norm_eps: 1e-6,
        activation,
        head_scale: 12f32.powf(-0.5),
        has_own_head: false,
        decoder_start_token_id: 0,
        eos_token_ids: vec![1],
    }
}

/// Random weights; those of a name do not depend on the order of loading.
fn model(config: EncoderDecoderConfig) -> EncoderDecoder {
    EncoderDecoder::from_source(config, &|name, shape| {
        if name.contains("embed_tokens") || name == "lm_head.weight" {
            return Ok(None);
        }
        let seed = name.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let around = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let scale = if name == "shared.weight" { 1.0 } else { 0.4 };
        Ok(Some((random(seed, shape, scale) + around)?))
    })
    .unwrap()
}

/// The form of the first T5, with a smooth activation (finite differences fail at the bends of ReLU), and that of 1.1.
fn models() -> [EncoderDecoder; 2] {
    [model(config(Activation::GeluTanh, 2)), model(config(Activation::GeGluTanh, 1))]
}

/// An adapter of each method, none of whose gradients is zero.
fn every_method(model: &EncoderDecoder) -> Vec<(&'static str, Adapter)> {
    let busy = |(name, config)| {
        let mut adapter = model.new_adapter(config, 1).unwrap();
        let mut rng = Rng::new(5, 5);
        let around: Vec<f32> = adapter
            .parameters()
            .iter()
            .map(|(name, _)| if name.ends_with("magnitude_vector") || name.ends_with("ia3_l") { 1.0 } else { 0.0 })
            .collect();
        adapter
            .update(|index, values| values.iter_mut().for_each(|v| *v = around[index] + (rng.uniform() - 0.5) * 0.4))
            .unwrap();
        (name, adapter)
    };
    every_config(model.config().modules()).into_iter().map(busy).collect()
}

fn texts() -> Vec<(Vec<u32>, Vec<u32>)> {
    let ids = |from: u32, count: u32| (from..from + count).map(|i| i * 7 % 46 + 2).collect::<Vec<_>>();
    let mut first = ids(3, 6);
    first[2] = IGNORE;
    vec![(ids(1, 11), first), (ids(30, 3), ids(20, 9))]
}

fn batch() -> PairBatch {
    PairBatch::new(&texts(), 0).unwrap()
}

fn loss(model: &EncoderDecoder, adapter: &Adapter) -> f64 {
    0.25 * model.row_losses(&batch(), Some(adapter)).unwrap().iter().map(|loss| f64::from(*loss)).sum::<f64>()
}

#[test]
fn every_gradient_of_every_method_agrees_with_finite_differences() {
    for model in models() {
        let methods = every_method(&model);
        assert_eq!(methods.len(), 5);
        for (method, adapter) in methods {
            let result = model.loss_and_gradients(&batch(), &adapter, 0.25).unwrap();
            let parameters = adapter.parameters();
            assert_eq!((result.gradients.len(), result.num_targets), (parameters.len(), 14), "{method}");
            assert_eq!(result.row_losses, model.row_losses(&batch(), Some(&adapter)).unwrap());
            for (index, (name, value)) in parameters.iter().enumerate() {
                println!("{method} {name}"); // the captured output of a failed test names the tensor
                let gradient = &result.gradients[index];
                assert_eq!(gradient.dims(), value.dims());
                assert!(host(gradient).unwrap().iter().any(|v| *v != 0.0), "no gradient");
                if method == "dora" && !name.ends_with("magnitude_vector") {
                    continue; // the norm counts as a constant; parity compares with peft
                }
                check_gradient(value, gradient, 1e-2, |changed| {
                    let mut copy = adapter.snapshot().unwrap();
                    let changed = host(changed).unwrap();
                    copy.update(|i, values| {
                        if i == index {
                            values.copy_from_slice(&changed)
                        }
                    })
                    .unwrap();
                    loss(&model, &copy)
                });
            }
        }
    }
}

#[test]
fn gradients_are_the_same_to_the_bit_at_any_number_of_threads() {
    let [model, _] = models();
    let all = every_method(&model).remove(0).1;
    let whole = model.loss_and_gradients(&batch(), &all, 1.0).unwrap();
    let bits = |gradients: &[Tensor]| -> Vec<Vec<u32>> {
        gradients.iter().map(|g| host(g).unwrap().iter().map(|v| v.to_bits()).collect()).collect()
    };
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for threads in [1, 3] {
        let again = pool(threads).install(|| model.loss_and_gradients(&batch(), &all, 1.0)).unwrap();
        assert!(bits(&whole.gradients) == bits(&again.gradients), "the same to the bit at {threads} threads");
    }
}

#[test]
fn pairs_together_equal_the_same_pairs_alone() {
    for model in models() {
        let adapter = every_method(&model).remove(0).1;
        let together = model.row_losses(&batch(), Some(&adapter)).unwrap();
        let mut alone = Vec::new();
        for pair in texts() {
            alone.extend(model.row_losses(&PairBatch::new(&[pair], 0).unwrap(), Some(&adapter)).unwrap());
        }
        assert_eq!(together.len(), alone.len());
        for (a, b) in together.iter().zip(alone) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}

#[test]
fn writing_step_by_step_equals_the_whole_text_with_every_method() {
    for model in models() {
        for (method, adapter) in every_method(&model) {
            let source: Vec<u32> = (0..33).map(|i| i * 5 % 48).collect();
            let inputs: Vec<u32> = std::iter::once(0).chain((0..29).map(|i| i * 11 % 48)).collect();
            let wanted = model.logits(&source, &inputs, Some(&adapter)).unwrap().to_vec2::<f32>().unwrap();
            let mut written = model.read(&source, Some(&adapter)).unwrap();
            let near = |got: &[f32], row: usize| {
                for (a, b) in got.iter().zip(&wanted[row]) {
                    assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "{method} row {row}: {a} {b}");
                }
            };
            near(&model.advance(&mut written, &inputs[..10], Some(&adapter)).unwrap(), 9);
            assert!(model.advance(&mut written, &[5, 48], Some(&adapter)).is_err());
            for row in 10..30 {
                near(&model.advance(&mut written, &inputs[row..=row], Some(&adapter)).unwrap(), row);
            }
            assert_eq!(written.len(), 30, "what was refused was not written");
        }
    }
}

#[test]
fn a_fresh_adapter_of_any_method_leaves_the_model_as_it_is() {
    for model in models() {
        let logits = |adapter: Option<&Adapter>| {
            let logits: Tensor = model.logits(&[5, 6, 7], &[0, 9, 3], adapter).unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let wanted = logits(None);
        for (method, config) in every_config(model.config().modules()) {
            let fresh = model.new_adapter(config, 1).unwrap();
            let same = logits(Some(&fresh)).iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(same, "{method}");
        }
    }
}

#[test]
fn an_adapter_survives_the_disk_under_the_names_of_t5() {
    let [plain, gated] = models();
    for (model, up) in [(&plain, "wi"), (&gated, "wi_1")] {
        for (method, adapter) in every_method(model) {
            let folder = tempfile::tempdir().unwrap();
            crate::peft::save(&adapter, folder.path(), "base").unwrap();
            let text = std::fs::read_to_string(folder.path().join(crate::peft::CONFIG_FILE)).unwrap();
            assert!(text.contains("SEQ_2_SEQ_LM") && !text.contains("_proj"), "{method}: {text}");
            assert!(method != "lora" || text.contains(&format!("\"{up}\"")), "{text}");
            let again = crate::peft::load(folder.path(), model.config()).unwrap();
            assert_eq!(again.config(), adapter.config());
            for ((name, a), (same, b)) in adapter.parameters().into_iter().zip(again.parameters()) {
                assert_eq!((&name, &*host(a).unwrap()), (&same, &*host(b).unwrap()), "{method}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let [plain, gated] = models();
    let adapter = every_method(&plain).remove(0).1;
    let error = gated.logits(&[1], &[0], Some(&adapter)).unwrap_err();
    assert!(matches!(error, ModelError::AdapterMismatch { .. }), "{error}");
    let error = crate::decoder::tests::tiny_model().logits(&[1], Some(&adapter)).unwrap_err();
    assert!(error.to_string().contains("encoder"), "{error}");
    assert!(matches!(plain.logits(&[48], &[0], None), Err(ModelError::TokenOutOfRange { id: 48, vocabulary: 48 })));
    assert!(matches!(plain.logits(&[], &[0], None), Err(ModelError::EmptyBatch)));
    assert!(matches!(plain.read(&[], None), Err(ModelError::EmptyBatch)));
    let error = Sites::from(plain.config()).targeted("wi_0").unwrap_err().to_string();
    assert!(error.contains("\"wi_0\"") && error.contains("it has q k v o wi wo"), "{error}");
    let own = EncoderDecoderConfig { has_own_head: true, ..config(Activation::Relu, 2) };
    let headless =
        EncoderDecoder::from_source(own, &|name, shape| Ok((name != "lm_head.weight").then(|| random(1, shape, 0.1))));
    assert!(matches!(headless, Err(ModelError::MissingTensor { name, .. }) if name == "lm_head.weight"));
}
