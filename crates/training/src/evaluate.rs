//! Negative log-likelihood per example, from which the caller makes perplexity per token, word or byte.

use serde::{Deserialize, Serialize};
use tunesmith_model::{Adapter, Decoder, IGNORE};

use crate::data::Dataset;
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
    let sequences = dataset.sequences();
    let mut from = 0;
    while from < sequences.len() {
        let (mut to, mut num_tokens) = (from, 0);
        while to < sequences.len() && (to == from || num_tokens + sequences[to].ids.len() <= TOKENS_PER_BATCH) {
            num_tokens += sequences[to].ids.len();
            to += 1;
        }
        let batch = dataset.batch(&(from..to).collect::<Vec<_>>())?;
        let rows = model.row_losses(&batch, adapter_opt)?;
        let mut row = 0;
        for sequence in &sequences[from..to] {
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
        from = to;
    }
    Ok(losses)
}
