//! What llama.cpp calls an architecture, which hyperparameters it takes, and which it fixes itself: those must be the model's.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;

use super::{Metadata, refuse};
use crate::config::{Activation, Biases, Layout, ModelConfig, NormKind, Positions, RopeScaling, Rotary};
use crate::error::Result;

/// An architecture of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, SmolLM, Mistral.
    Llama,
    /// Qwen2 and 2.5: as Llama with biases of query, key and value, and rotation of halves.
    Qwen2,
    /// Qwen3: queries and keys normalised.
    Qwen3,
    /// Phi-3: fused projections.
    Phi3,
    /// Gemma 2.
    Gemma2,
    /// GPT-2.
    Gpt2,
}

/// YaRN's ramp where a file does not say it: llama.cpp reads no other from a file.
const BETAS: (f64, f64) = (32.0, 1.0);
/// Number of layers by which llama.cpp knows Gemma 2 27B, whose scale of attention is another.
const LAYERS_OF_GEMMA2_27B: usize = 46;

impl Architecture {
    const ALL: [Self; 6] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Phi3, Self::Gemma2, Self::Gpt2];

    /// The one that computes what `config` describes.
    ///
    /// # Errors
    /// [`crate::ModelError::NotInGguf`] for mathematics that llama.cpp does otherwise.
    pub fn of(config: &ModelConfig) -> Result<Self> {
        let plain_biases = config.biases == Biases { qkv: true, o: false, mlp: false };
        let architecture = match config.layout {
            Layout::Gpt2 => Self::Gpt2,
            Layout::Phi3 => Self::Phi3,
            Layout::Llama if config.post_norms => Self::Gemma2,
            Layout::Llama if config.qk_norm => Self::Qwen3,
            Layout::Llama if plain_biases => Self::Qwen2,
            Layout::Llama => Self::Llama,
        };
        architecture.check(config)?;
        Ok(architecture)
    }

    /// The one with this `general.architecture`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name)
    }

    /// `general.architecture`, also the beginning of its keys.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::Gemma2 => "gemma2",
            Self::Gpt2 => "gpt2",
        }
    }

    /// Whether neighbouring values are rotated instead of halves (`LLAMA_ROPE_TYPE_NORM`).
    #[must_use]
    pub fn rotates_neighbours(self) -> bool {
        self == Self::Llama
    }

    /// The factor of `Q Kᵀ`, which no key says.
    fn attention_scale(self, config: &ModelConfig) -> f32 {
        let width = match (self, config.num_hidden_layers) {
            (Self::Gemma2, LAYERS_OF_GEMMA2_27B) => config.hidden_size / config.num_attention_heads,
            _ => config.head_dim,
        };
        1.0 / (width as f32).sqrt()
    }

    fn check(self, config: &ModelConfig) -> Result<()> {
        let scale = self.attention_scale(config);
        if (config.attention_scale / scale - 1.0).abs() > 1e-6 {
            let remedy = "llama.cpp takes one over the root of the head's size: export merged-safetensors instead";
            return refuse("the scale of attention", config.attention_scale, remedy);
        }
        if self == Self::Gemma2 && (config.attention_soft_cap.is_none() || config.final_soft_cap.is_none()) {
            return refuse("a soft cap", "null", "llama.cpp always bends Gemma 2: export merged-safetensors instead");
        }
        if matches!(self, Self::Qwen3 | Self::Gemma2) && config.biases != Biases::default() {
            return refuse("attention_bias", "true", "llama.cpp has none here: export merged-safetensors instead");
        }
        if !matches!(self, Self::Llama | Self::Qwen3 | Self::Gemma2)
            && config.head_dim * config.num_attention_heads != config.hidden_size
        {
            return refuse("head_dim", config.head_dim, "llama.cpp wants hidden_size / num_attention_heads here");
        }
        let Positions::Rotary(rotary) = &config.positions else { return Ok(()) };
        match &rotary.scaling {
            RopeScaling::Yarn { beta_fast, beta_slow, truncate, .. }
                if (*beta_fast, *beta_slow) != BETAS || !truncate =>
            {
                let value = format!("{beta_fast} and {beta_slow}, truncated {truncate}");
                refuse("the ramp of yarn", value, "llama.cpp takes 32 and 1, truncated, and reads no other")
            }
            RopeScaling::LongRope { .. } if self != Self::Phi3 => {
                refuse("rope_scaling.rope_type", "longrope", "it is written for phi3 alone")
            }
            _ => Ok(()),
        }
    }

    /// The keys of the hyperparameters.
    #[must_use]
    pub fn hyperparameters(self, config: &ModelConfig) -> Metadata {
        let mut keys = Keys { name: self.name(), metadata: Vec::new() };
        keys.metadata.push(("general.architecture".to_owned(), Value::String(self.name().to_owned())));
        keys.count("vocab_size", config.vocab_size);
        keys.count("context_length", self.context_length(config));
        keys.count("embedding_length", config.hidden_size);
        keys.count("block_count", config.num_hidden_layers);
        keys.count("feed_forward_length", config.intermediate_size);
        keys.count("attention.head_count", config.num_attention_heads);
        keys.count("attention.head_count_kv", config.num_key_value_heads);
        keys.count("attention.key_length", config.head_dim);
        keys.count("attention.value_length", config.head_dim);
        let eps = if config.norm == NormKind::Layer { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
        keys.number(&format!("attention.{eps}"), config.norm_eps);
        if self == Self::Gemma2 {
            // llama.cpp always has a window in every other layer: one as long as the context is none
            let window = config.sliding_windows.first().copied().flatten().filter(|_| alternates(config));
            keys.count("attention.sliding_window", window.unwrap_or_else(|| self.context_length(config)));
            keys.number("attn_logit_softcapping", f64::from(config.attention_soft_cap.unwrap_or_default()));
            keys.number("final_logit_softcapping", f64::from(config.final_soft_cap.unwrap_or_default()));
        }
        if let Positions::Rotary(rotary) = &config.positions {
            keys.count("rope.dimension_count", config.head_dim);
            keys.number("rope.freq_base", rotary.theta);
            keys.scaling(&rotary.scaling);
        }
        keys.metadata
    }

    /// Positions that llama.cpp computes as this crate does: windows are cut off the context where llama.cpp has none, since
    /// within them a window hides nothing.
    fn context_length(self, config: &ModelConfig) -> usize {
        let windows = config.sliding_windows.iter().flatten();
        let shortest = windows.min().copied().filter(|_| !(self == Self::Gemma2 && alternates(config)));
        config.max_position_embeddings.min(shortest.unwrap_or(usize::MAX))
    }
}

