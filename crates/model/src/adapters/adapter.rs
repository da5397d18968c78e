//! An adapter for a whole model: what training changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::Module;
use super::adalora::{Vectors, add_orthogonality};
use super::config::AdapterConfig;
use super::module_adapter::ModuleAdapter;
use super::sites::{Place, Sites};
use super::start::Start;
use crate::decoder::Decoder;
use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::frozen::Quantization;
use crate::rng::Rng;

/// The adapters of one layer, in the order of [`Module`].
#[derive(Debug, Clone, Default)]
pub struct LayerAdapters(Vec<(Module, ModuleAdapter)>);

impl LayerAdapters {
    /// Puts an adapter on `module`, in place of one that was there.
    pub fn set(&mut self, module: Module, adapter: ModuleAdapter) {
        self.0.retain(|(other, _)| *other != module);
        self.0.push((module, adapter));
        self.0.sort_by_key(|(module, _)| *module);
    }

    /// The adapter of `module`.
    #[must_use]
    pub fn get(&self, module: Module) -> Option<&ModuleAdapter> {
        self.0.iter().find(|(other, _)| *other == module).map(|(_, adapter)| adapter)
    }

    /// Every module that carries an adapter.
    pub fn iter(&self) -> impl Iterator<Item = (Module, &ModuleAdapter)> {
        self.0.iter().map(|(module, adapter)| (*module, adapter))
    }
}

/// The base model that an adapter was trained on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Base {
    /// How it was stored.
    pub quantization: Quantization,
    /// Which it was; `None` where nobody knows: adapters made elsewhere do not say, and encoder-decoders have none.
    pub fingerprint: Option<Fingerprint>,
}

/// An adapter for a whole model.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: AdapterConfig,
    base: Base,
    sites: Arc<Sites>,
    layers: Vec<LayerAdapters>,
}

impl Adapter {
    /// A fresh adapter, which leaves the model as it is; the same `seed` gives the same values everywhere.
    pub fn new(config: AdapterConfig, model: &Decoder, seed: u64) -> Result<Self> {
        let row_norms = |place: &Place| model.row_norms(place.layer, place.module);
        Ok(Self::fresh(config, model.config(), seed, row_norms)?.on_base(model))
    }

    /// The same for any model; `row_norms` are the lengths of the rows of the frozen matrix at a place.
    pub(crate) fn fresh(
        config: AdapterConfig,
        sites: impl Into<Sites>,
        seed: u64,
        row_norms: impl Fn(&Place) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let mut rng = Rng::new(seed, 0x10_2A);
        Self::build(config, sites, &BTreeMap::new(), |place, _, shape, start| {
            start.make(shape, &mut rng, || row_norms(place))
        })
    }

    /// An adapter whose tensors come from `make`. `ranks` has AdaLoRA's ranks by path where they are not the initial one.
    pub(crate) fn build(
        config: AdapterConfig,
        sites: impl Into<Sites>,
        ranks: &BTreeMap<String, usize>,
        mut make: impl FnMut(&Place, &'static str, &[usize], Start) -> Result<Tensor>,
    ) -> Result<Self> {
        let sites: Sites = sites.into();
        config.validate(sites.modules())?;
        let mut layers = Vec::with_capacity(sites.layers().len());
        for places in sites.layers() {
            let mut adapters = LayerAdapters::default();
            for place in places.iter().filter(|place| config.target_modules.contains(&place.module)) {
                let rank_opt = ranks.get(&place.path).copied();
                let mut make = |name: &'static str, shape: &[usize], start| make(place, name, shape, start);
                let adapter = ModuleAdapter::build(&config, place.module, place.shape, rank_opt, &mut make)?;
                adapters.set(place.module, adapter);
            }
            layers.push(adapters);
        }
        Ok(Self { config, base: Base::default(), sites: Arc::new(sites), layers })
    }

    /// The same adapter, trained on `model` from now on.
    #[must_use]
    pub fn on_base(self, model: &Decoder) -> Self {
        let (quantization, fingerprint) = (model.quantization(), Some(model.fingerprint().clone()));
        self.with_base(Base { quantization, fingerprint })
    }

    pub(crate) fn with_base(self, base: Base) -> Self {
        Self { base, ..self }
    }

    /// How the base was stored that it was trained on. On a base that is stored otherwise it computes nearly the same: the
    /// difference is the error of the quantisation, which training could see.
    #[must_use]
    pub fn base_quantization(&self) -> Quantization {
        self.base.quantization
    }

    /// Which base it was trained on, where that is known.
    #[must_use]
    pub fn base_fingerprint(&self) -> Option<&Fingerprint> {
        self.base.fingerprint.as_ref()
    }

    /// Where it can sit, and what these places are called.
    #[must_use]
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &AdapterConfig {
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

    /// Every module that carries an adapter, in the order of the parameters.
    pub fn modules(&self) -> impl Iterator<Item = (Place, &ModuleAdapter)> {
        let adapter = move |place: &Place| Some((place.clone(), self.layer(place.layer)?.get(place.module)?));
        self.sites.layers().iter().flatten().filter_map(adapter)
    }

    /// Every tensor with its name (`model.layers.0.self_attn.q_proj.lora_A.weight`), in the order that gradients and optimizer
    /// moments use: layer, then module, then [`ModuleAdapter::parameters`].
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let mut parameters = Vec::new();
        for (Place { path, .. }, adapter) in self.modules() {
            parameters
                .extend(adapter.parameters().into_iter().map(|(name, tensor)| (format!("{path}.{name}"), tensor)));
        }
        parameters
    }

    /// Number of trainable values.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.parameters().iter().map(|(_, tensor)| tensor.elem_count()).sum()
    }

