//! A decoder: embedding, layers of attention and feed-forward around a residual stream, norm, head.
//!
//! `x ← c · E[ids]` (with learned positions `+ P[positions]`); per layer the two blocks of [`attention`] and [`feed_forward`]; then
//! `logits = head(norm(x))`. Which of the variants a model uses is in its [`ModelConfig`]. The base is frozen: the backward pass
//! walks the layers in reverse by hand and produces gradients of adapters only.

mod attention;
mod devices;
pub(crate) mod feed_forward;
mod gradients;
mod load;
mod memory;
mod parts;
pub(crate) mod residual;

use candle_core::Tensor;

pub(crate) use self::attention::{AttentionBlock, Cached};
pub use self::devices::Card;
pub(crate) use self::feed_forward::FeedForward;
pub use self::gradients::LossGradients;
pub use self::parts::at_once as parts_at_once;
use crate::adapters::{Adapter, Kind, LayerAdapters, Module};
use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::fingerprint::Fingerprint;
use crate::frozen::Quantization;
use crate::ops::attention::Segments;
use crate::ops::head::Head;
use crate::ops::linear::{ModuleGradient, Wants, WantsDx};
use crate::ops::norm::{Norm, Normed};
use crate::ops::rope::RopeTable;
use crate::ops::{cross_entropy, host, tensor};

/// A frozen model; immutable, so that any number of threads may use it at once.
pub struct Decoder {
    pub(crate) config: ModelConfig,
    pub(crate) embedding: Tensor,
    pub(crate) positions: Option<Tensor>,
    pub(crate) rope: Option<RopeTable>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Norm,
    pub(crate) head: Head,
    quantization: Quantization,
    fingerprint: Fingerprint,
    #[cfg(any(test, feature = "cuda"))]
    gpus: Vec<crate::cuda::GpuModel>,
}

pub(crate) struct Layer {
    pub attention: AttentionBlock,
    pub feed_forward: FeedForward,
}

/// Whether the backward pass finds the activations of a layer in memory or computes the layer again. Gradients are the same to the
/// bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    /// Everything is kept: fastest.
    #[default]
    Nothing,
    /// Of each layer only its input is kept, `n · h` values, and what its last adapter keeps; all but the last product of each
    /// layer's forward pass runs twice.
    Layers,
}

/// What is kept of a layer until its backward pass.
enum Kept {
    Activations(Box<(attention::Kept, feed_forward::Kept)>),
    Input(Tensor, feed_forward::Last),
}

pub(crate) type Gradients = Vec<ModuleGradient>;

impl Decoder {
    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How the projections of its layers are stored.
    #[must_use]
    pub fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// By what an adapter that was trained on it recognises it.
    #[must_use]
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Logits `[n, V]` of every token of the sequence `ids`. For comparisons and short texts: memory grows with `n · V`.
    pub fn logits(&self, ids: &[u32], adapter_opt: Option<&Adapter>) -> Result<Tensor> {
        let batch = Batch::new(ids.to_vec(), vec![cross_entropy::IGNORE; ids.len()], vec![ids.len()])?;
        let (hidden, _) = self.forward(&batch, adapter_opt, |_, _| {})?;
        tensor(self.head.logits(&hidden)?, (ids.len(), self.config.vocab_size))
    }

    /// Negative log-likelihood in nats of every row's target; 0 where there is none.
    pub fn row_losses(&self, batch: &Batch, adapter_opt: Option<&Adapter>) -> Result<Vec<f32>> {
        Ok(self.row_losses_of(&[batch], adapter_opt)?.swap_remove(0))
    }

    fn row_losses_on_processor(&self, batch: &Batch, adapter_opt: Option<&Adapter>) -> Result<Vec<f32>> {
        let mut losses = Vec::with_capacity(batch.ids().len());
        let of_part = |part: &Batch| {
            // inside the pool, as a step
            rayon::scope(|_| {
                let (hidden, _) = self.forward(part, adapter_opt, |_, _| {})?;
                cross_entropy::forward(&hidden, &self.head, part.targets())
            })
        };
        parts::compute(&parts::divide(batch)?, of_part, |of_part| {
            losses.extend(of_part);
            Ok(())
        })?;
        Ok(losses)
    }

    /// Losses and the gradients of `scale · Σ losses` for every tensor of the adapter.
    pub fn loss_and_gradients(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        scale: f32,
        recompute: Recompute,
    ) -> Result<LossGradients> {
        Ok(self.losses_and_gradients(&[batch], adapter, scale, recompute)?.swap_remove(0))
    }

    fn loss_gradients_on_processor(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        scale: f32,
        recompute: Recompute,
    ) -> Result<LossGradients> {
        self.forward_backward(batch, adapter, scale, recompute, ExampleNorms::Skip)
    }

