//! LoRA (Hu et al. 2021): `y += s · (x Aᵀ) Bᵀ` beside a frozen matrix, `s = alpha / rank` (rsLoRA: `alpha / √rank`).
//!
//! Backward, with `u = x Aᵀ` kept: `du = s · dy B`, `dB = s · dyᵀ u`, `dA = duᵀ x`, `dx += du A`.
//! Shapes: `A` `[rank, in]`, `B` `[out, rank]`, `u` `[n, rank]`.
//! Start as in `peft`: `A` uniform in `±1/√in` (Kaiming with `a = √5`), `B` zero, so that the start equals the base model.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Module;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::ops::gemm::{Threads, View, ViewMut, Write, gemm};
use crate::ops::{host, tensor};
use crate::rng::Rng;

/// Shape and strength of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Inner size; at least 1.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Scale by `alpha / √rank` instead of `alpha / rank` (Kalajdzievski 2023).
    #[serde(default)]
    pub use_rslora: bool,
    /// Which projections carry an adapter; no repetition.
    pub target_modules: Vec<Module>,
}

impl Default for LoraConfig {
    /// Rank 16, alpha 32, all seven projections of a Llama layer: the usual start for small corpora.
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, use_rslora: false, target_modules: Module::LLAMA.to_vec() }
    }
}

impl LoraConfig {
    /// Refuses rank 0, no or repeated target modules and a scale that is not a positive number.
    pub fn validate(&self) -> Result<()> {
        let bad = |key, value: String, remedy| Err(ModelError::UnsupportedAdapter { key, value, remedy });
        if self.rank == 0 {
            return bad("rank", "0".into(), "choose a rank of 1 or more, usually 8 to 64");
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return bad(
                "alpha",
                self.alpha.to_string(),
                "choose a positive number, usually the rank or twice the rank",
            );
        }
        let mut modules = self.target_modules.clone();
        modules.sort_unstable();
        modules.dedup();
        if modules.is_empty() || modules.len() != self.target_modules.len() {
            let names: Vec<&str> = self.target_modules.iter().map(|module| module.name()).collect();
            return bad("target_modules", format!("{names:?}"), "name at least one projection, each once");
        }
        Ok(())
    }

    /// `s`.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// The two matrices of one projection.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// `A`, `[rank, in]`.
    pub a: Tensor,
    /// `B`, `[out, rank]`.
    pub b: Tensor,
}

/// The adapters of one layer.
#[derive(Debug, Clone)]
pub struct LayerAdapters {
    scale: f32,
    pairs: [Option<LoraPair>; Module::ALL.len()],
}

impl LayerAdapters {
    /// No adapter yet; `scale` is that of the configuration.
    #[must_use]
    pub fn empty(scale: f32) -> Self {
        Self { scale, pairs: Default::default() }
    }

    /// Puts an adapter on `module`.
    pub fn set(&mut self, module: Module, pair: LoraPair) {
        self.pairs[module.index()] = Some(pair);
    }

    /// The adapter of `module`.
    #[must_use]
    pub fn get(&self, module: Module) -> Option<&LoraPair> {
        self.pairs[module.index()].as_ref()
    }

    /// `s`.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale
    }
}

/// An adapter for a whole model.
#[derive(Debug, Clone)]
pub struct LoraAdapter {
    config: LoraConfig,
    layers: Vec<LayerAdapters>,
}

impl LoraAdapter {
    /// A fresh adapter; the same `seed` gives the same values everywhere.
    pub fn new(config: LoraConfig, model: &ModelConfig, seed: u64) -> Result<Self> {
        let mut rng = Rng::new(seed, 0x10_2A);
        let rank = config.rank;
        Self::from_fn(config, model, |_, shape_a, shape_b| {
            let bound = 1.0 / (shape_a[1] as f32).sqrt();
            let a = (0..rank * shape_a[1]).map(|_| (rng.uniform() * 2.0 - 1.0) * bound).collect();
            Ok(LoraPair { a: tensor(a, &shape_a[..])?, b: tensor(vec![0.0; shape_b[0] * rank], &shape_b[..])? })
        })
    }

