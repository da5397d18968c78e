//! Settings of an adapter, with the names of `peft`.

use serde::{Deserialize, Serialize};

use super::Module;
use crate::error::{ModelError, Result};

/// Method and place of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// What is trained.
    pub method: Method,
    /// Which modules carry an adapter; no repetition.
    pub target_modules: Vec<Module>,
}

/// What is trained, with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// LoRA, rsLoRA and DoRA.
    Lora(LoraConfig),
    /// AdaLoRA.
    AdaLora(AdaLoraConfig),
    /// IA³.
    Ia3(Ia3Config),
}

/// Settings of LoRA and DoRA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Inner size, `r` of `peft`; at least 1.
    pub rank: usize,
    /// Numerator of the scale, `lora_alpha` of `peft`.
    pub alpha: f32,
    /// Scale by `alpha / √rank` instead of `alpha / rank` (Kalajdzievski 2023).
    #[serde(default)]
    pub use_rslora: bool,
    /// Train the length of each row apart from its direction (Liu et al. 2024).
    #[serde(default)]
    pub use_dora: bool,
}

/// Settings of AdaLoRA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaLoraConfig {
    /// Rank of every module at the start.
    pub init_r: usize,
    /// Average rank at the end; at most `init_r`.
    pub target_r: usize,
    /// Numerator of the scale `alpha / init_r`, `lora_alpha` of `peft`.
    pub alpha: f32,
    /// Steps before the budget begins to fall.
    pub tinit: usize,
    /// Steps at the end in which the ranks stay as they are.
    pub tfinal: usize,
    /// Steps between two allocations, `deltaT` of `peft`.
    #[serde(rename = "deltaT")]
    pub delta_t: usize,
    /// Smoothing of the sensitivity, within 0 and 1.
    pub beta1: f64,
    /// Smoothing of the uncertainty, within 0 and 1.
    pub beta2: f64,
    /// Weight of the orthogonality term; 0 turns it off.
    pub orth_reg_weight: f64,
    /// Steps of the whole run.
    pub total_step: usize,
}

/// Settings of IA³.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ia3Config {
    /// Those of the target modules whose inputs are multiplied, instead of their outputs.
    pub feedforward_modules: Vec<Module>,
}

impl Default for AdapterConfig {
    /// LoRA of rank 16 and alpha 32 on all seven projections of a Llama layer: the usual start for small corpora.
    fn default() -> Self {
        Self { method: Method::Lora(LoraConfig::default()), target_modules: Module::LLAMA.to_vec() }
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, use_rslora: false, use_dora: false }
    }
}

impl AdaLoraConfig {
    /// `peft`'s ranks, smoothing and orthogonality for a run of `total_step` steps. The budget falls from a tenth of the steps
    /// on and rests in the second half: about the shares of the paper's experiments (appendix, tables of `t_i` and `t_f`).
    #[must_use]
    pub fn for_steps(total_step: usize) -> Self {
        Self {
            init_r: 12,
            target_r: 8,
            alpha: 32.0,
            tinit: total_step / 10,
            tfinal: total_step / 2,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step,
        }
    }

    /// `k`, as `peft` computes it: its rank holds a small number against division by zero.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.alpha / (self.init_r as f32 + 1e-5)
    }
}

impl Ia3Config {
    /// Inputs are multiplied at the last projection of the feed-forward layer, outputs elsewhere.
    #[must_use]
    pub fn for_targets(target_modules: &[Module]) -> Self {
        let ends = |module: &Module| module.ends_feed_forward();
        Self { feedforward_modules: target_modules.iter().copied().filter(ends).collect() }
    }
}

impl LoraConfig {
    /// `s`.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

impl AdapterConfig {
    /// LoRA on all modules.
    #[must_use]
    pub fn lora(rank: usize, alpha: f32) -> Self {
        Self { method: Method::Lora(LoraConfig { rank, alpha, ..LoraConfig::default() }), ..Self::default() }
    }

    /// IA³ as in its paper and in `peft`: keys and values are multiplied, and the inputs of the last feed-forward projection.
    /// Where queries share a matrix with keys and values they are multiplied, too.
    #[must_use]
    pub fn ia3(existing: &[Module]) -> Self {
        let usual = |module: &Module| module.makes_keys_or_values() || module.ends_feed_forward();
        let target_modules: Vec<Module> = existing.iter().copied().filter(usual).collect();
        Self { method: Method::Ia3(Ia3Config::for_targets(&target_modules)), target_modules }
    }

    /// The settings of AdaLoRA where that is the method.
    #[must_use]
    pub fn adalora(&self) -> Option<&AdaLoraConfig> {
        match &self.method {
            Method::AdaLora(config) => Some(config),
            _ => None,
        }
    }

