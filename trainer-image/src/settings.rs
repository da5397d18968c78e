//! From the settings people write to those of the training crate.

use tunesmith_contract::settings::TrainingSettings;
use tunesmith_model::Module;
use tunesmith_training::TrainingConfig;

use crate::error::{Result, TrainerError};

/// The training crate's settings for a training split of `num_sequences` sequences.
///
/// # Errors
/// [`TrainerError::Usage`] for a target module that does not exist.
pub fn training_config(settings: &TrainingSettings, num_sequences: usize) -> Result<TrainingConfig> {
    let module = |name: &String| {
        let unknown =
            || TrainerError::Usage(format!("training.target_modules: {name:?} is no projection of any architecture"));
        Module::from_name(name).ok_or_else(unknown)
    };
    let mut config = TrainingConfig {
        rank: settings.rank as usize,
        alpha: settings.alpha as f32,
        target_modules: settings.target_modules.iter().map(module).collect::<Result<_>>()?,
        learning_rate: settings.learning_rate,
        warmup_ratio: settings.warmup_ratio,
        epochs: settings.epochs as usize,
        batch_size: settings.batch_size as usize,
        accumulation: settings.accumulation as usize,
        sequence_length: settings.sequence_length as usize,
        weight_decay: settings.weight_decay,
        clip_norm: settings.clip_norm,
        seed: settings.seed,
        checkpoint_every: settings.checkpoint_every as usize,
        ..TrainingConfig::default()
    };
    // `max_steps` shortens a run and never lengthens it
    let limit = settings.max_steps as usize;
    config.max_steps = (limit > 0 && limit < config.total_steps(num_sequences)).then_some(limit);
    Ok(config)
}

/// The settings in which two configurations differ in a way that changes the result.
#[must_use]
pub fn differences(a: &TrainingConfig, b: &TrainingConfig) -> Vec<String> {
    let b = TrainingConfig { checkpoint_every: a.checkpoint_every, ..b.clone() };
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
        let settings =
            |max_steps| TrainingSettings { max_steps, epochs: 2, batch_size: 4, ..TrainingSettings::default() };
        let steps = |max_steps| training_config(&settings(max_steps), 10).unwrap().total_steps(10);
        assert_eq!((steps(0), steps(4), steps(100)), (6, 4, 6));
    }

    #[test]
    fn differences_are_named_and_checkpoint_every_is_none() {
        let a = training_config(&TrainingSettings::default(), 10).unwrap();
        let b = TrainingConfig { checkpoint_every: 1, ..a.clone() };
        assert!(differences(&a, &b).is_empty());
        assert_eq!(differences(&a, &TrainingConfig { rank: 4, ..b }), ["rank 16 instead of 4"]);
    }
}