    /// An adapter whose pairs come from `make(path, shape of A, shape of B)`; `path` is `model.layers.{i}.self_attn.q_proj`.
    pub fn from_fn(
        config: LoraConfig,
        model: &ModelConfig,
        mut make: impl FnMut(&str, [usize; 2], [usize; 2]) -> Result<LoraPair>,
    ) -> Result<Self> {
        config.validate()?;
        model.check_targets(&config.target_modules)?;
        let mut layers = Vec::with_capacity(model.num_hidden_layers);
        for layer in 0..model.num_hidden_layers {
            let mut adapters = LayerAdapters::empty(config.scale());
            for module in Module::ALL.into_iter().filter(|module| config.target_modules.contains(module)) {
                let [out, width] = model.module_shape(module);
                let path = module.path_in(layer);
                adapters.set(module, make(&path, [config.rank, width], [out, config.rank])?);
            }
            layers.push(adapters);
        }
        Ok(Self { config, layers })
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The adapters of layer `index`.
    #[must_use]
    pub fn layer(&self, index: usize) -> Option<&LayerAdapters> {
        self.layers.get(index)
    }

    /// Number of layers.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Every tensor with its name (`model.layers.0.self_attn.q_proj.lora_A`), in the order that gradients and optimizer
    /// moments use: layer, then module, then `A` before `B`.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let mut parameters = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            for module in Module::ALL {
                if let Some(pair) = layer.get(module) {
                    let path = module.path_in(index);
                    parameters.push((format!("{path}.lora_A"), &pair.a));
                    parameters.push((format!("{path}.lora_B"), &pair.b));
                }
            }
        }
        parameters
    }

    /// Number of trainable values.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.parameters().iter().map(|(_, tensor)| tensor.elem_count()).sum()
    }

    /// Changes every tensor in place, in the order of [`LoraAdapter::parameters`]; `change` gets index and values.
    pub fn update(&mut self, mut change: impl FnMut(usize, &mut [f32])) -> Result<()> {
        for (index, (_, tensor)) in self.parameters().into_iter().enumerate() {
            crate::ops::update(tensor, |values| change(index, values))?;
        }
        Ok(())
    }

    /// A copy that shares no storage with this one, so that one can be trained while the other is used.
    pub fn snapshot(&self) -> Result<Self> {
        let mut copy = self.clone();
        for layer in &mut copy.layers {
            for pair in layer.pairs.iter_mut().flatten() {
                *pair = LoraPair { a: pair.a.copy()?, b: pair.b.copy()? };
            }
        }
        Ok(copy)
    }
}

/// Adds `s · (x Aᵀ) Bᵀ` to the columns that `y` starts with (rows `row_stride` apart); returns `u = x Aᵀ`.
pub(crate) fn forward(pair: &LoraPair, scale: f32, x: &Tensor, y: &mut [f32], row_stride: usize) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let (out, rank) = pair.b.dims2()?;
    let (xs, a, b) = (host(x)?, host(&pair.a)?, host(&pair.b)?);
    let mut u = vec![0.0; n * rank];
    let (x, a) = (View::new(&xs, n, width, width), View::new(&a, rank, width, width).t());
    gemm(ViewMut::new(&mut u, n, rank, rank), Write::Replace, 1.0, x, a, Threads::Pool);
    let (inner, b) = (View::new(&u, n, rank, rank), View::new(&b, out, rank, rank).t());
    gemm(ViewMut::new(y, n, out, row_stride), Write::Add, scale, inner, b, Threads::Pool);
    tensor(u, (n, rank))
}

/// Gradients of `A` and `B`; adds this adapter's part to `dx` where one is wanted.
pub(crate) fn backward(
    pair: &LoraPair,
    scale: f32,
    dy: View<'_>,
    x: &Tensor,
    inner: &Tensor,
    dx: Option<&mut [f32]>,
) -> Result<(Tensor, Tensor)> {
    let (n, width) = x.dims2()?;
    let (out, rank) = pair.b.dims2()?;
    let (xs, us, a, b) = (host(x)?, host(inner)?, host(&pair.a)?, host(&pair.b)?);
    let mut du = vec![0.0; n * rank];
    let (mut da, mut db) = (vec![0.0; rank * width], vec![0.0; out * rank]);
    let b = View::new(&b, out, rank, rank);
    gemm(ViewMut::new(&mut du, n, rank, rank), Write::Replace, scale, dy, b, Threads::Pool);
    let u = View::new(&us, n, rank, rank);
    gemm(ViewMut::new(&mut db, out, rank, rank), Write::Replace, scale, dy.t(), u, Threads::Pool);
    let du = View::new(&du, n, rank, rank);
    let x = View::new(&xs, n, width, width);
    gemm(ViewMut::new(&mut da, rank, width, width), Write::Replace, 1.0, du.t(), x, Threads::Pool);
    if let Some(dx) = dx {
        let a = View::new(&a, rank, width, width);
        gemm(ViewMut::new(dx, n, width, width), Write::Add, 1.0, du, a, Threads::Pool);
    }
    Ok((tensor(da, (rank, width))?, tensor(db, (out, rank))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_as_peft_does() {
        let model = ModelConfig::tiny();
        let adapter = LoraAdapter::new(LoraConfig::default(), &model, 3).unwrap();
        let again = LoraAdapter::new(LoraConfig::default(), &model, 3).unwrap();
        for ((name, value), (_, same)) in adapter.parameters().into_iter().zip(again.parameters()) {
            let values = host(value).unwrap();
            assert_eq!(*values, *host(same).unwrap(), "{name} depends on more than the seed");
            if name.ends_with("lora_B") {
                assert!(values.iter().all(|v| *v == 0.0));
            } else {
                let bound = 1.0 / (value.dims()[1] as f32).sqrt();
                let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest} of {bound}");
            }
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        let with = |change: fn(&mut LoraConfig)| {
            let mut config = LoraConfig::default();
            change(&mut config);
            config.validate()
        };
        assert!(with(|c| c.rank = 0).is_err());
        assert!(with(|c| c.alpha = f32::NAN).is_err());
        assert!(with(|c| c.target_modules.clear()).is_err());
        assert!(with(|c| c.target_modules.push(Module::Q)).is_err());
    }
}
