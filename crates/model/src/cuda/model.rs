//! A decoder on a device: the walk of [`crate::decoder`] over its layers, with the same formulas and the same things kept.

use super::Gpu;
use super::backend::{Product, Stored};
use super::gpu::{Rotation, Statistics, not_on_gpu};
use super::layer::{Kept, Layer, Norm, Place};
use super::linear::Parameters;
use super::memory::{Buffer, Matrix};
use crate::adapters::Adapter;
use crate::batch::Batch;
use crate::decoder::{Card, Decoder, LossGradients, Recompute, wanted};
use crate::error::{ModelError, Result};
use crate::ops::cross_entropy::IGNORE;
use crate::ops::host;
use crate::ops::linear::WantsDx;

/// A frozen model on a device.
#[derive(Debug)]
pub struct GpuModel {
    gpu: Gpu,
    embedding: Matrix,
    embedding_scale: f32,
    /// Learned ones.
    positions: Option<Matrix>,
    rotation: Option<Rotation>,
    layers: Vec<Layer>,
    norm: Norm,
    head: Matrix,
    soft_cap: Option<f32>,
    room: usize,
}

/// Values of f32 logits that exist at once: 512 MB.
const LOGITS: usize = 128 << 20;

impl GpuModel {
    /// Copies a model to a device.
    ///
    /// # Errors
    /// [`ModelError::NotOnGpu`] names a part that has no kernel yet, or heads that the device's shared memory has no room for.
    pub(crate) fn new(gpu: Gpu, model: &Decoder) -> Result<Self> {
        let (h, room) = (model.config.hidden_size, gpu.backend.free_memory()?);
        if model.config.head_dim > gpu.backend.head() {
            return Err(not_on_gpu(&format!(
                "heads of {} values with kernels for {}",
                model.config.head_dim,
                gpu.backend.head()
            )));
        }
        gpu.warps_of_attention()?;
        let embedding = gpu.upload(&host(&model.embedding)?, h)?;
        // a tied head is the embedding itself: once in memory
        let head = match model.config.tie_word_embeddings {
            true => embedding.clone(),
            false => gpu.upload(&host(&model.head.weight)?, h)?,
        };
        let layers = model.layers.iter().map(|layer| Layer::new(&gpu, layer)).collect::<Result<_>>()?;
        let rotation = model.rope.as_ref().map(|table| gpu.rotation(table)).transpose()?;
        let learned = |table| gpu.upload(&host(table)?, h);
        let positions = model.positions.as_ref().map(learned).transpose()?;
        let norm = Norm::new(&gpu, &model.norm)?;
        let (embedding_scale, soft_cap) = (model.config.embedding_scale, model.head.soft_cap);
        Ok(Self { embedding, embedding_scale, positions, rotation, layers, norm, head, soft_cap, room, gpu })
    }

    /// What the device offers.
    pub(crate) fn card(&self) -> Card {
        let value_bytes = self.gpu.backend.stored().bytes() as u64;
        // logits in f32, and their gradient as values
        Card { room: self.room as u64, value_bytes, logit_bytes: (4 + value_bytes) * LOGITS as u64 }
    }

    /// [`Decoder::row_losses`]; the batch and the adapter must fit the model, as that checks.
    pub(crate) fn row_losses(&self, batch: &Batch, adapter_opt: Option<&Adapter>) -> Result<Vec<f32>> {
        let parameters = adapter_opt.map(|adapter| Parameters::new(&self.gpu, adapter)).transpose()?;
        let place = self.place(batch, parameters.as_ref())?;
        let (hidden, _, _) = self.forward(batch, &place, |_| {})?;
        Ok(self.losses(&hidden, batch.targets(), None)?.0)
    }

    /// [`Decoder::loss_and_gradients`].
    pub(crate) fn loss_and_gradients(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        scale: f32,
        recompute: Recompute,
    ) -> Result<LossGradients> {
        let parameters = Parameters::new(&self.gpu, adapter)?;
        let place = self.place(batch, Some(&parameters))?;
        let mut kept = Vec::with_capacity(self.layers.len());
        let (hidden, x, statistics) = self.forward(batch, &place, |of_layer| {
            kept.push(match recompute {
                Recompute::Nothing => Ok(of_layer),
                Recompute::Layers => Err(of_layer.x),
            });
        })?;
        let (row_losses, d_hidden) = self.losses(&hidden, batch.targets(), Some(scale))?;
        drop(hidden);
        let mut dx = self.norm.backward(&self.gpu, &wanted(d_hidden)?, &x, &statistics, None)?;
        drop(x);
        for ((index, layer), kept) in self.layers.iter().enumerate().zip(kept).rev() {
            let adapters = place.parameters.map(|parameters| parameters.layer(index));
            let kept = match kept {
                Ok(kept) => kept,
                Err(x) => layer.forward(&self.gpu, x, &place, adapters.as_ref())?.1,
            };
            let wants = if index == 0 { WantsDx::No } else { WantsDx::Yes };
            dx = layer.backward(&self.gpu, &dx, kept, &place, adapters.as_ref(), wants)?;
        }
        let (num_targets, gradients) = (batch.num_targets(), parameters.gradients()?);
        Ok(LossGradients { row_losses, num_targets, gradients, example_norms: Vec::new() })
    }

