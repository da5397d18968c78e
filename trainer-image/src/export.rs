//! `export`: a trained model in another form.
//!
//! The adapter is stored as Python `peft` reads it, so that form is a checked copy. The others hold base and adapter merged: a
//! model in Hugging Face layout, or one GGUF file with a `Modelfile` for Ollama. Before anything is handed out it is read again and
//! compared with the trained model ([`crate::fidelity`]).
//!
//! The base is taken as it is in its files, also for an adapter that was trained on a quantised one: as in `peft`, where merging
//! into the unquantised base keeps the base's own precision. Such a model is not the one that was evaluated, only near it.
//!
//! What is written lies in the cache until it is complete and compared; the same job started again goes on there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tunesmith_contract::{
    DocumentId, documents,
    job::{ExportFormat, ExportJob, ExportReport},
    settings::TrainingSettings,
};
use tunesmith_model::{
    Adapter, Decoder, ModelError, Quantization, Tokenizer,
    gguf::{Encoding, GgufExport, GgufModel, modelfile},
    peft,
};
use tunesmith_training::disk;

use crate::{
    base::{Base, COMPANIONS},
    blocking::blocking,
    context::Context,
    error::{Result, TrainerError},
    evaluation::fetch_adapter,
    fidelity::{self, Exported},
    halt::Halt,
    merge,
    progress::Percent,
    splits,
};

/// The GGUF file of an export.
pub const GGUF: &str = "model.gguf";
/// What Ollama makes a model from: `ollama create <name> -f Modelfile`.
pub const MODELFILE: &str = "Modelfile";
/// What is compared without `--verify`.
const SENTENCE: &str = "Does the exported model say the same as the trained one, word for word, and does it stop?";

/// What the written form is compared on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// One sentence: finds a wrong file, not a bad one.
    Sentence,
    /// The test split of the job's dataset.
    TestSplit,
}

/// Writes the export and says where it is and how near it comes.
///
/// # Errors
/// [`TrainerError::ExportDiverges`], [`TrainerError::ExportStops`] and [`TrainerError::ExportReads`] when the form is not the trained
/// model; nothing is at the output then.
pub async fn run(job: &ExportJob, on: Compare, context: &Context) -> Result<ExportReport, Halt> {
    let lines = context.stop.or(lines(job, on, context)).await??;
    let base =
        context.stop.or(Base::load(&job.base, Quantization::None, None, &context.store, &context.cache)).await??;
    let adapter = context.stop.or(fetch_adapter(context, &base, &job.adapter, "adapter")).await??;
    let source = source(&base, &adapter)?;
    let folder = context.cache.join("exports").join(format!("{}-{}", &source[..16], fidelity::name(job.format)));
    let (to, format) = (folder.clone(), job.format);
    let length = job.sequence_length.unwrap_or(TrainingSettings::default().sequence_length) as usize;
    let written = blocking(move || {
        std::fs::create_dir_all(&to).map_err(TrainerError::io(&to))?;
        let exported = write(format, &base, &adapter, &source, &to)?;
        fidelity::check(format, &base, &adapter, &exported, &lines, length)
    });
    let fidelity = context.stop.or(written).await??;
    context.store.upload_folder(&folder, &job.output).await?;
    std::fs::remove_dir_all(&folder).map_err(TrainerError::io(&folder))?;
    tracing::info!(?format, to = %job.output, tokens = fidelity.tokens, mean_kl = fidelity.mean_kl,
        limit = fidelity::limit(format), same_top = fidelity.same_top, "exported");
    Ok(ExportReport {
        output: job.output.clone(),
        format,
        verified: on == Compare::TestSplit,
        tokens: fidelity.tokens,
        mean_kl: fidelity.mean_kl,
        mean_kl_limit: fidelity::limit(format),
        same_top: fidelity.same_top,
        trained_perplexity: fidelity.trained_nll.exp(),
        exported_perplexity: fidelity.exported_nll.exp(),
    })
}

async fn lines(job: &ExportJob, on: Compare, context: &Context) -> Result<Vec<documents::Example>> {
    match (on, &job.dataset) {
        (Compare::TestSplit, Some(dataset)) => splits::read(&context.store, dataset, "test").await,
        (Compare::TestSplit, None) => Err(TrainerError::Usage(
            "--verify compares on a test split, and the job names no dataset; add \"dataset\": the folder of the dataset".into(),
        )),
        (Compare::Sentence, _) => {
            let document = DocumentId::of(SENTENCE.as_bytes());
            Ok(vec![documents::Example::Text { text: SENTENCE.to_owned(), document }])
        }
    }
}

