//! From the settings people write to those of the training crate.

use serde_json::Value;
use tunesmith_contract::settings::{self, Method, TrainingSettings};
use tunesmith_model::{AdaLoraConfig, AdapterConfig, Ia3Config, LoraConfig, Module};
use tunesmith_training::{Decay, Optimizer, TrainingConfig};

use crate::error::Result;

/// The training crate's settings for a training split whose sequences have these lengths in tokens.
///
/// # Errors
/// [`tunesmith_model::ModelError::UnknownModule`] for a target module that does not exist.
pub fn training_config(settings: &TrainingSettings, lengths: &[usize]) -> Result<TrainingConfig> {
    let mut config = TrainingConfig {
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
        checkpoint_every: settings.checkpoint_every as usize,
        ..TrainingConfig::default()
    };
    // `max_steps` shortens a run and never lengthens it
    let limit = settings.max_steps as usize;
    let rows = config.num_rows(lengths);
    config.max_steps = (limit > 0 && limit < config.total_steps(rows)).then_some(limit);
    config.adapter = adapter(settings, config.total_steps(rows))?;
    Ok(config)
}

/// The adapter of a run of `total` steps, over which AdaLoRA lays out its budget.
fn adapter(settings: &TrainingSettings, total: usize) -> Result<AdapterConfig> {
    let modules = |names: Vec<&str>| {
        names.into_iter().map(|name| Module::from_name(name, &Module::ALL)).collect::<Result<Vec<_>, _>>()
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
        Method::Ia3 => tunesmith_model::Method::Ia3(Ia3Config {
            feedforward_modules: modules(settings.feedforward_modules.iter().map(String::as_str).collect())?,
        }),
    };
    Ok(AdapterConfig { method, target_modules: modules(settings.targets())? })
}

/// The settings in which two configurations differ in a way that changes the result. Another split of the same step into
/// batches does not: it fits the run to a machine with more or less memory.
#[must_use]
pub fn differences(a: &TrainingConfig, b: &TrainingConfig) -> Vec<String> {
    let mut b = TrainingConfig { checkpoint_every: a.checkpoint_every, ..b.clone() };
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
            let config = training_config(settings, &[30; 10]).unwrap();
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
            let ada = training_config(settings, &[256; 1000]).unwrap().adapter.adalora().unwrap().clone();
            (ada.tinit, ada.tfinal, ada.total_step)
        };
        assert_eq!(of(&settings), (4, 20, 40));
        settings.adalora.tinit = Some(7);
        assert_eq!(of(&settings), (7, 20, 40));
    }

    #[test]
    fn differences_are_named_and_what_only_fits_the_machine_is_none() {
        let a = training_config(&TrainingSettings::default(), &[9; 10]).unwrap();
        let b = TrainingConfig { checkpoint_every: 1, batch_size: 2, accumulation: 4, ..a.clone() };
        assert!(differences(&a, &b).is_empty());
        let other = TrainingConfig { adapter: AdapterConfig::lora(4, 32.0), ..b.clone() };
        assert_eq!(differences(&a, &other), ["adapter.method.lora.rank 16 instead of 4"]);
        let dora = training_config(&TrainingSettings { method: Method::Dora, ..TrainingSettings::default() }, &[9; 10])
            .unwrap();
        assert_eq!(differences(&a, &dora), ["adapter.method.lora.use_dora false instead of true"]);
        let ia3 = training_config(&TrainingSettings { method: Method::Ia3, ..TrainingSettings::default() }, &[9; 10])
            .unwrap();
        assert_eq!(differences(&a, &ia3).len(), 2, "method and modules");
        assert_eq!(
            differences(&a, &TrainingConfig { accumulation: 2, ..b }),
            ["accumulation 1 instead of 2", "batch_size 8 instead of 2"]
        );
    }
}
