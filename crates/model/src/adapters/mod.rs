//! What training changes: small tensors beside the frozen matrices.
//!
//! One file per method ([`lora`], [`dora`], [`adalora`], [`ia3`]): formula, forward, backward, start, merging. They meet in
//! [`ModuleAdapter`], which the adapted linear layer calls; an [`Adapter`] is all of them for one model.

pub mod adalora;
mod adapter;
mod config;
pub mod dora;
mod factor;
pub mod gradient;
pub mod ia3;
pub mod lora;
mod module_adapter;
mod rank_allocator;
mod start;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use adapter::{Adapter, LayerAdapters};
pub use config::{AdaLoraConfig, AdapterConfig, Ia3Config, LoraConfig, Method};
pub use module_adapter::ModuleAdapter;
pub use rank_allocator::RankAllocator;

use crate::error::{ModelError, Result};

/// A projection that an adapter can sit on; its serialised form is Hugging Face's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Module {
    /// Attention query.
    #[serde(rename = "q_proj")]
    Q,
    /// Attention key.
    #[serde(rename = "k_proj")]
    K,
    /// Attention value.
    #[serde(rename = "v_proj")]
    V,
    /// Attention output.
    #[serde(rename = "o_proj")]
    O,
    /// Feed-forward gate.
    #[serde(rename = "gate_proj")]
    Gate,
    /// Feed-forward up.
    #[serde(rename = "up_proj")]
    Up,
    /// Feed-forward down.
    #[serde(rename = "down_proj")]
    Down,
}

impl Module {
    /// All seven, in the order of the layer.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Path below `model.layers.{i}.`, as in Hugging Face Llama.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Hugging Face's name, the last part of [`Module::path`].
    #[must_use]
    pub fn name(self) -> &'static str {
        self.path().rsplit('.').next().unwrap_or_default()
    }

    /// The module with this name among those that a model has ([`Module::ALL`] of Llama); an error that names it and lists them
    /// when there is none.
    pub fn from_name(name: &str, existing: &[Self]) -> Result<Self> {
        existing.iter().copied().find(|module| module.name() == name).ok_or_else(|| Self::unknown(name, existing))
    }

    pub(crate) fn unknown(name: &str, existing: &[Self]) -> ModelError {
        let existing: Vec<&str> = existing.iter().map(|module| module.name()).collect();
        ModelError::UnknownModule { name: name.to_owned(), existing: existing.join(" ") }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Adapters of every method for tests.
    use super::*;
    use crate::llama::Llama;
    use crate::rng::Rng;

    /// Settings of each method under a name.
    pub fn every_config() -> Vec<(&'static str, AdapterConfig)> {
        let on = |target_modules: &[Module], method| AdapterConfig { method, target_modules: target_modules.to_vec() };
        let lora = |use_rslora, use_dora| {
            // a scale near 2 for both: larger ones bend the loss more than finite differences can follow
            let alpha = if use_rslora { 3.0 } else { 6.0 };
            Method::Lora(LoraConfig { rank: 3, alpha, use_rslora, use_dora })
        };
        let ada =
            AdaLoraConfig { init_r: 4, target_r: 2, alpha: 8.0, tinit: 2, tfinal: 3, ..AdaLoraConfig::for_steps(10) };
        // up, too, takes factors on its inputs: beside a gate that takes none
        let feedforward_modules = vec![Module::Up, Module::Down];
        vec![
            ("lora", on(&Module::ALL, lora(false, false))),
            ("rslora", on(&[Module::Q, Module::V, Module::Down], lora(true, false))),
            ("dora", on(&Module::ALL, lora(false, true))),
            ("adalora", on(&Module::ALL, Method::AdaLora(ada))),
            (
                "ia3",
                on(&[Module::K, Module::V, Module::Up, Module::Down], Method::Ia3(Ia3Config { feedforward_modules })),
            ),
        ]
    }

    /// An adapter of each method, none of whose gradients is zero.
    pub fn every_method(model: &Llama) -> Vec<(&'static str, Adapter)> {
        let busy = |(name, config)| {
            let mut adapter = Adapter::new(config, model, 1).unwrap();
            let mut rng = Rng::new(5, 5);
            let shifts: Vec<f32> = adapter.parameters().iter().map(|(name, _)| start(name)).collect();
            let change = |index: usize, values: &mut [f32]| {
                values.iter_mut().for_each(|v| *v = shifts[index] + (rng.uniform() - 0.5) * 0.4);
            };
            adapter.update(change).unwrap();
            (name, adapter)
        };
        every_config().into_iter().map(busy).collect()
    }

    fn start(name: &str) -> f32 {
        if name.ends_with("magnitude_vector") || name.ends_with("ia3_l") { 1.0 } else { 0.0 }
    }
}
