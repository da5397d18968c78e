//! `export`: a trained model in another form.
//!
//! The adapter is stored as Python `peft` reads it, so that form is a checked copy. The merged form is a model of its own in
//! Hugging Face layout; before it is handed out its logits are compared with those of base and adapter.
//!
//! The base is taken as it is in its files, also for an adapter that was trained on a quantised one: as in `peft`, where merging
//! into the unquantised base keeps the base's own precision. Such a model is not the one that was evaluated, only near it.

use std::path::{Path, PathBuf};

use tunesmith_contract::job::{ExportFormat, ExportJob, Location};
use tunesmith_model::{Adapter, Decoder, Message, Quantization, encode_prompt, peft};

use crate::{
    base::{Base, COMPANIONS},
    blocking::blocking,
    context::Context,
    error::{Result, TrainerError},
    evaluation::fetch_adapter,
    halt::Halt,
    merge::{self, Merged},
};

/// Largest difference of logits that merging in f32 explains: another order of summation.
const ALLOWED_F32: f32 = 1e-3;
/// The same when weights are rounded: half the distance between neighbours of the format, relative, times a bound on how far
/// such errors add up. Measured differences are ten times smaller.
const ALLOWED_ROUNDED: f32 = 64.0;

/// Writes the export and returns where it is.
pub async fn run(job: &ExportJob, context: &Context) -> Result<Location, Halt> {
    let base =
        context.stop.or(Base::load(&job.base, Quantization::None, None, &context.store, &context.cache)).await??;
    let adapter = context.stop.or(fetch_adapter(context, &base, &job.adapter, "adapter")).await??;
    let folder = context.scratch.join("export");
    let (to, format) = (folder.clone(), job.format);
    let written = blocking(move || {
        match format {
            ExportFormat::PeftAdapter => peft::save(&adapter, &to, base.name.as_str())?,
            ExportFormat::MergedSafetensors => merged(&base, &adapter, &to)?,
        }
        Ok(())
    });
    context.stop.or(written).await??;
    context.store.upload_folder(&folder, &job.output).await?;
    tracing::info!(format = ?job.format, to = %job.output, "exported");
    Ok(job.output.clone())
}

fn merged(base: &Base, adapter: &Adapter, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(TrainerError::io(to))?;
    let Merged { epsilon } = merge::write(&base.folder, adapter, to)?;
    for name in COMPANIONS {
        let from = base.folder.join(name);
        if from.exists() {
            copy(&from, to.join(name))?;
        }
    }
    check(base, adapter, to, epsilon)
}

fn copy(from: &Path, to: PathBuf) -> Result<()> {
    std::fs::copy(from, &to).map(drop).map_err(TrainerError::io(to))
}

/// The written model, read again, must answer as base and adapter do.
fn check(base: &Base, adapter: &Adapter, written: &Path, epsilon: f32) -> Result<()> {
    let prompt = [Message::new("user", "Does the exported model say the same?")];
    let tokens = encode_prompt(&base.tokenizer, &prompt).or_else(|_| base.tokenizer.encode(&prompt[0].content))?;
    let wanted = base.model.advance(&mut base.model.new_cache(), &tokens, Some(adapter))?;
    let merged = Decoder::load(written)?;
    let found = merged.advance(&mut merged.new_cache(), &tokens, None)?;
    let largest = wanted.iter().fold(1.0f32, |most, logit| most.max(logit.abs()));
    let difference = wanted.iter().zip(&found).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    let allowed = if epsilon == 0.0 { ALLOWED_F32 } else { ALLOWED_ROUNDED * epsilon } * largest;
    tracing::info!(difference, allowed, "the merged model was compared with base and adapter");
    // not `>`: a NaN must not pass
    if difference <= allowed { Ok(()) } else { Err(TrainerError::ExportDiffers { found: difference, allowed }) }
}
