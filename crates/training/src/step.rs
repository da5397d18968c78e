//! One optimizer step over an accumulation window.
//!
//! The loss of a step is the mean over all counted tokens of the *window*: every batch is scaled by one over that number, which
//! is known before the first forward pass. A mean of batch means would weigh tokens of short batches more.

use tunesmith_model::{Adapter, Batch, Decoder, LossGradients, Recompute};

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

/// The sums of a window of which some batches are done: what a checkpoint in the middle of accumulation holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    /// Counted tokens of the whole window.
    num_targets: usize,
    /// Negative log-likelihood so far, in nats.
    pub nll: f64,
    /// Gradients so far, in the order of `Adapter::parameters`; empty before the first batch.
    pub gradients: Vec<Vec<f32>>,
}

impl Sums {
    /// For a window of so many counted tokens.
    #[must_use]
    pub fn new(num_targets: usize) -> Self {
        Self { num_targets, nll: 0.0, gradients: Vec::new() }
    }

    /// Forward and backward of some batches, as many at the same time as the model has devices; returns the negative
    /// log-likelihood of each. They are added up in their order, so that neither the number of devices nor how many batches come
    /// together changes a bit.
    pub fn add(
        &mut self,
        model: &Decoder,
        adapter: &Adapter,
        batches: &[Batch],
        recompute: Recompute,
    ) -> Result<Vec<f64>> {
        let (indices, counting): (Vec<usize>, Vec<&Batch>) =
            batches.iter().enumerate().filter(|(_, batch)| batch.num_targets() > 0).unzip();
        let results = model.losses_and_gradients(&counting, adapter, 1.0 / self.num_targets as f32, recompute)?;
        debug_assert_eq!(results.len(), counting.len(), "a result for each batch");
        let mut nlls = vec![0.0; batches.len()];
        for (index, result) in indices.into_iter().zip(&results) {
            nlls[index] = self.add_one(result)?;
        }
        Ok(nlls)
    }

    fn add_one(&mut self, result: &LossGradients) -> Result<f64> {
        let mut of_batch = Vec::with_capacity(result.gradients.len());
        for gradient in &result.gradients {
            let values = gradient.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
            of_batch.push(values.map_err(tunesmith_model::ModelError::from)?);
        }
        if self.gradients.is_empty() {
            self.gradients = of_batch;
        } else {
            for (sum, values) in self.gradients.iter_mut().zip(&of_batch) {
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
        let nll = result.nll();
        self.nll += nll;
        Ok(nll)
    }

    /// Mean loss of the window, when all its batches are done.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.nll / self.num_targets as f64
    }
}

/// Runs the batches one after the other; memory is that of the largest.
pub fn accumulate(model: &Decoder, adapter: &Adapter, batches: &[Batch]) -> Result<Accumulated> {
    let num_targets: usize = batches.iter().map(Batch::num_targets).sum();
    let num_tokens = batches.iter().map(|batch| batch.ids().len()).sum();
    if num_targets == 0 {
        return Err(TrainingError::AllLabelsMasked { num_examples: batches.len(), num_tokens });
    }
    let mut sums = Sums::new(num_targets);
    for batch in batches {
        sums.add(model, adapter, std::slice::from_ref(batch), Recompute::Nothing)?;
    }
    Ok(Accumulated { loss: sums.loss(), gradients: sums.gradients, num_tokens, num_targets })
}
