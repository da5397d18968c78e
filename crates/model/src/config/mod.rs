//! What fixes the mathematics of a decoder, read from a Hugging Face `config.json`.
//!
//! One description serves every architecture: [`families`] says what each `model_type` means in these terms, the decoder reads
//! only the description. A value that would change the mathematics and is not computed here is refused, never ignored: a wrong
//! model that answers is worse than none.

mod families;
pub(crate) mod fields;
mod rotary;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::adapters::Module;
use crate::error::{ModelError, Result};
pub use crate::ops::activation::Activation;
pub(crate) use fields::token_ids;
pub use rotary::{RopeScaling, Rotary};

/// How files and adapters name and group the projections of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `model.layers.{i}.self_attn.q_proj` and six more: Llama, Mistral, Qwen, Gemma.
    Llama,
    /// As Llama with `qkv_proj` and `gate_up_proj` fused.
    Phi3,
    /// `transformer.h.{i}.attn.c_attn` and three more, each stored as `[in, out]`.
    Gpt2,
}

/// Which normalisation, with what its file stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square, weight `w`.
    Rms,
    /// Root mean square, weight `1 + w` (Gemma).
    RmsPlusOne,
    /// Mean and variance, weight and bias.
    Layer,
}

/// How a token knows where it stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are rotated.
    Rotary(Rotary),
    /// A learned vector is added to the embedding (GPT-2).
    Learned,
}

/// Which projections add a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Biases {
    /// Query, key and value.
    pub qkv: bool,
    /// Attention output.
    pub o: bool,
    /// All of the feed-forward layer.
    pub mlp: bool,
}

/// Everything that fixes the mathematics of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Names and grouping of the projections.
    pub layout: Layout,
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
    /// Values per head.
    pub head_dim: usize,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Positions.
    pub positions: Positions,
    /// Normalisation of the residual stream.
    pub norm: NormKind,
    /// Added to the mean square, or the variance, before the root.
    pub norm_eps: f64,
    /// Whether the outputs of attention and feed-forward are normalised too (Gemma 2).
    pub post_norms: bool,
    /// Whether each query and key head is normalised before the rotation (Qwen3).
    pub qk_norm: bool,
    /// Biases of the projections.
    pub biases: Biases,
    /// Non-linearity of the feed-forward layer.
    pub activation: Activation,
    /// Factor of the token embedding.
    pub embedding_scale: f32,
    /// Factor of `Q Kᵀ`.
    pub attention_scale: f32,
    /// Scores are bent to `c · tanh(s / c)`.
    pub attention_soft_cap: Option<f32>,
    /// Logits are bent to `c · tanh(z / c)`.
    pub final_soft_cap: Option<f32>,
    /// For each layer the number of newest tokens that a token sees, itself included; `None`: all.
    pub sliding_windows: Vec<Option<usize>>,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Tokens that end a text, as far as this file names them.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads and checks `config.json`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(ModelError::io(path))?;
        let value: Map<String, Value> = serde_json::from_str(&text).map_err(ModelError::json(path))?;
        Self::from_json(&value)
    }

    /// Checks the parsed file.
    pub fn from_json(json: &Map<String, Value>) -> Result<Self> {
        families::parse(json)
    }

    /// The projections of a layer that can carry an adapter.
    #[must_use]
    pub fn modules(&self) -> &'static [Module] {
        match self.layout {
            Layout::Llama => &Module::LLAMA,
            Layout::Phi3 => &Module::PHI3,
            Layout::Gpt2 => &Module::GPT2,
        }
    }

    /// `[out, in]` of a projection.
    #[must_use]
    pub fn module_shape(&self, module: Module) -> [usize; 2] {
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        match module {
            Module::Q => [queries, self.hidden_size],
            Module::K | Module::V => [keys, self.hidden_size],
            Module::Qkv | Module::CAttn => [queries + 2 * keys, self.hidden_size],
            Module::O | Module::AttnCProj => [self.hidden_size, queries],
            Module::Gate | Module::Up | Module::CFc => [self.intermediate_size, self.hidden_size],
            Module::GateUp => [2 * self.intermediate_size, self.hidden_size],
            Module::Down | Module::MlpCProj => [self.hidden_size, self.intermediate_size],
        }
    }

    /// Whether a projection adds a bias.
    #[must_use]
    pub fn has_bias(&self, module: Module) -> bool {
        match module {
            Module::Q | Module::K | Module::V | Module::Qkv | Module::CAttn => self.biases.qkv,
            Module::O | Module::AttnCProj => self.biases.o,
            Module::Gate | Module::Up | Module::GateUp | Module::Down | Module::CFc | Module::MlpCProj => {
                self.biases.mlp
            }
        }
    }

    /// Number of frozen values.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        let of_module = |module: &Module| {
            let [out, width] = self.module_shape(*module);
            out * (width + usize::from(self.has_bias(*module)))
        };
        let norm = self.hidden_size * if self.norm == NormKind::Layer { 2 } else { 1 };
        let layer = self.modules().iter().map(of_module).sum::<usize>()
            + norm * if self.post_norms { 4 } else { 2 }
            + if self.qk_norm { 2 * self.head_dim } else { 0 };
        let rows = self.vocab_size * if self.tie_word_embeddings { 1 } else { 2 }
            + if self.positions == Positions::Learned { self.max_position_embeddings } else { 0 };
        self.num_hidden_layers * layer + norm + rows * self.hidden_size
    }

    /// A configuration for tests: two layers, grouped heads, 48 tokens.
    #[cfg(test)]
    pub(crate) fn tiny() -> Self {
        Self {
            layout: Layout::Llama,
            vocab_size: 48,
            hidden_size: 32,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            max_position_embeddings: 256,
            positions: Positions::Rotary(Rotary { theta: 10_000.0, scaling: RopeScaling::Default }),
            norm: NormKind::Rms,
            norm_eps: 1e-5,
            post_norms: false,
            qk_norm: false,
            biases: Biases::default(),
            activation: Activation::SwiGlu,
            embedding_scale: 1.0,
            attention_scale: 1.0 / 8f32.sqrt(),
            attention_soft_cap: None,
            final_soft_cap: None,
            sliding_windows: vec![None; 2],
            tie_word_embeddings: true,
            eos_token_ids: vec![2],
        }
    }
}
