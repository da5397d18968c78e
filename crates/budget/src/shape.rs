//! How large a model is: from its `config.json`, else from its name.

use serde::Deserialize;

/// A `config.json` that is not understood.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// Not JSON, or a number is missing.
    #[error("config.json: {0}; upload the model in Hugging Face layout with its own config.json")]
    Parse(#[from] serde_json::Error),
    /// A number that cannot be.
    #[error("config.json: {key} = {value} cannot be; upload the model's own config.json")]
    Value {
        /// The key.
        key: &'static str,
        /// What was found.
        value: u64,
    },
}

/// The numbers that decide about work and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Number of parameters.
    pub parameters: u64,
    /// Those of them that lie in matrices of the layers, which can be quantised; embedding, head and norms cannot.
    pub in_layers: u64,
    /// Number of layers; 0 when only the parameters are known.
    pub layers: u64,
    /// Width of the residual stream; 0 when only the parameters are known.
    pub hidden: u64,
}

/// The keys of a Llama `config.json` that matter here; others are left alone.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    #[serde(default)]
    num_key_value_heads: Option<u64>,
    #[serde(default)]
    head_dim: Option<u64>,
    #[serde(default)]
    tie_word_embeddings: Option<bool>,
}

/// Which of the two layouts a `config.json` has.
#[derive(Debug, Deserialize)]
struct Kind {
    #[serde(default)]
    model_type: String,
}

/// The keys of GPT-2's `config.json` that matter here.
#[derive(Debug, Deserialize)]
struct Gpt2 {
    vocab_size: u64,
    n_embd: u64,
    n_layer: u64,
    n_positions: u64,
    #[serde(default)]
    n_inner: Option<u64>,
}

