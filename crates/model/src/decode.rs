//! Generation: keys and values of past tokens are kept, each new token costs one row.

use crate::adapters::Adapter;
use crate::error::{ModelError, Result};
use crate::llama::Llama;
use crate::ops::linear::{Sizes, product};
use crate::ops::rope::{self, Direction};
use crate::ops::{attention, host, rms_norm, swiglu, tensor};

/// Keys (rotated) and values of every layer for the tokens seen so far: `2 · layers · tokens · K · d` values of f32.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    len: usize,
}

impl KvCache {
    /// Tokens seen.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything after the first `len` tokens, so that a common prompt is computed once.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            for buffer in self.keys.iter_mut().chain(&mut self.values) {
                let row = buffer.len() / self.len;
                buffer.truncate(len * row);
            }
            self.len = len;
        }
    }
}

impl Llama {
    /// An empty cache for one conversation.
    #[must_use]
    pub fn new_cache(&self) -> KvCache {
        let empty = vec![Vec::new(); self.layers.len()];
        KvCache { keys: empty.clone(), values: empty, len: 0 }
    }

    /// Appends `ids` to the conversation in `cache` and returns the logits `[V]` after the last of them. A whole prompt is one
    /// call; each generated token is another. On an error the cache is left as it was.
    pub fn advance(&self, cache: &mut KvCache, ids: &[u32], adapter_opt: Option<&Adapter>) -> Result<Vec<f32>> {
        if ids.is_empty() {
            return Err(ModelError::EmptyBatch);
        }
        self.check_adapter(adapter_opt)?;
        self.check_length(cache.len + ids.len())?;
        let before = cache.len;
        let result = self.advance_unchecked(cache, ids, adapter_opt);
        match result {
            Ok(_) => cache.len = before + ids.len(),
            Err(_) => self.restore(cache, before),
        }
        result
    }

    fn restore(&self, cache: &mut KvCache, len: usize) {
        let row = self.config.num_key_value_heads * self.config.head_dim;
        for buffer in cache.keys.iter_mut().chain(&mut cache.values) {
            buffer.truncate(len * row);
        }
    }

    fn advance_unchecked(&self, cache: &mut KvCache, ids: &[u32], adapter_opt: Option<&Adapter>) -> Result<Vec<f32>> {
        let (past, m, heads) = (cache.len, ids.len(), self.heads());
        let (q_width, kv_width) = (heads.query * heads.size, heads.key_value * heads.size);
        let positions: Vec<u32> = (past..past + m).map(|position| position as u32).collect();
        let mut x = self.embed(ids)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let adapters = adapter_opt.and_then(|adapter| adapter.layer(index));
            let (normed, _) = rms_norm::forward(&x, &layer.attention_norm, self.eps())?;
            let (qkv, _) = layer.qkv.forward(&normed, adapters)?;
            rope::rotate(&qkv, heads.query + heads.key_value, &positions, &self.rope, Direction::Forward)?;
            let (keys, values) = (&mut cache.keys[index], &mut cache.values[index]);
            let mut queries = Vec::with_capacity(m * q_width);
            for row in host(&qkv)?.chunks_exact(heads.width()) {
                queries.extend_from_slice(&row[..q_width]);
                keys.extend_from_slice(&row[q_width..q_width + kv_width]);
                values.extend_from_slice(&row[q_width + kv_width..]);
            }
            let attended = tensor(attention::forward_cached(&queries, keys, values, past, heads), (m, q_width))?;
            let (projected, _) = layer.o.forward(&attended, adapters)?;
            x = (x + projected)?;
            let (normed, _) = rms_norm::forward(&x, &layer.mlp_norm, self.eps())?;
            let (gate_up, _) = layer.gate_up.forward(&normed, adapters)?;
            let (down, _) = layer.down.forward(&swiglu::forward(&gate_up)?, adapters)?;
            x = (x + down)?;
        }
        let last = x.narrow(0, m - 1, 1)?.contiguous()?;
        let (hidden, _) = rms_norm::forward(&last, &self.norm, self.eps())?;
        let sizes = Sizes { n: 1, out: self.config.vocab_size, width: self.config.hidden_size };
        let mut logits = vec![0.0; sizes.out];
        product(&mut logits, &host(&hidden)?, &host(&self.head)?, sizes);
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use crate::adapters::testing::every_method;
    use crate::llama::tests::tiny_model;

    #[test]
    fn prompt_and_steps_equal_the_whole_text_with_every_method() {
        let model = tiny_model();
        let ids: Vec<u32> = (0..90).map(|i| i * 11 % 48).collect();
        for (method, adapter) in every_method(&model) {
            let wanted = model.logits(&ids, Some(&adapter)).unwrap().to_vec2::<f32>().unwrap();
            let base = model.logits(&ids, None).unwrap().to_vec2::<f32>().unwrap();
            assert!(wanted[89].iter().zip(&base[89]).any(|(a, b)| (a - b).abs() > 1e-2), "{method} changes nothing");
            let mut cache = model.new_cache();
            let near = |got: &[f32], row: usize| {
                for (a, b) in got.iter().zip(&wanted[row]) {
                    assert!((a - b).abs() < 1e-4, "{method} row {row}: {a} {b}");
                }
            };
            near(&model.advance(&mut cache, &ids[..70], Some(&adapter)).unwrap(), 69);
            for row in 70..80 {
                near(&model.advance(&mut cache, &ids[row..=row], Some(&adapter)).unwrap(), row);
            }
            cache.truncate(40);
            near(&model.advance(&mut cache, &ids[40..90], Some(&adapter)).unwrap(), 89);
            assert_eq!(cache.len(), 90);
        }
    }

    #[test]
    fn a_refused_token_leaves_the_cache_usable() {
        let model = tiny_model();
        let mut cache = model.new_cache();
        model.advance(&mut cache, &[1, 2, 3], None).unwrap();
        assert!(model.advance(&mut cache, &[99], None).is_err());
        assert!(model.advance(&mut cache, &[1; 300], None).is_err());
        let after = model.advance(&mut cache, &[4], None).unwrap();
        let mut fresh = model.new_cache();
        assert_eq!(after.len(), model.advance(&mut fresh, &[1, 2, 3, 4], None).unwrap().len());
        assert_eq!(cache.len(), 4);
    }
}
