//! Generation: keys and values of past tokens are kept, each new token costs one row.

use crate::adapters::Adapter;
use crate::decoder::{Cached, Decoder};
use crate::error::{ModelError, Result};

/// Keys (rotated) and values of every layer for the tokens seen so far: `2 · layers · tokens · K · d` values of f32. Layers with a
/// sliding window keep the older ones too, so that [`KvCache::truncate`] can go back.
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

impl Decoder {
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
        let (past, m) = (cache.len, ids.len());
        let positions: Vec<u32> = (past..past + m).map(|position| position as u32).collect();
        let mut x = self.embed(ids, &positions)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let adapters = adapter_opt.and_then(|adapter| adapter.layer(index));
            let cached = Cached { keys: &mut cache.keys[index], values: &mut cache.values[index], past };
            let middle = layer.attention.advance(x, cached, self.rope.as_ref(), adapters)?;
            x = layer.feed_forward.forward(middle, adapters)?.0;
        }
        let last = x.narrow(0, m - 1, 1)?.contiguous()?;
        let (hidden, _) = self.norm.forward(last)?;
        self.head.logits(&hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::testing::every_method;
    use crate::decoder::tests::{model, tiny_model, variants};

    #[test]
    fn prompt_and_steps_equal_the_whole_text_in_every_variant_with_every_method() {
        for (variant, config) in variants() {
            let model = model(config);
            for (method, adapter) in every_method(&model) {
                prompt_and_steps_equal_the_whole_text(&model, &adapter, &format!("{variant} {method}"));
            }
        }
    }

    fn prompt_and_steps_equal_the_whole_text(model: &Decoder, adapter: &Adapter, case: &str) {
        let ids: Vec<u32> = (0..90).map(|i| i * 11 % 48).collect();
        let wanted = model.logits(&ids, Some(adapter)).unwrap().to_vec2::<f32>().unwrap();
        let base = model.logits(&ids, None).unwrap().to_vec2::<f32>().unwrap();
        assert!(wanted[89].iter().zip(&base[89]).any(|(a, b)| (a - b).abs() > 1e-2), "{case} changes nothing");
        let mut cache = model.new_cache();
        let near = |got: &[f32], row: usize| {
            for (a, b) in got.iter().zip(&wanted[row]) {
                assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "{case} row {row}: {a} {b}");
            }
        };
        near(&model.advance(&mut cache, &ids[..70], Some(adapter)).unwrap(), 69);
        for row in 70..80 {
            near(&model.advance(&mut cache, &ids[row..=row], Some(adapter)).unwrap(), row);
        }
        cache.truncate(40);
        near(&model.advance(&mut cache, &ids[40..90], Some(adapter)).unwrap(), 89);
        assert_eq!(cache.len(), 90);
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
