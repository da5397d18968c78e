//! What training changes: small tensors beside the frozen matrices.
//!
//! One file per method ([`lora`], [`dora`], [`adalora`], [`ia3`]): formula, forward, backward, start, merging. They meet in
//! [`ModuleAdapter`], which the adapted linear layer calls; an [`Adapter`] is all of them for one model.

pub mod adalora;
mod adapter;
pub mod combine;
mod config;
pub mod dora;
mod factor;
pub mod gradient;
pub mod ia3;
pub mod lora;
mod merge;
mod module_adapter;
mod rank_allocator;
mod sites;
mod start;
pub mod svd;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub(crate) use adapter::Base;
pub use adapter::{Adapter, LayerAdapters};
pub use config::{AdaLoraConfig, AdapterConfig, Ia3Config, LoraConfig, Method};
pub use merge::{Merge, Merges};
pub use module_adapter::ModuleAdapter;
pub use rank_allocator::RankAllocator;
pub(crate) use sites::Kind;
pub use sites::{Place, Sites};

use crate::error::{ModelError, Result};

/// A projection that an adapter can sit on; its serialised form is Hugging Face's name.
///
/// The order is that of the layer: parameters, gradients and optimizer moments follow it.
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
    /// Query, key and value in one (Phi-3).
    #[serde(rename = "qkv_proj")]
    Qkv,
    /// Query, key and value in one (GPT-2).
    #[serde(rename = "c_attn")]
    CAttn,
    /// Attention output.
    #[serde(rename = "o_proj")]
    O,
    /// Attention output (GPT-2).
    #[serde(rename = "attn.c_proj")]
    AttnCProj,
    /// Feed-forward gate.
    #[serde(rename = "gate_proj")]
    Gate,
    /// Feed-forward up.
    #[serde(rename = "up_proj")]
    Up,
    /// Feed-forward gate and up in one (Phi-3).
    #[serde(rename = "gate_up_proj")]
    GateUp,
    /// Feed-forward up (GPT-2).
    #[serde(rename = "c_fc")]
    CFc,
    /// Feed-forward down.
    #[serde(rename = "down_proj")]
    Down,
    /// Feed-forward down (GPT-2).
    #[serde(rename = "mlp.c_proj")]
    MlpCProj,
}

