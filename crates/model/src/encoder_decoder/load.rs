//! From named tensors to a T5 model.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use candle_core::Tensor;

use super::attention::AttentionBlock;
use super::{DecoderLayer, EncoderDecoder, EncoderDecoderConfig, EncoderLayer, Stack};
use crate::adapters::{Module, Sites};
use crate::decoder::FeedForward;
use crate::decoder::residual::Residual;
use crate::error::{ModelError, Result};
use crate::ops::cross_attention::Sees;
use crate::ops::head::Head;
use crate::ops::host;
use crate::ops::linear::AdaptedLinear;
use crate::ops::norm::Norm;
use crate::weights::Weights;

/// Where files hold the embedding; mostly in all of them, or in the first alone.
const EMBEDDINGS: [&str; 3] = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
const HEAD: &str = "lm_head.weight";
/// A leftover in old files that nothing reads.
const UNUSED: &str = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";

/// A tensor by name, which must have the given shape; `None` where it may be absent.
pub(super) type MaybeSource<'a> = &'a dyn Fn(&str, &[usize]) -> Result<Option<Tensor>>;

impl EncoderDecoder {
    /// Loads `config.json` and the weights of a folder in Hugging Face layout.
    pub fn load(folder: &Path) -> Result<Self> {
        let config = EncoderDecoderConfig::from_file(&folder.join("config.json"))?;
        Self::from_weights(config, &Weights::open(folder)?)
    }

    /// Builds the model from mapped weights. A tensor that has no place, or a second embedding that differs from the first, is
    /// refused: with it the model would compute something else.
    pub fn from_weights(config: EncoderDecoderConfig, weights: &Weights) -> Result<Self> {
        let read = RefCell::new(BTreeSet::from([UNUSED.to_owned()]));
        let model = Self::from_source(config, &|name, shape| {
            read.borrow_mut().insert(name.to_owned());
            // the head, where the file has none and does not promise one, is the embedding
            if weights.contains(name) || !EMBEDDINGS.contains(&name) && name != HEAD {
                return weights.get(name, shape).map(Some);
            }
            Ok(None)
        })?;
        match weights.names().find(|name| !read.borrow().contains(*name)) {
            Some(name) => Err(ModelError::SurplusTensor { name: name.to_owned() }),
            None => Ok(model),
        }
    }

    /// `source` gives `None` only for what may be absent: copies of the embedding, and the head.
    pub(super) fn from_source(config: EncoderDecoderConfig, source: MaybeSource<'_>) -> Result<Self> {
        let shape = [config.vocab_size, config.hidden_size];
        let missing = |name: &str, wanted: &[usize]| ModelError::MissingTensor {
            name: name.to_owned(),
            wanted: wanted.to_vec(),
            folder: "the model".into(),
        };
        let mut embedding: Option<Tensor> = None;
        for name in EMBEDDINGS {
            let Some(found) = source(name, &shape)? else { continue };
            if let Some(first) = &embedding {
                if *host(&found)? != *host(first)? {
                    return Err(ModelError::SurplusTensor { name: name.to_owned() });
                }
            } else {
                embedding = Some(found);
            }
        }
        let embedding = embedding.ok_or_else(|| missing(EMBEDDINGS[0], &shape))?;
        let head = match source(HEAD, &shape)? {
            Some(head) => head,
            None if config.has_own_head => return Err(missing(HEAD, &shape)),
            None => embedding.clone(),
        };
        let required = |name: &str, shape: &[usize]| source(name, shape)?.ok_or_else(|| missing(name, shape));
        let loader = Loader { config: &config, sites: Sites::from(&config), source: &required };
        let encoder = loader.stack("encoder", (0..config.num_layers).map(|index| loader.encoder_layer(index)), 1.0)?;
        let layers = (0..config.num_decoder_layers).map(|index| loader.decoder_layer(index));
        // the factor of the head's input is in the weights of the norm before it
        let decoder = loader.stack("decoder", layers, config.head_scale)?;
        Ok(Self { embedding, encoder, decoder, head: Head { weight: head, soft_cap: None }, config })
    }
}

struct Loader<'a> {
    config: &'a EncoderDecoderConfig,
    sites: Sites,
    source: &'a dyn Fn(&str, &[usize]) -> Result<Tensor>,
}

impl Loader<'_> {
    fn stack<L>(&self, name: &str, layers: impl Iterator<Item = Result<L>>, factor: f32) -> Result<Stack<L>> {
        let table = format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let norm = match self.norm(&format!("{name}.final_layer_norm"))? {
            Norm::Rms { weight, eps } => Norm::Rms { weight: (weight * f64::from(factor))?, eps },
            other => other,
        };
        let bias = (self.source)(&table, &[self.config.num_buckets, self.config.num_heads])?;
        Ok(Stack { layers: layers.collect::<Result<_>>()?, norm, bias })
    }

    fn encoder_layer(&self, index: usize) -> Result<EncoderLayer> {
        let (layer, path) = (self.config.encoder_layer(index), format!("encoder.block.{index}.layer"));
        Ok(EncoderLayer {
            attention: self.attention(layer, &format!("{path}.0"), Sees::All)?,
            feed_forward: self.feed_forward(layer, &format!("{path}.1"))?,
        })
    }

    fn decoder_layer(&self, index: usize) -> Result<DecoderLayer> {
        let (layer, path) = (self.config.cross_layer(index), format!("decoder.block.{index}.layer"));
        Ok(DecoderLayer {
            attention: self.attention(self.config.self_layer(index), &format!("{path}.0"), Sees::Past)?,
            cross: self.attention(layer, &format!("{path}.1"), Sees::All)?,
            feed_forward: self.feed_forward(layer, &format!("{path}.2"))?,
        })
    }

    fn attention(&self, layer: usize, path: &str, sees: Sees) -> Result<AttentionBlock> {
        Ok(AttentionBlock {
            norm: self.norm(&format!("{path}.layer_norm"))?,
            q: self.linear(layer, &[Module::Q])?,
            kv: self.linear(layer, &[Module::K, Module::V])?,
            o: self.linear(layer, &[Module::O])?,
            heads: self.config.num_heads,
            size: self.config.head_dim,
            sees,
        })
    }

    fn feed_forward(&self, layer: usize, path: &str) -> Result<FeedForward> {
        let up: &[Module] = if self.config.is_gated() { &[Module::Gate, Module::Up] } else { &[Module::Up] };
        Ok(FeedForward {
            norm: self.norm(&format!("{path}.layer_norm"))?,
            up: self.linear(layer, up)?,
            activation: self.config.activation,
            down: self.linear(layer, &[Module::Down])?,
            residual: Residual { norm: None },
        })
    }

    /// The modules side by side.
    fn linear(&self, layer: usize, modules: &[Module]) -> Result<AdaptedLinear> {
        let mut weights = Vec::with_capacity(modules.len());
        for place in self.sites.layers().get(layer).into_iter().flatten() {
            if modules.contains(&place.module) {
                weights.push((place.module, (self.source)(&format!("{}.weight", place.path), &place.shape)?));
            }
        }
        AdaptedLinear::new(&weights)
    }

    fn norm(&self, path: &str) -> Result<Norm> {
        let weight = (self.source)(&format!("{path}.weight"), &[self.config.hidden_size])?;
        Ok(Norm::Rms { weight, eps: self.config.norm_eps as f32 })
    }
}
