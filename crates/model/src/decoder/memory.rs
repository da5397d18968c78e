//! The memory of weights and activations, predicted from the configuration alone: arithmetic over what [`super::attention`] and
//! [`super::feed_forward`] keep for their backward pass.
//!
//! f32 values for each token, in one layer (`h` hidden, `H`/`K` heads of `d`, `f` feed-forward size):
//! ```text
//! kept     = 2 (h + s)            inputs of both blocks, statistics of their norms (s = 1, LayerNorm 2)
//!          + (H + 2K) d           queries, keys, values
//!          + H d + H              output of attention, log-sum of each head
//!          + u                    gate and up: 2f; up alone: f
//!          + 2 (h + s)            where the outputs of the blocks are normalised
//!          + (H + K) d            where query and key heads are normalised
//!          + a                    adapters: the rank of each; DoRA also, and IA³ only, the outputs of what they scale
//! backward = 2h + p + max(f + u, 2f, u + 2h + c)
//!                                 of the feed-forward block, which needs most: gradients coming in and of the head's input, p = h
//!                                 where outputs are normalised; then gradients inside, c = u where adapters scale gate or up
//! ```
//! A step of `n` tokens in `L` layers takes `n · (L · kept + backward)` values; with recomputed layers `n · (L · h + kept + backward)`.
//! The head takes `n · 3h` and 128 rows of logits, `128 · (V + 2h)`, when the kept activations are all there but nothing of
//! `backward` is. How near this comes is measured in `tests/memory.rs`.

use super::{Card, Recompute};
use crate::adapters::{AdapterConfig, Method, Module};
use crate::config::{Activation, ModelConfig, NormKind};
use crate::frozen::Quantization;
use crate::ops::cross_entropy::CHUNK;

const F32: u64 = size_of::<f32>() as u64;

impl ModelConfig {
    /// Bytes of the loaded weights.
    #[must_use]
    pub fn weight_bytes(&self, quantization: Quantization) -> u64 {
        let saved = |module: &Module| {
            let shape = self.module_shape(*module);
            (Quantization::None.bytes(shape) - quantization.bytes(shape)) as u64
        };
        let of_layer: u64 = self.modules().iter().map(saved).sum();
        F32 * self.num_parameters() as u64 - self.num_hidden_layers as u64 * of_layer
    }

    /// Bytes of the weights on a card, with one matrix in the card's values where matrices are quantised.
    #[must_use]
    pub fn weight_bytes_on(&self, quantization: Quantization, card: Card) -> u64 {
        let values = |module: &Module| self.module_shape(*module).iter().product::<usize>();
        let in_layer: usize = self.modules().iter().map(values).sum();
        let rest = self.num_parameters() - self.num_hidden_layers * in_layer;
        let stored = |module: &Module| match quantization {
            Quantization::None => card.value_bytes * values(module) as u64,
            _ => quantization.bytes(self.module_shape(*module)) as u64,
        };
        let of_layer: u64 = self.modules().iter().map(stored).sum();
        let largest = self.modules().iter().map(values).max().filter(|_| quantization != Quantization::None);
        card.value_bytes * (rest + largest.unwrap_or(0)) as u64 + self.num_hidden_layers as u64 * of_layer
    }

    /// Bytes of what is there beside the weights while the last tensors are loaded: one in f32 that is quantised, or those that
    /// are joined to one.
    #[must_use]
    pub fn loading_bytes(&self, quantization: Quantization) -> u64 {
        let values = |module: &Module| {
            let [out, width] = self.module_shape(*module);
            (out * width) as u64
        };
        let largest = self.modules().iter().map(values).max().unwrap_or(0);
        let transposed = self.modules().iter().any(|module| module.is_transposed());
        F32 * largest * if transposed || quantization == Quantization::None { 2 } else { 1 }
    }

    /// Bytes of the activations of a step of `num_tokens` tokens.
    #[must_use]
    pub fn activation_bytes(&self, adapter: &AdapterConfig, num_tokens: usize, recompute: Recompute) -> u64 {
        let (h, layers, n) = (self.hidden_size as u64, self.num_hidden_layers as u64, num_tokens as u64);
        let (kept, backward) = (self.kept(adapter), self.backward(adapter));
        let head = CHUNK as u64 * (self.vocab_size as u64 + 2 * h);
        let until_head = match recompute {
            Recompute::Nothing => n * layers * kept,
            Recompute::Layers => n * layers * h,
        };
        let in_layers = match recompute {
            Recompute::Nothing => n * backward,
            Recompute::Layers => n * (kept + backward),
        };
        F32 * (until_head + in_layers.max(3 * n * h + head))
    }

