//! `adapter_config.json`: which settings of `peft` are read, which say nothing about the mathematics, which are refused.
//!
//! A key that is not known here is passed over when its value turns it off (`null`, `false`, nothing in it) and refused
//! otherwise: it may change what the adapter computes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::adapters::{
    AdaLoraConfig, Adapter, AdapterConfig, Ia3Config, Kind, LoraConfig, Method, Module, ModuleAdapter, Sites,
};
use crate::error::{ModelError, Result};

/// Keys without effect on what a stored adapter computes: where it came from, how its training began or was regularised, and
/// numbers that only act together with a switch.
const WITHOUT_EFFECT: [&str; 13] = [
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "init_ia3_weights",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
    "fan_in_fan_out", // checked apart: only a matter of how the base stores its matrix
];

/// Keys that are read for each method.
const OF_LORA: [&str; 7] = ["r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "bias", "init_lora_weights"];
const OF_ADALORA: [&str; 15] = [
    "r", // has no meaning for AdaLoRA
    "init_r",
    "target_r",
    "lora_alpha",
    "tinit",
    "tfinal",
    "deltaT",
    "beta1",
    "beta2",
    "orth_reg_weight",
    "total_step",
    "rank_pattern",
    "target_modules",
    "bias",
    "init_lora_weights",
];
const OF_IA3: [&str; 2] = ["target_modules", "feedforward_modules"];

/// First values that leave the base model as it was. The others (`pissa`, `olora`, `loftq` …) change it, so that the adapter
/// belongs to a base that nobody has stored.
const INIT_KEEPS_BASE: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// What a file says.
pub(super) struct Stored {
    pub config: AdapterConfig,
    /// Ranks of AdaLoRA's modules by path, where they were pruned.
    pub ranks: BTreeMap<String, usize>,
}

pub(super) fn write(adapter: &Adapter, base_model: &str) -> Value {
    let (config, sites) = (adapter.config(), adapter.sites());
    let task_type = match sites.kind() {
        Kind::Decoder => "CAUSAL_LM",
        Kind::EncoderDecoder => "SEQ_2_SEQ_LM",
    };
    let names = |modules: &[Module]| modules.iter().map(|module| sites.name(*module)).collect::<Vec<_>>();
    let mut settings = json!({
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "target_modules": names(&config.target_modules),
        "fan_in_fan_out": config.target_modules.iter().any(|module| module.is_transposed()),
        "inference_mode": true,
        "modules_to_save": null,
        "revision": null,
    });
    let of_method = match &config.method {
        Method::Lora(lora) => json!({
            "peft_type": "LORA",
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": 0.0,
            "use_rslora": lora.use_rslora,
            "use_dora": lora.use_dora,
            "bias": "none",
            "init_lora_weights": true,
            "layers_to_transform": null,
            "layers_pattern": null,
            "rank_pattern": {},
            "alpha_pattern": {},
        }),
        Method::AdaLora(ada) => json!({
            "peft_type": "ADALORA",
            "init_r": ada.init_r,
            "target_r": ada.target_r,
            "lora_alpha": ada.alpha,
            "lora_dropout": 0.0,
            "tinit": ada.tinit,
            "tfinal": ada.tfinal,
            "deltaT": ada.delta_t,
            "beta1": ada.beta1,
            "beta2": ada.beta2,
            "orth_reg_weight": ada.orth_reg_weight,
            "total_step": ada.total_step,
            "rank_pattern": rank_pattern(adapter, ada),
            "bias": "none",
            "init_lora_weights": true,
        }),
        Method::Ia3(ia3) => json!({
            "peft_type": "IA3",
            "feedforward_modules": names(&ia3.feedforward_modules),
            "init_ia3_weights": true,
        }),
    };
    if let (Some(settings), Value::Object(of_method)) = (settings.as_object_mut(), of_method) {
        settings.extend(of_method);
    }
    settings
}

/// How many of the initial ranks each module kept; `null` when all did. `peft` uses nothing but the number, so the kept ones come
/// first.
fn rank_pattern(adapter: &Adapter, config: &AdaLoraConfig) -> Value {
    let mut pattern = Map::new();
    let mut is_pruned = false;
    for (place, module) in adapter.modules() {
        let ModuleAdapter::AdaLora(ada) = module else { continue };
        let rank = ada.e.elem_count();
        is_pruned |= rank != config.init_r;
        pattern.insert(format!("{}.lora_E", place.path), (0..config.init_r).map(|k| k < rank).collect());
    }
    if is_pruned { pattern.into() } else { Value::Null }
}

pub(super) fn read(settings: &Map<String, Value>, sites: &Sites) -> Result<Stored> {
    let file = File(settings);
    let known = match file.text("peft_type") {
        Some("LORA") => &OF_LORA[..],
        Some("ADALORA") => &OF_ADALORA[..],
        Some("IA3") => &OF_IA3[..],
        _ => return file.refuse("peft_type", "LORA (with use_rslora, use_dora), ADALORA and IA3 are read"),
    };
    let has_none = match settings.get("bias") {
        None | Some(Value::Null) => true,
        Some(value) => value == "none",
    };
    if !has_none {
        return file.refuse("bias", "train with bias none");
    }
    let init = settings.get("init_lora_weights");
    if !matches!(init, None | Some(Value::Bool(_)))
        && !file.text("init_lora_weights").is_some_and(|name| INIT_KEEPS_BASE.contains(&name))
    {
        let remedy =
            "it changes the base model: save with peft's path_initial_model_for_weight_conversion, which makes it LoRA";
        return file.refuse("init_lora_weights", remedy);
    }
    for key in settings.keys().filter(|key| !known.contains(&key.as_str()) && !WITHOUT_EFFECT.contains(&key.as_str())) {
        if !file.is_off(key) {
            return file.refuse(key, "its mathematics is not computed here: train without it");
        }
    }
    let target_modules = file.modules("target_modules", sites)?;
    if file.flag("fan_in_fan_out")? && !target_modules.iter().all(|module| module.is_transposed()) {
        return file
            .refuse("fan_in_fan_out", "only GPT-2 stores its matrices so: the adapter is for another base model");
    }
    let method = match file.text("peft_type") {
        Some("LORA") => Method::Lora(LoraConfig {
            rank: file.number("r")?,
            alpha: file.real("lora_alpha")? as f32,
            use_rslora: file.flag("use_rslora")?,
            use_dora: file.flag("use_dora")?,
        }),
        Some("ADALORA") => Method::AdaLora(AdaLoraConfig {
            init_r: file.number("init_r")?,
            target_r: file.number("target_r")?,
            alpha: file.real("lora_alpha")? as f32,
            tinit: file.number("tinit")?,
            tfinal: file.number("tfinal")?,
            delta_t: file.number("deltaT")?,
            beta1: file.real("beta1")?,
            beta2: file.real("beta2")?,
            orth_reg_weight: file.real("orth_reg_weight")?,
            total_step: file.number("total_step")?,
        }),
        _ => Method::Ia3(Ia3Config {
            feedforward_modules: match file.is_off("feedforward_modules") {
                true => Vec::new(),
                false => file.modules("feedforward_modules", sites)?,
            },
        }),
    };
    Ok(Stored { config: AdapterConfig { method, target_modules }, ranks: file.ranks()? })
}

/// The settings with typed access.
struct File<'a>(&'a Map<String, Value>);