impl Module {
    /// Every projection of every architecture, in the order of the layer.
    pub const ALL: [Self; 13] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::Qkv,
        Self::CAttn,
        Self::O,
        Self::AttnCProj,
        Self::Gate,
        Self::Up,
        Self::GateUp,
        Self::CFc,
        Self::Down,
        Self::MlpCProj,
    ];
    /// Those of Llama, Mistral, Qwen and Gemma.
    pub const LLAMA: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];
    /// Those of Phi-3.
    pub const PHI3: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];
    /// Those of GPT-2.
    pub const GPT2: [Self; 4] = [Self::CAttn, Self::AttnCProj, Self::CFc, Self::MlpCProj];

    /// Path below the layer, as in Hugging Face.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::Qkv => "self_attn.qkv_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::GateUp => "mlp.gate_up_proj",
            Self::Down => "mlp.down_proj",
            Self::CAttn => "attn.c_attn",
            Self::AttnCProj => "attn.c_proj",
            Self::CFc => "mlp.c_fc",
            Self::MlpCProj => "mlp.c_proj",
        }
    }

    /// Path in the model: `model.layers.0.self_attn.q_proj`, `transformer.h.0.attn.c_attn`.
    #[must_use]
    pub fn path_in(self, layer: usize) -> String {
        let layers = if Self::GPT2.contains(&self) { "transformer.h" } else { "model.layers" };
        format!("{layers}.{layer}.{}", self.path())
    }

    /// What `peft` is to be told as target: Hugging Face's name, with GPT-2's two `c_proj` told apart by their parents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AttnCProj | Self::MlpCProj => self.path(),
            _ => self.path().rsplit('.').next().unwrap_or_default(),
        }
    }

    /// What T5 calls it: the words of its paper's code. With a gate there are two projections up.
    pub(crate) fn t5_name(self, gated: bool) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::O => "o",
            Self::Gate => "wi_0",
            Self::Up if gated => "wi_1",
            Self::Up => "wi",
            Self::Down => "wo",
            _ => self.name(),
        }
    }

    /// The modules that `peft` means by this target: those whose path ends with it. GPT-2's `c_proj` is two.
    #[must_use]
    pub fn from_target(target: &str) -> Vec<Self> {
        let means = |module: &Self| {
            let path = module.path();
            path == target || path.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
        };
        Self::ALL.into_iter().filter(means).collect()
    }

    /// The module with this name among those that a model has; an error that names it and lists them when there is none.
    pub fn from_name(name: &str, existing: &[Self]) -> Result<Self> {
        existing.iter().copied().find(|module| module.name() == name).ok_or_else(|| Self::unknown(name, existing))
    }

    /// Whether the base stores the matrix as `[in, out]` (GPT-2's `Conv1D`), which `peft` calls `fan_in_fan_out`.
    #[must_use]
    pub fn is_transposed(self) -> bool {
        Self::GPT2.contains(&self)
    }

    /// Whether keys or values come out of it.
    #[must_use]
    pub fn makes_keys_or_values(self) -> bool {
        matches!(self, Self::K | Self::V | Self::Qkv | Self::CAttn)
    }

    /// Whether it is the last projection of the feed-forward layer.
    #[must_use]
    pub fn ends_feed_forward(self) -> bool {
        matches!(self, Self::Down | Self::MlpCProj)
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
    use crate::decoder::Decoder;
    use crate::rng::Rng;

    /// Settings of each method under a name.
    pub fn every_config(existing: &[Module]) -> Vec<(&'static str, AdapterConfig)> {
        let on = |target_modules: &[Module], method| AdapterConfig { method, target_modules: target_modules.to_vec() };
        let lora = |use_rslora, use_dora| {
            // a scale near 2 for both: larger ones bend the loss more than finite differences can follow
            let alpha = if use_rslora { 3.0 } else { 6.0 };
            Method::Lora(LoraConfig { rank: 3, alpha, use_rslora, use_dora })
        };
        let ada =
            AdaLoraConfig { init_r: 4, target_r: 2, alpha: 8.0, tinit: 2, tfinal: 3, ..AdaLoraConfig::for_steps(10) };
        // up, too, takes factors on its inputs: beside a gate that takes none
        let scaled = |keys_and_values: &[Module], feedforward_modules: &[Module]| {
            let method = Method::Ia3(Ia3Config { feedforward_modules: feedforward_modules.to_vec() });
            on(&[keys_and_values, feedforward_modules].concat(), method)
        };
        let ia3 = match existing {
            [Module::Qkv, ..] => scaled(&[Module::Qkv], &[Module::GateUp, Module::Down]),
            [Module::CAttn, ..] => scaled(&[Module::CAttn], &[Module::CFc, Module::MlpCProj]),
            _ => scaled(&[Module::K, Module::V], &[Module::Up, Module::Down]),
        };
        let some: Vec<Module> = existing.iter().copied().step_by(2).collect();
        vec![
            ("lora", on(existing, lora(false, false))),
            ("rslora", on(&some, lora(true, false))),
            ("dora", on(existing, lora(false, true))),
            ("adalora", on(existing, Method::AdaLora(ada))),
            ("ia3", ia3),
        ]
    }

    /// An adapter of each method, none of whose gradients is zero.
    pub fn every_method(model: &Decoder) -> Vec<(&'static str, Adapter)> {
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
        every_config(model.config().modules()).into_iter().map(busy).collect()
    }

    fn start(name: &str) -> f32 {
        if name.ends_with("magnitude_vector") || name.ends_with("ia3_l") { 1.0 } else { 0.0 }
    }
}
