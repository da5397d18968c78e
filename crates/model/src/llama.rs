//! Llama: embedding, layers of attention and feed-forward around a residual stream, norm, head.
//!
//! `x ← E[ids]`; per layer `x ← x + O(attention(rope(QKV(norm(x)))))`, `x ← x + Down(swiglu(GateUp(norm(x))))`; then
//! `logits = W_head · norm(x)`. The base is frozen: the backward pass walks the layers in reverse by hand and produces
//! gradients of adapters only.

use std::path::Path;

use candle_core::Tensor;

use crate::adapters::{Adapter, LayerAdapters, Module};
use crate::batch::Batch;
use crate::config::LlamaConfig;
use crate::error::{ModelError, Result};
use crate::ops::attention::{self, Heads, Segments};
use crate::ops::linear::{AdaptedLinear, Inner, ModuleGradient, Sizes, Wants, WantsDx, product};
use crate::ops::rope::{self, Direction, RopeTable};
use crate::ops::{cross_entropy, host, rms_norm, swiglu, tensor};
use crate::weights::Weights;

/// A frozen model; immutable, so that any number of threads may use it at once.
pub struct Llama {
    pub(crate) config: LlamaConfig,
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    pub(crate) head: Tensor,
    pub(crate) rope: RopeTable,
}

pub(crate) struct Layer {
    pub attention_norm: Tensor,
    pub qkv: AdaptedLinear,
    pub o: AdaptedLinear,
    pub mlp_norm: Tensor,
    pub gate_up: AdaptedLinear,
    pub down: AdaptedLinear,
}

/// What the backward pass needs of one layer; everything that one elementwise pass restores is left out.
struct Kept {
    x: Tensor,
    attention_rms: Vec<f32>,
    qkv: Tensor,
    qkv_inner: Inner,
    attended: Tensor,
    log_sums: Vec<f32>,
    o_inner: Inner,
    middle: Tensor,
    mlp_rms: Vec<f32>,
    gate_up: Tensor,
    gate_up_inner: Inner,
    down_inner: Inner,
}

/// Result of one forward and backward pass.
pub struct LossGradients {
    /// Negative log-likelihood of every row in nats; 0 where the row has no target.
    pub row_losses: Vec<f32>,
    /// Rows with a target.
    pub num_targets: usize,
    /// Gradients in the order of [`Adapter::parameters`].
    pub gradients: Vec<Tensor>,
    /// For each gradient the squared norm of what each sequence of the batch adds to it; empty unless asked for.
    pub example_norms: Vec<Vec<f64>>,
}

impl LossGradients {
    /// Sum of the losses.
    #[must_use]
    pub fn nll(&self) -> f64 {
        self.row_losses.iter().map(|loss| f64::from(*loss)).sum()
    }
}

impl Llama {
    /// Loads `config.json` and the weights of a folder in Hugging Face layout.
    pub fn load(folder: &Path) -> Result<Self> {
        let config = LlamaConfig::from_file(&folder.join("config.json"))?;
        Self::from_weights(config, &Weights::open(folder)?)
    }

    /// Builds the model from mapped weights.
    pub fn from_weights(config: LlamaConfig, weights: &Weights) -> Result<Self> {
        let h = config.hidden_size;
        let embedding = weights.get("model.embed_tokens.weight", &[config.vocab_size, h])?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            weights.get("lm_head.weight", &[config.vocab_size, h])?
        };
        let layers = (0..config.num_hidden_layers).map(|index| Layer::load(&config, weights, index));
        Ok(Self {
            embedding,
            head,
            layers: layers.collect::<Result<_>>()?,
            norm: weights.get("model.norm.weight", &[h])?,
            rope: RopeTable::new(&config),
            config,
        })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Logits `[n, V]` of every token of the sequence `ids`. For comparisons and short texts: memory grows with `n · V`.
    pub fn logits(&self, ids: &[u32], adapter_opt: Option<&Adapter>) -> Result<Tensor> {
        let batch = Batch::new(ids.to_vec(), vec![cross_entropy::IGNORE; ids.len()], vec![ids.len()])?;
        let (hidden, _) = self.forward(&batch, adapter_opt, &mut None)?;
        let (x, w) = (host(&hidden)?, host(&self.head)?);
        let sizes = Sizes { n: ids.len(), out: self.config.vocab_size, width: self.config.hidden_size };
        let mut logits = vec![0.0; sizes.n * sizes.out];
        product(&mut logits, &x, &w, sizes);
        tensor(logits, (sizes.n, sizes.out))
    }

