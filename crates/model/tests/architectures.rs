//! Each architecture computes what `transformers` and `peft` compute. Goldens: `tests/parity/make-architecture-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::PathBuf;

use common::{compare_logits, goldens, largest_difference, logits, merged, tensors, token_ids};
use safetensors::SafeTensors;
use tunesmith_model::rng::Rng;
use tunesmith_model::{
    Adapter, AdapterConfig, Batch, Decoder, IGNORE, LoraConfig, Method, ModelError, Recompute, peft,
};

fn golden(path: &str) -> PathBuf {
    goldens("architectures").join(path)
}

/// Logits of the base and of an adapter that `peft` wrote; the gradient of every adapter tensor, relative to its largest value.
fn compare(name: &str, with_lora: bool) {
    let model = Decoder::load(&golden(name)).unwrap();
    compare_logits(&model, None, &golden(name).join("logits.safetensors"));
    if !with_lora {
        return;
    }
    let adapter = peft::load(&golden(&format!("{name}/lora")), model.config()).unwrap();
    compare_logits(&model, Some(&adapter), &golden(name).join("lora/adapted.safetensors"));

    let wanted = tensors(&golden(name).join("lora/gradients.safetensors"));
    let joined = |what: &str| [wanted[&format!("{what}.0")].clone(), wanted[&format!("{what}.1")].clone()];
    let ids = joined("ids");
    let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
    let ids = token_ids(&ids.concat());
    let targets = joined("targets").concat();
    let targets = targets.into_iter().map(|target| if target < 0.0 { IGNORE } else { target as u32 }).collect();
    let batch = Batch::new(ids, targets, lengths).unwrap();
    let scale = 1.0 / batch.num_targets() as f32;
    let result = model.loss_and_gradients(&batch, &adapter, scale, Recompute::Nothing).unwrap();
    let names: Vec<String> = adapter.parameters().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len() + 4, wanted.len(), "peft has as many tensors");
    let mut worst = 0.0f32;
    for (tensor, gradient) in names.iter().zip(&result.gradients) {
        let wanted = &wanted[&format!("base_model.model.{tensor}")];
        let got = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let largest = wanted.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let difference = largest_difference(&got, wanted) / largest;
        worst = worst.max(difference);
        assert!(largest > 1e-4 && difference <= 1e-4, "{name} {tensor}: {difference} of {largest}");
    }
    println!("{name}: largest relative difference of a gradient {worst:e}");
}

#[test]
fn llama_with_biases_and_dynamic_scaling() {
    compare("llama-biases", false);
}

#[test]
fn mistral_with_sliding_window_in_bf16_shards() {
    compare("mistral", false);
}

#[test]
fn qwen2_with_biases_and_windows_from_the_second_layer_in_f16() {
    compare("qwen2", false);
}

#[test]
fn qwen3_with_normalised_queries_and_keys() {
    compare("qwen3", true);
}

#[test]
fn phi3_with_fused_projections() {
    compare("phi3", true);
}

#[test]
fn gemma2_with_soft_caps_post_norms_and_alternating_windows() {
    compare("gemma2", true);
}

#[test]
fn gpt2_with_learned_positions_and_transposed_projections() {
    compare("gpt2", true);
}

#[test]
fn llama_with_yarn() {
    compare("llama-yarn", false);
}

#[test]
fn llama_with_yarn_between_dimensions_and_an_attention_factor_of_its_own() {
    compare("llama-yarn-untruncated", false);
}

#[test]
fn qwen2_with_yarn_and_an_attention_factor_from_mscale() {
    compare("qwen2-yarn", false);
}

#[test]
fn phi3_with_longrope_within_the_context_of_pretraining() {
    compare("phi3-longrope", false);
    let model = Decoder::load(&golden("phi3-longrope")).unwrap();
    let longer = model.logits(&[1; 49], None);
    assert!(matches!(longer, Err(ModelError::TooManyPositions { length: 49, limit: 48 })));
}

#[test]
fn a_tensor_that_the_configuration_gives_no_place_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |change: &dyn Fn(String) -> String| {
        let text = std::fs::read_to_string(golden("llama-biases/config.json")).unwrap();
        std::fs::write(folder.path().join("config.json"), change(text)).unwrap();
        std::fs::copy(golden("llama-biases/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        Decoder::load(folder.path()).map(|_| ()).map_err(|error| error.to_string())
    };
    copy(&|text| text).unwrap();
    let error = copy(&|text| text.replace("\"attention_bias\": true", "\"attention_bias\": false")).unwrap_err();
    assert!(error.contains("model.layers.0.self_attn.k_proj.bias"), "{error}");
    let error = copy(&|text| text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1")).unwrap_err();
    assert!(error.contains("model.layers.1."), "{error}");
}

#[test]
fn gpt2_as_the_hub_has_it_without_the_name_of_the_body_and_with_buffers() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(golden("gpt2/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut views: Vec<_> = tensors.tensors();
    let mask = views[0].1.clone();
    views.push(("transformer.h.0.attn.bias".to_owned(), mask));
    let bare = views.into_iter().map(|(name, view)| (name.trim_start_matches("transformer.").to_owned(), view));
    safetensors::serialize_to_file(bare, None, &folder.path().join("model.safetensors")).unwrap();
    std::fs::copy(golden("gpt2/config.json"), folder.path().join("config.json")).unwrap();
    let of = |folder: &std::path::Path| logits(&Decoder::load(folder).unwrap(), &[5, 3, 60], None);
    assert_eq!(of(folder.path()), of(&golden("gpt2")));
}

#[test]
fn adapters_merge_into_fused_transposed_and_biased_projections() {
    for (name, bare) in [("llama-biases", false), ("phi3", false), ("gemma2", false), ("gpt2", false), ("gpt2", true)] {
        let model = Decoder::load(&golden(name)).unwrap();
        let existing = model.config().modules();
        let lora = |use_dora| AdapterConfig {
            method: Method::Lora(LoraConfig { rank: 3, alpha: 6.0, use_rslora: false, use_dora }),
            target_modules: existing.to_vec(),
        };
        for (method, config) in [("lora", lora(false)), ("dora", lora(true)), ("ia3", AdapterConfig::ia3(existing))] {
            let mut adapter = Adapter::new(config, &model, 1).unwrap();
            let mut rng = Rng::new(2, 2);
            adapter.update(|_, values| values.iter_mut().for_each(|v| *v += (rng.uniform() - 0.5) * 0.2)).unwrap();
            let ids = [5, 3, 60, 2, 9];
            let wanted = logits(&model, &ids, Some(&adapter));
            assert!(largest_difference(&logits(&model, &ids, None), &wanted) > 1e-2, "{name} {method} changes nothing");
            let merged = merged(&golden(name), &adapter, |tensor| match bare {
                true => tensor.trim_start_matches("transformer.").to_owned(),
                false => tensor.to_owned(),
            });
            let difference = largest_difference(&logits(&merged, &ids, None), &wanted);
            assert!(difference <= 1e-4, "{name} {method}: {difference}");
        }
    }
}
