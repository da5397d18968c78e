//! T5 (Raffel et al. 2020) and T5 1.1: an encoder reads one text, a decoder writes another while it looks at the first.
//!
//! Encoder: `x ← E[source]`; per layer `x ← x + attention(norm(x))`, `x ← x + ff(norm(x))`; `e = norm(x)`. Decoder: `y ← E[inputs]`; per layer
//! self-attention, cross-attention to `e`, feed-forward, each added to `y`; `logits = head(c · norm(y))`. Norms are RMSNorm
//! (no mean, no bias), scores have no scale, positions are a bias that all layers of a stack share
//! ([`crate::ops::relative_position`]); `c` is `1/√d_model` in the first T5 and 1 in 1.1. No dropout.
//! The base is frozen: the backward pass walks decoder and encoder in reverse by hand and produces gradients of adapters only.
//!
//! Left out: half precision with clamping as `transformers` trains it, recomputation, norms of single examples.

mod attention;
mod batch;
mod config;
mod decode;
mod load;
mod sites;
#[cfg(test)]
mod tests;

use candle_core::Tensor;

use self::attention::{AttentionBlock, Place};
use crate::adapters::{Adapter, AdapterConfig, LayerAdapters, Module, Sites};
use crate::decoder::feed_forward::{self, FeedForward};
use crate::decoder::{Gradients, LossGradients, in_parameter_order, wanted};
use crate::error::{ModelError, Result};
use crate::ops::cross_attention::{Pair, pairs};
use crate::ops::head::Head;
use crate::ops::linear::{Wants, WantsDx};
use crate::ops::norm::{Norm, Normed};
use crate::ops::relative_position::{Direction, RelativeBias};
use crate::ops::{cross_entropy, host, tensor};
pub use batch::PairBatch;
pub use config::EncoderDecoderConfig;
pub use decode::Written;

/// A frozen model; immutable, so that any number of threads may use it at once.
pub struct EncoderDecoder {
    config: EncoderDecoderConfig,
    embedding: Tensor,
    encoder: Stack<EncoderLayer>,
    decoder: Stack<DecoderLayer>,
    head: Head,
}

struct Stack<L> {
    layers: Vec<L>,
    norm: Norm,
    /// Of relative positions, `[buckets, heads]`.
    bias: Tensor,
}

struct EncoderLayer {
    attention: AttentionBlock,
    feed_forward: FeedForward,
}

struct DecoderLayer {
    attention: AttentionBlock,
    cross: AttentionBlock,
    feed_forward: FeedForward,
}

/// What the encoder made of the sources, with what its backward pass needs.
struct Encoded {
    states: Tensor,
    normed: Normed,
    layers: Vec<(attention::Kept, feed_forward::Kept)>,
    bias: RelativeBias,
    pairs: Vec<Pair>,
}

/// The same of the decoder.
struct Decoded {
    hidden: Tensor,
    normed: Normed,
    layers: Vec<(attention::Kept, attention::Kept, feed_forward::Kept)>,
    bias: RelativeBias,
    own: Vec<Pair>,
    across: Vec<Pair>,
}

impl EncoderDecoder {
    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &EncoderDecoderConfig {
        &self.config
    }

    /// A fresh adapter, which leaves the model as it is. Targets are named by [`Module::Q`], `K`, `V`, `O` and, for `wi` or
    /// `wi_1`, `wi_0` and `wo`, by `Up`, `Gate` and `Down`; each means that projection in every attention or feed-forward part.
    pub fn new_adapter(&self, config: AdapterConfig, seed: u64) -> Result<Adapter> {
        Adapter::fresh(config, &self.config, seed, |place| self.row_norms(place.layer, place.module))
    }

    /// Logits `[n, V]` after every token of the decoder's input, which begins with
    /// [`EncoderDecoderConfig::decoder_start_token_id`]. For comparisons and short texts: memory grows with `n · V`.
    pub fn logits(&self, source: &[u32], inputs: &[u32], adapter_opt: Option<&Adapter>) -> Result<Tensor> {
        let mut batch = PairBatch::new(&[(source.to_vec(), inputs.to_vec())], self.config.decoder_start_token_id)?;
        batch.inputs = inputs.to_vec();
        self.check_adapter(adapter_opt)?;
        let encoded = self.encode(&batch, adapter_opt)?;
        let decoded = self.decode(&batch, &encoded, adapter_opt)?;
        tensor(self.head.logits(&decoded.hidden)?, (inputs.len(), self.config.vocab_size))
    }