    /// Negative log-likelihood in nats of every row's target; 0 where there is none.
    pub fn row_losses(&self, batch: &Batch, adapter_opt: Option<&Adapter>) -> Result<Vec<f32>> {
        let (hidden, _) = self.forward(batch, adapter_opt, &mut None)?;
        cross_entropy::forward(&hidden, &self.head, batch.targets())
    }

    /// Losses and the gradients of `scale · Σ losses` for every tensor of the adapter.
    pub fn loss_and_gradients(&self, batch: &Batch, adapter: &Adapter, scale: f32) -> Result<LossGradients> {
        self.forward_backward(batch, adapter, scale, ExampleNorms::Skip)
    }

    /// The same with [`LossGradients::example_norms`], from the same backward pass: what differentially private training clips
    /// by. The batch's sequences are the examples.
    pub fn loss_gradients_and_norms(&self, batch: &Batch, adapter: &Adapter, scale: f32) -> Result<LossGradients> {
        self.forward_backward(batch, adapter, scale, ExampleNorms::Measure)
    }

    fn forward_backward(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        scale: f32,
        norms: ExampleNorms,
    ) -> Result<LossGradients> {
        let mut kept = Some(Vec::with_capacity(self.layers.len()));
        let (hidden, last) = self.forward(batch, Some(adapter), &mut kept)?;
        let (row_losses, d_hidden) = cross_entropy::forward_backward(&hidden, &self.head, batch.targets(), scale)?;
        drop(hidden);
        let mut dx = rms_norm::backward(&d_hidden, &last.x, &self.norm, &last.rms, None)?;
        let segments = batch.segments();
        let positions = segments.positions();
        let mut by_layer = Vec::with_capacity(self.layers.len());
        let layers = self.layers.iter().enumerate().zip(kept.unwrap_or_default()).rev();
        for ((index, layer), kept) in layers {
            let dx_wanted = if index == 0 { WantsDx::No } else { WantsDx::Yes };
            let wants = Wants { dx: dx_wanted, norms_of: (norms == ExampleNorms::Measure).then_some(&segments) };
            let place =
                Place { model: self, segments: &segments, positions: &positions, adapters: adapter.layer(index) };
            let (next, gradients) = layer.backward(dx, kept, &place, wants)?;
            dx = next;
            by_layer.push(gradients);
        }
        let num_targets = batch.num_targets();
        let (gradients, example_norms) = in_parameter_order(by_layer);
        Ok(LossGradients { row_losses, num_targets, gradients, example_norms })
    }

    /// Final normalised hidden states `[n, h]`; fills `kept` when it is `Some`.
    fn forward(
        &self,
        batch: &Batch,
        adapter_opt: Option<&Adapter>,
        kept: &mut Option<Vec<Kept>>,
    ) -> Result<(Tensor, LastNorm)> {
        self.check_adapter(adapter_opt)?;
        let segments = batch.segments();
        self.check_length(segments.bounds().iter().map(|(start, end)| end - start).max().unwrap_or(0))?;
        let positions = segments.positions();
        let mut x = self.embed(batch.ids())?;
        for (index, layer) in self.layers.iter().enumerate() {
            let adapters = adapter_opt.and_then(|adapter| adapter.layer(index));
            let place = Place { model: self, segments: &segments, positions: &positions, adapters };
            let (next, of_layer) = layer.forward(x, &place)?;
            x = next;
            if let Some(kept) = kept {
                kept.push(of_layer);
            }
        }
        let (hidden, rms) = rms_norm::forward(&x, &self.norm, self.eps())?;
        Ok((hidden, LastNorm { x, rms }))
    }

