//! Generation: the source is read once, keys and values of what was written are kept, each new token costs one row.

use super::attention::Place;
use super::{EncoderDecoder, PairBatch, at};
use crate::adapters::Adapter;
use crate::error::{ModelError, Result};
use crate::ops::relative_position::{Direction, RelativeBias};

/// A source that was read, and what was written about it so far.
#[derive(Debug, Clone)]
pub struct Written {
    /// For each layer of the decoder keys and values of the source.
    across: Vec<Vec<f32>>,
    /// And of the tokens written.
    own: Vec<Vec<f32>>,
    len: usize,
}

impl Written {
    /// Tokens written, the one that the decoder starts with included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl EncoderDecoder {
    /// Reads a source.
    pub fn read(&self, source: &[u32], adapter_opt: Option<&Adapter>) -> Result<Written> {
        self.check_adapter(adapter_opt)?;
        let start = self.config.decoder_start_token_id;
        let encoded = self.encode(&PairBatch::new(&[(source.to_vec(), vec![start])], start)?, adapter_opt)?;
        let remember = |(index, layer): (usize, &super::DecoderLayer)| {
            layer.cross.remember(&encoded.states, at(adapter_opt, self.config.cross_layer(index)))
        };
        let across = self.decoder.layers.iter().enumerate().map(remember).collect::<Result<Vec<_>>>()?;
        Ok(Written { own: vec![Vec::new(); across.len()], across, len: 0 })
    }

    /// Writes `ids`, of which the very first is [`super::EncoderDecoderConfig::decoder_start_token_id`], and returns the logits
    /// `[V]` after the last of them. The adapter must be the one of [`EncoderDecoder::read`]. On an error nothing was written.
    pub fn advance(&self, written: &mut Written, ids: &[u32], adapter_opt: Option<&Adapter>) -> Result<Vec<f32>> {
        if ids.is_empty() {
            return Err(ModelError::EmptyBatch);
        }
        let (past, mut y) = (written.len, self.embed(ids)?);
        let len = past + ids.len();
        let bias = RelativeBias::new(&self.decoder.bias, self.config.buckets(Direction::Back), len, len)?;
        let mut own = written.own.clone();
        for (index, layer) in self.decoder.layers.iter().enumerate() {
            let adapters = at(adapter_opt, self.config.self_layer(index));
            let place = Place { pairs: &[], bias: Some(&bias), source: None, adapters };
            y = layer.attention.advance(y, &mut own[index], past, place)?;
            let adapters = at(adapter_opt, self.config.cross_layer(index));
            let place = Place { pairs: &[], bias: None, source: None, adapters };
            y = layer.cross.advance(y, &mut written.across[index], past, place)?;
            y = layer.feed_forward.forward(y, adapters)?.0;
        }
        let last = y.narrow(0, ids.len() - 1, 1)?.contiguous()?;
        let logits = self.head.logits(&self.decoder.norm.forward(last)?.0)?;
        (written.own, written.len) = (own, len);
        Ok(logits)
    }

    /// The most likely token each time, until one ends the text or `max_new_tokens` are written; without the one that the decoder
    /// starts with.
    pub fn greedy(&self, source: &[u32], max_new_tokens: usize, adapter_opt: Option<&Adapter>) -> Result<Vec<u32>> {
        let mut written = self.read(source, adapter_opt)?;
        let (mut next, mut answer) = (self.config.decoder_start_token_id, Vec::new());
        while answer.len() < max_new_tokens {
            let logits = self.advance(&mut written, &[next], adapter_opt)?;
            // of equals the first, as PyTorch takes
            let best = logits
                .iter()
                .enumerate()
                .fold((0, f32::NEG_INFINITY), |best, (id, logit)| if *logit > best.1 { (id, *logit) } else { best });
            next = best.0 as u32;
            answer.push(next);
            if self.config.eos_token_ids.contains(&next) {
                break;
            }
        }
        Ok(answer)
    }
}