    /// Negative log-likelihood in nats of every row's target; 0 where there is none.
    pub fn row_losses(&self, batch: &PairBatch, adapter_opt: Option<&Adapter>) -> Result<Vec<f32>> {
        self.check_adapter(adapter_opt)?;
        let encoded = self.encode(batch, adapter_opt)?;
        let decoded = self.decode(batch, &encoded, adapter_opt)?;
        cross_entropy::forward(&decoded.hidden, &self.head, &batch.targets)
    }

    /// Losses and the gradients of `scale · Σ losses` for every tensor of the adapter.
    pub fn loss_and_gradients(&self, batch: &PairBatch, adapter: &Adapter, scale: f32) -> Result<LossGradients> {
        self.check_adapter(Some(adapter))?;
        let encoded = self.encode(batch, Some(adapter))?;
        let decoded = self.decode(batch, &encoded, Some(adapter))?;
        let (row_losses, d_hidden) =
            cross_entropy::forward_backward(&decoded.hidden, &self.head, &batch.targets, scale)?;
        let mut by_layer: Vec<Gradients> = Vec::new();
        by_layer.resize_with(adapter.num_layers(), Gradients::new);
        let d_states = self.decoder_backward(&d_hidden, &encoded.states, decoded, adapter, &mut by_layer)?;
        self.encoder_backward(&d_states, encoded, adapter, &mut by_layer)?;
        let (gradients, example_norms) = in_parameter_order(by_layer);
        Ok(LossGradients { row_losses, num_targets: batch.num_targets(), gradients, example_norms })
    }

    fn encode(&self, batch: &PairBatch, adapter_opt: Option<&Adapter>) -> Result<Encoded> {
        let segments = &batch.source_segments;
        let (pairs, longest) = (pairs(segments, segments), segments.longest());
        let bias = RelativeBias::new(&self.encoder.bias, self.config.buckets(Direction::Both), longest, longest)?;
        let mut x = self.embed(&batch.sources)?;
        let mut layers = Vec::with_capacity(self.encoder.layers.len());
        for (index, layer) in self.encoder.layers.iter().enumerate() {
            let adapters = at(adapter_opt, self.config.encoder_layer(index));
            let place = Place { pairs: &pairs, bias: Some(&bias), source: None, adapters };
            let (middle, attention) = layer.attention.forward(x, place)?;
            let (next, feed_forward) = layer.feed_forward.forward(middle, adapters)?;
            x = next;
            layers.push((attention, feed_forward));
        }
        let (states, normed) = self.encoder.norm.forward(x)?;
        Ok(Encoded { states, normed, layers, bias, pairs })
    }

    fn decode(&self, batch: &PairBatch, encoded: &Encoded, adapter_opt: Option<&Adapter>) -> Result<Decoded> {
        let segments = &batch.target_segments;
        let (own, across) = (pairs(segments, segments), pairs(segments, &batch.source_segments));
        let longest = segments.longest();
        let bias = RelativeBias::new(&self.decoder.bias, self.config.buckets(Direction::Back), longest, longest)?;
        let mut y = self.embed(&batch.inputs)?;
        let mut layers = Vec::with_capacity(self.decoder.layers.len());
        for (index, layer) in self.decoder.layers.iter().enumerate() {
            let adapters = at(adapter_opt, self.config.self_layer(index));
            let place = Place { pairs: &own, bias: Some(&bias), source: None, adapters };
            let (next, attention) = layer.attention.forward(y, place)?;
            let adapters = at(adapter_opt, self.config.cross_layer(index));
            let place = Place { pairs: &across, bias: None, source: Some(&encoded.states), adapters };
            let (next, cross) = layer.cross.forward(next, place)?;
            let (next, feed_forward) = layer.feed_forward.forward(next, adapters)?;
            y = next;
            layers.push((attention, cross, feed_forward));
        }
        let (hidden, normed) = self.decoder.norm.forward(y)?;
        Ok(Decoded { hidden, normed, layers, bias, own, across })
    }