    /// Changes every tensor in place, in the order of [`Adapter::parameters`]; `change` gets index and values.
    pub fn update(&mut self, mut change: impl FnMut(usize, &mut [f32])) -> Result<()> {
        for (index, (_, tensor)) in self.parameters().into_iter().enumerate() {
            crate::ops::update(tensor, |values| change(index, values))?;
        }
        self.modules().for_each(|(_, adapter)| adapter.changed());
        Ok(())
    }

    /// A copy that shares no storage with this one, so that one can be trained while the other is used.
    pub fn snapshot(&self) -> Result<Self> {
        self.map(ModuleAdapter::snapshot)
    }

    /// The same function in its smallest form, to be kept when training is over: AdaLoRA without the ranks whose value is zero.
    pub fn pruned(&self) -> Result<Self> {
        self.map(|adapter| match adapter {
            ModuleAdapter::AdaLora(ada) => ada.pruned().map(ModuleAdapter::AdaLora),
            other => other.snapshot(),
        })
    }

    /// What the method adds to the loss of a step beside the data's: AdaLoRA's orthogonality, `orth_reg_weight` times the mean
    /// over all `A` and `B`; 0 for the others. Its gradient is added to `gradients`, in the order of [`Adapter::parameters`].
    pub fn regularise(&self, gradients: &mut [Vec<f32>]) -> Result<f64> {
        let Some(config) = self.config.adalora().filter(|config| config.orth_reg_weight > 0.0) else { return Ok(0.0) };
        let parameters = self.parameters();
        let vectors = parameters.iter().map(|(name, _)| match name.rsplit('.').next() {
            Some("lora_A") => Some(Vectors::Rows),
            Some("lora_B") => Some(Vectors::Columns),
            _ => None,
        });
        let vectors: Vec<_> = vectors.collect();
        let weight = config.orth_reg_weight / vectors.iter().flatten().count().max(1) as f64;
        let mut term = 0.0;
        for (((_, tensor), vectors), gradient) in parameters.iter().zip(vectors).zip(gradients) {
            if let Some(vectors) = vectors {
                term += add_orthogonality(tensor, vectors, weight, gradient)?;
            }
        }
        Ok(term)
    }

    fn map(&self, change: impl Fn(&ModuleAdapter) -> Result<ModuleAdapter>) -> Result<Self> {
        let of_layer = |layer: &LayerAdapters| {
            let changed = layer.iter().map(|(module, adapter)| Ok((module, change(adapter)?)));
            changed.collect::<Result<_>>().map(LayerAdapters)
        };
        let layers = self.layers.iter().map(of_layer).collect::<Result<_>>()?;
        Ok(Self { config: self.config.clone(), base: self.base.clone(), sites: self.sites.clone(), layers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::testing::{every_config, every_method};
    use crate::decoder::tests::{model, tiny_model, variants};
    use crate::ops::host;

    #[test]
    fn lora_starts_as_in_peft_from_the_seed_alone() {
        let model = tiny_model();
        let adapter = Adapter::new(AdapterConfig::default(), &model, 3).unwrap();
        let again = Adapter::new(AdapterConfig::default(), &model, 3).unwrap();
        for ((name, value), (_, same)) in adapter.parameters().into_iter().zip(again.parameters()) {
            let values = host(value).unwrap();
            assert_eq!(*values, *host(same).unwrap(), "{name} depends on more than the seed");
            if name.ends_with("lora_B.weight") {
                assert!(values.iter().all(|v| *v == 0.0));
            } else {
                let bound = 1.0 / (value.dims()[1] as f32).sqrt();
                let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest} of {bound}");
            }
        }
    }

    #[test]
    fn a_fresh_adapter_of_any_method_leaves_any_model_as_it_is() {
        for (variant, config) in variants() {
            let model = model(config);
            let wanted = model.logits(&[1, 2, 3], None).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (name, config) in every_config(model.config().modules()) {
                let fresh = Adapter::new(config, &model, 1).unwrap();
                let got = model.logits(&[1, 2, 3], Some(&fresh)).unwrap().flatten_all().unwrap();
                let got = got.to_vec1::<f32>().unwrap();
                assert!(got.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{variant} {name}");
            }
        }
    }

    #[test]
    fn a_snapshot_does_not_follow_the_original() {
        let model = tiny_model();
        for (name, mut adapter) in every_method(&model) {
            let copy = adapter.snapshot().unwrap();
            let before = model.logits(&[1, 2, 3], Some(&copy)).unwrap().to_vec2::<f32>().unwrap();
            adapter.update(|_, values| values.iter_mut().for_each(|v| *v *= 1.5)).unwrap();
            assert_eq!(model.logits(&[1, 2, 3], Some(&copy)).unwrap().to_vec2::<f32>().unwrap(), before, "{name}");
            assert_ne!(model.logits(&[1, 2, 3], Some(&adapter)).unwrap().to_vec2::<f32>().unwrap(), before, "{name}");
        }
    }

    #[test]
    fn orthogonality_is_added_for_adalora_only() {
        let model = tiny_model();
        for (name, adapter) in every_method(&model) {
            let mut gradients: Vec<Vec<f32>> =
                adapter.parameters().iter().map(|(_, tensor)| vec![0.0; tensor.elem_count()]).collect();
            let term = adapter.regularise(&mut gradients).unwrap();
            let changed = gradients.iter().flatten().any(|g| *g != 0.0);
            assert_eq!((term > 0.0, changed), (name == "adalora", name == "adalora"), "{name}");
        }
    }
}
