//! From the settings people write to those of the training crate.

use serde_json::Value;
use tunesmith_contract::settings::{self, Method, TrainingSettings};
use tunesmith_model::{AdaLoraConfig, AdapterConfig, Ia3Config, LoraConfig, Module, Quantization};
use tunesmith_training::{Decay, Optimizer, RecomputeSetting, TrainingConfig};

use crate::error::Result;

/// How the base model is to be loaded.
#[must_use]
pub const fn quantization(settings: &TrainingSettings) -> Quantization {
    match settings.quantization {
        settings::Quantization::None => Quantization::None,
        settings::Quantization::Nf4 => Quantization::Nf4,
        settings::Quantization::Q8_0 => Quantization::Q8_0,
        settings::Quantization::Q4K => Quantization::Q4K,
    }
}

/// The training crate's settings for a base model with the modules `existing` and a training split whose sequences have these
/// lengths in tokens.
///
/// # Errors
/// [`tunesmith_model::ModelError::UnknownModule`] for a target module that the base model does not have.
pub fn training_config(settings: &TrainingSettings, existing: &[Module], lengths: &[usize]) -> Result<TrainingConfig> {
    let mut config = TrainingConfig {
        quantization: quantization(settings),
        loraplus_lr_ratio: settings.loraplus_lr_ratio,
        learning_rate: settings.learning_rate,
        schedule: match settings.schedule {
            settings::Schedule::Cosine => Decay::Cosine,
            settings::Schedule::Linear => Decay::Linear,
            settings::Schedule::Constant => Decay::Constant,
            settings::Schedule::Wsd => Decay::Wsd,
        },
        warmup_ratio: settings.warmup_ratio,
        decay_ratio: settings.decay_ratio,
        optimizer: match settings.optimizer {
            settings::Optimizer::AdamW => Optimizer::AdamW,
            settings::Optimizer::AdamW8bit => Optimizer::AdamW8bit,
        },
        epochs: settings.epochs as usize,
        batch_size: settings.batch_size as usize,
        accumulation: settings.accumulation as usize,
        packing: settings.packing,
        sequence_length: settings.sequence_length as usize,
        weight_decay: settings.weight_decay,
        clip_norm: settings.clip_norm,
        seed: settings.seed,
        recompute: match settings.recompute {
            settings::Recompute::Auto => RecomputeSetting::Auto,
            settings::Recompute::Layers => RecomputeSetting::Layers,
            settings::Recompute::Nothing => RecomputeSetting::Nothing,
        },
        memory_limit_mb: settings.memory_limit_mb,
        checkpoint_every: settings.checkpoint_every as usize,
        ..TrainingConfig::default()
    };
    // `max_steps` shortens a run and never lengthens it
    let limit = settings.max_steps as usize;
    let rows = config.num_rows(lengths);
    config.max_steps = (limit > 0 && limit < config.total_steps(rows)).then_some(limit);
    config.adapter = adapter(settings, existing, config.total_steps(rows))?;
    Ok(config)
}

/// The adapter of a run of `total` steps, over which AdaLoRA lays out its budget.
fn adapter(settings: &TrainingSettings, existing: &[Module], total: usize) -> Result<AdapterConfig> {
    let modules =
        |names: &[String]| names.iter().map(|name| Module::from_name(name, existing)).collect::<Result<Vec<_>, _>>();
    let target_modules = match (settings.target_modules.is_empty(), settings.method) {
        (false, _) => modules(&settings.target_modules)?,
        (true, Method::Ia3) => AdapterConfig::ia3(existing).target_modules,
        (true, _) => existing.to_vec(),
    };
    let (rank, alpha) = (settings.rank as usize, settings.alpha as f32);
    let lora = |use_rslora, use_dora| tunesmith_model::Method::Lora(LoraConfig { rank, alpha, use_rslora, use_dora });
    let method = match settings.method {
        Method::Lora => lora(false, false),
        Method::Rslora => lora(true, false),
        Method::Dora => lora(false, true),
        Method::Adalora => {
            let (ada, usual) = (&settings.adalora, AdaLoraConfig::for_steps(total));
            tunesmith_model::Method::AdaLora(AdaLoraConfig {
                init_r: ada.init_r as usize,
                target_r: ada.target_r as usize,
                alpha,
                tinit: ada.tinit.map_or(usual.tinit, |steps| steps as usize),
                tfinal: ada.tfinal.map_or(usual.tfinal, |steps| steps as usize),
                delta_t: ada.delta_t as usize,
                beta1: ada.beta1,
                beta2: ada.beta2,
                orth_reg_weight: ada.orth_reg_weight,
                total_step: total,
            })
        }
        Method::Ia3 => tunesmith_model::Method::Ia3(match &settings.feedforward_modules {
            Some(names) => Ia3Config { feedforward_modules: modules(names)? },
            None => Ia3Config::for_targets(&target_modules),
        }),
    };
    Ok(AdapterConfig { method, target_modules })
}

