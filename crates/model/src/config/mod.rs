//! `config.json` of a Hugging Face Llama model.
//!
//! A value that would change the mathematics and is not computed here is refused, never ignored: a wrong model that answers is
//! worse than none. Both spellings of the rotary settings are read: `rope_theta` + `rope_scaling` (transformers 4) and
//! `rope_parameters` (transformers 5).

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::adapters::Module;
use crate::error::{ModelError, Result};

/// How rotary frequencies are changed for longer contexts; formulas in [`crate::ops::rope`].
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Unchanged.
    Default,
    /// All frequencies divided.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided, high ones kept, smooth between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pretraining.
        original_max_position_embeddings: usize,
    },
}

/// Everything that fixes the mathematics of a Llama model; names as in `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Values per head; even.
    pub head_dim: usize,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Change of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Tokens that end a text, as far as this file names them.
    pub eos_token_ids: Vec<u32>,
}

/// Keys that do not touch the forward pass of this crate, or that are read below.
const HARMLESS: &[&str] = &[
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "head_dim",
    "hidden_size",
    "id2label",
    "initializer_range",
    "intermediate_size",
    "is_llama_config",
    "label2id",
    "max_length",
    "max_position_embeddings",
    "min_length",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "task_specific_params",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "use_cache",
    "vocab_size",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "return_dict_in_generate",
    "num_beams",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "do_sample",
    "unsloth_version",
    "unsloth_fixed",
];

impl LlamaConfig {
    /// Reads and checks `config.json`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(ModelError::io(path))?;
        let value: Map<String, Value> = serde_json::from_str(&text).map_err(ModelError::json(path))?;
        Self::from_json(&value)
    }

    /// Checks the parsed file.
    pub fn from_json(json: &Map<String, Value>) -> Result<Self> {
        demand(json, "model_type", &["llama"], "\"llama\"")?;
        if json.contains_key("hidden_act") {
            demand(json, "hidden_act", &["silu"], "\"silu\"")?;
        }
        let known = |key: &str| HARMLESS.contains(&key) || key == "model_type" || key == "hidden_act";
        for (key, value) in json.iter().filter(|(key, _)| !known(key)) {
            let neutral = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                Value::Number(number) => key == "pretraining_tp" && number.as_u64() == Some(1),
                _ => false,
            };
            if !neutral {
                return Err(unsupported(
                    key,
                    value,
                    "an unknown setting may change the mathematics: only null or false",
                ));
            }
        }
        if !matches!(json.get("pretraining_tp").and_then(Value::as_u64), None | Some(1)) {
            return Err(unsupported("pretraining_tp", &json["pretraining_tp"], "1"));
        }
        let num_attention_heads = size(json, "num_attention_heads")?;
        let hidden_size = size(json, "hidden_size")?;
        let optional = |key: &str, default: usize| match json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(_) => size(json, key),
        };
        let (rope_theta, rope_scaling) = rope(json)?;
        let config = Self {
            vocab_size: size(json, "vocab_size")?,
            hidden_size,
            intermediate_size: size(json, "intermediate_size")?,
            num_hidden_layers: size(json, "num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: optional("num_key_value_heads", num_attention_heads)?,
            head_dim: optional("head_dim", hidden_size / num_attention_heads)?,
            max_position_embeddings: optional("max_position_embeddings", 2048)?,
            rms_norm_eps: json.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
            eos_token_ids: token_ids(json.get("eos_token_id")),
        };
        if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
            return Err(unsupported(
                "num_key_value_heads",
                &json["num_key_value_heads"],
                "a divisor of num_attention_heads",
            ));
        }
        if !config.head_dim.is_multiple_of(2) {
            return Err(unsupported("head_dim", &Value::from(config.head_dim), "an even number"));
        }
        Ok(config)
    }

    /// `[out, in]` of a projection.
    #[must_use]
    pub fn module_shape(&self, module: Module) -> [usize; 2] {
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        match module {
            Module::Q => [queries, self.hidden_size],
            Module::K | Module::V => [keys, self.hidden_size],
            Module::O => [self.hidden_size, queries],
            Module::Gate | Module::Up => [self.intermediate_size, self.hidden_size],
            Module::Down => [self.hidden_size, self.intermediate_size],
        }
    }

    /// Number of frozen values.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        let layer: usize = Module::ALL.iter().map(|module| self.module_shape(*module).iter().product::<usize>()).sum();
        let embeddings = self.vocab_size * self.hidden_size * if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers * (layer + 2 * self.hidden_size) + self.hidden_size + embeddings
    }

    /// A configuration for tests: two layers, grouped heads, 48 tokens.
    #[cfg(test)]
    pub(crate) fn tiny() -> Self {
        Self {
            vocab_size: 48,
            hidden_size: 32,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            max_position_embeddings: 256,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::Default,
            tie_word_embeddings: true,
            eos_token_ids: vec![2],
        }
    }
}

