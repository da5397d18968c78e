//! What each `model_type` means: one function per family, with the defaults of its class in `transformers` 5.23
//! (`models/<family>/configuration_<family>.py`).

use serde_json::{Map, Value, json};

use super::fields::{Fields, token_ids, unsupported};
use super::{Activation, Biases, Layout, ModelConfig, NormKind, Positions, RopeScaling, Rotary, rotary};
use crate::error::{ModelError, Result};

const FAMILIES: &str = "llama, mistral, qwen2, qwen3, phi3, gemma2 or gpt2";

pub(super) fn parse(json: &Map<String, Value>) -> Result<ModelConfig> {
    let fields = Fields::new(json);
    let config = match json.get("model_type").and_then(Value::as_str) {
        Some("llama") => llama(&fields)?,
        Some("mistral") => mistral(&fields)?,
        Some("qwen2") => qwen2(&fields)?,
        Some("qwen3") => qwen3(&fields)?,
        Some("phi3") => phi3(&fields)?,
        Some("gemma2") => gemma2(&fields)?,
        Some("gpt2") => gpt2(&fields)?,
        Some("t5") => return Err(ModelError::EncoderDecoderModel),
        _ => return Err(unsupported("model_type", json.get("model_type").unwrap_or(&Value::Null), FAMILIES)),
    };
    fields.finish()?;
    check(&config)?;
    Ok(config)
}

/// What the families after Llama share with it: RMSNorm, rotary positions, SwiGLU, seven projections.
fn base(fields: &Fields<'_>, max_position_embeddings: usize) -> Result<ModelConfig> {
    base_with(fields, max_position_embeddings, None)
}

/// The same where the file says the context of pretraining outside the rotary settings.
fn base_with(fields: &Fields<'_>, max_position_embeddings: usize, original_opt: Option<usize>) -> Result<ModelConfig> {
    let hidden_size = fields.size("hidden_size")?;
    let num_attention_heads = fields.size("num_attention_heads")?;
    let num_hidden_layers = fields.size("num_hidden_layers")?;
    let head_dim = fields.size_or("head_dim", hidden_size / num_attention_heads)?;
    let written = fields.size_or("max_position_embeddings", max_position_embeddings)?;
    let rotary = rotary::read(fields, written, original_opt)?;
    let limit = match rotary.scaling {
        RopeScaling::LongRope { original_max_position_embeddings, .. } => original_max_position_embeddings,
        _ => written,
    };
    Ok(ModelConfig {
        layout: Layout::Llama,
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: fields.size_or("num_key_value_heads", num_attention_heads)?,
        head_dim,
        max_position_embeddings: limit.min(written),
        positions: Positions::Rotary(rotary),
        norm: NormKind::Rms,
        norm_eps: fields.number_or("rms_norm_eps", 1e-6)?,
        post_norms: false,
        qk_norm: false,
        biases: Biases::default(),
        activation: Activation::SwiGlu,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_soft_cap: None,
        final_soft_cap: None,
        sliding_windows: vec![None; num_hidden_layers],
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", false)?,
        eos_token_ids: token_ids(fields.get("eos_token_id")),
    })
}

/// Llama 2 and 3, SmolLM 1 and 2.
fn llama(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.demand("hidden_act", &json!("silu"), "\"silu\"")?;
    fields.demand("pretraining_tp", &json!(1), "1")?;
    let attention = fields.flag_or("attention_bias", false)?;
    let biases = Biases { qkv: attention, o: attention, mlp: fields.flag_or("mlp_bias", false)? };
    Ok(ModelConfig { biases, ..base(fields, 2048)? })
}

/// Llama with one sliding window for all layers; an absent key means 4,096 tokens, null means none.
fn mistral(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.demand("hidden_act", &json!("silu"), "\"silu\"")?;
    let window = fields.if_written("sliding_window", Some(4096), Fields::size_opt)?;
    let config = base(fields, 4096 * 32)?;
    Ok(ModelConfig { sliding_windows: vec![window; config.num_hidden_layers], ..config })
}

