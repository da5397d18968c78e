//! The machine's NVIDIA cards, for a build that has the GPU's half of the engine (feature `cuda`): the base model is put on each.
//!
//! `CUDA_VISIBLE_DEVICES` hides cards, all of them when it is empty. What has no kernel the processor computes, and the log says so;
//! where `TUNESMITH_GPU` is `required`, as on a machine that is paid for its GPU, it is refused instead.

use tunesmith_contract::settings::TrainingSettings;
use tunesmith_model::Decoder;

use crate::error::Result;

/// Puts the model on every card that there is.
///
/// # Errors
/// [`tunesmith_model::ModelError::NoGpu`], [`tunesmith_model::ModelError::OldDriver`] and
/// [`tunesmith_model::ModelError::UnknownArchitecture`] when there is a card, and not the libraries that it needs;
/// [`tunesmith_model::ModelError::GpuMemory`] when the model does not fit.
#[cfg(feature = "cuda")]
pub fn use_all(model: &mut Decoder, settings: &TrainingSettings) -> Result<()> {
    use tunesmith_contract::settings::Method;
    use tunesmith_model::{ModelError, cuda::driver};

    // a live model on another form of the base is scored once, wherever that can be done
    let is_own = model.quantization() == crate::settings::quantization(settings);
    let or_processor = |reason: String| match std::env::var("TUNESMITH_GPU").as_deref() {
        Ok("required") if is_own => Err(ModelError::NoGpu { reason }.into()),
        _ => {
            tracing::warn!(reason, "the processor computes");
            Ok(())
        }
    };
    let num_cards = driver::num_cards()?;
    if num_cards == 0 {
        return or_processor("there is none, or its driver is missing".to_owned());
    }
    if !matches!(settings.method, Method::Lora | Method::Rslora) {
        return or_processor(format!("{:?} is not computed there yet, only lora and rslora are", settings.method));
    }
    let mut used = 0;
    for ordinal in 0..num_cards {
        let stored = driver::best_stored(ordinal)?;
        match model.add_gpu(ordinal, stored) {
            Ok(()) => {
                let (card, free, total) = driver::card(ordinal)?;
                tracing::info!(ordinal, card, free, total, ?stored, "a GPU computes losses and gradients");
                used += 1;
            }
            Err(error @ ModelError::NotOnGpu { .. }) => tracing::warn!(ordinal, %error, "this GPU is not used"),
            Err(error) => {
                tracing::error!(ordinal, num_cards, "this GPU cannot be used; CUDA_VISIBLE_DEVICES can leave it out");
                return Err(error.into());
            }
        }
    }
    if used == 0 { or_processor("none computes this base model".to_owned()) } else { Ok(()) }
}

/// This build has no GPU's half.
#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "with feature `cuda` it can fail")]
pub const fn use_all(_: &mut Decoder, _: &TrainingSettings) -> Result<()> {
    Ok(())
}
