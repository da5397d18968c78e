//! A GGUF file read back as a decoder and a tokenizer, through candle's reader, its blocks dequantised to f32.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;

use super::architecture::{self, Architecture, Seen};
use super::tensors::{self, Planned, Values};
use super::vocabulary;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::frozen::Quantization;
use crate::ops::{host, tensor};
use crate::tokenizer::Tokenizer;

/// What a GGUF file holds.
pub struct GgufModel {
    /// The model that its keys and tensors describe: nothing of the folder it was made from is used.
    pub decoder: Decoder,
    /// The tokenizer that its keys describe.
    pub tokenizer: Tokenizer,
}

impl GgufModel {
    /// Reads a file that this crate wrote, or another of the same architectures and kinds of vocabulary.
    ///
    /// # Errors
    /// [`ModelError::BadGguf`] when something is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let bad = |reason: String| ModelError::BadGguf { path: path.to_path_buf(), reason };
        let mut file = File::open(path).map_err(ModelError::io(path))?;
        let content = Content::read(&mut file).map_err(|error| bad(error.to_string()))?;
        let name = content.metadata.get("general.architecture").and_then(|name| name.to_string().ok());
        let architecture = name.and_then(|name| Architecture::from_name(name));
        let architecture = architecture.ok_or_else(|| bad(format!("architecture {name:?} is not read")))?;
        let file = RefCell::new(file);
        let read = |name: &str| -> Result<Vec<f32>> {
            let mut file = file.borrow_mut();
            let stored = content.tensor(&mut *file, name, &Device::Cpu).map_err(|error| bad(error.to_string()))?;
            Ok(host(&stored.dequantize(&Device::Cpu)?.flatten_all()?)?.to_vec())
        };
        let has = |name: &str| content.tensor_infos.contains_key(name);
        let factors = ["rope_freqs.weight", "rope_factors_short.weight"].into_iter().find(|name| has(name));
        let factors = factors.map(read).transpose()?;
        let seen = Seen {
            metadata: &content.metadata,
            has: &has,
            vocab_size: content.tensor_infos.get("token_embd.weight").map_or(0, |info| info.shape.dims()[0]),
            factors: factors.map(|factors| factors.into_iter().map(f64::from).collect()),
        };
        let config =
            architecture::config(architecture, &seen).ok_or_else(|| bad("a hyperparameter is missing".into()))?;
        let plan = tensors::plan(&config, architecture);
        let places: HashMap<&str, &Planned> = plan.iter().filter_map(stored).collect();
        let decoder = Decoder::from_source(config.clone(), Quantization::None, &|name, wanted| {
            let planned = places.get(name).ok_or_else(|| bad(format!("no place for {name}")))?;
            let shape = content.tensor_infos.get(&planned.name).map(|info| info.shape.dims().to_vec());
            if shape.as_ref() != Some(&planned.shape) || planned.stored_shape() != wanted {
                let reason = format!("{} has shape {shape:?}, wanted {:?}", planned.name, planned.shape);
                return Err(bad(reason));
            }
            let columns = if planned.shape.len() > 1 { planned.columns() } else { 1 };
            tensor(planned.change.undo(read(&planned.name)?, columns), wanted)
        })?;
        Ok(Self { decoder, tokenizer: vocabulary::read(&content.metadata, path)? })
    }
}

fn stored(tensor: &Planned) -> Option<(&str, &Planned)> {
    match &tensor.values {
        Values::Stored(name) => Some((name.as_str(), tensor)),
        Values::Made(_) => None,
    }
}
