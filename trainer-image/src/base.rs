//! The base model as a folder of this machine: where it is already, from S3, or from the Hugging Face hub.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tunesmith_contract::{
    BaseModel, DocumentId,
    job::{BaseSource, Location, TrainJob},
};
use tunesmith_model::{
    Decoder, ModelConfig, ModelError, Quantization, Tokenizer,
    weights::{INDEX, SINGLE},
};
use tunesmith_training::memory::check_base;

use crate::{
    blocking::blocking,
    cards,
    context::Context,
    error::{Result, TrainerError},
    hub::from_hub,
    machine,
    store::{Entry, Store},
};

/// A base model, ready to compute.
#[derive(Clone)]
pub struct Base {
    /// Its name.
    pub name: BaseModel,
    /// Its files.
    pub folder: PathBuf,
    /// Its weights.
    pub model: Arc<Decoder>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
}

/// Small files of a model folder, beside its weights; of these only the first two must be there.
pub const COMPANIONS: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

impl Base {
    /// Fetches and loads the model, stored as `quantization` says. `memory_limit_opt` in bytes; none: what the machine has.
    ///
    /// # Errors
    /// [`TrainerError::UnknownBaseModel`] when a file is missing or cannot be used; [`TrainerError::Hub`] when the hub is down;
    /// [`tunesmith_training::TrainingError::BaseTooLarge`] when it would not fit into memory.
    pub async fn load(
        source: &BaseSource,
        quantization: Quantization,
        memory_limit_opt: Option<u64>,
        store: &Store,
        cache: &Path,
    ) -> Result<Self> {
        let folder = fetch(source, store, cache).await?;
        let (name, from, source) = (source.name.clone(), folder.clone(), source.clone());
        blocking(move || {
            let unknown = |error: ModelError| match error {
                // the model is good, the setting does not suit it
                ModelError::Unquantisable { .. } => error.into(),
                error => unknown(&source, error.to_string()),
            };
            let config = ModelConfig::from_file(&from.join(COMPANIONS[0])).map_err(unknown)?;
            check_base(&config, quantization, memory_limit_opt.or_else(machine::memory_limit))?;
            let model = Arc::new(Decoder::load_quantised(&from, quantization).map_err(unknown)?);
            let tokenizer = Arc::new(Tokenizer::load_for(&from, model.config()).map_err(unknown)?);
            Ok(Self { name, folder: from, model, tokenizer })
        })
        .await
    }

    /// The base of a train job, stored as `quantization` says, within the job's memory limit, on the cards of this machine
    /// ([`cards::use_all`]).
    ///
    /// # Errors
    /// As [`Base::load`] and [`cards::use_all`].
    pub async fn of_job(job: &TrainJob, quantization: Quantization, context: &Context) -> Result<Self> {
        let mut base = Self::load(&job.base, quantization, memory_limit(job), &context.store, &context.cache).await?;
        let settings = job.training.clone();
        blocking(move || {
            if let Some(model) = Arc::get_mut(&mut base.model) {
                cards::use_all(model, &settings)?;
            }
            Ok(base)
        })
        .await
    }
}

/// What a train job may take of memory, in bytes: what it says, else what the machine has.
#[must_use]
pub fn memory_limit(job: &TrainJob) -> Option<u64> {
    let said = job.training.memory_limit_mb.map(|mb| mb.saturating_mul(machine::MB));
    said.or_else(machine::memory_limit)
}

/// The folder of the model's files, complete.
///
/// # Errors
/// As [`Base::load`].
pub async fn fetch(source: &BaseSource, store: &Store, cache: &Path) -> Result<PathBuf> {
    match &source.folder {
        Some(Location::Local(folder)) => {
            complete(source, &store.list(&Location::Local(folder.clone())).await?)?;
            Ok(folder.clone())
        }
        Some(remote) => fetch_remote(source, remote, store, cache).await,
        None => {
            let (source, cache) = (source.clone(), cache.to_path_buf());
            blocking(move || from_hub(&source, &cache)).await
        }
    }
}