    /// Bytes of a forward pass over `num_tokens` tokens of which nothing is kept: evaluation.
    #[must_use]
    pub fn forward_bytes(&self, adapter: &AdapterConfig, num_tokens: usize) -> u64 {
        let (h, f, n) = (self.hidden_size as u64, self.intermediate_size as u64, num_tokens as u64);
        // IA³ multiplies a copy of the inputs of what it scales there
        let scaled = matches!(&adapter.method, Method::Ia3(ia3) if !ia3.feedforward_modules.is_empty());
        let inputs = if scaled { 2 * f } else { f };
        F32 * (n * (self.kept(adapter) + inputs + 2 * h))
            .max(2 * n * h + CHUNK as u64 * (self.vocab_size as u64 + 2 * h))
    }

    fn kept(&self, adapter: &AdapterConfig) -> u64 {
        let statistics = if self.norm == NormKind::Layer { 2 } else { 1 };
        let normed = 2 * (self.hidden_size + statistics);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let values = normed * if self.post_norms { 2 } else { 1 }
            + queries
            + 2 * keys
            + queries
            + self.num_attention_heads
            + self.up_size()
            + if self.qk_norm { queries + keys } else { 0 }
            + adapter.target_modules.iter().map(|module| self.kept_by_adapter(adapter, *module)).sum::<usize>();
        values as u64
    }

    fn backward(&self, adapter: &AdapterConfig) -> u64 {
        let (h, f, u) = (self.hidden_size, self.intermediate_size, self.up_size());
        let scaled = adapter.target_modules.iter().any(|module| is_up(*module) && scales_outputs(adapter, *module));
        let copies = if scaled { u } else { 0 };
        let inside = (f + u).max(2 * f).max(u + 2 * h + copies);
        (2 * h + if self.post_norms { h } else { 0 } + inside) as u64
    }

    fn up_size(&self) -> usize {
        let gated = matches!(self.activation, Activation::SwiGlu | Activation::GeGluTanh);
        self.intermediate_size * if gated { 2 } else { 1 }
    }

    fn kept_by_adapter(&self, adapter: &AdapterConfig, module: Module) -> usize {
        let [out, _] = self.module_shape(module);
        match &adapter.method {
            Method::Lora(lora) => lora.rank + if lora.use_dora { out } else { 0 },
            Method::AdaLora(ada) => ada.init_r,
            Method::Ia3(ia3) => {
                if ia3.feedforward_modules.contains(&module) {
                    0
                } else {
                    out
                }
            }
        }
    }
}

impl AdapterConfig {
    /// Trainable values of this adapter on a model, at its start.
    #[must_use]
    pub fn num_parameters(&self, model: &ModelConfig) -> usize {
        let of_module = |module: &Module| {
            let [out, width] = model.module_shape(*module);
            match &self.method {
                Method::Lora(lora) => lora.rank * (out + width) + if lora.use_dora { out } else { 0 },
                Method::AdaLora(ada) => ada.init_r * (out + width + 1),
                Method::Ia3(ia3) => {
                    if ia3.feedforward_modules.contains(module) {
                        width
                    } else {
                        out
                    }
                }
            }
        };
        model.num_hidden_layers * self.target_modules.iter().map(of_module).sum::<usize>()
    }
}

/// Whether the gradient of the module's outputs is copied and scaled.
fn scales_outputs(adapter: &AdapterConfig, module: Module) -> bool {
    match &adapter.method {
        Method::Lora(lora) => lora.use_dora,
        Method::AdaLora(_) => false,
        Method::Ia3(ia3) => !ia3.feedforward_modules.contains(&module),
    }
}

/// Whether it is part of the first matrix of the feed-forward block.
fn is_up(module: Module) -> bool {
    matches!(module, Module::Gate | Module::Up | Module::GateUp | Module::CFc)
}

#[cfg(test)]
mod tests {
    use crate::adapters::Adapter;
    use crate::adapters::testing::every_config;
    use crate::decoder::tests::{model, variants};

    #[test]
    fn trainable_values_are_counted_before_they_exist() {
        for (variant, config) in variants() {
            let model = model(config);
            for (method, config) in every_config(model.config().modules()) {
                let counted = config.num_parameters(model.config());
                assert_eq!(counted, Adapter::new(config, &model, 1).unwrap().num_parameters(), "{variant} {method}");
            }
        }
    }
}
