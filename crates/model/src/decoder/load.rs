//! From named tensors to a decoder: the only place that knows what each layout calls its tensors.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use candle_core::Tensor;

use super::attention::AttentionBlock;
use super::feed_forward::FeedForward;
use super::residual::Residual;
use super::{Decoder, Layer};
use crate::adapters::Module;
use crate::config::{Layout, ModelConfig, NormKind, Positions};
use crate::error::{ModelError, Result};
use crate::fingerprint::Fingerprinter;
use crate::frozen::{FrozenMatrix, Quantization};
use crate::ops::attention::{Heads, Settings};
use crate::ops::head::Head;
use crate::ops::host;
use crate::ops::linear::AdaptedLinear;
use crate::ops::norm::Norm;
use crate::ops::qk_norm::QkNorm;
use crate::ops::rope::RopeTable;
use crate::weights::Weights;

/// Where the tensors of layers lie.
const LAYERS: [&str; 3] = ["model.layers.", "transformer.h.", "h."];

/// Constants that older versions saved with the weights: rotary frequencies and the causal mask.
const BUFFERS: [&str; 3] = [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];

/// A tensor by name, which must have the given shape.
pub(crate) type Source<'a> = &'a dyn Fn(&str, &[usize]) -> Result<Tensor>;

impl Decoder {
    /// Loads `config.json` and the weights of a folder in Hugging Face layout, as f32.
    pub fn load(folder: &Path) -> Result<Self> {
        Self::load_quantised(folder, Quantization::None)
    }

    /// The same with the projections of the layers quantised, one tensor at a time: memory never holds more than the quantised
    /// model and one of its tensors in f32.
    pub fn load_quantised(folder: &Path, quantization: Quantization) -> Result<Self> {
        let config = ModelConfig::from_file(&folder.join("config.json"))?;
        Self::from_weights(config, &Weights::open(folder)?, quantization)
    }

    /// Builds the model from mapped weights. A layer's tensor that this configuration has no place for is refused: with it the
    /// model would compute something else.
    pub fn from_weights(config: ModelConfig, weights: &Weights, quantization: Quantization) -> Result<Self> {
        // GPT-2 on the hub was saved without its head, and so without the name of the body
        let bare = config.layout == Layout::Gpt2 && weights.contains("wte.weight");
        let read = RefCell::new(BTreeSet::new());
        let model = Self::from_source(config, quantization, &|name, shape| {
            let name = name.strip_prefix("transformer.").filter(|_| bare).unwrap_or(name);
            read.borrow_mut().insert(name.to_owned());
            weights.get(name, shape)
        })?;
        let read = read.into_inner();
        let in_layer = |name: &str| LAYERS.iter().any(|path| name.starts_with(path));
        let harmless = |name: &str| BUFFERS.iter().any(|buffer| name.ends_with(buffer));
        match weights.names().find(|name| in_layer(name) && !harmless(name) && !read.contains(*name)) {
            Some(name) => Err(ModelError::SurplusTensor { name: name.to_owned() }),
            None => Ok(model),
        }
    }

    pub(crate) fn from_source(config: ModelConfig, quantization: Quantization, source: Source<'_>) -> Result<Self> {
        let (h, gpt2) = (config.hidden_size, config.layout == Layout::Gpt2);
        let name = if gpt2 { "transformer.wte.weight" } else { "model.embed_tokens.weight" };
        let embedding = source(name, &[config.vocab_size, h])?;
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => source("lm_head.weight", &[config.vocab_size, h])?,
        };
        let learned = || source("transformer.wpe.weight", &[config.max_position_embeddings, h]);
        let (rope, positions) = match &config.positions {
            Positions::Rotary(rotary) => {
                (Some(RopeTable::new(rotary, config.head_dim, config.max_position_embeddings)), None)
            }
            Positions::Learned => (None, Some(learned()?)),
        };
        let loader = Loader { config: &config, quantization, source, fingerprint: RefCell::default() };
        let layers = (0..config.num_hidden_layers).map(|index| loader.layer(index)).collect::<Result<_>>()?;
        let norm = loader.norm(if gpt2 { "transformer.ln_f" } else { "model.norm" })?;
        let head = Head { weight: head, soft_cap: config.final_soft_cap };
        let mut fingerprint = loader.fingerprint.take();
        let (Norm::Rms { weight: of_norm, .. } | Norm::Layer { weight: of_norm, .. }) = &norm;
        for (name, weight) in [("embedding", &embedding), ("head", &head.weight), ("norm", of_norm)] {
            fingerprint.add(name, host(weight)?.get(..h).unwrap_or_default());
        }
        let fingerprint = fingerprint.finish();
        Ok(Self {
            embedding,
            positions,
            rope,
            layers,
            norm,
            head,
            quantization,
            fingerprint,
            config,
            #[cfg(any(test, feature = "cuda"))]
            gpus: Vec::new(),
        })
    }
}

