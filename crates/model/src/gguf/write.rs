//! From a folder in Hugging Face layout and an adapter to one GGUF file.

use std::path::Path;

use candle_core::quantized::gguf_file::Value;

use super::architecture::Architecture;
use super::encoding::{self, Encoding};
use super::file::{Info, Layout};
use super::tensors::{self, Planned, Values};
use super::{Metadata, vocabulary};
use crate::adapters::Adapter;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::ops::host;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// What becomes a GGUF file.
pub struct GgufExport<'a> {
    /// The base model in Hugging Face layout.
    pub folder: &'a Path,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// What is merged into its weights, in f32 and before they are rounded.
    pub adapter: Option<&'a Adapter>,
    /// How matrices are stored.
    pub encoding: Encoding,
    /// `general.name`; where llama.cpp goes by the name, ` (phi-3)` is added to it.
    pub name: &'a str,
    /// Hash of everything the file is made of; an unfinished file is continued when its own is the same.
    pub source: &'a str,
}

/// How far a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes written.
    pub bytes: usize,
    /// Bytes of the whole file.
    pub total: usize,
}

impl Progress {
    /// Of a hundred.
    #[must_use]
    pub fn percent(self) -> u8 {
        (self.bytes * 100 / self.total.max(1)).min(100) as u8
    }
}

/// A file that is planned in every byte of its head.
pub struct PlannedFile<'a> {
    export: &'a GgufExport<'a>,
    weights: Weights,
    plan: Vec<Planned>,
    infos: Vec<Info>,
    layout: Layout,
}

impl<'a> GgufExport<'a> {
    /// Everything that can be refused is refused here, before a byte is written.
    ///
    /// # Errors
    /// [`crate::ModelError::NotInGguf`] for what llama.cpp would compute otherwise; a missing file or tensor.
    pub fn plan(&'a self) -> Result<PlannedFile<'a>> {
        let config = ModelConfig::from_file(&self.folder.join("config.json"))?;
        let architecture = Architecture::of(&config)?;
        let weights = Weights::open(self.folder)?;
        let plan = tensors::plan(&config, architecture);
        let info = |tensor: &Planned| Info {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            block: self.encoding.block(tensor.role, tensor.columns()),
        };
        let infos: Vec<Info> = plan.iter().map(info).collect();
        let mut metadata: Metadata = architecture.hyperparameters(&config);
        let vocabulary = vocabulary::write(self, config.vocab_size)?;
        metadata.push(("general.type".into(), Value::String("model".into())));
        metadata.push(("general.name".into(), Value::String(vocabulary.name)));
        metadata.push(("general.file_type".into(), Value::U32(self.encoding.file_type())));
        metadata.push(("general.quantization_version".into(), Value::U32(2)));
        metadata.push(("tunesmith.source.sha256".into(), Value::String(self.source.to_owned())));
        metadata.extend(vocabulary.metadata);
        let layout = Layout::new(&metadata, &infos)?;
        Ok(PlannedFile { export: self, weights, plan, infos, layout })
    }
}

impl PlannedFile<'_> {
    /// Size of the file.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layout.bytes()
    }

    /// Writes the file. One tensor is in memory at a time.
    pub fn write(&self, path: &Path, mut progress: impl FnMut(Progress)) -> Result<()> {
        if let Some(adapter) = self.export.adapter {
            self.check_merges(adapter)?;
        }
        let total = self.bytes();
        self.layout.write(path, |index| self.tensor(index), |bytes| progress(Progress { bytes, total }))
    }

    /// Every weight that the adapter changes must be written.
    fn check_merges(&self, adapter: &Adapter) -> Result<()> {
        let mut merges = adapter.merges();
        for tensor in &self.plan {
            if let Values::Stored(name) = &tensor.values {
                merges.take(name);
            }
        }
        merges.finish()
    }

    fn tensor(&self, index: usize) -> Result<Vec<u8>> {
        let (tensor, info) = (&self.plan[index], &self.infos[index]);
        let values = match &tensor.values {
            Values::Made(values) => values.clone(),
            Values::Stored(name) => {
                let shape = tensor.stored_shape();
                let mut values = host(&self.weights.get(self.stored_name(name), &shape)?)?.to_vec();
                if let Some(merge) = self.export.adapter.and_then(|adapter| adapter.merges().take(name)) {
                    merge.apply(&shape, &mut values)?;
                }
                tensor.change.apply(values, shape.last().copied().filter(|_| shape.len() > 1).unwrap_or(1))
            }
        };
        encoding::encode(&info.name, &values, tensor.columns(), info.block)
    }

    /// GPT-2 on the hub was saved without the name of its body.
    fn stored_name<'n>(&self, name: &'n str) -> &'n str {
        let bare = !self.weights.contains(name);
        name.strip_prefix("transformer.").filter(|_| bare).unwrap_or(name)
    }
}
