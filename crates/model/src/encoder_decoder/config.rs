//! What fixes the mathematics of a T5 model, read from its `config.json` with the defaults of `transformers` 5.23
//! (`models/t5/configuration_t5.py`). As for decoders, a value that is not computed here is refused.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::fields::{Fields, unsupported};
use crate::config::token_ids;
use crate::error::{ModelError, Result};
use crate::ops::activation::Activation;
use crate::ops::relative_position::{Buckets, Direction};

/// Everything that fixes the mathematics of a T5 model.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderDecoderConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual streams, `d_model`.
    pub hidden_size: usize,
    /// Width of the feed-forward layers, `d_ff`.
    pub intermediate_size: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Layers of the decoder.
    pub num_decoder_layers: usize,
    /// Heads of every attention.
    pub num_heads: usize,
    /// Values per head, `d_kv`; heads together may be wider than the residual stream.
    pub head_dim: usize,
    /// Buckets of relative positions.
    pub num_buckets: usize,
    /// Distance from which all share a bucket.
    pub max_distance: usize,
    /// Added to the mean square before the root.
    pub norm_eps: f64,
    /// Non-linearity of the feed-forward layers.
    pub activation: Activation,
    /// Factor of what goes into the head.
    pub head_scale: f32,
    /// Whether the file says that the head is a matrix of its own. Otherwise it is where the weights have one.
    pub has_own_head: bool,
    /// What a decoder's input begins with.
    pub decoder_start_token_id: u32,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl EncoderDecoderConfig {
    /// Reads and checks `config.json`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(ModelError::io(path))?;
        let value: Map<String, Value> = serde_json::from_str(&text).map_err(ModelError::json(path))?;
        Self::from_json(&value)
    }

    /// Checks the parsed file.
    pub fn from_json(json: &Map<String, Value>) -> Result<Self> {
        let fields = Fields::new(json);
        if fields.get("model_type").and_then(Value::as_str) != Some("t5") {
            return Err(unsupported("model_type", json.get("model_type").unwrap_or(&Value::Null), "t5"));
        }
        fields.demand("is_encoder_decoder", &json!(true), "true")?;
        // initialisation, dropout, other heads; positions are relative, so that n_positions limits nothing
        fields.harmless(&["initializer_factor", "dropout_rate", "classifier_dropout", "n_positions", "output_past"]);
        let (activation, dense) = activation(&fields)?;
        fields.demand("dense_act_fn", &json!(dense), "the one of feed_forward_proj")?;
        fields.demand("is_gated_act", &json!(is_gated(activation)), "as feed_forward_proj says")?;
        let (hidden_size, num_layers) = (fields.size("d_model")?, fields.size("num_layers")?);
        let tied = fields.flag_or("tie_word_embeddings", true)?;
        // transformers 4 scales where the head is the embedding; transformers 5 writes the answer itself
        let scaled = fields.flag_or("scale_decoder_outputs", tied)?;
        let token = |key| token_ids(fields.get(key)).first().copied();
        let pad = token("pad_token_id").unwrap_or(0);
        let config = Self {
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.size("d_ff")?,
            num_layers,
            num_decoder_layers: fields.size_or("num_decoder_layers", num_layers)?,
            num_heads: fields.size("num_heads")?,
            head_dim: fields.size("d_kv")?,
            num_buckets: fields.size_or("relative_attention_num_buckets", 32)?,
            max_distance: fields.size_or("relative_attention_max_distance", 128)?,
            norm_eps: fields.number_or("layer_norm_epsilon", 1e-6)?,
            activation,
            head_scale: if scaled { (hidden_size as f64).powf(-0.5) as f32 } else { 1.0 },
            has_own_head: !tied,
            decoder_start_token_id: token("decoder_start_token_id").unwrap_or(pad),
            eos_token_ids: token_ids(fields.get("eos_token_id")),
        };
        fields.finish()?;
        config.check()
    }

    fn check(self) -> Result<Self> {
        let (count, max) = (self.num_buckets, self.max_distance);
        if count < 4 {
            return Err(unsupported("relative_attention_num_buckets", &json!(count), "4 or more"));
        }
        if max <= count / 2 {
            let supported = "more than half of relative_attention_num_buckets";
            return Err(unsupported("relative_attention_max_distance", &json!(max), supported));
        }
        Ok(self)
    }

    /// How distances fall into buckets in one of the two stacks.
    #[must_use]
    pub fn buckets(&self, direction: Direction) -> Buckets {
        Buckets { count: self.num_buckets, max_distance: self.max_distance, direction }
    }

    /// Whether the feed-forward layers have a gate.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        is_gated(self.activation)
    }
}