/// Where downloaded models are kept between runs: `TUNESMITH_CACHE`, else `~/.cache/tunesmith`, else the system's folder for
/// temporary files.
#[must_use]
pub fn cache_folder() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/tunesmith"));
    let chosen = std::env::var_os("TUNESMITH_CACHE").map(PathBuf::from).or_else(home);
    // SageMaker may run a container with a home folder that cannot be written
    chosen
        .filter(|folder| std::fs::create_dir_all(folder).is_ok())
        .unwrap_or_else(|| std::env::temp_dir().join("tunesmith"))
}

/// Downloads once per content: the folder's name holds a hash of all names, sizes and entity tags.
async fn fetch_remote(source: &BaseSource, remote: &Location, store: &Store, cache: &Path) -> Result<PathBuf> {
    let mut entries = store.list(remote).await?;
    // no sub-folders: hubs keep copies in other formats there
    entries.retain(|entry| {
        !entry.name.contains('/')
            && (is_weights(&entry.name) || entry.name.ends_with(".json") || COMPANIONS.contains(&entry.name.as_str()))
    });
    complete(source, &entries)?;
    let mut content = remote.to_string();
    for entry in &entries {
        let tag = store.tag(&remote.join(&entry.name)).await?;
        content.push_str(&format!("\n{} {} {tag}", entry.name, entry.bytes));
    }
    let hash = &DocumentId::of(content.as_bytes()).to_string()[..16];
    let folder = cache.join("models").join(format!("{}-{hash}", source.name.folder()));
    if folder.is_dir() {
        tracing::info!(folder = %folder.display(), "the base model was downloaded before");
        return Ok(folder);
    }
    tracing::info!(from = %remote, bytes = entries.iter().map(|entry| entry.bytes).sum::<u64>(), "downloading the base model");
    let part = folder.with_added_extension(format!("part-{}", std::process::id()));
    store.download_files(remote, &entries, &part).await?;
    if let Err(error) = std::fs::rename(&part, &folder) {
        // another process was faster with the same content
        std::fs::remove_dir_all(&part).map_err(TrainerError::io(&part))?;
        if !folder.is_dir() {
            return Err(TrainerError::io(folder)(error));
        }
    }
    Ok(folder)
}

/// What can be known from the names alone.
pub(crate) fn complete(source: &BaseSource, entries: &[Entry]) -> Result<()> {
    let has = |name: &str| entries.iter().any(|entry| entry.name == name);
    let missing: Vec<&str> = COMPANIONS[..2].iter().copied().filter(|name| !has(name)).collect();
    if !missing.is_empty() {
        return Err(unknown(source, format!("{} is missing", missing.join(" and "))));
    }
    if !has(SINGLE) && !has(INDEX) {
        return Err(unknown(source, format!("neither {SINGLE} nor {INDEX} is there")));
    }
    Ok(())
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

pub(crate) fn unknown(source: &BaseSource, detail: String) -> TrainerError {
    TrainerError::UnknownBaseModel { base: Box::new(source.clone()), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(folder: Option<&Path>) -> BaseSource {
        BaseSource { name: "tunesmith-mini".parse().unwrap(), folder: folder.map(|f| Location::Local(f.to_path_buf())) }
    }

    #[tokio::test]
    async fn a_folder_without_all_files_is_an_unknown_base_model_that_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let (store, base) = (Store::default(), source(Some(folder.path())));
        let text = |result: Result<PathBuf>| result.unwrap_err().to_string();
        let none = text(fetch(&base, &store, folder.path()).await);
        assert!(none.contains("config.json and tokenizer.json is missing"), "{none}");
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let weightless = text(fetch(&base, &store, folder.path()).await);
        assert!(weightless.contains("neither model.safetensors nor"), "{weightless}");
        std::fs::write(folder.path().join("model.safetensors"), "broken").unwrap();
        assert_eq!(fetch(&base, &store, folder.path()).await.unwrap(), folder.path());
        let broken = Base::load(&base, Quantization::None, None, &store, folder.path()).await.err().unwrap();
        assert_eq!(broken.name(), tunesmith_contract::ErrorName::UnknownBaseModel, "{broken}");
    }
}