    /// The gradient of the encoder's states, which every layer looked at.
    fn decoder_backward(
        &self,
        d_hidden: &Tensor,
        states: &Tensor,
        decoded: Decoded,
        adapter: &Adapter,
        by_layer: &mut [Gradients],
    ) -> Result<Tensor> {
        let Decoded { normed, layers, bias, own, across, .. } = decoded;
        let mut d_states: Option<Tensor> = None;
        let mut dy = self.decoder.norm.backward(d_hidden, &normed, None)?;
        for ((index, layer), kept) in self.decoder.layers.iter().enumerate().zip(layers).rev() {
            let (attention, cross, feed_forward) = kept;
            let here = self.config.cross_layer(index);
            let adapters = at(Some(adapter), here);
            let wants = Wants { dx: WantsDx::Yes, norms_of: None };
            dy = layer.feed_forward.backward(&dy, &feed_forward, adapters, wants, &mut by_layer[here])?;
            let place = Place { pairs: &across, bias: None, source: Some(states), adapters };
            let (dx, new) = layer.cross.backward(&dy, &cross, place, WantsDx::Yes, &mut by_layer[here])?;
            d_states = match (d_states, new) {
                (Some(sum), Some(new)) => Some((sum + new)?),
                (sum, new) => sum.or(new),
            };
            let here = self.config.self_layer(index);
            let place = Place { pairs: &own, bias: Some(&bias), source: None, adapters: at(Some(adapter), here) };
            (dy, _) = layer.attention.backward(&dx, &attention, place, wants_dx(index), &mut by_layer[here])?;
        }
        wanted(d_states)
    }

    fn encoder_backward(
        &self,
        d_states: &Tensor,
        encoded: Encoded,
        adapter: &Adapter,
        by_layer: &mut [Gradients],
    ) -> Result<()> {
        let Encoded { normed, layers, bias, pairs, .. } = encoded;
        let mut dx = self.encoder.norm.backward(d_states, &normed, None)?;
        for ((index, layer), (attention, feed_forward)) in self.encoder.layers.iter().enumerate().zip(layers).rev() {
            let here = self.config.encoder_layer(index);
            let adapters = at(Some(adapter), here);
            let wants = Wants { dx: WantsDx::Yes, norms_of: None };
            dx = layer.feed_forward.backward(&dx, &feed_forward, adapters, wants, &mut by_layer[here])?;
            let place = Place { pairs: &pairs, bias: Some(&bias), source: None, adapters };
            (dx, _) = layer.attention.backward(&dx, &attention, place, wants_dx(index), &mut by_layer[here])?;
        }
        Ok(())
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let (h, vocabulary) = (self.config.hidden_size, self.config.vocab_size);
        let table = host(&self.embedding)?;
        let mut x = Vec::with_capacity(ids.len() * h);
        for id in ids {
            let row = table.get(*id as usize * h..(*id as usize + 1) * h);
            x.extend_from_slice(row.ok_or(ModelError::TokenOutOfRange { id: *id, vocabulary })?);
        }
        tensor(x, (ids.len(), h))
    }

    /// The adapter must be for a model of this form.
    fn check_adapter(&self, adapter_opt: Option<&Adapter>) -> Result<()> {
        match adapter_opt {
            Some(adapter) if *adapter.sites() != Sites::from(&self.config) => {
                let reason = "it is for a model with other layers or sizes".to_owned();
                Err(ModelError::AdapterMismatch { name: "layer 0".to_owned(), reason })
            }
            _ => Ok(()),
        }
    }

    fn row_norms(&self, index: usize, module: Module) -> Result<Vec<f32>> {
        let of = |attention: &AttentionBlock| [&attention.q, &attention.kv, &attention.o].map(|l| l.row_norms(module));
        let of_ff = |ff: &FeedForward| [&ff.up, &ff.down].map(|l| l.row_norms(module));
        let encoder = self.encoder.layers.iter().enumerate().find(|(i, _)| self.config.encoder_layer(*i) == index);
        let own = self.decoder.layers.iter().enumerate().find(|(i, _)| self.config.self_layer(*i) == index);
        let cross = self.decoder.layers.iter().enumerate().find(|(i, _)| self.config.cross_layer(*i) == index);
        let mut found = Vec::new();
        if let Some((_, layer)) = encoder {
            found.extend(of(&layer.attention).into_iter().chain(of_ff(&layer.feed_forward)));
        }
        if let Some((_, layer)) = own {
            found.extend(of(&layer.attention));
        }
        if let Some((_, layer)) = cross {
            found.extend(of(&layer.cross).into_iter().chain(of_ff(&layer.feed_forward)));
        }
        let norms = found.into_iter().flatten().next();
        norms.unwrap_or_else(|| Err(Module::unknown(module.t5_name(self.config.is_gated()), &[])))
    }
}

fn at(adapter_opt: Option<&Adapter>, layer: usize) -> Option<&LayerAdapters> {
    adapter_opt.and_then(|adapter| adapter.layer(layer))
}

/// Nothing trainable lies before the first layer of a stack.
fn wants_dx(index: usize) -> WantsDx {
    if index == 0 { WantsDx::No } else { WantsDx::Yes }
}
