//! Scoring the untouched test split with the base, the tuned and the live model: the same sequences for all of them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tunesmith_contract::{
    documents::Example,
    evaluation::Evaluation,
    job::{Location, TrainJob},
};
use tunesmith_evaluation::{Bootstrap, DocumentLoss, Measured};
use tunesmith_model::{Adapter, peft};
use tunesmith_training::{Dataset, ExampleLoss, Tokenisation};

use crate::{
    base::Base,
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

/// Loads an adapter for this base.
pub async fn load_adapter(base: &Base, folder: &Path) -> Result<Arc<Adapter>> {
    let (base, folder) = (base.clone(), folder.to_path_buf());
    blocking(move || Ok(Arc::new(peft::load(&folder, base.model.config())?))).await
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

/// Evaluates and writes `evaluation.json`.
pub async fn evaluate(
    job: &TrainJob,
    base: &Base,
    tuned: Arc<Adapter>,
    test: TestSplit,
    context: &Context,
) -> Result<Evaluation, Halt> {
    let live = match &job.live_adapter {
        Some(from) => Some(context.stop.or(fetch_adapter(context, base, from, "live adapter")).await??),
        None => None,
    };
    let measuring = measure(job, base, tuned, live, test);
    let evaluation = context.stop.or(measuring).await??;
    context.store.put_json(&job.output.join(EVALUATION), &evaluation).await?;
    tracing::info!(run = %job.run, tokens = evaluation.tokens, base = evaluation.base.token.value,
        tuned = evaluation.tuned.token.value, live = evaluation.live.map(|live| live.token.value),
        improvement_percent = evaluation.improvement_percent.value, "evaluated: perplexity per token");
    Ok(evaluation)
}

async fn measure(
    job: &TrainJob,
    base: &Base,
    tuned: Arc<Adapter>,
    live: Option<Arc<Adapter>>,
    test: TestSplit,
) -> Result<Evaluation> {
    let test = Arc::new(test);
    let of_base = score(base, None, &test).await?;
    let of_tuned = score(base, Some(tuned.clone()), &test).await?;
    let of_live = match live {
        Some(live) => Some(score(base, Some(live), &test).await?),
        None => None,
    };
    let (base, run, dataset) = (base.clone(), job.run.clone(), job.dataset_id.clone());
    blocking(move || {
        let generator = Generator { model: &base.model, tokenizer: &base.tokenizer };
        let mut samples = Vec::new();
        for question in samples::choose(&test.lines) {
            samples.extend(samples::ask(generator, &question, &tuned)?);
        }
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