    /// The same with [`LossGradients::example_norms`], from the same backward pass: what differentially private training clips
    /// by. The batch's sequences are the examples.
    pub fn loss_gradients_and_norms(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        scale: f32,
        recompute: Recompute,
    ) -> Result<LossGradients> {
        self.forward_backward(batch, adapter, scale, recompute, ExampleNorms::Measure)
    }

    fn forward_backward(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        scale: f32,
        recompute: Recompute,
        norms: ExampleNorms,
    ) -> Result<LossGradients> {
        let mut sum: Option<LossGradients> = None;
        // inside the pool, where an operation starts without waking a thread and waiting for it
        let of_part =
            |part: &Batch| rayon::scope(|_| self.forward_backward_in_pool(part, adapter, scale, recompute, norms));
        parts::compute(&parts::divide(batch)?, of_part, |of_part| match &mut sum {
            Some(sum) => sum.add(of_part),
            None => {
                sum = Some(of_part);
                Ok(())
            }
        })?;
        sum.ok_or(ModelError::EmptyBatch)
    }

    fn forward_backward_in_pool(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        scale: f32,
        recompute: Recompute,
        norms: ExampleNorms,
    ) -> Result<LossGradients> {
        let mut kept = Vec::with_capacity(self.layers.len());
        let (hidden, last) = self.forward(batch, Some(adapter), |attention, feed_forward| {
            kept.push(match recompute {
                Recompute::Nothing => Kept::Activations(Box::new((attention, feed_forward))),
                Recompute::Layers => Kept::Input(attention.normed.x, feed_forward.last),
            });
        })?;
        let (row_losses, d_hidden) = cross_entropy::forward_backward(&hidden, &self.head, batch.targets(), scale)?;
        drop(hidden);
        let mut dx = self.norm.backward(&d_hidden, &last, None)?;
        drop(last);
        let segments = batch.segments();
        let positions = segments.positions();
        let mut by_layer = Vec::with_capacity(self.layers.len());
        for ((index, layer), kept) in self.layers.iter().enumerate().zip(kept).rev() {
            let dx_wanted = if index == 0 { WantsDx::No } else { WantsDx::Yes };
            let wants = Wants { dx: dx_wanted, norms_of: (norms == ExampleNorms::Measure).then_some(&segments) };
            let place = self.place(&segments, &positions, adapter.layer(index));
            let mut gradients = Gradients::new();
            dx = layer.backward(&dx, kept, &place, wants, &mut gradients)?;
            by_layer.push(gradients);
        }
        by_layer.reverse();
        let num_targets = batch.num_targets();
        let (gradients, example_norms) = in_parameter_order(by_layer);
        Ok(LossGradients { row_losses, num_targets, gradients, example_norms })
    }