/// Qwen2 and 2.5: biases of query, key and value; windows, where switched on, from `max_window_layers` upwards.
fn qwen2(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.demand("hidden_act", &json!("silu"), "\"silu\"")?;
    fields.demand("head_dim", &json!(quotient(fields)?), "hidden_size / num_attention_heads")?;
    let config = base(fields, 32_768)?;
    let sliding_windows = qwen_windows(fields, config.num_hidden_layers)?;
    Ok(ModelConfig { sliding_windows, biases: Biases { qkv: true, ..Biases::default() }, ..config })
}

/// Qwen3: queries and keys normalised per head, head size of its own.
fn qwen3(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.demand("hidden_act", &json!("silu"), "\"silu\"")?;
    let bias = fields.flag_or("attention_bias", false)?;
    let head_dim = fields.size_or("head_dim", 128)?;
    let config = base(fields, 32_768)?;
    Ok(ModelConfig {
        head_dim,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        qk_norm: true,
        biases: Biases { qkv: bias, o: bias, mlp: false },
        sliding_windows: qwen_windows(fields, config.num_hidden_layers)?,
        ..config
    })
}

fn qwen_windows(fields: &Fields<'_>, num_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = fields.if_written("sliding_window", Some(4096), Fields::size_opt)?;
    let used = fields.flag_or("use_sliding_window", false)?;
    let window = window.filter(|_| used);
    // 0 is a proper value: every layer has the window
    let from = fields.get("max_window_layers").map_or(Some(28), Value::as_u64);
    let from = from.ok_or_else(|| unsupported("max_window_layers", &Value::Null, "a whole number"))? as usize;
    windows(fields, window, num_layers, |index| index >= from)
}

/// Llama with fused projections.
fn phi3(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.demand("hidden_act", &json!("silu"), "\"silu\"")?;
    fields.demand("head_dim", &json!(quotient(fields)?), "hidden_size / num_attention_heads")?;
    fields.harmless(&["embd_pdrop", "resid_pdrop"]);
    let window = fields.size_opt("sliding_window")?;
    let norm_eps = fields.number_or("rms_norm_eps", 1e-5)?;
    let config = base_with(fields, 4096, Some(fields.size_or("original_max_position_embeddings", 4096)?))?;
    if let Positions::Rotary(Rotary { scaling: RopeScaling::Yarn { .. }, .. }) = config.positions {
        // an early name of longrope in this family
        return Err(unsupported("rope_scaling.rope_type", &json!("yarn"), "longrope"));
    }
    Ok(ModelConfig {
        layout: Layout::Phi3,
        norm_eps,
        sliding_windows: vec![window; config.num_hidden_layers],
        ..config
    })
}

/// Gemma 2: GeGLU, norms with `1 + w` around each block, soft caps, scaled embedding, a window in every other layer.
fn gemma2(fields: &Fields<'_>) -> Result<ModelConfig> {
    fields.demand("hidden_activation", &json!("gelu_pytorch_tanh"), "\"gelu_pytorch_tanh\"")?;
    fields.demand("hidden_act", &json!("gelu_pytorch_tanh"), "\"gelu_pytorch_tanh\"")?;
    fields.demand("use_bidirectional_attention", &json!(false), "false")?;
    let head_dim = fields.size_or("head_dim", 256)?;
    let bias = fields.flag_or("attention_bias", false)?;
    let cap = |key, default| {
        Ok::<_, ModelError>(fields.if_written(key, Some(default), Fields::number_opt)?.map(|c| c as f32))
    };
    let attention_soft_cap = cap("attn_logit_softcapping", 50.0)?;
    let final_soft_cap = cap("final_logit_softcapping", 30.0)?;
    let window = fields.if_written("sliding_window", Some(4096), Fields::size_opt)?;
    // an older name of the same number
    fields.demand("sliding_window_size", &json!(window), "the value of sliding_window")?;
    let tie_word_embeddings = fields.flag_or("tie_word_embeddings", true)?;
    let config = base(fields, 8192)?;
    Ok(ModelConfig {
        head_dim,
        norm: NormKind::RmsPlusOne,
        post_norms: true,
        biases: Biases { qkv: bias, o: bias, mlp: false },
        activation: Activation::GeGluTanh,
        embedding_scale: (config.hidden_size as f64).sqrt() as f32,
        attention_scale: fields.number_or("query_pre_attn_scalar", 256.0)?.powf(-0.5) as f32,
        attention_soft_cap,
        final_soft_cap,
        sliding_windows: windows(fields, window, config.num_hidden_layers, |index| index % 2 == 0)?,
        tie_word_embeddings,
        ..config
    })
}

