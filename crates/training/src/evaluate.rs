//! Negative log-likelihood per example, from which the caller makes perplexity per token, word or byte.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use tunesmith_model::{Adapter, Batch, Decoder, IGNORE};

use crate::data::{Dataset, Sequence};
use crate::error::Result;

/// Tokens per forward pass: large enough for full speed on a processor, small in memory.
pub(crate) const TOKENS_PER_BATCH: usize = 2048;

/// Sum over one example's windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExampleLoss {
    /// Index of the example given to the dataset.
    pub example: usize,
    /// Negative log-likelihood of its counted tokens, in nats.
    pub nll: f64,
    /// Counted tokens.
    pub num_targets: u64,
}

/// One entry per example that has counted tokens, in the order of the examples. Without an adapter: the base model.
pub fn evaluate(model: &Decoder, adapter_opt: Option<&Adapter>, dataset: &Dataset) -> Result<Vec<ExampleLoss>> {
    let mut losses: Vec<ExampleLoss> = Vec::new();
    let ranges = batches(dataset.sequences());
    let together = model.num_devices(adapter_opt.map(|adapter| &adapter.config().method));
    for ranges in ranges.chunks(together) {
        let batch = |range: &Range<usize>| dataset.batch(&range.clone().collect::<Vec<_>>());
        let batches = ranges.iter().map(batch).collect::<Result<Vec<_>>>()?;
        let rows = model.row_losses_of(&batches.iter().collect::<Vec<_>>(), adapter_opt)?;
        for ((range, batch), rows) in ranges.iter().zip(&batches).zip(rows) {
            add(&mut losses, &dataset.sequences()[range.clone()], batch, &rows);
        }
    }
    Ok(losses)
}

/// Neighbouring sequences that go through the model together.
fn batches(sequences: &[Sequence]) -> Vec<Range<usize>> {
    let (mut ranges, mut from) = (Vec::new(), 0);
    while from < sequences.len() {
        let (mut to, mut num_tokens) = (from, 0);
        while to < sequences.len() && (to == from || num_tokens + sequences[to].ids.len() <= TOKENS_PER_BATCH) {
            num_tokens += sequences[to].ids.len();
            to += 1;
        }
        ranges.push(from..to);
        from = to;
    }
    ranges
}

/// Adds the rows of a batch of these sequences to the losses of their examples.
fn add(losses: &mut Vec<ExampleLoss>, sequences: &[Sequence], batch: &Batch, rows: &[f32]) {
    let mut row = 0;
    for sequence in sequences {
        let rows_here = row..row + sequence.ids.len();
        let nll = rows[rows_here.clone()].iter().map(|loss| f64::from(*loss)).sum::<f64>();
        let num_targets = batch.targets()[rows_here].iter().filter(|target| **target != IGNORE).count() as u64;
        row += sequence.ids.len();
        match losses.last_mut() {
            Some(last) if last.example == sequence.example => {
                last.nll += nll;
                last.num_targets += num_targets;
            }
            _ => losses.push(ExampleLoss { example: sequence.example, nll, num_targets }),
        }
    }
}
