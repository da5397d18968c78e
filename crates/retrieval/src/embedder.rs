//! all-MiniLM-L6-v2 (Apache-2.0, sentence-transformers): a sentence becomes 384 numbers whose inner product is similarity.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::SafeTensors;
use tokenizers::{Tokenizer, TruncationParams};

use crate::{
    bert::{Bert, BertConfig, mean_pool},
    vectors::Vectors,
    weights::{Weights, WeightsError},
};

/// The embedding model's name: its folder under `models/`, and `embedder` in an index's manifest.
pub const EMBEDDER_NAME: &str = "all-minilm-l6-v2";

/// The files in that folder, in the order of the fields of [`EmbedderFiles`].
pub const EMBEDDER_FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

/// Longer texts are cut: `max_seq_length` in the model's `sentence_bert_config.json`, [CLS] and [SEP] included.
/// (The 128 in its `tokenizer.json` is not what sentence-transformers uses.)
const MAX_TOKENS: usize = 256;

/// Why texts could not be embedded. No variant gets better by trying again.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// A file of the model is not there or not readable.
    #[error("embedding model file {path}: {source}; put the model's files there", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `config.json` is not a BERT configuration.
    #[error("embedding model config.json: {0}; upload the model's files again")]
    Config(#[from] serde_json::Error),
    /// A configuration that this forward pass does not implement.
    #[error("embedding model config.json asks for {0}; use all-MiniLM-L6-v2 or another BERT model with these settings")]
    Unsupported(String),
    /// `tokenizer.json` is damaged, or a text could not be tokenized.
    #[error("embedding model tokenizer.json: {0}; upload the model's files again")]
    Tokenizer(#[source] tokenizers::Error),
    /// The tokenizer knows more entries or makes longer texts than the weights have rows for.
    #[error("embedding model tokenizer.json and config.json do not belong together; upload the model's files again")]
    Vocabulary,
    /// `model.safetensors` is damaged or does not fit `config.json`.
    #[error("embedding model model.safetensors: {0}; upload the model's files again")]
    Weights(#[from] WeightsError),
}

/// The model's files, by content.
pub struct EmbedderFiles {
    /// `config.json`.
    pub config: Vec<u8>,
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `model.safetensors`.
    pub weights: Vec<u8>,
}

impl EmbedderFiles {
    /// Reads the files from a folder.
    ///
    /// # Errors
    /// [`EmbedError::Read`] with the path of the first file that cannot be read.
    pub fn read_folder(folder: &Path) -> Result<Self, EmbedError> {
        let [config, tokenizer, weights] = EMBEDDER_FILES.map(|name| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| EmbedError::Read { path, source })
        });
        Ok(Self { config: config?, tokenizer: tokenizer?, weights: weights? })
    }
}

/// The model, ready to embed. One serves a whole process: it is immutable.
pub struct Embedder {
    tokenizer: Tokenizer,
    bert: Bert,
    dimensions: usize,
}

impl Embedder {
    /// Loads the model from its files.
    ///
    /// # Errors
    /// [`EmbedError`] naming the file that is damaged, incomplete or asks for something that is not implemented.
    pub fn load(files: EmbedderFiles) -> Result<Self, EmbedError> {
        let config: BertConfig = serde_json::from_slice(&files.config)?;
        if let Some(what) = config.unsupported() {
            return Err(EmbedError::Unsupported(what));
        }
        let mut tokenizer = Tokenizer::from_bytes(&files.tokenizer).map_err(EmbedError::Tokenizer)?;
        let max_length = MAX_TOKENS.min(config.max_position_embeddings);
        tokenizer
            .with_padding(None)
            .with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))
            .map_err(EmbedError::Tokenizer)?;
        let weights = SafeTensors::deserialize(&files.weights).map_err(WeightsError::from)?;
        Ok(Self { bert: Bert::load(&config, &Weights::new(&weights))?, tokenizer, dimensions: config.hidden_size })
    }

    /// Length of each vector: 384.
    #[must_use]
    pub const fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// One vector of length 1 for each text, in order, on all cores.
    ///
    /// Texts are not padded to a common length but worked on side by side, so a text's vector does not depend, by a single
    /// bit, on the texts embedded with it: the index made in one batch and a question alone meet in the same space.
    ///
    /// # Errors
    /// [`EmbedError`] when a text cannot be tokenized or the weights hold token ids out of range.
    pub fn embed<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vectors, EmbedError> {
        let rows = texts.par_iter().map(|text| self.embed_one(text.as_ref())).collect::<Result<Vec<_>, _>>()?;
        Ok(Vectors::from_rows(self.dimensions, &rows))
    }

    fn embed_one(&self, text: &str) -> Result<Vec<f32>, EmbedError> {
        let encoding = self.tokenizer.encode(text, true).map_err(EmbedError::Tokenizer)?;
        let states = self.bert.forward(encoding.get_ids()).ok_or(EmbedError::Vocabulary)?;
        Ok(mean_pool(&states, self.dimensions))
    }
}
