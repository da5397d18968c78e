//! The worker: takes jobs from the queue, one after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::{
    mpsc::{Receiver, UnboundedSender},
    oneshot,
};

use super::{EngineError, Piece, ServedModel};
use crate::{
    openai::{FinishReason, Options, Usage, Weights},
    sampling::Sampler,
    stop::{Filtered, StopFilter},
};

pub(super) struct Job {
    pub weights: Weights,
    pub work: Work,
}

pub(super) enum Work {
    Generate(Generation),
    Logits { tokens: Vec<u32>, send: oneshot::Sender<Result<Vec<f32>, EngineError>> },
}

/// A prompt that fits, and how to go on from it.
pub(super) struct Generation {
    pub ids: Vec<u32>,
    pub options: Options,
    /// At least 1; prompt and answer fit into the context.
    pub max_tokens: usize,
    pub seed: u64,
    pub send: UnboundedSender<Result<Piece, EngineError>>,
}

/// Answers until the last handle on the engine is dropped.
pub(super) fn run(model: &ServedModel, mut queue: Receiver<Job>) {
    while let Some(Job { weights, work }) = queue.blocking_recv() {
        match work {
            Work::Generate(generation) => {
                // a defect met by one request must not end the answers to all others
                let answered = catch_unwind(AssertUnwindSafe(|| generate(model, weights, &generation)));
                let failed = match answered {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => error,
                    Err(_) => EngineError::Output("the engine met a defect; see its log".into()),
                };
                tracing::error!(%failed, "request failed");
                // a client that went away needs no answer
                let _ = generation.send.send(Err(failed));
            }
            Work::Logits { tokens, send } => {
                if !send.is_closed() {
                    let logits = model.advance(&mut model.new_cache(), &tokens, weights);
                    let _ = send.send(logits.map_err(EngineError::Prompt));
                }
            }
        }
    }
}

fn generate(model: &ServedModel, weights: Weights, generation: &Generation) -> Result<(), EngineError> {
    let Generation { ids, options, max_tokens, seed, send } = generation;
    if send.is_closed() {
        return Ok(());
    }
    let mut cache = model.new_cache();
    let mut sampler = Sampler::new(options, *seed);
    let mut text = model.tokenizer().stream();
    let mut filter = StopFilter::new(&options.stop);
    let mut logits = model.advance(&mut cache, ids, weights)?;
    let mut generated = 0;
    let done = |finish, generated: usize| Piece::Done { finish, usage: Usage::new(ids.len() as u64, generated as u64) };
    // whether somebody still listens
    let say = |text: String| text.is_empty() || send.send(Ok(Piece::Text(text))).is_ok();
    loop {
        let id = sampler.sample(&logits)?;
        generated += 1;
        let ended = model.tokenizer().terminators().contains(&id);
        let piece = if ended { text.finish()? } else { text.push(id)? };
        match filter.push(&piece) {
            Filtered::Stopped(before) => {
                say(before);
                let _ = send.send(Ok(done(FinishReason::Stop, generated)));
                return Ok(());
            }
            Filtered::Text(certain) => {
                if !say(certain) {
                    return Ok(());
                }
            }
        }
        if ended || generated == *max_tokens {
            let finish = if ended { FinishReason::Stop } else { FinishReason::Length };
            let mut rest = String::new();
            if !ended {
                match filter.push(&text.finish()?) {
                    Filtered::Text(last) | Filtered::Stopped(last) => rest = last,
                }
            }
            rest.push_str(&filter.finish());
            say(rest);
            let _ = send.send(Ok(done(finish, generated)));
            return Ok(());
        }
        if send.is_closed() {
            return Ok(());
        }
        logits = model.advance(&mut cache, &[id], weights)?;
    }
}