/// Upper bounds far above any model keep the products inside 64 bits.
fn check(bounds: &[(&'static str, u64, u64)]) -> Result<(), ShapeError> {
    match bounds.iter().find(|(_, value, most)| *value == 0 || value > most) {
        None => Ok(()),
        Some(&(key, value, _)) => Err(ShapeError::Value { key, value }),
    }
}

impl ModelShape {
    /// From a `config.json` of GPT-2 or one like that of Llama. The counts leave out what no decision depends on: biases and
    /// the norms inside attention, below a thousandth of the parameters.
    ///
    /// # Errors
    /// [`ShapeError`] with the key.
    pub fn from_config(json: &[u8]) -> Result<Self, ShapeError> {
        let kind: Kind = serde_json::from_slice(json)?;
        if kind.model_type == "gpt2" {
            return Self::from_gpt2(&serde_json::from_slice(json)?);
        }
        let config: Config = serde_json::from_slice(json)?;
        let bounds: [(&'static str, u64, u64); 5] = [
            ("vocab_size", config.vocab_size, 1 << 24),
            ("hidden_size", config.hidden_size, 1 << 17),
            ("intermediate_size", config.intermediate_size, 1 << 20),
            ("num_hidden_layers", config.num_hidden_layers, 1 << 12),
            ("num_attention_heads", config.num_attention_heads, 1 << 12),
        ];
        check(&bounds)?;
        let heads = config.num_attention_heads;
        let head_dim = config.head_dim.unwrap_or(config.hidden_size / heads).min(1 << 16);
        let kv_heads = config.num_key_value_heads.unwrap_or(heads).min(heads);
        let attention = 2 * config.hidden_size * head_dim * (heads + kv_heads);
        let mlp = 3 * config.hidden_size * config.intermediate_size;
        let norms = 2 * config.hidden_size;
        let tied = config.tie_word_embeddings.unwrap_or(kind.model_type == "gemma2");
        let tables = if tied { 1 } else { 2 };
        let embeddings = tables * config.vocab_size * config.hidden_size;
        let parameters = embeddings + config.num_hidden_layers * (attention + mlp + norms) + config.hidden_size;
        let in_layers = config.num_hidden_layers * (attention + mlp);
        Ok(Self { parameters, in_layers, layers: config.num_hidden_layers, hidden: config.hidden_size })
    }

    /// Four matrices in attention, two in the feed-forward layer, learned positions, one table for embedding and head.
    fn from_gpt2(config: &Gpt2) -> Result<Self, ShapeError> {
        let (hidden, layers) = (config.n_embd, config.n_layer);
        let bounds = [
            ("vocab_size", config.vocab_size, 1 << 24),
            ("n_embd", hidden, 1 << 17),
            ("n_layer", layers, 1 << 12),
            ("n_positions", config.n_positions, 1 << 24),
            ("n_inner", config.n_inner.unwrap_or(1), 1 << 20),
        ];
        check(&bounds)?;
        let inner = config.n_inner.unwrap_or(4 * hidden);
        let attention = 4 * hidden * hidden + 4 * hidden;
        let mlp = 2 * hidden * inner + inner + hidden;
        let norms = 4 * hidden;
        let embeddings = (config.vocab_size + config.n_positions) * hidden;
        let parameters = embeddings + layers * (attention + mlp + norms) + 2 * hidden;
        let in_layers = layers * (4 * hidden * hidden + 2 * hidden * inner);
        Ok(Self { parameters, in_layers, layers, hidden })
    }

    /// From a name that says it: `SmolLM2-135M`, `Llama-3.2-1B-Instruct`, `qwen2.5-0.5b`. For models that are downloaded by
    /// the trainer, whose `config.json` is not in the bucket. Of small models as little as seven tenths lie in the layers
    /// (Qwen2.5-0.5B: 0.72), of larger ones more.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.rsplit('/').next()?.to_ascii_lowercase();
        name.split(['-', '_']).find_map(|part| {
            let (number, scale) = match part.strip_suffix('b') {
                Some(number) => (number, 1e9),
                None => (part.strip_suffix('m')?, 1e6),
            };
            let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            let value: f64 = if plain { number.parse().ok()? } else { return None };
            let parameters = value * scale;
            (1e5..1e13).contains(&parameters).then_some(Self {
                parameters: parameters as u64,
                in_layers: (0.7 * parameters) as u64,
                layers: 0,
                hidden: 0,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_known_models() {
        // SmolLM2-135M: 134,515,008 by its model card's safetensors
        let smol = br#"{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": true, "model_type": "llama"}"#;
        assert_eq!(ModelShape::from_config(smol).unwrap().parameters, 134_515_008);
        // Llama-3.2-1B: 1,235,814,400
        let llama = br#"{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": true}"#;
        assert_eq!(ModelShape::from_config(llama).unwrap().parameters, 1_235_814_400);
        // gpt2: 124,439,808
        let gpt2 = br#"{"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12,
            "n_positions": 1024, "n_inner": null}"#;
        let shape = ModelShape { parameters: 124_439_808, in_layers: 12 * 12 * 768 * 768, layers: 12, hidden: 768 };
        assert_eq!(ModelShape::from_config(gpt2).unwrap(), shape);
    }

    #[test]
    fn a_config_that_cannot_be_is_refused_by_key() {
        let missing = ModelShape::from_config(br#"{"vocab_size": 10}"#).unwrap_err().to_string();
        assert!(missing.contains("hidden_size"), "{missing}");
        let zero = br#"{"vocab_size": 10, "hidden_size": 18446744073709551615, "intermediate_size": 1,
            "num_hidden_layers": 1, "num_attention_heads": 1}"#;
        assert!(ModelShape::from_config(zero).unwrap_err().to_string().contains("hidden_size = 18446744073709551615"));
    }

    #[test]
    fn sizes_are_read_from_names() {
        for (name, parameters) in [
            ("HuggingFaceTB/SmolLM2-135M", Some(135_000_000)),
            ("meta-llama/Llama-3.2-1B-Instruct", Some(1_000_000_000)),
            ("qwen2.5-0.5b", Some(500_000_000)),
            ("tunesmith-mini", None),
            ("gpt2-medium", None),
            ("team/web", None),
        ] {
            assert_eq!(ModelShape::from_name(name).map(|shape| shape.parameters), parameters, "{name}");
        }
    }
}