/// Whether every even layer has one and the same window and every odd one none.
fn alternates(config: &ModelConfig) -> bool {
    let first = config.sliding_windows.first().copied().flatten();
    let wanted = |layer: usize| first.filter(|_| layer.is_multiple_of(2));
    first.is_some() && config.sliding_windows.iter().enumerate().all(|(layer, window)| *window == wanted(layer))
}

struct Keys {
    name: &'static str,
    metadata: Metadata,
}

impl Keys {
    fn push(&mut self, key: &str, value: Value) {
        self.metadata.push((format!("{}.{key}", self.name), value));
    }

    fn count(&mut self, key: &str, value: usize) {
        self.push(key, Value::U32(u32::try_from(value).unwrap_or(u32::MAX)));
    }

    fn number(&mut self, key: &str, value: f64) {
        self.push(key, Value::F32(value as f32));
    }

    fn scaling(&mut self, scaling: &RopeScaling) {
        let kind = match scaling {
            // Llama 3's factors are a tensor of their own
            RopeScaling::Default | RopeScaling::Llama3 { .. } => return,
            RopeScaling::Linear { factor } => {
                self.number("rope.scaling.factor", *factor);
                "linear"
            }
            RopeScaling::Yarn { factor, original_max_position_embeddings, attention_factor, .. } => {
                self.number("rope.scaling.factor", *factor);
                self.count("rope.scaling.original_context_length", *original_max_position_embeddings);
                // llama.cpp multiplies by 1 + ln(factor) / 10 itself
                self.number("rope.scaling.attn_factor", attention_factor / mscale(*factor));
                "yarn"
            }
            RopeScaling::LongRope { original_max_position_embeddings, attention_factor, .. } => {
                self.count("rope.scaling.original_context_length", *original_max_position_embeddings);
                self.number("rope.scaling.attn_factor", *attention_factor);
                "longrope"
            }
        };
        self.push("rope.scaling.type", Value::String(kind.to_owned()));
    }
}

fn mscale(factor: f64) -> f64 {
    if factor > 1.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 }
}

