//! Where adapters can sit in a model, and what Hugging Face and `peft` call these places.

use super::Module;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};

/// Where a module lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Index of the layer, in the order of computation. Of an encoder-decoder see [`crate::encoder_decoder`].
    pub layer: usize,
    /// Which projection.
    pub module: Module,
    /// `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// `[out, in]` of its matrix.
    pub shape: [usize; 2],
}

/// Every place of a model that can carry an adapter. In a layer each [`Module`] lies once at the most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sites {
    kind: Kind,
    modules: Vec<Module>,
    layers: Vec<Vec<Place>>,
}

/// What kind of model an adapter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One stack that continues a text.
    Decoder,
    /// T5.
    EncoderDecoder,
}

impl From<&ModelConfig> for Sites {
    fn from(config: &ModelConfig) -> Self {
        let place = |layer, module: Module| Place {
            layer,
            module,
            path: module.path_in(layer),
            shape: config.module_shape(module),
        };
        let of_layer = |layer| config.modules().iter().map(|module| place(layer, *module)).collect();
        let layers = (0..config.num_hidden_layers).map(of_layer).collect();
        Self { kind: Kind::Decoder, modules: config.modules().to_vec(), layers }
    }
}

impl Sites {
    /// Those of an encoder-decoder whose layers have some of `modules`.
    pub(crate) fn of_encoder_decoder(modules: &[Module], layers: Vec<Vec<Place>>) -> Self {
        Self { kind: Kind::EncoderDecoder, modules: modules.to_vec(), layers }
    }

    /// Those of a decoder of which no more is known than these places, layer by layer.
    pub(crate) fn of_places(layers: Vec<Vec<Place>>) -> Self {
        let mut modules: Vec<Module> = layers.iter().flatten().map(|place| place.module).collect();
        modules.sort_unstable();
        modules.dedup();
        Self { kind: Kind::Decoder, modules, layers }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The projections of all layers together.
    #[must_use]
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The places, layer by layer, each layer in the order of [`Module`].
    #[must_use]
    pub fn layers(&self) -> &[Vec<Place>] {
        &self.layers
    }

    /// What `peft` is to be told as target.
    #[must_use]
    pub fn name(&self, module: Module) -> &'static str {
        match self.kind {
            Kind::Decoder => module.name(),
            Kind::EncoderDecoder => module.t5_name(self.modules.contains(&Module::Gate)),
        }
    }

    /// The projections that `peft` means by this target; an error that lists those which exist when there is none.
    pub fn targeted(&self, target: &str) -> Result<Vec<Module>> {
        let meant: Vec<Module> = match self.kind {
            Kind::Decoder => {
                Module::from_target(target).into_iter().filter(|module| self.modules.contains(module)).collect()
            }
            Kind::EncoderDecoder => {
                self.modules.iter().copied().filter(|module| self.name(*module) == target).collect()
            }
        };
        if meant.is_empty() {
            let existing: Vec<&str> = self.modules.iter().map(|module| self.name(*module)).collect();
            return Err(ModelError::UnknownModule { name: target.to_owned(), existing: existing.join(" ") });
        }
        Ok(meant)
    }
}