    pub(crate) fn embed(&self, ids: &[u32]) -> Result<Tensor> {
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
        tensor(x, (ids.len(), h))
    }

    pub(crate) fn check_length(&self, length: usize) -> Result<()> {
        let limit = self.config.max_position_embeddings;
        if length > limit { Err(ModelError::TooManyPositions { length, limit }) } else { Ok(()) }
    }

    /// The adapter must have as many layers and matrices of the sizes that this model has.
    pub fn check_adapter(&self, adapter_opt: Option<&Adapter>) -> Result<()> {
        let Some(adapter) = adapter_opt else { return Ok(()) };
        let (found, wanted) = (adapter.num_layers(), self.layers.len());
        if found != wanted {
            let reason = format!("the adapter has {found} layers, the model {wanted}");
            return Err(ModelError::AdapterMismatch { name: format!("model.layers.{}", found.min(wanted)), reason });
        }
        for index in 0..wanted {
            for module in Module::ALL {
                let Some(of_module) = adapter.layer(index).and_then(|layer| layer.get(module)) else { continue };
                let wanted = self.config.module_shape(module);
                if !of_module.fits(wanted) {
                    let found: Vec<_> = of_module.parameters().iter().map(|(name, t)| (*name, t.dims())).collect();
                    let reason = format!("its tensors {found:?} do not fit the model's matrix {wanted:?}");
                    return Err(ModelError::AdapterMismatch {
                        name: format!("model.layers.{index}.{}", module.path()),
                        reason,
                    });
                }
            }
        }
        Ok(())
    }

    /// Length of each row of the frozen matrix of `module` in layer `index`.
    pub(crate) fn row_norms(&self, index: usize, module: Module) -> Result<Vec<f32>> {
        let layer = self.layers.get(index).into_iter();
        let mut linears = layer.flat_map(|layer| [&layer.qkv, &layer.o, &layer.gate_up, &layer.down]);
        match linears.find_map(|linear| linear.row_norms(module)) {
            Some(norms) => norms,
            None => Err(Module::unknown(module.name(), &Module::ALL)),
        }
    }

    pub(crate) fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }

    pub(crate) fn heads(&self) -> Heads {
        Heads {
            query: self.config.num_attention_heads,
            key_value: self.config.num_key_value_heads,
            size: self.config.head_dim,
        }
    }
}

/// Whether the backward pass measures what each sequence adds to the gradients.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ExampleNorms {
    Skip,
    Measure,
}

/// What the backward pass needs of the final normalisation.
struct LastNorm {
    x: Tensor,
    rms: Vec<f32>,
}

/// What a layer must know besides its input.
struct Place<'a> {
    model: &'a Llama,
    segments: &'a Segments,
    positions: &'a [u32],
    adapters: Option<&'a LayerAdapters>,
}

impl Place<'_> {
    fn rotate(&self, qkv: &Tensor, direction: Direction) -> Result<()> {
        let heads = self.model.heads();
        rope::rotate(qkv, heads.query + heads.key_value, self.positions, &self.model.rope, direction)
    }
}