/// `eos_token_id`: absent, one id or several.
pub(crate) fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn rope(json: &Map<String, Value>) -> Result<(f64, RopeScaling)> {
    let empty = Map::new();
    let object = |key: &str| json.get(key).and_then(Value::as_object);
    let settings = object("rope_parameters").or_else(|| object("rope_scaling")).unwrap_or(&empty);
    let theta = settings.get("rope_theta").or_else(|| json.get("rope_theta"));
    let theta = theta.and_then(Value::as_f64).unwrap_or(10_000.0);
    let number = |key: &'static str| {
        let value = settings.get(key).and_then(Value::as_f64);
        value.filter(|v| *v > 0.0).ok_or_else(|| {
            unsupported(&format!("rope_scaling.{key}"), settings.get(key).unwrap_or(&Value::Null), "a positive number")
        })
    };
    let kind = settings.get("rope_type").or_else(|| settings.get("type"));
    let scaling = match kind.and_then(Value::as_str).unwrap_or("default") {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
        },
        other => return Err(unsupported("rope_scaling.rope_type", &other.into(), "default, linear or llama3")),
    };
    let partial = settings.get("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0);
    if partial != 1.0 {
        return Err(unsupported("partial_rotary_factor", &partial.into(), "1"));
    }
    Ok((theta, scaling))
}

fn size(json: &Map<String, Value>, key: &str) -> Result<usize> {
    let value = json.get(key).unwrap_or(&Value::Null);
    let size = value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
    size.ok_or_else(|| unsupported(key, value, "a positive whole number"))
}

fn demand(json: &Map<String, Value>, key: &str, accepted: &[&str], supported: &'static str) -> Result<()> {
    let value = json.get(key).unwrap_or(&Value::Null);
    match value.as_str() {
        Some(text) if accepted.contains(&text) => Ok(()),
        _ => Err(unsupported(key, value, supported)),
    }
}

fn unsupported(key: &str, value: &Value, supported: &'static str) -> ModelError {
    ModelError::UnsupportedConfig { key: key.to_owned(), value: value.to_string(), supported }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(change: Value) -> Result<LlamaConfig> {
        let mut base = json!({
            "model_type": "llama", "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "attention_bias": false, "mlp_bias": false, "rope_scaling": null, "tie_word_embeddings": true,
            "max_position_embeddings": 256, "eos_token_id": 2
        });
        for (key, value) in change.as_object().unwrap() {
            base[key] = value.clone();
        }
        LlamaConfig::from_json(base.as_object().unwrap())
    }

    #[test]
    fn reads_both_spellings_of_the_rotary_settings() {
        assert_eq!(parse(json!({})).unwrap(), LlamaConfig::tiny());
        let old = parse(json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})).unwrap();
        let new = parse(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}})).unwrap();
        assert_eq!(old, new);
        assert_eq!(new.rope_theta, 5e5);
    }

    #[test]
    fn other_mathematics_is_refused_by_name() {
        for (change, key) in [
            (json!({"model_type": "mistral"}), "model_type"),
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"mlp_bias": true}), "mlp_bias"),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), "rope_scaling.rope_type"),
            (json!({"rope_scaling": {"rope_type": "linear"}}), "rope_scaling.factor"),
            (json!({"sliding_window": 4096}), "sliding_window"),
            (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
            (json!({"pretraining_tp": 2}), "pretraining_tp"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
            (json!({"hidden_size": 0}), "hidden_size"),
        ] {
            let error = parse(change).unwrap_err();
            assert!(matches!(&error, ModelError::UnsupportedConfig { key: found, .. } if found == key), "{error}");
        }
    }
}