    /// Refuses what cannot be: rank 0, no, repeated or absent modules, a scale that is not a positive number, a budget without
    /// a phase to fall in. `existing` are the model's modules.
    pub fn validate(&self, existing: &[Module]) -> Result<()> {
        let names = |modules: &[Module]| format!("{:?}", modules.iter().map(|m| m.name()).collect::<Vec<_>>());
        if let Some(absent) = self.target_modules.iter().find(|module| !existing.contains(module)) {
            return Err(Module::unknown(absent.name(), existing));
        }
        let mut modules = self.target_modules.clone();
        modules.sort_unstable();
        modules.dedup();
        if modules.is_empty() || modules.len() != self.target_modules.len() {
            return bad("target_modules", names(&self.target_modules), "name at least one module, each once");
        }
        match &self.method {
            Method::Lora(lora) => {
                positive_rank("rank", lora.rank)?;
                positive("alpha", lora.alpha)
            }
            Method::AdaLora(ada) => ada.validate(),
            Method::Ia3(ia3) => match ia3.feedforward_modules.iter().all(|module| modules.contains(module)) {
                true => Ok(()),
                false => bad(
                    "feedforward_modules",
                    names(&ia3.feedforward_modules),
                    "name only modules that target_modules names, too",
                ),
            },
        }
    }
}

impl AdaLoraConfig {
    fn validate(&self) -> Result<()> {
        positive_rank("init_r", self.init_r)?;
        positive_rank("target_r", self.target_r)?;
        positive("alpha", self.alpha)?;
        if self.target_r > self.init_r {
            return bad("target_r", self.target_r.to_string(), "choose at most init_r: ranks are only taken away");
        }
        if self.delta_t == 0 {
            return bad("deltaT", "0".into(), "choose 1 or more");
        }
        for (key, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(beta > 0.0 && beta < 1.0) {
                return bad(key, beta.to_string(), "choose a number above 0 and below 1, usually 0.85");
            }
        }
        if !(self.orth_reg_weight >= 0.0 && self.orth_reg_weight.is_finite()) {
            return bad("orth_reg_weight", self.orth_reg_weight.to_string(), "choose 0 or a positive number");
        }
        // the last allocation needs an importance, which steps before it measure
        let last = self.total_step.saturating_sub(self.tfinal);
        if self.tinit >= last || last < 2 {
            let value = format!("{} with tinit {} and tfinal {}", self.total_step, self.tinit, self.tfinal);
            return bad("total_step", value, "leave steps between tinit and tfinal: lower them or train longer");
        }
        Ok(())
    }
}

fn positive_rank(key: &'static str, rank: usize) -> Result<()> {
    if rank > 0 { Ok(()) } else { bad(key, "0".into(), "choose a rank of 1 or more, usually 8 to 64") }
}

fn positive(key: &'static str, value: f32) -> Result<()> {
    let remedy = "choose a positive number, usually the rank or twice the rank";
    if value > 0.0 && value.is_finite() { Ok(()) } else { bad(key, value.to_string(), remedy) }
}

fn bad(key: &'static str, value: String, remedy: &'static str) -> Result<()> {
    Err(ModelError::UnsupportedAdapter { key: key.to_owned(), value, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(method: Method) -> String {
        AdapterConfig { method, ..AdapterConfig::default() }.validate(&Module::ALL).unwrap_err().to_string()
    }

    #[test]
    fn impossible_settings_are_refused_with_key_value_and_remedy() {
        let lora = |rank, alpha| Method::Lora(LoraConfig { rank, alpha, ..LoraConfig::default() });
        assert!(refused(lora(0, 1.0)).contains("rank = 0"));
        assert!(refused(lora(1, f32::NAN)).contains("alpha = NaN"));
        let ada = |change: fn(&mut AdaLoraConfig)| {
            let mut config = AdaLoraConfig::for_steps(100);
            change(&mut config);
            refused(Method::AdaLora(config))
        };
        assert!(ada(|c| c.target_r = 13).contains("target_r = 13"));
        assert!(ada(|c| c.init_r = 0).contains("init_r = 0"));
        assert!(ada(|c| c.beta1 = 1.0).contains("beta1 = 1"));
        assert!(ada(|c| c.delta_t = 0).contains("deltaT = 0"));
        assert!(ada(|c| c.tinit = 50).contains("total_step = 100 with tinit 50 and tfinal 50"));
        assert!(ada(|c| c.orth_reg_weight = -1.0).contains("orth_reg_weight = -1"));
        let ia3 = AdapterConfig {
            method: Method::Ia3(Ia3Config { feedforward_modules: vec![Module::Down] }),
            target_modules: vec![Module::K],
        };
        assert!(ia3.validate(&Module::ALL).unwrap_err().to_string().contains("feedforward_modules"));
    }

    #[test]
    fn modules_must_exist_once() {
        let with = |target_modules: Vec<Module>, existing: &[Module]| {
            AdapterConfig { target_modules, ..AdapterConfig::default() }.validate(existing).unwrap_err().to_string()
        };
        assert!(with(vec![], &Module::ALL).contains("at least one"));
        assert!(with(vec![Module::Q, Module::Q], &Module::ALL).contains("each once"));
        let absent = with(vec![Module::Q, Module::Gate], &[Module::Q, Module::K]);
        assert!(absent.contains("gate_proj") && absent.contains("q_proj k_proj"), "{absent}");
    }
}