    /// Final normalised hidden states `[n, h]`; hands what the backward pass needs to `keep`, layer by layer.
    fn forward(
        &self,
        batch: &Batch,
        adapter_opt: Option<&Adapter>,
        mut keep: impl FnMut(attention::Kept, feed_forward::Kept),
    ) -> Result<(Tensor, Normed)> {
        self.check_adapter(adapter_opt)?;
        let segments = batch.segments();
        self.check_length(segments.longest())?;
        let positions = segments.positions();
        let mut x = self.embed(batch.ids(), &positions)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let adapters = adapter_opt.and_then(|adapter| adapter.layer(index));
            let (next, attention, feed_forward) = layer.forward(x, &self.place(&segments, &positions, adapters))?;
            x = next;
            keep(attention, feed_forward);
        }
        self.norm.forward(x)
    }

    fn place<'a>(
        &'a self,
        segments: &'a Segments,
        positions: &'a [u32],
        adapters: Option<&'a LayerAdapters>,
    ) -> Place<'a> {
        Place { segments, positions, rope: self.rope.as_ref(), adapters }
    }

    /// Rows of the embedding, scaled; with learned positions those of `positions` are added.
    pub(crate) fn embed(&self, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
        let h = self.config.hidden_size;
        let table = host(&self.embedding)?;
        let mut x = Vec::with_capacity(ids.len() * h);
        for id in ids {
            let start = *id as usize * h;
            let row = table.get(start..start + h);
            x.extend_from_slice(
                row.ok_or(ModelError::TokenOutOfRange { id: *id, vocabulary: self.config.vocab_size })?,
            );
        }
        if self.config.embedding_scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= self.config.embedding_scale);
        }
        if let Some(learned) = &self.positions {
            let learned = host(learned)?;
            for (row, position) in x.chunks_exact_mut(h).zip(positions) {
                let start = *position as usize * h;
                row.iter_mut().zip(&learned[start..start + h]).for_each(|(x, p)| *x += p);
            }
        }
        tensor(x, (ids.len(), h))
    }

    pub(crate) fn check_length(&self, length: usize) -> Result<()> {
        let limit = self.config.max_position_embeddings;
        if length > limit { Err(ModelError::TooManyPositions { length, limit }) } else { Ok(()) }
    }

    /// The adapter must have as many layers and matrices of the sizes that this model has.
    pub fn check_adapter(&self, adapter_opt: Option<&Adapter>) -> Result<()> {
        let Some(adapter) = adapter_opt else { return Ok(()) };
        adapter.config().validate(self.config.modules())?;
        if adapter.sites().kind() != Kind::Decoder {
            let reason = "the adapter is for an encoder-decoder".to_owned();
            return Err(ModelError::AdapterMismatch { name: "encoder".to_owned(), reason });
        }
        let (found, wanted) = (adapter.num_layers(), self.layers.len());
        if found != wanted {
            let reason = format!("the adapter has {found} layers, the model {wanted}");
            return Err(ModelError::AdapterMismatch { name: format!("layer {}", found.min(wanted)), reason });
        }
        for index in 0..wanted {
            for (module, of_module) in adapter.layer(index).into_iter().flat_map(LayerAdapters::iter) {
                let wanted = self.config.module_shape(module);
                if !of_module.fits(wanted) {
                    let found: Vec<_> = of_module.parameters().iter().map(|(name, t)| (*name, t.dims())).collect();
                    let reason = format!("its tensors {found:?} do not fit the model's matrix {wanted:?}");
                    return Err(ModelError::AdapterMismatch { name: module.path_in(index), reason });
                }
            }
        }
        Ok(())
    }

    /// Length of each row of the frozen matrix of `module` in layer `index`.
    pub(crate) fn row_norms(&self, index: usize, module: Module) -> Result<Vec<f32>> {
        let layer = self.layers.get(index).map(|layer| (&layer.attention, &layer.feed_forward));
        let linears = layer.map(|(first, second)| [&first.qkv, &first.o, &second.up, &second.down]);
        match linears.into_iter().flatten().find_map(|linear| linear.row_norms(module)) {
            Some(norms) => norms,
            None => Err(Module::unknown(module.name(), self.config.modules())),
        }
    }
}

/// Whether the backward pass measures what each sequence adds to the gradients.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ExampleNorms {
    Skip,
    Measure,
}

/// What a layer must know besides its input.
pub(crate) struct Place<'a> {
    segments: &'a Segments,
    positions: &'a [u32],
    rope: Option<&'a RopeTable>,
    adapters: Option<&'a LayerAdapters>,
}

impl Layer {
    fn forward(&self, x: Tensor, place: &Place<'_>) -> Result<(Tensor, attention::Kept, feed_forward::Kept)> {
        let (middle, attention) = self.attention.forward(x, place)?;
        let (next, feed_forward) = self.feed_forward.forward(middle, place.adapters)?;
        Ok((next, attention, feed_forward))
    }

    fn backward(
        &self,
        dy: &Tensor,
        kept: Kept,
        place: &Place<'_>,
        wants: Wants<'_>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let (attention, feed_forward) = match kept {
            Kept::Activations(kept) => *kept,
            Kept::Input(x, last) => {
                let (middle, attention) = self.attention.forward(x, place)?;
                let feed_forward = self.feed_forward.recompute(middle, last, place.adapters)?;
                (attention, feed_forward)
            }
        };
        let d_middle = self.feed_forward.backward(dy, &feed_forward, place.adapters, wants, gradients)?;
        drop(feed_forward);
        self.attention.backward(&d_middle, &attention, place, wants, gradients)
    }
}

/// An operation that was asked for the gradient of its input returns it.
pub(crate) fn wanted<T>(dx: Option<T>) -> Result<T> {
    dx.ok_or_else(|| candle_core::Error::Msg("an operation gave no gradient of its input".into()).into())
}

/// Gradients of all layers in their order, and the norms of each example's own.
pub(crate) fn in_parameter_order(by_layer: Vec<Gradients>) -> (Vec<Tensor>, Vec<Vec<f64>>) {
    let mut ordered = (Vec::new(), Vec::new());
    for mut gradients in by_layer {
        gradients.sort_by_key(|gradient| gradient.module);
        for gradient in gradients.into_iter().flat_map(|gradient| gradient.tensors) {
            ordered.0.push(gradient.value);
            if !gradient.example_norms.is_empty() {
                ordered.1.push(gradient.example_norms);
            }
        }
    }
    ordered
}

#[cfg(test)]
pub(crate) mod tests;