fn is_gated(activation: Activation) -> bool {
    matches!(activation, Activation::GeGluTanh | Activation::SwiGlu)
}

/// The operation, and what `transformers` calls its non-linearity.
fn activation(fields: &Fields<'_>) -> Result<(Activation, &'static str)> {
    match fields.get("feed_forward_proj").map(Value::as_str) {
        None | Some(Some("relu")) => Ok((Activation::Relu, "relu")),
        // gelu by tanh is what transformers computes for this name
        Some(Some("gated-gelu")) => Ok((Activation::GeGluTanh, "gelu_new")),
        Some(Some("gated-silu")) => Ok((Activation::SwiGlu, "silu")),
        Some(name) => {
            let supported = "\"relu\", \"gated-gelu\" or \"gated-silu\"";
            Err(unsupported("feed_forward_proj", &json!(name), supported))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `google-t5/t5-small` as published.
    fn t5_small(change: Value) -> Result<EncoderDecoderConfig> {
        let mut json = json!({
            "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
            "is_encoder_decoder": true, "layer_norm_epsilon": 1e-6, "model_type": "t5", "n_positions": 512, "num_heads": 8,
            "num_layers": 6, "output_past": true, "pad_token_id": 0, "relative_attention_num_buckets": 32,
            "task_specific_params": {"summarization": {"num_beams": 4}}, "vocab_size": 32128
        });
        for (key, value) in change.as_object().unwrap() {
            json[key] = value.clone();
        }
        EncoderDecoderConfig::from_json(json.as_object().unwrap())
    }

    #[test]
    fn published_files_are_read_in_both_generations() {
        let small = t5_small(json!({})).unwrap();
        assert_eq!((small.activation, small.num_decoder_layers, small.max_distance), (Activation::Relu, 6, 128));
        assert_eq!((small.head_scale, small.has_own_head), (512f32.powf(-0.5), false));
        // T5 1.1 as published, and as transformers 5 writes it
        let v11 = json!({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "num_decoder_layers": 8});
        let v11 = t5_small(v11).unwrap();
        assert_eq!((v11.activation, v11.head_scale, v11.has_own_head), (Activation::GeGluTanh, 1.0, true));
        let again =
            t5_small(json!({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": true, "is_gated_act": true,
            "scale_decoder_outputs": false, "dense_act_fn": "gelu_new", "num_decoder_layers": 8}));
        assert_eq!(again.unwrap(), EncoderDecoderConfig { has_own_head: false, ..v11 });
    }

    #[test]
    fn other_mathematics_is_refused_by_key() {
        for (change, key) in [
            (json!({"model_type": "bart"}), "model_type"),
            (json!({"feed_forward_proj": "gated-relu"}), "feed_forward_proj"),
            (json!({"dense_act_fn": "gelu_new"}), "dense_act_fn"),
            (json!({"is_gated_act": true}), "is_gated_act"),
            (json!({"is_encoder_decoder": false}), "is_encoder_decoder"),
            (json!({"relative_attention_num_buckets": 2}), "relative_attention_num_buckets"),
            (json!({"relative_attention_max_distance": 16}), "relative_attention_max_distance"),
            (json!({"num_experts": 8}), "num_experts"),
            (json!({"d_kv": 0}), "d_kv"),
        ] {
            let error = t5_small(change).unwrap_err();
            assert!(
                matches!(&error, ModelError::UnsupportedConfig { key: found, .. } if found == key),
                "{key}: {error}"
            );
        }
    }
}