/// Hash of what an export is made of: the adapter, the small files of the base, names, sizes and times of its weights.
fn source(base: &Base, adapter: &Adapter) -> Result<String> {
    let mut content = format!("{}\n{:?}\n", base.name, adapter.config());
    for (name, tensor) in adapter.parameters() {
        let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1::<f32>()).map_err(ModelError::from)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        content.push_str(&format!("{name} {}\n", DocumentId::of(&bytes)));
    }
    let mut files: Vec<PathBuf> = Vec::new();
    for item in std::fs::read_dir(&base.folder).map_err(TrainerError::io(&base.folder))? {
        files.push(item.map_err(TrainerError::io(&base.folder))?.path());
    }
    files.sort();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let meta = std::fs::metadata(&path).map_err(TrainerError::io(&path))?;
        if COMPANIONS.contains(&name.as_str()) {
            let bytes = std::fs::read(&path).map_err(TrainerError::io(&path))?;
            content.push_str(&format!("{name} {}\n", DocumentId::of(&bytes)));
        } else if name.contains(".safetensors") {
            content.push_str(&format!("{name} {} {:?}\n", meta.len(), meta.modified().ok()));
        }
    }
    Ok(DocumentId::of(content.as_bytes()).to_string())
}

/// Writes the form into `to` and reads it again.
fn write(format: ExportFormat, base: &Base, adapter: &Adapter, source: &str, to: &Path) -> Result<Exported> {
    let encoding = match format {
        ExportFormat::PeftAdapter => {
            peft::save(adapter, to, base.name.as_str())?;
            let again = peft::load(to, base.model.config())?;
            return Ok(Exported {
                model: base.model.clone(),
                adapter: Some(again),
                tokenizer: base.tokenizer.clone(),
                modelfile: None,
            });
        }
        ExportFormat::MergedSafetensors => return merged(base, adapter, to),
        ExportFormat::GgufF16 => Encoding::F16,
        ExportFormat::GgufQ8_0 => Encoding::Q8_0,
        ExportFormat::GgufQ4K => Encoding::Q4K,
    };
    let export = GgufExport {
        folder: &base.folder,
        tokenizer: &base.tokenizer,
        adapter: Some(adapter),
        encoding,
        name: base.name.as_str(),
        source,
    };
    let path = to.join(GGUF);
    if !path.exists() {
        let planned = export.plan()?;
        // once here and once at the output, which may be on the same disk
        disk::require(to, 2 * planned.bytes() as u64)?;
        let mut percent = Percent::new(fidelity::name(format));
        planned.write(&path, |progress| percent.at(progress.percent()))?;
    }
    let GgufModel { decoder, tokenizer } = GgufModel::open(&path)?;
    let modelfile = modelfile_beside(&tokenizer, decoder.config().max_position_embeddings, to)?;
    Ok(Exported { model: Arc::new(decoder), adapter: None, tokenizer: Arc::new(tokenizer), modelfile })
}

/// Ollama's file. A template that it cannot write leaves it out: with a guessed one the model would answer gibberish.
fn modelfile_beside(tokenizer: &Tokenizer, num_ctx: usize, to: &Path) -> Result<Option<String>> {
    match modelfile(GGUF, tokenizer, num_ctx) {
        Ok(text) => {
            let path = to.join(MODELFILE);
            std::fs::write(&path, &text).map_err(TrainerError::io(path))?;
            Ok(Some(text))
        }
        Err(error @ ModelError::NotInGguf { .. }) => {
            tracing::warn!(%error, "no Modelfile was written");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn merged(base: &Base, adapter: &Adapter, to: &Path) -> Result<Exported> {
    let bytes = (4 * base.model.config().num_parameters()) as u64; // f32 at most
    disk::require(to, 2 * bytes)?;
    let mut percent = Percent::new(fidelity::name(ExportFormat::MergedSafetensors));
    merge::write(&base.folder, adapter, to, |done, files| percent.at((100 * done / files.max(1)) as u8))?;
    for name in COMPANIONS {
        let from = base.folder.join(name);
        if from.exists() {
            std::fs::copy(&from, to.join(name)).map_err(TrainerError::io(to.join(name)))?;
        }
    }
    Ok(Exported {
        model: Arc::new(Decoder::load(to)?),
        adapter: None,
        tokenizer: Arc::new(Tokenizer::load(to)?),
        modelfile: None,
    })
}
