//! Scoring the untouched test split with the base, the tuned and the live model: the same sequences for all of them, each adapter on
//! the base as it was trained on it and is served with it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tunesmith_contract::{
    documents::Example,
    evaluation::{Evaluation, Sample},
    job::{Location, TrainJob},
};
use tunesmith_evaluation::{Bootstrap, DocumentLoss, Measured};
use tunesmith_model::{Adapter, ModelError, peft};
use tunesmith_training::{Dataset, ExampleLoss, Tokenisation, memory::check_base};

use crate::{
    base::{Base, memory_limit},
    blocking::blocking,
    context::Context,
    error::{Result, TrainerError},
    examples::{Origin, Split},
    generate::Generator,
    halt::Halt,
    samples,
};

/// Where the result lies below the run's folder.
pub const EVALUATION: &str = "evaluation.json";

/// The test split, tokenised.
pub struct TestSplit {
    lines: Vec<Example>,
    origins: Vec<Origin>,
    dataset: Arc<Dataset>,
}

impl TestSplit {
    /// Prepares the lines of `test.jsonl.zst`.
    ///
    /// # Errors
    /// When there is nothing to score.
    pub fn new(base: &Base, lines: Vec<Example>, how: &Tokenisation) -> Result<Self> {
        let split = Split::prepare(&base.tokenizer, &lines, how);
        split.left_out.warn("test");
        let dataset = Arc::new(split.dataset(&base.tokenizer, how)?);
        Ok(Self { lines, origins: split.origins, dataset })
    }
}

/// What is compared.
pub struct Models {
    /// The base model, stored as the tuned adapter was trained on it.
    pub base: Base,
    /// The adapter of the run.
    pub tuned: Arc<Adapter>,
    /// Folder of this machine with the live model's adapter, when there is one.
    pub live: Option<PathBuf>,
}

/// Loads an adapter for this base.
///
/// # Errors
/// [`tunesmith_model::ModelError::ForeignAdapter`] when it was trained on another.
pub async fn load_adapter(base: &Base, folder: &Path) -> Result<Arc<Adapter>> {
    let (base, folder) = (base.clone(), folder.to_path_buf());
    blocking(move || Ok(Arc::new(peft::load_onto(&folder, &base.model)?))).await
}

/// Brings an adapter to this machine and loads it; `what` names it when it is missing.
pub async fn fetch_adapter(
    context: &Context,
    base: &Base,
    from: &Location,
    what: &'static str,
) -> Result<Arc<Adapter>> {
    load_adapter(base, &download_adapter(context, from, what).await?).await
}

/// Brings an adapter to this machine; `what` names it when it is missing.
pub async fn download_adapter(context: &Context, from: &Location, what: &'static str) -> Result<PathBuf> {
    let entries = context.store.list(from).await?;
    if entries.is_empty() {
        return Err(TrainerError::Missing { what, location: from.clone() });
    }
    let folder = context.scratch.join(what.replace(' ', "-"));
    context.store.download_files(from, &entries, &folder).await?;
    Ok(folder)
}

/// Brings the live model's adapter to this machine, when there is one that can be compared. To be called first: what fails ends the
/// run before it has cost anything.
///
/// An adapter of other weights is left out: somebody has replaced the base model under its name, the live model can no longer be
/// served with it, and a new one is the way out.
///
/// # Errors
/// As [`load_adapter`]; [`tunesmith_training::TrainingError::BaseTooLarge`] when the base does not fit as that adapter wants it.
pub async fn fetch_live(job: &TrainJob, base: &Base, context: &Context) -> Result<Option<PathBuf>> {
    let Some(from) = &job.live_adapter else { return Ok(None) };
    let folder = download_adapter(context, from, "live adapter").await?;
    let adapter = match load_adapter(base, &folder).await {
        Err(TrainerError::Model(error @ ModelError::ForeignAdapter { .. })) => {
            tracing::warn!(%error, "the live model is left out of the evaluation");
            return Ok(None);
        }
        loaded => loaded?,
    };
    check_base(base.model.config(), adapter.base_quantization(), memory_limit(job))?;
    Ok(Some(folder))
}