impl Layer {
    fn load(config: &LlamaConfig, weights: &Weights, index: usize) -> Result<Self> {
        let prefix = format!("model.layers.{index}");
        let joined = |modules: &[Module]| {
            let load = |module: &Module| {
                let name = format!("{prefix}.{}.weight", module.path());
                Ok((*module, weights.get(&name, &config.module_shape(*module))?))
            };
            AdaptedLinear::new(&modules.iter().map(load).collect::<Result<Vec<_>>>()?)
        };
        let norm = |name: &str| weights.get(&format!("{prefix}.{name}.weight"), &[config.hidden_size]);
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            qkv: joined(&[Module::Q, Module::K, Module::V])?,
            o: joined(&[Module::O])?,
            mlp_norm: norm("post_attention_layernorm")?,
            gate_up: joined(&[Module::Gate, Module::Up])?,
            down: joined(&[Module::Down])?,
        })
    }

    fn forward(&self, x: Tensor, place: &Place<'_>) -> Result<(Tensor, Kept)> {
        let (model, adapters) = (place.model, place.adapters);
        let (normed, attention_rms) = rms_norm::forward(&x, &self.attention_norm, model.eps())?;
        let (qkv, qkv_inner) = self.qkv.forward(&normed, adapters)?;
        drop(normed);
        place.rotate(&qkv, Direction::Forward)?;
        let (attended, log_sums) = attention::forward(&qkv, place.segments, model.heads())?;
        let (projected, o_inner) = self.o.forward(&attended, adapters)?;
        let middle = (&x + projected)?;
        let (normed, mlp_rms) = rms_norm::forward(&middle, &self.mlp_norm, model.eps())?;
        let (gate_up, gate_up_inner) = self.gate_up.forward(&normed, adapters)?;
        drop(normed);
        let (down, down_inner) = self.down.forward(&swiglu::forward(&gate_up)?, adapters)?;
        let next = (&middle + down)?;
        let kept = Kept {
            x,
            attention_rms,
            qkv,
            qkv_inner,
            attended,
            log_sums,
            o_inner,
            middle,
            mlp_rms,
            gate_up,
            gate_up_inner,
            down_inner,
        };
        Ok((next, kept))
    }

    fn backward(
        &self,
        dx: Tensor,
        kept: Kept,
        place: &Place<'_>,
        wants: Wants<'_>,
    ) -> Result<(Tensor, Vec<ModuleGradient>)> {
        let (model, adapters) = (place.model, place.adapters);
        let mut gradients = Vec::new();
        let inside = Wants { dx: WantsDx::Yes, ..wants };
        let mut through = |linear: &AdaptedLinear, dy: &Tensor, x: &Tensor, inner: &Inner, wants: Wants<'_>| {
            let (dx, new) = linear.backward(dy, x, inner, adapters, wants)?;
            gradients.extend(new);
            Ok::<_, ModelError>(dx)
        };
        let needed = |dx: Option<Tensor>| dx.ok_or(ModelError::EmptyBatch);

        let hidden = swiglu::forward(&kept.gate_up)?;
        let d_hidden = needed(through(&self.down, &dx, &hidden, &kept.down_inner, inside)?)?;
        drop(hidden);
        let d_gate_up = swiglu::backward(&d_hidden, &kept.gate_up)?;
        let normed = rms_norm::recompute(&kept.middle, &self.mlp_norm, &kept.mlp_rms)?;
        let d_normed = needed(through(&self.gate_up, &d_gate_up, &normed, &kept.gate_up_inner, inside)?)?;
        let dx = rms_norm::backward(&d_normed, &kept.middle, &self.mlp_norm, &kept.mlp_rms, Some(&dx))?;

        let d_attended = needed(through(&self.o, &dx, &kept.attended, &kept.o_inner, inside)?)?;
        let heads = model.heads();
        let d_qkv = attention::backward(&d_attended, &kept.qkv, &kept.attended, &kept.log_sums, place.segments, heads)?;
        place.rotate(&d_qkv, Direction::Backward)?;
        let normed = rms_norm::recompute(&kept.x, &self.attention_norm, &kept.attention_rms)?;
        let d_normed = through(&self.qkv, &d_qkv, &normed, &kept.qkv_inner, wants)?;
        let dx = match d_normed {
            Some(d_normed) => {
                rms_norm::backward(&d_normed, &kept.x, &self.attention_norm, &kept.attention_rms, Some(&dx))?
            }
            None => dx,
        };
        Ok((dx, gradients))
    }
}

