//! Where adapters sit in T5. Layers are counted as they are computed: those of the encoder, then for each layer of the decoder
//! its self-attention and, as another, cross-attention with the feed-forward part, so that each projection occurs once in each.

use super::EncoderDecoderConfig;
use crate::adapters::{Module, Place, Sites};

const ATTENTION: [Module; 4] = [Module::Q, Module::K, Module::V, Module::O];
const PLAIN: [Module; 6] = [Module::Q, Module::K, Module::V, Module::O, Module::Up, Module::Down];
const GATED: [Module; 7] = Module::LLAMA;

impl EncoderDecoderConfig {
    /// Index of an encoder's layer.
    pub(super) fn encoder_layer(&self, index: usize) -> usize {
        index
    }

    /// Index of the self-attention of a decoder's layer.
    pub(super) fn self_layer(&self, index: usize) -> usize {
        self.num_layers + 2 * index
    }

    /// Index of the cross-attention and feed-forward part of a decoder's layer.
    pub(super) fn cross_layer(&self, index: usize) -> usize {
        self.self_layer(index) + 1
    }

    /// The projections that can carry an adapter.
    #[must_use]
    pub fn modules(&self) -> &'static [Module] {
        if self.is_gated() { &GATED } else { &PLAIN }
    }

    /// `[out, in]` of a projection.
    #[must_use]
    pub fn module_shape(&self, module: Module) -> [usize; 2] {
        let (h, inner, f) = (self.hidden_size, self.num_heads * self.head_dim, self.intermediate_size);
        match module {
            Module::O => [h, inner],
            Module::Gate | Module::Up => [f, h],
            Module::Down => [h, f],
            _ => [inner, h],
        }
    }

    /// A projection's place in a layer whose attention and feed-forward part have these paths.
    fn place(&self, layer: usize, module: Module, attention: &str, feed_forward: &str) -> Place {
        let part = if ATTENTION.contains(&module) { attention } else { feed_forward };
        let path = format!("{part}.{}", module.t5_name(self.is_gated()));
        Place { layer, module, path, shape: self.module_shape(module) }
    }
}

impl From<&EncoderDecoderConfig> for Sites {
    fn from(config: &EncoderDecoderConfig) -> Self {
        let mut layers = Vec::with_capacity(config.num_layers + 2 * config.num_decoder_layers);
        let mut layer = |attention: &str, feed_forward: Option<&str>| {
            let modules: &[Module] = if feed_forward.is_some() { config.modules() } else { &ATTENTION };
            let place =
                |module: &Module| config.place(layers.len(), *module, attention, feed_forward.unwrap_or_default());
            let places = modules.iter().map(place).collect();
            layers.push(places);
        };
        for index in 0..config.num_layers {
            let path = format!("encoder.block.{index}.layer");
            layer(&format!("{path}.0.SelfAttention"), Some(&format!("{path}.1.DenseReluDense")));
        }
        for index in 0..config.num_decoder_layers {
            let path = format!("decoder.block.{index}.layer");
            layer(&format!("{path}.0.SelfAttention"), None);
            layer(&format!("{path}.1.EncDecAttention"), Some(&format!("{path}.2.DenseReluDense")));
        }
        Self::of_encoder_decoder(config.modules(), layers)
    }
}