    fn place<'a>(&'a self, batch: &Batch, parameters: Option<&'a Parameters>) -> Result<Place<'a>> {
        let segments = batch.segments();
        let positions = segments.positions().into_iter().map(|position| position as usize);
        let positions = Buffer::of_ints(&self.gpu.backend, positions)?;
        Ok(Place { positions, tiles: self.gpu.tiles(&segments)?, rotation: self.rotation.as_ref(), parameters })
    }

    /// Final normalised hidden states, with what their normalisation kept.
    fn forward(
        &self,
        batch: &Batch,
        place: &Place<'_>,
        mut keep: impl FnMut(Kept),
    ) -> Result<(Matrix, Matrix, Statistics)> {
        let vocabulary = self.embedding.rows;
        if let Some(id) = batch.ids().iter().find(|id| **id as usize >= vocabulary) {
            return Err(ModelError::TokenOutOfRange { id: *id, vocabulary });
        }
        let ids = Buffer::of_ints(&self.gpu.backend, batch.ids().iter().map(|id| *id as usize))?;
        let mut x = self.gpu.gather(&self.embedding, &ids, batch.ids().len(), self.embedding_scale)?;
        if let Some(learned) = &self.positions {
            self.gpu.add_to(&x, &self.gpu.gather(learned, &place.positions, x.rows, 1.0)?)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let adapters = place.parameters.map(|parameters| parameters.layer(index));
            let (next, kept) = layer.forward(&self.gpu, x, place, adapters.as_ref())?;
            x = next;
            keep(kept);
        }
        let (hidden, statistics) = self.norm.forward(&self.gpu, &x)?;
        Ok((hidden, x, statistics))
    }

    /// Loss of every row and, with a scale, the gradient of the hidden states; logits exist for some rows at a time.
    fn losses(&self, hidden: &Matrix, targets: &[u32], scale_opt: Option<f32>) -> Result<(Vec<f32>, Option<Matrix>)> {
        let (gpu, vocabulary, h) = (&self.gpu, self.head.rows, hidden.cols);
        let rows: Vec<usize> = (0..hidden.rows.min(targets.len())).filter(|row| targets[*row] != IGNORE).collect();
        if let Some(id) = rows.iter().map(|row| targets[*row]).find(|id| *id as usize >= vocabulary) {
            return Err(ModelError::TokenOutOfRange { id, vocabulary });
        }
        let gradient = scale_opt.map(|_| Matrix::zeros(&gpu.backend, hidden.rows, h)).transpose()?;
        let per_chunk = (LOGITS / vocabulary).max(128).min(rows.len().max(1));
        let logits = gpu.room(per_chunk * vocabulary)?;
        let mut losses = vec![0.0; hidden.rows];
        for rows in rows.chunks(per_chunk) {
            let m = rows.len();
            let indices = Buffer::of_ints(&gpu.backend, rows.iter().copied())?;
            let wanted = Buffer::of_ints(&gpu.backend, rows.iter().map(|row| targets[*row] as usize))?;
            let gathered = gpu.gather(hidden, &indices, m, 1.0)?;
            gpu.multiply(Product {
                m,
                n: vocabulary,
                k: h,
                scale: 1.0,
                a: gathered.view(),
                b: self.head.view().t(),
                c: logits.pointer(),
                c_stride: vocabulary,
                c_stored: Stored::F32,
                add: false,
            })?;
            let found = gpu.room(m)?;
            let d_logits = gpu.cross_entropy(&logits, [m, vocabulary], &wanted, &found, scale_opt, self.soft_cap)?;
            if let (Some(d_logits), Some(gradient)) = (d_logits, &gradient) {
                let d_gathered = gpu.product(m, h, vocabulary, 1.0, d_logits.view(), self.head.view())?;
                gpu.scatter(&d_gathered, &indices, gradient)?;
            }
            for (row, loss) in rows.iter().zip(found.floats(0, m)?) {
                losses[*row] = loss;
            }
        }
        Ok((losses, gradient))
    }
}