/// Gradients, and the norms of each example's own.
fn in_parameter_order(by_layer: Vec<Vec<ModuleGradient>>) -> (Vec<Tensor>, Vec<Vec<f64>>) {
    let mut ordered = (Vec::new(), Vec::new());
    for mut gradients in by_layer.into_iter().rev() {
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
pub(crate) mod tests {
    use super::*;
    use crate::adapters::AdapterConfig;
    use crate::adapters::testing::every_method;
    use crate::ops::testing::random;

    pub fn tiny_model() -> Llama {
        let config = LlamaConfig::tiny();
        let h = config.hidden_size;
        let mut seed = 0;
        let mut next = |shape: &[usize]| {
            seed += 1;
            random(seed, shape, 0.3)
        };
        let layers = (0..config.num_hidden_layers).map(|_| {
            let mut joined = |modules: &[Module]| {
                let pairs: Vec<_> = modules.iter().map(|m| (*m, next(&config.module_shape(*m)))).collect();
                AdaptedLinear::new(&pairs).unwrap()
            };
            Layer {
                qkv: joined(&[Module::Q, Module::K, Module::V]),
                o: joined(&[Module::O]),
                gate_up: joined(&[Module::Gate, Module::Up]),
                down: joined(&[Module::Down]),
                attention_norm: (random(77, &[h], 0.2) + 1.0).unwrap(),
                mlp_norm: (random(78, &[h], 0.2) + 1.0).unwrap(),
            }
        });
        let layers = layers.collect();
        let embedding = random(500, &[config.vocab_size, h], 1.0);
        Llama {
            head: embedding.clone(),
            embedding,
            layers,
            norm: random(79, &[h], 1.0),
            rope: RopeTable::new(&config),
            config,
        }
    }

    /// LoRA on every module, none of whose gradients is zero.
    pub fn busy_adapter(model: &Llama) -> Adapter {
        every_method(model).remove(0).1
    }

    /// Two sequences with a gap in the targets.
    pub fn batch() -> Batch {
        let ids: Vec<u32> = (0..23).map(|i| i * 7 % 48).collect();
        let mut targets: Vec<u32> = (0..23).map(|i| (i * 5 + 1) % 48).collect();
        targets[4] = cross_entropy::IGNORE;
        Batch::new(ids, targets, vec![9, 14]).unwrap()
    }

    #[test]
    fn packed_sequences_equal_the_same_sequences_alone() {
        let model = tiny_model();
        let adapter = busy_adapter(&model);
        let packed = model.row_losses(&batch(), Some(&adapter)).unwrap();
        let (ids, targets) = (batch().ids().to_vec(), batch().targets().to_vec());
        let mut alone = Vec::new();
        for range in [0..9, 9..23] {
            let one =
                Batch::new(ids[range.clone()].to_vec(), targets[range.clone()].to_vec(), vec![range.len()]).unwrap();
            alone.extend(model.row_losses(&one, Some(&adapter)).unwrap());
        }
        for (a, b) in packed.iter().zip(alone) {
            assert!((a - b).abs() < 1e-5);
        }
    }

    #[test]
    fn an_adapter_for_another_model_and_too_long_a_text_are_refused() {
        let model = tiny_model();
        for (method, adapter) in every_method(&model) {
            let mut other = tiny_model();
            other.config.hidden_size = 64;
            other.config.intermediate_size = 80;
            let refused = other.check_adapter(Some(&adapter));
            assert!(matches!(refused, Err(ModelError::AdapterMismatch { .. })), "{method}");
        }
        let gate = Module::from_name("gate", &Module::ALL).unwrap_err().to_string();
        assert!(gate.contains("\"gate\"") && gate.contains("gate_proj up_proj"), "{gate}");
        let rank_zero = AdapterConfig::lora(0, 1.0);
        assert!(Adapter::new(rank_zero, &model, 1).unwrap_err().to_string().contains("rank = 0"));
        assert!(matches!(model.logits(&[1; 257], None), Err(ModelError::TooManyPositions { length: 257, limit: 256 })));
        assert!(matches!(model.logits(&[48], None), Err(ModelError::TokenOutOfRange { id: 48, vocabulary: 48 })));
        assert!(matches!(model.logits(&[], None), Err(ModelError::EmptyBatch)));
    }
}