/// Evaluates and writes `evaluation.json`.
///
/// # Errors
/// [`TrainerError::OtherQuantization`] when the tuned adapter was trained on the base in another form.
pub async fn evaluate(job: &TrainJob, models: Models, test: TestSplit, context: &Context) -> Result<Evaluation, Halt> {
    let (trained, loaded) = (models.tuned.base_quantization(), models.base.model.quantization());
    if trained != loaded {
        return Err(TrainerError::OtherQuantization { trained: trained.name(), loaded: loaded.name() }.into());
    }
    let evaluation = context.stop.or(measure(job, models, test, context)).await??;
    context.store.put_json(&job.output.join(EVALUATION), &evaluation).await?;
    tracing::info!(run = %job.run, tokens = evaluation.tokens, base = evaluation.base.token.value,
        tuned = evaluation.tuned.token.value, live = evaluation.live.map(|live| live.token.value),
        improvement_percent = evaluation.improvement_percent.value, "evaluated: perplexity per token");
    Ok(evaluation)
}

async fn measure(job: &TrainJob, models: Models, test: TestSplit, context: &Context) -> Result<Evaluation> {
    let (Models { base, tuned, live }, test) = (models, Arc::new(test));
    let of_base = score(&base, None, &test).await?;
    let of_tuned = score(&base, Some(tuned.clone()), &test).await?;
    let samples = answers(base.clone(), tuned, test.clone()).await?;
    let of_live = match live {
        Some(live) => Some(score_live(job, base, &live, &test, context).await?),
        None => None,
    };
    let (run, dataset) = (job.run.clone(), job.dataset_id.clone());
    blocking(move || {
        let measured = Measured {
            run,
            dataset,
            examples: of_base.examples,
            base: &of_base.losses,
            tuned: &of_tuned.losses,
            live: of_live.as_ref().map(|live| live.losses.as_slice()),
            samples,
        };
        Ok(tunesmith_evaluation::evaluate(measured, &Bootstrap::default())?)
    })
    .await
}

/// Base and tuned model side by side, for the person who approves.
async fn answers(base: Base, tuned: Arc<Adapter>, test: Arc<TestSplit>) -> Result<Vec<Sample>> {
    blocking(move || {
        let generator = Generator { model: &base.model, tokenizer: &base.tokenizer };
        let mut samples = Vec::new();
        for question in samples::choose(&test.lines) {
            samples.extend(samples::ask(generator, &question, &tuned)?);
        }
        Ok(samples)
    })
    .await
}

/// The live model as it is served: on the base as its adapter was trained on it, which may be another form than this run's.
async fn score_live(
    job: &TrainJob,
    base: Base,
    adapter: &Path,
    test: &Arc<TestSplit>,
    context: &Context,
) -> Result<Scored> {
    let quantization = peft::base_quantization(adapter)?;
    let base = if quantization == base.model.quantization() {
        base
    } else {
        tracing::info!(
            quantization = quantization.name(),
            "the base model is loaded again, as the live adapter was trained on it"
        );
        // memory never holds both
        drop(base);
        Base::of_job(job, quantization, context).await?
    };
    let adapter = load_adapter(&base, adapter).await?;
    score(&base, Some(adapter), test).await
}

struct Scored {
    examples: u64,
    losses: Vec<DocumentLoss>,
}

async fn score(base: &Base, adapter: Option<Arc<Adapter>>, test: &Arc<TestSplit>) -> Result<Scored> {
    let (model, test) = (base.model.clone(), test.clone());
    blocking(move || {
        let losses = tunesmith_training::evaluate(&model, adapter.as_deref(), &test.dataset)?;
        Ok(Scored { examples: losses.len() as u64, losses: by_document(&losses, &test.origins) })
    })
    .await
}

/// One entry for each example; the evaluation crate adds up those of one document.
fn by_document(losses: &[ExampleLoss], origins: &[Origin]) -> Vec<DocumentLoss> {
    let entry = |loss: &ExampleLoss| {
        let origin = origins.get(loss.example)?;
        Some(DocumentLoss {
            document: origin.document.clone(),
            nll: loss.nll,
            tokens: loss.num_targets,
            words: origin.words,
            bytes: origin.bytes,
        })
    };
    losses.iter().filter_map(entry).collect()
}
