//! Every family is read with its defaults; what would change the mathematics is refused.

use serde_json::{Value, json};

use super::*;

fn changed(mut base: Value, change: Value) -> Result<ModelConfig> {
    for (key, value) in change.as_object().unwrap() {
        base[key] = value.clone();
    }
    ModelConfig::from_json(base.as_object().unwrap())
}

fn family(model_type: &str, change: Value) -> Result<ModelConfig> {
    let base = json!({
        "model_type": model_type, "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_scaling": null, "tie_word_embeddings": true, "max_position_embeddings": 256, "eos_token_id": 2
    });
    changed(base, change)
}

#[test]
fn reads_both_spellings_of_the_rotary_settings() {
    let llama = |change| family("llama", change);
    let plain = json!({"hidden_act": "silu", "attention_bias": false, "mlp_bias": false, "pretraining_tp": 1});
    assert_eq!(llama(plain).unwrap(), ModelConfig::tiny());
    let old = llama(json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})).unwrap();
    let new = llama(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}})).unwrap();
    assert_eq!(old, new);
    let wanted = Rotary { theta: 5e5, scaling: RopeScaling::Linear { factor: 2.0 } };
    assert_eq!(new.positions, Positions::Rotary(wanted));
}

/// `_compute_yarn_parameters` of transformers 5.23.
#[test]
fn yarn_is_read_as_transformers_reads_it() {
    let yarn = |change: Value| {
        let mut scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        for (key, value) in change.as_object().unwrap() {
            scaling[key] = value.clone();
        }
        family("llama", json!({"rope_scaling": scaling}))
    };
    let scale = |mscale: f64| 0.1 * mscale * 4.0f64.ln() + 1.0;
    for (change, wanted_factor, wanted_truncate) in [
        (json!({}), scale(1.0), true),
        (json!({"factor": null, "mscale": null, "truncate": null}), scale(1.0), false), // 256 positions by 64
        (json!({"mscale": 0.7, "mscale_all_dim": 1.3, "truncate": false}), scale(0.7) / scale(1.3), false),
        (json!({"mscale": 0.7, "mscale_all_dim": 0.0}), scale(1.0), true),
        (json!({"mscale": 0.7}), scale(1.0), true),
        (json!({"mscale": 0.7, "mscale_all_dim": 1.3, "attention_factor": 2.0}), 2.0, true),
    ] {
        let Positions::Rotary(Rotary { scaling, .. }) = yarn(change.clone()).unwrap().positions else { panic!() };
        let RopeScaling::Yarn { factor, attention_factor, truncate, .. } = scaling else { panic!("{scaling:?}") };
        assert_eq!((factor, truncate), (4.0, wanted_truncate), "{change}");
        assert!((attention_factor - wanted_factor).abs() < 1e-12, "{change}: {attention_factor}");
    }
    refused(yarn(json!({"truncate": "no"})), "rope_scaling.truncate");
    refused(yarn(json!({"mscale": -1.0})), "rope_scaling.mscale");
    refused(yarn(json!({"mscale_all_dim": "x"})), "rope_scaling.mscale_all_dim");
    refused(yarn(json!({"beta_fast": 0.0})), "rope_scaling.beta_fast");
    refused(yarn(json!({"extrapolation_factor": 1.0})), "rope_scaling.extrapolation_factor");
}

#[test]
fn absent_keys_take_the_defaults_of_the_family() {
    let mistral = |change| family("mistral", change).unwrap().sliding_windows;
    assert_eq!(mistral(json!({})), [Some(4096); 2]);
    assert_eq!(mistral(json!({"sliding_window": null})), [None; 2]);
    let qwen = |change| family("qwen2", change).unwrap().sliding_windows;
    assert_eq!(qwen(json!({"sliding_window": 131_072, "use_sliding_window": false})), [None; 2]);
    let on = json!({"sliding_window": 9, "use_sliding_window": true, "max_window_layers": 1});
    assert_eq!(qwen(on), [None, Some(9)]);
    let gemma = family("gemma2", json!({})).unwrap();
    assert_eq!((gemma.attention_soft_cap, gemma.final_soft_cap, gemma.head_dim), (Some(50.0), Some(30.0), 256));
    assert_eq!(gemma.sliding_windows, [Some(4096), None]);
    let gemma = family("gemma2", json!({"attn_logit_softcapping": null, "head_dim": 8})).unwrap();
    assert_eq!((gemma.attention_soft_cap, gemma.head_dim), (None, 8));
    assert_eq!(family("qwen3", json!({})).unwrap().head_dim, 128);
}

