//! `export`: a trained model in another form.
//!
//! The adapter is stored as Python `peft` reads it, so that form is a checked copy. The others hold base and adapter merged: a
//! model in Hugging Face layout, or one GGUF file with a `Modelfile` for Ollama. Before anything is handed out it is read again and
//! compared with the trained model ([`crate::fidelity`]).
//!
//! The base is taken as it is in its files, also for an adapter that was trained on a quantised one: as in `peft`, where merging
//! into the unquantised base keeps the base's own precision. Such a model is not the one that was evaluated, only near it.
//!
//! What is written lies in the cache until it is complete and compared; the same job started again goes on there. What was compared
//! and is not the trained model is removed: started again, the job writes it anew.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;
use tunesmith_contract::{
    DocumentId, documents,
    job::{ExportFormat, ExportJob, ExportReport, Location},
    settings::TrainingSettings,
};
use tunesmith_model::{
    Adapter, Decoder, ModelError, Quantization, Tokenizer,
    gguf::{Encoding, GgufExport, GgufModel, Modelfile},
    peft, weights,
};
use tunesmith_training::{TrainingError, fidelity::Fidelity, memory::check_export};

use crate::{
    base::{Base, COMPANIONS},
    blocking::blocking,
    context::Context,
    error::{Result, TrainerError},
    evaluation::fetch_adapter,
    fidelity::{self, Exported},
    halt::Halt,
    machine, merge,
    output::{refuse_foreign, remove_left_over},
    progress::Percent,
    room, splits,
};

/// The GGUF file of an export.
pub const GGUF: &str = "model.gguf";
/// What Ollama makes a model from: `ollama create <name> -f Modelfile`.
pub const MODELFILE: &str = "Modelfile";
/// Fewest positions that the `Modelfile` asks for: what Ollama takes where nobody says (its FAQ).
const MIN_NUM_CTX: usize = 4096;
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

/// What the command says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Where the export is and how near it comes to base and adapter.
    #[serde(flatten)]
    pub export: ExportReport,
    /// How the base was stored that the adapter was trained and evaluated on, when not as in its files: then the exported model,
    /// and the one that it was compared with, are only near the evaluated one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_quantization: Option<Quantization>,
}

/// Writes the export and says where it is and how near it comes.
///
/// # Errors
/// [`TrainerError::ExportDiverges`], [`TrainerError::ExportStops`] and [`TrainerError::ExportReads`] when the form is not the trained
/// model; nothing is at the output then. [`TrainingError::ExportTooLarge`] and [`TrainingError::DiskFull`] before anything is written.
pub async fn run(job: &ExportJob, on: Compare, context: &Context) -> Result<Report, Halt> {
    let format = job.format;
    refuse_foreign(job, context).await?;
    let lines = context.stop.or(lines(job, on, context)).await??;
    let base = context.stop.or(base(job, context)).await??;
    let adapter = context.stop.or(fetch_adapter(context, &base, &job.adapter, "adapter")).await??;
    let quantization = adapter.base_quantization();
    let base_quantization = (quantization != Quantization::None).then_some(quantization);
    if base_quantization.is_some() {
        tracing::warn!(
            quantization = quantization.name(),
            "the adapter was trained and evaluated on a quantised base; the export is made of the base as it is in its files, and \
             compared with that"
        );
    }
    let source = source(&base, &adapter)?;
    let to = context.cache.join("exports").join(format!("{}-{}", &source[..16], fidelity::name(format)));
    let length = job.sequence_length.unwrap_or(TrainingSettings::default().sequence_length) as usize;
    let export = Export { format, base, adapter, source, to: to.clone(), output: job.output.clone(), length };
    let written = blocking(move || {
        export.write()?;
        export.compare(&lines)
    });
    let fidelity = context.stop.or(written).await??;
    context.store.upload_folder(&to, &job.output).await?;
    remove_left_over(&to, job, context).await?;
    std::fs::remove_dir_all(&to).map_err(TrainerError::io(&to))?;
    tracing::info!(?format, to = %job.output, tokens = fidelity.tokens, mean_kl = fidelity.mean_kl,
        limit = fidelity::limit(format), same_top = fidelity.same_top, "exported");
    let export = ExportReport {
        output: job.output.clone(),
        format,
        verified: on == Compare::TestSplit,
        tokens: fidelity.tokens,
        mean_kl: fidelity.mean_kl,
        mean_kl_limit: fidelity::limit(format),
        same_top: fidelity.same_top,
        trained_perplexity: fidelity.trained_nll.exp(),
        exported_perplexity: fidelity.exported_nll.exp(),
    };
    Ok(Report { export, base_quantization })
}

