//! One optimizer step over an accumulation window.
//!
//! The loss of a step is the mean over all counted tokens of the *window*: every batch is scaled by one over that number, which
//! is known before the first forward pass. A mean of batch means would weigh tokens of short batches more.

use tunesmith_model::{Adapter, Batch, Decoder, Recompute};

use crate::error::{Result, TrainingError};

/// Mean loss and its gradients over several batches.
pub struct Accumulated {
    /// Mean negative log-likelihood per counted token, in nats.
    pub loss: f64,
    /// Gradients in the order of `Adapter::parameters`.
    pub gradients: Vec<Vec<f32>>,
    /// Tokens that went through the model.
    pub num_tokens: usize,
    /// Tokens that counted.
    pub num_targets: usize,
}

/// Runs the batches one after the other; memory is that of the largest.
pub fn accumulate(model: &Decoder, adapter: &Adapter, batches: &[Batch]) -> Result<Accumulated> {
    let num_targets: usize = batches.iter().map(Batch::num_targets).sum();
    let num_tokens = batches.iter().map(|batch| batch.ids().len()).sum();
    if num_targets == 0 {
        return Err(TrainingError::AllLabelsMasked { num_examples: batches.len(), num_tokens });
    }
    let scale = 1.0 / num_targets as f32;
    let mut nll = 0.0;
    let mut gradients: Vec<Vec<f32>> = Vec::new();
    for batch in batches.iter().filter(|batch| batch.num_targets() > 0) {
        let result = model.loss_and_gradients(batch, adapter, scale, Recompute::Nothing)?;
        nll += result.nll();
        let mut of_batch = Vec::with_capacity(result.gradients.len());
        for gradient in &result.gradients {
            let values = gradient.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
            of_batch.push(values.map_err(tunesmith_model::ModelError::from)?);
        }
        if gradients.is_empty() {
            gradients = of_batch;
        } else {
            for (sum, values) in gradients.iter_mut().zip(&of_batch) {
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
    }
    Ok(Accumulated { loss: nll / num_targets as f64, gradients, num_tokens, num_targets })
}