struct Loader<'a> {
    config: &'a ModelConfig,
    quantization: Quantization,
    source: Source<'a>,
    fingerprint: RefCell<Fingerprinter>,
}

impl Loader<'_> {
    fn layer(&self, index: usize) -> Result<Layer> {
        let config = self.config;
        let path = if config.layout == Layout::Gpt2 { "transformer.h" } else { "model.layers" };
        let path = format!("{path}.{index}");
        let norm = |name: &str| self.norm(&format!("{path}.{name}"));
        // Llama calls the norm before the feed-forward layer after what it follows; Gemma 2 has a norm in each of the places
        let (before_attention, after_attention, before_mlp, after_mlp) = match (config.layout, config.post_norms) {
            (Layout::Gpt2, _) => ("ln_1", None, "ln_2", None),
            (_, false) => ("input_layernorm", None, "post_attention_layernorm", None),
            (_, true) => (
                "input_layernorm",
                Some("post_attention_layernorm"),
                "pre_feedforward_layernorm",
                Some("post_feedforward_layernorm"),
            ),
        };
        let (qkv, o, up, down): (&[Module], _, &[Module], _) = match config.layout {
            Layout::Llama => (&[Module::Q, Module::K, Module::V], Module::O, &[Module::Gate, Module::Up], Module::Down),
            Layout::Phi3 => (&[Module::Qkv], Module::O, &[Module::GateUp], Module::Down),
            Layout::Gpt2 => (&[Module::CAttn], Module::AttnCProj, &[Module::CFc], Module::MlpCProj),
        };
        let heads =
            Heads { query: config.num_attention_heads, key_value: config.num_key_value_heads, size: config.head_dim };
        Ok(Layer {
            attention: AttentionBlock {
                norm: norm(before_attention)?,
                qkv: self.linear(index, qkv)?,
                qk_norm: if config.qk_norm { Some(self.qk_norm(&path)?) } else { None },
                o: self.linear(index, &[o])?,
                residual: Residual { norm: after_attention.map(norm).transpose()? },
                settings: Settings {
                    heads,
                    scale: config.attention_scale,
                    soft_cap: config.attention_soft_cap,
                    window: config.sliding_windows.get(index).copied().flatten(),
                },
            },
            feed_forward: FeedForward {
                norm: norm(before_mlp)?,
                up: self.linear(index, up)?,
                activation: config.activation,
                down: self.linear(index, &[down])?,
                residual: Residual { norm: after_mlp.map(norm).transpose()? },
            },
        })
    }

    /// The modules side by side, with their biases where they have any.
    fn linear(&self, layer: usize, modules: &[Module]) -> Result<AdaptedLinear> {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for module in modules {
            let [out, width] = self.config.module_shape(*module);
            let path = module.path_in(layer);
            let name = format!("{path}.weight");
            let weight = match module.is_transposed() {
                true => (self.source)(&name, &[width, out])?.t()?.contiguous()?,
                false => (self.source)(&name, &[out, width])?,
            };
            self.fingerprint.borrow_mut().add(&name, host(&weight)?.get(..width).unwrap_or_default());
            weights.push((*module, FrozenMatrix::new(&name, weight, self.quantization)?));
            if self.config.has_bias(*module) {
                biases.push((self.source)(&format!("{path}.bias"), &[out])?);
            }
        }
        let linear = AdaptedLinear::join(weights)?;
        Ok(if biases.is_empty() { linear } else { linear.with_bias(Tensor::cat(&biases, 0)?) })
    }

    fn norm(&self, path: &str) -> Result<Norm> {
        let shape = [self.config.hidden_size];
        let weight = (self.source)(&format!("{path}.weight"), &shape)?;
        let eps = self.config.norm_eps as f32;
        Ok(match self.config.norm {
            NormKind::Rms => Norm::Rms { weight, eps },
            NormKind::RmsPlusOne => Norm::Rms { weight: (weight + 1.0)?, eps },
            NormKind::Layer => Norm::Layer { weight, bias: (self.source)(&format!("{path}.bias"), &shape)?, eps },
        })
    }

    fn qk_norm(&self, path: &str) -> Result<QkNorm> {
        let weight = |name: &str| (self.source)(&format!("{path}.self_attn.{name}.weight"), &[self.config.head_dim]);
        Ok(QkNorm { query: weight("q_norm")?, key: weight("k_norm")?, eps: self.config.norm_eps as f32 })
    }
}