/// The base as it is in its files; for the forms that are whole models with room for the second one.
async fn base(job: &ExportJob, context: &Context) -> Result<Base> {
    let loaded = Base::load(&job.base, Quantization::None, None, &context.store, &context.cache).await;
    let base = loaded.map_err(|error| match error {
        // its remedy is a quantization, which an export has not
        TrainerError::Training(TrainingError::BaseTooLarge { needed_mb, limit_mb, .. }) => {
            TrainerError::from(TrainingError::ExportTooLarge { num_models: 1, needed_mb, limit_mb })
        }
        error => error,
    })?;
    if job.format != ExportFormat::PeftAdapter {
        check_export(base.model.config(), machine::memory_limit())?;
    }
    Ok(base)
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

/// Hash of what an export is made of: this program, the adapter, the small files of the base, names, sizes and times of its weights.
fn source(base: &Base, adapter: &Adapter) -> Result<String> {
    let mut content = format!("{}\n{}\n{:?}\n", env!("CARGO_PKG_VERSION"), base.name, adapter.config());
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

/// An export on its way.
struct Export {
    format: ExportFormat,
    base: Base,
    adapter: Arc<Adapter>,
    /// Hash of what it is made of.
    source: String,
    /// Where it grows.
    to: PathBuf,
    /// Where it is handed out.
    output: Location,
    /// Tokens of the longest sequence of training.
    length: usize,
}

impl Export {
    /// Writes the form. Interrupted, it goes on with what is there.
    fn write(&self) -> Result<()> {
        std::fs::create_dir_all(&self.to).map_err(TrainerError::io(&self.to))?;
        match self.format {
            ExportFormat::PeftAdapter => Ok(peft::save(&self.adapter, &self.to, self.base.name.as_str())?),
            ExportFormat::MergedSafetensors => self.write_merged(),
            ExportFormat::GgufF16 => self.write_gguf(Encoding::F16),
            ExportFormat::GgufQ8_0 => self.write_gguf(Encoding::Q8_0),
            ExportFormat::GgufQ4K => self.write_gguf(Encoding::Q4K),
        }
    }

    fn write_merged(&self) -> Result<()> {
        let (from, to) = (&self.base.folder, &self.to);
        // every tensor keeps its number format, so the files keep their sizes
        let names = weights::files(from)?;
        let bytes = room::bytes_of(from, names.iter().map(String::as_str).chain(COMPANIONS))?;
        room::require(to, bytes, &self.output)?;
        let mut percent = Percent::new(fidelity::name(self.format));
        merge::write(from, &self.adapter, to, |done, files| percent.at((100 * done / files.max(1)) as u8))?;
        for name in COMPANIONS.into_iter().filter(|name| from.join(name).exists()) {
            std::fs::copy(from.join(name), to.join(name)).map_err(TrainerError::io(to.join(name)))?;
        }
        Ok(())
    }

    fn write_gguf(&self, encoding: Encoding) -> Result<()> {
        let export = GgufExport {
            folder: &self.base.folder,
            tokenizer: &self.base.tokenizer,
            adapter: Some(&*self.adapter),
            encoding,
            name: self.base.name.as_str(),
            source: &self.source,
        };
        let planned = export.plan()?;
        room::require(&self.to, planned.bytes() as u64, &self.output)?;
        let path = self.to.join(GGUF);
        if path.exists() {
            return Ok(());
        }
        let mut percent = Percent::new(fidelity::name(self.format));
        Ok(planned.write(&path, |progress| percent.at(progress.percent()))?)
    }

    /// Reads the form again and compares it with the trained model. One that cannot be read or is not that model is removed, else
    /// the same job would find it again; what fails for another reason (a split without text, a full disk) keeps it.
    fn compare(&self, lines: &[documents::Example]) -> Result<Fidelity> {
        use TrainerError::{ExportDiverges, ExportReads, ExportStops, Io, Model};

        let (is_damaged, compared) = match self.read() {
            Err(error) => (!matches!(error, Io { .. } | Model(ModelError::Io { .. })), Err(error)),
            Ok(exported) => {
                let compared = fidelity::check(self.format, &self.base, &self.adapter, &exported, lines, self.length);
                let differs = matches!(compared, Err(ExportDiverges { .. } | ExportReads { .. } | ExportStops { .. }));
                (differs, compared)
            }
        };
        if is_damaged {
            // the first error says what is wrong
            let _ = std::fs::remove_dir_all(&self.to);
        }
        compared
    }

    fn read(&self) -> Result<Exported> {
        match self.format {
            ExportFormat::PeftAdapter => Ok(Exported {
                model: self.base.model.clone(),
                adapter: Some(peft::load_onto(&self.to, &self.base.model)?),
                tokenizer: self.base.tokenizer.clone(),
                modelfile: None,
            }),
            ExportFormat::MergedSafetensors => Ok(Exported {
                model: Arc::new(Decoder::load(&self.to)?),
                adapter: None,
                tokenizer: Arc::new(Tokenizer::load(&self.to)?),
                modelfile: None,
            }),
            ExportFormat::GgufF16 | ExportFormat::GgufQ8_0 | ExportFormat::GgufQ4K => {
                let GgufModel { decoder, tokenizer } = GgufModel::open(&self.to.join(GGUF))?;
                let num_ctx = num_ctx(decoder.config().max_position_embeddings, self.length);
                let modelfile = modelfile_beside(&tokenizer, num_ctx, &self.to)?;
                Ok(Exported { model: Arc::new(decoder), adapter: None, tokenizer: Arc::new(tokenizer), modelfile })
            }
        }
    }
}

/// Positions that the `Modelfile` asks for: as many as the model was trained on, at least [`MIN_NUM_CTX`], and never more than it has.
/// Ollama reserves the cache of all of them when it loads a model, which for the 131,072 of Llama 3.1 8B are 16 GB. Whoever wants more
/// changes the line.
fn num_ctx(positions: usize, trained_on: usize) -> usize {
    positions.min(trained_on.max(MIN_NUM_CTX))
}

/// Ollama's file. A template that it cannot write leaves it out: with a guessed one the model would answer gibberish.
fn modelfile_beside(tokenizer: &Tokenizer, num_ctx: usize, to: &Path) -> Result<Option<Modelfile>> {
    match Modelfile::new(GGUF, tokenizer, num_ctx) {
        Ok(modelfile) => {
            let path = to.join(MODELFILE);
            std::fs::write(&path, modelfile.text()).map_err(TrainerError::io(path))?;
            Ok(Some(modelfile))
        }
        Err(error @ ModelError::NotInGguf { .. }) => {
            tracing::warn!(%error, "no Modelfile was written");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_model::AdapterConfig;

    use super::*;

    #[test]
    fn ollama_is_asked_for_what_the_model_was_trained_on_and_not_for_all_of_llama_3() {
        assert_eq!(num_ctx(131_072, 512), 4096);
        assert_eq!(num_ctx(131_072, 8192), 8192);
        assert_eq!(num_ctx(1024, 512), 1024);
    }

    #[test]
    fn an_export_that_cannot_be_read_is_removed_and_the_next_attempt_succeeds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("base-model");
        let (model, tokenizer) = (Decoder::load(&folder).unwrap(), Tokenizer::load(&folder).unwrap());
        let adapter = Adapter::new(AdapterConfig::lora(2, 4.0), &model, 1).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let base = Base {
            name: "tunesmith-mini".parse().unwrap(),
            folder,
            model: Arc::new(model),
            tokenizer: Arc::new(tokenizer),
        };
        let export = Export {
            format: ExportFormat::GgufF16,
            base,
            adapter: Arc::new(adapter),
            source: "0".to_owned(),
            to: cache.path().join("export"),
            output: Location::Local(cache.path().join("out")),
            length: 64,
        };
        let document = DocumentId::of(SENTENCE.as_bytes());
        let lines = [documents::Example::Text { text: SENTENCE.to_owned(), document }];
        // as if an earlier version had written it
        std::fs::create_dir(&export.to).unwrap();
        std::fs::write(export.to.join(GGUF), "no GGUF file").unwrap();
        export.write().unwrap();
        let error = export.compare(&lines).unwrap_err();
        assert!(matches!(error, TrainerError::Model(ModelError::BadGguf { .. })), "{error}");
        assert!(!export.to.exists(), "the damaged file is not found again");
        export.write().unwrap();
        // a split without text says nothing of the file
        export.compare(&[]).unwrap_err();
        assert!(export.to.join(GGUF).exists());
        assert!(export.compare(&lines).unwrap().tokens > 5);
        assert!(export.to.join(MODELFILE).exists());
    }
}