/// GPT-2: LayerNorm, learned positions, GELU without a gate, biases everywhere.
fn gpt2(fields: &Fields<'_>) -> Result<ModelConfig> {
    match fields.get("activation_function").map(Value::as_str) {
        // two names of one formula
        None | Some(Some("gelu_new" | "gelu_pytorch_tanh")) => {}
        Some(name) => return Err(unsupported("activation_function", &json!(name), "\"gelu_new\"")),
    }
    fields.demand("scale_attn_weights", &json!(true), "true")?;
    fields.demand("scale_attn_by_inverse_layer_idx", &json!(false), "false")?;
    fields.demand("add_cross_attention", &json!(false), "false")?;
    // the order of the products in half precision; heads of other tasks; dropout
    fields.harmless(&["reorder_and_upcast_attn", "attn_pdrop", "embd_pdrop", "resid_pdrop", "n_ctx"]);
    fields.harmless(&["summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type"]);
    fields.harmless(&["summary_use_proj"]);
    let (hidden_size, heads, layers) = (fields.size("n_embd")?, fields.size("n_head")?, fields.size("n_layer")?);
    let head_dim = hidden_size / heads;
    Ok(ModelConfig {
        layout: Layout::Gpt2,
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.size_or("n_inner", 4 * hidden_size)?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings: fields.size_or("n_positions", 1024)?,
        positions: Positions::Learned,
        norm: NormKind::Layer,
        norm_eps: fields.number_or("layer_norm_epsilon", 1e-5)?,
        post_norms: false,
        qk_norm: false,
        biases: Biases { qkv: true, o: true, mlp: true },
        activation: Activation::GeluTanh,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_soft_cap: None,
        final_soft_cap: None,
        sliding_windows: vec![None; layers],
        tie_word_embeddings: fields.flag_or("tie_word_embeddings", true)?,
        eos_token_ids: token_ids(fields.get("eos_token_id")),
    })
}

fn quotient(fields: &Fields<'_>) -> Result<usize> {
    Ok(fields.size("hidden_size")? / fields.size("num_attention_heads")?)
}

/// The window of each layer: as `layer_types` says where it is given, otherwise where `by_default` holds.
fn windows(
    fields: &Fields<'_>,
    window: Option<usize>,
    num_layers: usize,
    by_default: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    let Some(types) = fields.get("layer_types") else {
        return Ok((0..num_layers).map(|index| window.filter(|_| by_default(index))).collect());
    };
    let refuse = || unsupported("layer_types", types, "full_attention or sliding_attention, once per layer");
    let types = types.as_array().filter(|types| types.len() == num_layers).ok_or_else(refuse)?;
    let one = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") => Ok(window),
        _ => Err(refuse()),
    };
    types.iter().map(one).collect()
}

fn check(config: &ModelConfig) -> Result<()> {
    let (heads, kv) = (config.num_attention_heads, config.num_key_value_heads);
    if !heads.is_multiple_of(kv) {
        return Err(unsupported("num_key_value_heads", &json!(kv), "a divisor of num_attention_heads"));
    }
    if let Positions::Rotary(rotary) = &config.positions {
        if !config.head_dim.is_multiple_of(2) {
            return Err(unsupported("head_dim", &json!(config.head_dim), "an even number"));
        }
        if let RopeScaling::LongRope { short_factor, .. } = &rotary.scaling
            && short_factor.len() != config.head_dim / 2
        {
            let supported = "half as many factors as a head has values";
            return Err(unsupported("rope_scaling.short_factor", &json!(short_factor), supported));
        }
    }
    if config.layout == Layout::Gpt2 && config.head_dim * heads != config.hidden_size {
        return Err(unsupported("n_head", &json!(heads), "a divisor of n_embd"));
    }
    Ok(())
}
