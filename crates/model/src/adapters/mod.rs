//! What training changes: small matrices beside the frozen ones. One file per method.

pub mod lora;

use serde::{Deserialize, Serialize};

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

    /// The modules that `peft` means by this target: those whose path ends with it. GPT-2's `c_proj` is two.
    #[must_use]
    pub fn from_target(target: &str) -> Vec<Self> {
        let means = |module: &Self| {
            let path = module.path();
            path == target || path.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
        };
        Self::ALL.into_iter().filter(means).collect()
    }

    /// The module with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.name() == name)
    }

    /// Whether the base stores the matrix as `[in, out]` (GPT-2's `Conv1D`), which `peft` calls `fan_in_fan_out`.
    #[must_use]
    pub fn is_transposed(self) -> bool {
        Self::GPT2.contains(&self)
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_peft_reads_them() {
        for module in Module::ALL {
            assert_eq!(Module::from_target(module.name()), [module]);
            assert_eq!(serde_json::to_value(module).unwrap(), module.name());
            assert_eq!(Module::from_name(module.name()), Some(module));
        }
        assert_eq!(Module::from_target("c_proj"), [Module::AttnCProj, Module::MlpCProj]);
        assert_eq!(Module::from_target("mlp.c_fc"), [Module::CFc]);
        assert!(Module::from_target("proj").is_empty());
        assert!(Module::from_target("").is_empty());
    }
}