/// What a file says besides its keys.
pub(super) struct Seen<'a> {
    /// The file's metadata.
    pub metadata: &'a HashMap<String, Value>,
    /// Whether a tensor with this name is there.
    pub has: &'a dyn Fn(&str) -> bool,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Divisors of the rotary frequencies, where a tensor has them.
    pub factors: Option<Vec<f64>>,
}

/// The description of the model in a file: the way back from [`Architecture::hyperparameters`]. `None` where a key is missing.
pub(super) fn config(architecture: Architecture, seen: &Seen<'_>) -> Option<ModelConfig> {
    let key = |key: &str| seen.metadata.get(&format!("{}.{key}", architecture.name()));
    let count = |name: &str| key(name).and_then(|value| value.to_u32().ok()).map(|value| value as usize);
    let number = |name: &str| key(name).and_then(|value| value.to_f32().ok()).map(f64::from);
    let layers = count("block_count")?;
    let (hidden_size, heads) = (count("embedding_length")?, count("attention.head_count")?);
    let head_dim = count("attention.key_length").or(hidden_size.checked_div(heads))?;
    let context = count("context_length")?;
    let (gpt2, gemma2) = (architecture == Architecture::Gpt2, architecture == Architecture::Gemma2);
    let fused = matches!(architecture, Architecture::Gpt2 | Architecture::Phi3);
    let bias = |name: &str| (seen.has)(&format!("blk.0.{name}.bias"));
    let eps = if gpt2 { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    let cap = |name: &str| number(name).map(|cap| cap as f32);
    let window = |layer: usize| count("attention.sliding_window").filter(|_| gemma2 && layer.is_multiple_of(2));
    let mut config = ModelConfig {
        layout: match architecture {
            Architecture::Gpt2 => Layout::Gpt2,
            Architecture::Phi3 => Layout::Phi3,
            _ => Layout::Llama,
        },
        vocab_size: seen.vocab_size,
        hidden_size,
        intermediate_size: count("feed_forward_length")?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: count("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        max_position_embeddings: context,
        positions: match gpt2 {
            true => Positions::Learned,
            false => Positions::Rotary(Rotary { theta: number("rope.freq_base")?, scaling: RopeScaling::Default }),
        },
        norm: match architecture {
            Architecture::Gpt2 => NormKind::Layer,
            Architecture::Gemma2 => NormKind::RmsPlusOne,
            _ => NormKind::Rms,
        },
        norm_eps: number(eps)?,
        post_norms: gemma2,
        qk_norm: architecture == Architecture::Qwen3,
        biases: Biases {
            qkv: bias(if fused { "attn_qkv" } else { "attn_q" }),
            o: bias("attn_output"),
            mlp: bias("ffn_up"),
        },
        activation: match architecture {
            Architecture::Gpt2 => Activation::GeluTanh,
            Architecture::Gemma2 => Activation::GeGluTanh,
            _ => Activation::SwiGlu,
        },
        embedding_scale: if gemma2 { (hidden_size as f32).sqrt() } else { 1.0 },
        attention_scale: 1.0,
        attention_soft_cap: cap("attn_logit_softcapping"),
        final_soft_cap: cap("final_logit_softcapping"),
        sliding_windows: (0..layers).map(window).collect(),
        tie_word_embeddings: !(seen.has)("output.weight"),
        eos_token_ids: Vec::new(),
    };
    config.attention_scale = architecture.attention_scale(&config);
    if let Positions::Rotary(rotary) = &mut config.positions {
        let factor = number("rope.scaling.factor").unwrap_or(1.0);
        let attention_factor = number("rope.scaling.attn_factor").unwrap_or(1.0);
        let kind = key("rope.scaling.type").and_then(|value| value.to_string().ok()).map(String::as_str);
        rotary.scaling = match (kind, &seen.factors) {
            // Llama 3's factors divide as those of LongRoPE do
            (_, Some(factors)) => RopeScaling::LongRope {
                short_factor: factors.clone(),
                original_max_position_embeddings: context,
                attention_factor,
            },
            (Some("linear"), None) => RopeScaling::Linear { factor },
            (Some("yarn"), None) => RopeScaling::Yarn {
                factor,
                beta_fast: BETAS.0,
                beta_slow: BETAS.1,
                truncate: true,
                original_max_position_embeddings: count("rope.scaling.original_context_length")?,
                attention_factor: attention_factor * mscale(factor),
            },
            _ => RopeScaling::Default,
        };
    }
    Some(config)
}