/// The settings in which two configurations differ in a way that changes the result. Another split of the same step into
/// batches does not, nor do recomputed layers: they fit the run to a machine with more or less memory.
#[must_use]
pub fn differences(a: &TrainingConfig, b: &TrainingConfig) -> Vec<String> {
    let TrainingConfig { checkpoint_every, recompute, memory_limit_mb, .. } = *a;
    let mut b = TrainingConfig { checkpoint_every, recompute, memory_limit_mb, ..b.clone() };
    if a.rows_per_step() == b.rows_per_step() {
        (b.batch_size, b.accumulation) = (a.batch_size, a.accumulation);
    }
    let (Ok(a), Ok(b)) = (serde_json::to_value(a), serde_json::to_value(b)) else { return vec!["unreadable".into()] };
    let mut found = Vec::new();
    compare("", &a, &b, &mut found);
    found
}

/// Goes into objects with the same keys, so that the one setting is named which differs.
fn compare(path: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(of_a), Value::Object(of_b)) if of_a.keys().eq(of_b.keys()) => {
            for (key, value) in of_a {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, value, &of_b[key], found);
            }
        }
        _ if a != b => found.push(format!("{path} {a} instead of {b}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_steps_shortens_a_run_and_never_lengthens_it() {
        let settings = |max_steps| TrainingSettings {
            max_steps,
            epochs: 2,
            batch_size: 4,
            sequence_length: 100,
            packing: false,
            ..TrainingSettings::default()
        };
        let steps = |settings: &TrainingSettings| {
            let config = training_config(settings, &Module::LLAMA, &[30; 10]).unwrap();
            config.total_steps(config.num_rows(&[30; 10]))
        };
        assert_eq!([0, 4, 100].map(|max_steps| steps(&settings(max_steps))), [6, 4, 6]);
        // three to a row: four rows, one step an epoch
        assert_eq!(steps(&TrainingSettings { packing: true, ..settings(0) }), 2);
    }

    #[test]
    fn the_budget_of_adalora_is_laid_out_over_the_steps_of_the_run() {
        let mut settings = TrainingSettings { method: Method::Adalora, max_steps: 40, ..TrainingSettings::default() };
        let of = |settings: &TrainingSettings| {
            let ada =
                training_config(settings, &Module::LLAMA, &[256; 1000]).unwrap().adapter.adalora().unwrap().clone();
            (ada.tinit, ada.tfinal, ada.total_step)
        };
        assert_eq!(of(&settings), (4, 20, 40));
        settings.adalora.tinit = Some(7);
        assert_eq!(of(&settings), (7, 20, 40));
    }

    #[test]
    fn differences_are_named_and_what_only_fits_the_machine_is_none() {
        let a = training_config(&TrainingSettings::default(), &Module::LLAMA, &[9; 10]).unwrap();
        let b = TrainingConfig { checkpoint_every: 1, batch_size: 2, accumulation: 4, ..a.clone() };
        assert!(differences(&a, &b).is_empty());
        let other = TrainingConfig { adapter: AdapterConfig::lora(4, 32.0), ..b.clone() };
        assert_eq!(differences(&a, &other), ["adapter.method.lora.rank 16 instead of 4"]);
        let of = |method| {
            let settings = TrainingSettings { method, ..TrainingSettings::default() };
            training_config(&settings, &Module::LLAMA, &[9; 10]).unwrap()
        };
        let dora = of(Method::Dora);
        assert_eq!(differences(&a, &dora), ["adapter.method.lora.use_dora false instead of true"]);
        let ia3 = of(Method::Ia3);
        assert_eq!(differences(&a, &ia3).len(), 2, "method and modules");
        assert_eq!(
            differences(&a, &TrainingConfig { accumulation: 2, ..b }),
            ["accumulation 1 instead of 2", "batch_size 8 instead of 2"]
        );
    }

    #[test]
    fn the_modules_are_those_of_the_base_model() {
        assert_eq!(Module::ALL.map(Module::name), tunesmith_contract::settings::TARGET_MODULES);
        let adapter = |method, target_modules: &[&str], existing: &[Module]| {
            let target_modules = target_modules.iter().map(|name| (*name).to_owned()).collect();
            let settings = TrainingSettings { method, target_modules, ..TrainingSettings::default() };
            training_config(&settings, existing, &[9; 10]).map(|config| config.adapter)
        };
        for existing in [&Module::LLAMA[..], &Module::PHI3, &Module::GPT2] {
            assert_eq!(adapter(Method::Dora, &[], existing).unwrap().target_modules, existing);
            let ia3 = adapter(Method::Ia3, &[], existing).unwrap();
            assert_eq!(ia3, AdapterConfig::ia3(existing));
            ia3.validate(existing).unwrap();
        }
        let ia3 = |feedforward_modules| tunesmith_model::Method::Ia3(Ia3Config { feedforward_modules });
        assert_eq!(adapter(Method::Ia3, &["c_fc"], &Module::GPT2).unwrap().method, ia3(vec![]));
        let gpt2 = adapter(Method::Ia3, &["c_attn", "mlp.c_proj"], &Module::GPT2).unwrap();
        assert_eq!(gpt2.method, ia3(vec![Module::MlpCProj]));
        let error = adapter(Method::Lora, &["q_proj"], &Module::PHI3).unwrap_err().to_string();
        assert!(error.contains("\"q_proj\"") && error.contains("qkv_proj o_proj gate_up_proj down_proj"), "{error}");
    }
}
