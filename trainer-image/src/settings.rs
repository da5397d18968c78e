//! From the settings people write to those of the training crate.

use tunesmith_contract::settings::{self, TrainingSettings};
use tunesmith_model::Module;
use tunesmith_training::{Decay, Optimizer, TrainingConfig};

use crate::error::{Result, TrainerError};

/// The training crate's settings for a training split whose sequences have these lengths in tokens.
///
/// # Errors
/// [`TrainerError::Usage`] for a target module that does not exist.
pub fn training_config(settings: &TrainingSettings, lengths: &[usize]) -> Result<TrainingConfig> {
    let module = |name: &String| {
        let unknown =
            || TrainerError::Usage(format!("training.target_modules: {name:?} is no projection of a Llama layer"));
        Module::from_name(name).ok_or_else(unknown)
    };
    let mut config = TrainingConfig {
        rank: settings.rank as usize,
        alpha: settings.alpha as f32,
        target_modules: settings.target_modules.iter().map(module).collect::<Result<_>>()?,
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
    Ok(config)
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
    let keys = a.as_object().into_iter().flat_map(|map| map.keys());
    let differing = keys.filter(|key| a.get(key) != b.get(key));
    differing.map(|key| format!("{key} {} instead of {}", a[key], b[key])).collect()
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
    fn differences_are_named_and_what_only_fits_the_machine_is_none() {
        let a = training_config(&TrainingSettings::default(), &[9; 10]).unwrap();
        let b = TrainingConfig { checkpoint_every: 1, batch_size: 2, accumulation: 4, ..a.clone() };
        assert!(differences(&a, &b).is_empty());
        assert_eq!(differences(&a, &TrainingConfig { rank: 4, ..b.clone() }), ["rank 16 instead of 4"]);
        assert_eq!(
            differences(&a, &TrainingConfig { accumulation: 2, ..b }),
            ["accumulation 1 instead of 2", "batch_size 8 instead of 2"]
        );
    }
}