impl File<'_> {
    fn refuse<T>(&self, key: &str, remedy: &'static str) -> Result<T> {
        let value = self.0.get(key).unwrap_or(&Value::Null).to_string();
        Err(ModelError::UnsupportedAdapter { key: key.to_owned(), value, remedy })
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    /// A switch; off when it is absent.
    fn flag(&self, key: &str) -> Result<bool> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(is_on)) => Ok(*is_on),
            Some(_) => self.refuse(key, "give true or false"),
        }
    }

    fn number(&self, key: &str) -> Result<usize> {
        let number = self.0.get(key).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
        number.map_or_else(|| self.refuse(key, "give a whole number"), Ok)
    }

    fn real(&self, key: &str) -> Result<f64> {
        self.0.get(key).and_then(Value::as_f64).map_or_else(|| self.refuse(key, "give a number"), Ok)
    }

    fn is_off(&self, key: &str) -> bool {
        match self.0.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(_) => false,
        }
    }

    fn modules(&self, key: &str, sites: &Sites) -> Result<Vec<Module>> {
        let remedy = "give a list of names; peft accepts patterns, which are not read here";
        let names: Option<Vec<&str>> =
            self.0.get(key).and_then(Value::as_array).and_then(|names| names.iter().map(Value::as_str).collect());
        let Some(names) = names else { return self.refuse(key, remedy) };
        let mut modules = Vec::new();
        for name in names {
            modules.extend(sites.targeted(name)?);
        }
        modules.sort_unstable();
        modules.dedup();
        Ok(modules)
    }

    /// `rank_pattern` of AdaLoRA: for each module which of its initial ranks were kept.
    fn ranks(&self) -> Result<BTreeMap<String, usize>> {
        let (mut ranks, remedy) = (BTreeMap::new(), "give for each lora_E a list of true and false");
        let pattern = match self.0.get("rank_pattern") {
            None | Some(Value::Null) => return Ok(ranks),
            Some(Value::Object(pattern)) => pattern,
            Some(_) => return self.refuse("rank_pattern", remedy),
        };
        for (name, kept) in pattern {
            let path = name.strip_suffix(".default").unwrap_or(name).strip_suffix(".lora_E");
            let kept: Option<Vec<bool>> = kept.as_array().and_then(|kept| kept.iter().map(Value::as_bool).collect());
            let (Some(path), Some(kept)) = (path, kept) else { return self.refuse("rank_pattern", remedy) };
            ranks.insert(path.to_owned(), kept.into_iter().filter(|kept| *kept).count());
        }
        Ok(ranks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layout, ModelConfig};

    fn sites(layout: Layout) -> Sites {
        Sites::from(&ModelConfig { layout, ..ModelConfig::tiny() })
    }

    fn refused(change: Value) -> String {
        let mut settings = json!({
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1, "loftq_config": {},
            "corda_config": null, "use_qalora": false, "qalora_group_size": 16, "megatron_core": "megatron.core",
            "init_lora_weights": "gaussian", "something_of_a_later_version": null
        });
        assert!(
            read(settings.as_object().unwrap(), &sites(Layout::Llama)).is_ok(),
            "what peft writes for plain LoRA is read"
        );
        for (key, value) in change.as_object().unwrap() {
            settings[key] = value.clone();
        }
        read(settings.as_object().unwrap(), &sites(Layout::Llama))
            .err()
            .map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn other_mathematics_is_refused_with_key_value_and_remedy() {
        for (change, wanted) in [
            (json!({"peft_type": "VERA"}), "peft_type = \"VERA\""),
            (json!({"bias": "all"}), "bias = \"all\" is not supported; train with bias none"),
            (json!({"bias": true}), "bias = true is not supported; train with bias none"),
            (json!({"use_rslora": 1}), "use_rslora = 1 is not supported; give true or false"),
            (json!({"use_dora": "yes"}), "use_dora = \"yes\" is not supported; give true or false"),
            (json!({"fan_in_fan_out": true}), "fan_in_fan_out = true"),
            (json!({"fan_in_fan_out": "false"}), "fan_in_fan_out = \"false\" is not supported; give true or false"),
            (json!({"modules_to_save": ["lm_head"]}), "modules_to_save = [\"lm_head\"]"),
            (json!({"rank_pattern": {"q_proj": 2}}), "rank_pattern = {\"q_proj\":2}"),
            (json!({"init_lora_weights": "pissa"}), "init_lora_weights = \"pissa\""),
            (json!({"something_of_a_later_version": 3}), "something_of_a_later_version = 3"),
            (json!({"target_modules": "all-linear"}), "target_modules = \"all-linear\""),
            (json!({"r": "four"}), "r = \"four\" is not supported; give a whole number"),
            (json!({"use_dora": true, "trainable_token_indices": [1]}), "trainable_token_indices = [1]"),
            (json!({"peft_type": "IA3"}), "init_lora_weights = \"gaussian\""),
        ] {
            let error = refused(change.clone());
            assert!(error.contains(wanted), "{change}: {error}");
        }
        let error = refused(json!({"target_modules": ["q_proj", "c_attn"]}));
        assert!(error.contains("\"c_attn\"") && error.contains("it has q_proj k_proj v_proj"), "{error}");
    }

    #[test]
    fn ranks_that_are_no_list_of_true_and_false_are_refused() {
        let mut settings = json!({
            "peft_type": "ADALORA", "target_modules": ["q_proj"], "lora_alpha": 8, "init_r": 3, "target_r": 2, "tinit": 1,
            "tfinal": 1, "deltaT": 1, "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5, "total_step": 9
        });
        let path = "model.layers.0.self_attn.q_proj";
        let mut read_with = |pattern: Value| {
            settings["rank_pattern"] = pattern;
            read(settings.as_object().unwrap(), &sites(Layout::Llama)).map(|stored| stored.ranks)
        };
        assert!(read_with(Value::Null).unwrap().is_empty());
        let kept = read_with(json!({format!("{path}.lora_E"): [true, false, true]})).unwrap();
        assert_eq!(kept, BTreeMap::from([(path.to_owned(), 2)]));
        for wrong in [json!(3), json!({path: [true]}), json!({format!("{path}.lora_E"): [1, 0, 1]})] {
            let error = read_with(wrong.clone()).unwrap_err().to_string();
            assert!(
                error.contains("rank_pattern = ") && error.contains("a list of true and false"),
                "{wrong}: {error}"
            );
        }
    }

    #[test]
    fn targets_of_gpt2_are_read_by_suffix_and_stored_transposed() {
        let settings = json!({
            "peft_type": "IA3", "target_modules": ["c_attn", "c_proj"], "feedforward_modules": ["mlp.c_proj"],
            "fan_in_fan_out": true
        });
        let stored = read(settings.as_object().unwrap(), &sites(Layout::Gpt2)).unwrap();
        assert_eq!(stored.config.target_modules, [Module::CAttn, Module::AttnCProj, Module::MlpCProj]);
        assert_eq!(stored.config.method, Method::Ia3(Ia3Config { feedforward_modules: vec![Module::MlpCProj] }));
        let error = read(settings.as_object().unwrap(), &sites(Layout::Phi3)).err().unwrap().to_string();
        assert!(
            error.contains("\"c_attn\"") && error.contains("it has qkv_proj o_proj gate_up_proj down_proj"),
            "{error}"
        );
    }
}
