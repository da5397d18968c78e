//! Where losses and gradients are computed: on the cards that a decoder was put on, a batch on each at the same time, else on the
//! processor, one batch after the other, whose parts its threads share ([`super::parts`]).
//!
//! Cards share nothing: each computes whole batches, and whoever asked adds the results up in the order of the batches. So any number of
//! equal cards gives the same bits for the same batches. What has no kernel (a method other than LoRA and rsLoRA, the norms of
//! single examples) the processor computes.

use super::{Decoder, LossGradients, Recompute};
use crate::adapters::{Adapter, Method};
use crate::batch::Batch;
#[cfg(any(test, feature = "cuda"))]
use crate::cuda::{Gpu, GpuModel, has_kernels};
use crate::error::Result;

/// What a card offers to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// Bytes that were free before the model lay there.
    pub room: u64,
    /// Bytes of a weight or an activation.
    pub value_bytes: u64,
    /// Bytes of the logits that exist at once.
    pub logit_bytes: u64,
}

impl Decoder {
    /// Batches that are computed at the same time with an adapter of this method, or with none: one on the processor, else one for
    /// each card.
    #[must_use]
    pub fn num_devices(&self, method_opt: Option<&Method>) -> usize {
        self.cards(method_opt).count().max(1)
    }

    /// The card that holds the fewest values, when cards compute adapters of this method.
    #[must_use]
    pub fn smallest_card(&self, method: &Method) -> Option<Card> {
        self.cards(Some(method)).min_by_key(|card| card.room / card.value_bytes)
    }

    fn cards(&self, method_opt: Option<&Method>) -> impl Iterator<Item = Card> {
        #[cfg(any(test, feature = "cuda"))]
        return self.gpus(method_opt).iter().map(GpuModel::card);
        #[cfg(not(any(test, feature = "cuda")))]
        return {
            let _ = method_opt;
            std::iter::empty()
        };
    }

    /// [`Decoder::row_losses`] of every batch, in their order.
    pub fn row_losses_of(&self, batches: &[&Batch], adapter_opt: Option<&Adapter>) -> Result<Vec<Vec<f32>>> {
        #[cfg(any(test, feature = "cuda"))]
        {
            let gpus = self.gpus(adapter_opt.map(|adapter| &adapter.config().method));
            if !gpus.is_empty() {
                batches.iter().try_for_each(|batch| self.check(batch, adapter_opt))?;
                return on_cards(gpus, batches, |gpu, batch| gpu.row_losses(batch, adapter_opt));
            }
        }
        batches.iter().map(|batch| self.row_losses_on_processor(batch, adapter_opt)).collect()
    }

    /// [`Decoder::loss_and_gradients`] of every batch, in their order.
    pub fn losses_and_gradients(
        &self,
        batches: &[&Batch],
        adapter: &Adapter,
        scale: f32,
        recompute: Recompute,
    ) -> Result<Vec<LossGradients>> {
        #[cfg(any(test, feature = "cuda"))]
        {
            let gpus = self.gpus(Some(&adapter.config().method));
            if !gpus.is_empty() {
                batches.iter().try_for_each(|batch| self.check(batch, Some(adapter)))?;
                return on_cards(gpus, batches, |gpu, batch| gpu.loss_and_gradients(batch, adapter, scale, recompute));
            }
        }
        batches.iter().map(|batch| self.loss_gradients_on_processor(batch, adapter, scale, recompute)).collect()
    }
}

#[cfg(any(test, feature = "cuda"))]
impl Decoder {
    /// Puts the model on one more device, which computes losses and gradients from now on. On an error the model is as it was.
    pub(crate) fn add_device(&mut self, gpu: Gpu) -> Result<()> {
        self.gpus.push(GpuModel::new(gpu, self)?);
        Ok(())
    }

    /// The cards that compute for an adapter of this method, or for none.
    fn gpus(&self, method_opt: Option<&Method>) -> &[GpuModel] {
        if method_opt.is_none_or(has_kernels) { &self.gpus } else { &[] }
    }

    /// What can be known of a batch before a device computes it.
    fn check(&self, batch: &Batch, adapter_opt: Option<&Adapter>) -> Result<()> {
        self.check_adapter(adapter_opt)?;
        self.check_length(batch.segments().longest())
    }
}

/// As many batches at a time as there are cards; results in the order of the batches.
#[cfg(any(test, feature = "cuda"))]
fn on_cards<T: Send>(
    gpus: &[GpuModel],
    batches: &[&Batch],
    compute: impl Fn(&GpuModel, &Batch) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    if let ([gpu, ..], [batch]) = (gpus, batches) {
        return Ok(vec![compute(gpu, batch)?]);
    }
    let mut results = Vec::with_capacity(batches.len());
    for together in batches.chunks(gpus.len()) {
        let found: Vec<Result<T>> = std::thread::scope(|scope| {
            let compute = &compute;
            let start = |(gpu, batch)| scope.spawn(move || compute(gpu, batch));
            let underway: Vec<_> = gpus.iter().zip(together.iter().copied()).map(start).collect();
            let end = |result: std::thread::Result<_>| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            underway.into_iter().map(|thread| end(thread.join())).collect()
        });
        for result in found {
            results.push(result?);
        }
    }
    Ok(results)
}