#[test]
fn other_mathematics_is_refused_by_key_value_and_remedy() {
    for (model_type, change, key) in [
        ("mixtral", json!({}), "model_type"),
        ("llama", json!({"hidden_act": "gelu"}), "hidden_act"),
        ("llama", json!({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}), "rope_scaling.rope_type"),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
            "rope_scaling.original_max_position_embeddings",
        ),
        ("llama", json!({"rope_scaling": {"rope_type": "linear"}}), "rope_scaling.factor"),
        ("llama", json!({"rope_scaling": {"rope_type": "default", "mscale": 0.7}}), "rope_scaling.mscale"),
        ("llama", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("llama", json!({"rope_interleaved": true}), "rope_interleaved"),
        ("llama", json!({"sliding_window": 4096}), "sliding_window"),
        ("llama", json!({"quantization_config": {"bits": 4}}), "quantization_config"),
        ("llama", json!({"pretraining_tp": 2}), "pretraining_tp"),
        ("llama", json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        ("llama", json!({"hidden_size": 0}), "hidden_size"),
        ("llama", json!({"attention_bias": "yes"}), "attention_bias"),
        ("llama", json!({"head_dim": 7}), "head_dim"),
        ("mistral", json!({"attention_bias": true}), "attention_bias"),
        ("mistral", json!({"num_local_experts": 8}), "num_local_experts"),
        ("mistral", json!({"layer_types": ["full_attention", "full_attention"]}), "layer_types"),
        ("qwen2", json!({"use_mrope": true}), "use_mrope"),
        ("qwen2", json!({"head_dim": 16}), "head_dim"),
        ("qwen2", json!({"layer_types": ["full_attention", "linear_attention"]}), "layer_types"),
        ("qwen3", json!({"num_experts": 128}), "num_experts"),
        ("phi3", json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}), "rope_scaling.short_factor"),
        ("phi3", json!({"rope_scaling": {"type": "longrope", "short_factor": "1"}}), "rope_scaling.short_factor"),
        ("phi3", json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}), "rope_scaling.rope_type"),
        ("phi3", json!({"rope_parameters": {"partial_rotary_factor": 0.75}}), "partial_rotary_factor"),
        ("gemma2", json!({"hidden_activation": "gelu"}), "hidden_activation"),
        ("gemma2", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        ("gemma2", json!({"attn_logit_softcapping": -1.0}), "attn_logit_softcapping"),
    ] {
        refused(family(model_type, change), key);
    }
}

#[test]
fn gpt2_of_other_mathematics_is_refused() {
    let gpt2 = |change| {
        let base = json!({"model_type": "gpt2", "vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_ctx": 256,
            "n_positions": 256, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1,
            "summary_type": "cls_index", "task_specific_params": {"text-generation": {"max_length": 50}}});
        changed(base, change)
    };
    let config = gpt2(json!({})).unwrap();
    assert_eq!((config.intermediate_size, config.tie_word_embeddings, config.head_dim), (128, true, 8));
    for (change, key) in [
        (json!({"activation_function": "relu"}), "activation_function"),
        (json!({"scale_attn_by_inverse_layer_idx": true}), "scale_attn_by_inverse_layer_idx"),
        (json!({"scale_attn_weights": false}), "scale_attn_weights"),
        (json!({"add_cross_attention": true}), "add_cross_attention"),
        (json!({"n_head": 5}), "n_head"),
        (json!({"rope_theta": 1e4}), "rope_theta"),
    ] {
        refused(gpt2(change), key);
    }
}

#[test]
fn an_encoder_decoder_is_refused_as_what_it_is() {
    let error = family("t5", json!({})).unwrap_err();
    assert!(matches!(error, ModelError::EncoderDecoderModel), "{error}");
    assert!(error.to_string().contains("t5") && error.to_string().contains("choose a base model"), "{error}");
}

fn refused(result: Result<ModelConfig>, key: &str) {
    let error = result.unwrap_err();
    assert!(matches!(&error, ModelError::UnsupportedConfig { key: found, .. } if found == key), "{key}: {error}");
    assert!(error.to_string().contains(key) && error.to_string().contains("choose another"), "{error}");
}

/// `config.json` of well-known models as published, with the number of parameters that their pages state.
#[test]
fn well_known_models_are_read_and_have_the_published_number_of_parameters() {
    let llama32 = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
        "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 128256
    });
    let smollm2 = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "hidden_act": "silu", "hidden_size": 576,
        "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
        "rms_norm_eps": 1e-5, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
        "tie_word_embeddings": true, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "vocab_size": 49152
    });
    let mistral = json!({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 32000
    });
    let qwen25 = json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
        "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": true, "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936
    });
    let qwen3 = json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936
    });
    let phi3 = json!({
        "architectures": ["Phi3ForCausalLM"], "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
        "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5,
        "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false, "vocab_size": 32064
    });
    let gemma2 = json!({
        "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
        "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "sliding_window": 4096, "vocab_size": 256000
    });
    let gpt2 = json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
        "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5, "model_type": "gpt2",
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
        "summary_use_proj": true, "task_specific_params": {"text-generation": {"do_sample": true}}, "vocab_size": 50257
    });
    for (name, json, num_parameters) in [
        ("Llama-3.2-1B", llama32, 1_235_814_400),
        ("SmolLM2-135M", smollm2, 134_515_008),
        ("Mistral-7B-v0.1", mistral, 7_241_732_096),
        ("Qwen2.5-0.5B", qwen25, 494_032_768),
        ("Qwen3-0.6B", qwen3, 596_049_920),
        ("Phi-3-mini-4k", phi3, 3_821_079_552),
        ("Gemma-2-2B", gemma2, 2_614_341_888),
        ("GPT-2", gpt2, 124_439_808),
    ] {
        assert_eq!(changed(json, json!({})).unwrap().num_parameters(), num_parameters, "{name}");
    }
}
