//! `train`: fetch, train, store the adapter, evaluate, report. `evaluate`: the last part alone.

use std::{sync::Arc, time::Instant};

use tunesmith_contract::{
    DocumentId, Seconds,
    evaluation::Evaluation,
    job::{TrainJob, TrainReport},
};
use tunesmith_training::{Dataset, TrainingError};

use crate::{
    base::Base,
    blocking::blocking,
    context::Context,
    error::{Result, TrainerError},
    evaluation::{self, EVALUATION, Models, TestSplit},
    examples::{Split, tokenisation},
    halt::Halt,
    machine,
    reference::{self, REFERENCE},
    settings::{quantization, training_config},
    splits,
    training::{self, Inputs},
};

/// Does the whole job. The result depends on nothing but the job and what it names.
pub async fn run(job: &TrainJob, context: &Context) -> Result<TrainReport, Halt> {
    let started = Instant::now();
    let base = context.stop.or(Base::of_job(job, quantization(&job.training), context)).await??;
    let live = context.stop.or(evaluation::fetch_live(job, &base, context)).await??;
    let inputs = context.stop.or(inputs(job, &base, context)).await??;
    let trained = training::train(job, inputs, context).await?;
    let finishing = async {
        let adapter_at = job.output.join("adapter");
        context.store.upload_folder(&trained.adapter, &adapter_at).await?;
        let tuned = evaluation::load_adapter(&base, &trained.adapter).await?;
        let (of, adapter) = (base.clone(), tuned.clone());
        let logits = blocking(move || Ok(reference::logits(&of, &adapter)?)).await?;
        context.store.put_json(&job.output.join(REFERENCE), &logits).await?;
        let test = context.stop.or(test_split(job, &base, context)).await??;
        evaluation::evaluate(job, Models { base, tuned, live }, test, context).await?;
        Ok::<_, Halt>(adapter_at)
    };
    let adapter = finishing.await.map_err(|halt: Halt| halt.saved_at(trained.steps))?;
    Ok(TrainReport {
        run: job.run.clone(),
        steps: trained.steps,
        final_loss: trained.final_loss,
        seconds: Seconds(started.elapsed().as_secs()),
        resumed_from: trained.resumed_from,
        adapter,
        evaluation: job.output.join(EVALUATION),
    })
}

/// Evaluates the adapter that lies in the run's folder.
pub async fn evaluate(job: &TrainJob, context: &Context) -> Result<Evaluation, Halt> {
    let base = context.stop.or(Base::of_job(job, quantization(&job.training), context)).await??;
    let live = context.stop.or(evaluation::fetch_live(job, &base, context)).await??;
    let from = job.output.join("adapter");
    let tuned = context.stop.or(evaluation::fetch_adapter(context, &base, &from, "adapter")).await??;
    let test = context.stop.or(test_split(job, &base, context)).await??;
    evaluation::evaluate(job, Models { base, tuned, live }, test, context).await
}

async fn inputs(job: &TrainJob, base: &Base, context: &Context) -> Result<Inputs> {
    let length = job.training.sequence_length as usize;
    let (train, documents) = tokenised(job, base, context, "train").await?;
    let validation = match tokenised(job, base, context, "validation").await {
        Ok((dataset, _)) => Some(Arc::new(dataset)),
        Err(TrainerError::Training(
            error @ (TrainingError::EmptyDataset { .. } | TrainingError::AllLabelsMasked { .. }),
        )) => {
            tracing::warn!(%error, "the validation split has nothing to score: the last adapter is taken, not the best");
            None
        }
        Err(error) => return Err(error),
    };
    let mut config = training_config(&job.training, base.model.config().modules(), &train.lengths())?;
    // cards compute one batch each
    let num_devices = base.model.num_devices(Some(&config.adapter.method));
    config = config.spread(num_devices);
    config.memory_limit_mb =
        config.memory_limit_mb.or_else(|| machine::memory_limit().map(|bytes| bytes / machine::MB));
    tracing::info!(
        sequences = train.len(),
        tokens = train.num_tokens(),
        unusable = train.num_unusable,
        sequence_length = length,
        "the dataset is ready"
    );
    Ok(Inputs { base: base.clone(), train, documents, validation, config })
}

/// The split, and the document that each of its examples comes from.
async fn tokenised(
    job: &TrainJob,
    base: &Base,
    context: &Context,
    name: &'static str,
) -> Result<(Dataset, Vec<DocumentId>)> {
    let lines = splits::read(&context.store, &job.dataset, name).await?;
    let (tokenizer, how) = (base.tokenizer.clone(), tokenisation(&job.training));
    blocking(move || {
        let split = Split::prepare(&tokenizer, &lines, &how);
        split.left_out.warn(name);
        let dataset = split.dataset(&tokenizer, &how)?;
        Ok((dataset, split.origins.into_iter().map(|origin| origin.document).collect()))
    })
    .await
}

async fn test_split(job: &TrainJob, base: &Base, context: &Context) -> Result<TestSplit> {
    let lines = splits::read(&context.store, &job.dataset, "test").await?;
    let (base, how) = (base.clone(), tokenisation(&job.training));
    blocking(move || TestSplit::new(&base, lines, &how)).await
}
