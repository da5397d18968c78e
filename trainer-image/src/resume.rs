//! Going on from the newest checkpoint that can be read.

use std::path::Path;

use tunesmith_contract::job::Location;
use tunesmith_model::{ModelError, peft};
use tunesmith_training::{Dataset, Trainer, TrainingConfig, TrainingError};

use crate::{
    base::Base,
    blocking::blocking,
    checkpoints::{BEST, Checkpoints, RunState},
    context::Context,
    error::{Result, TrainerError},
    settings::differences,
    store::Store,
};

/// Goes on from the newest checkpoint that can be read; `None` when there is none.
pub async fn resume(
    checkpoints: &Checkpoints,
    base: &Base,
    train: &Dataset,
    config: &TrainingConfig,
    context: &Context,
) -> Result<Option<(Trainer, RunState)>> {
    for step in checkpoints.finished().await? {
        let location = checkpoints.location(step);
        match resume_from(checkpoints, step, base, train, &context.store, &context.scratch).await {
            Ok((mut trainer, state)) => {
                let differs = differences(trainer.config(), config);
                if !differs.is_empty() {
                    return Err(TrainerError::OtherSettings { location, differs: differs.join(", ") });
                }
                trainer.resplit(config.batch_size, config.accumulation)?;
                trainer.limit_memory(config.recompute, config.memory_limit_mb)?;
                tracing::info!(step, from = %location, "resuming");
                return Ok(Some((trainer, state)));
            }
            Err(error) if is_damage(&error) => {
                tracing::warn!(%error, %location, "this checkpoint is damaged; trying the one before")
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

async fn resume_from(
    checkpoints: &Checkpoints,
    step: u32,
    base: &Base,
    train: &Dataset,
    store: &Store,
    scratch: &Path,
) -> Result<(Trainer, RunState)> {
    let (folder, state) = checkpoints.fetch(step).await?;
    let (from, model, train, config) = (folder.clone(), base.model.clone(), train.clone(), base.model.config().clone());
    let best = state.best.is_some().then(|| folder.join(BEST));
    let trainer = blocking(move || {
        if let Some(best) = best {
            peft::load(&best, &config)?;
        }
        Ok(Trainer::resume(&from, model, train)?)
    })
    .await?;
    if state.best.is_some() {
        store.upload_folder(&folder.join(BEST), &Location::Local(scratch.join(BEST))).await?;
    }
    std::fs::remove_dir_all(&folder).map_err(TrainerError::io(&folder))?;
    Ok((trainer, state))
}

/// Damage that an older checkpoint may not have. Another dataset or base model is none: there every checkpoint is wrong.
fn is_damage(error: &TrainerError) -> bool {
    matches!(
        error,
        TrainerError::Training(TrainingError::CheckpointCorrupt { .. })
            | TrainerError::Model(ModelError::BadSafetensors { .. } | ModelError::Io { .. } | ModelError::Json { .. })
            | TrainerError::Missing { .. }
            | TrainerError::Json { .. }
    )
}
