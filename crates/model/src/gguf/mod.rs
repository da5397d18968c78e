//! GGUF, the file of llama.cpp and Ollama: weights, hyperparameters, vocabulary and chat template in one.
//!
//! [`GgufExport::write`] makes it from a folder in Hugging Face layout and an adapter, [`GgufModel::open`] reads it back through
//! candle's reader as a decoder and a tokenizer of this crate, so that what was written can be compared with what was trained.
//! One file each: what an architecture is called and what it takes ([`architecture`]), names and order of tensors
//! ([`tensors`]), block formats ([`encoding`]), the vocabulary ([`vocabulary`]; byte-level ones' cuts, [`pre_tokenizer`]; those of
//! SentencePiece's kind, `sentence_piece` and `merges`), the bytes ([`file`]).
//!
//! Sources: the format, `ggml/docs/gguf.md`; keys and names, `gguf-py/gguf/constants.py`; what llama.cpp computes from them,
//! `src/models/*.cpp` and `src/llama-vocab.cpp` (as shipped in llama-cpp-python 0.3.36). What would be computed otherwise there is
//! refused with [`crate::ModelError::NotInGguf`].

pub mod architecture;
pub mod encoding;
pub mod file;
mod merges;
pub mod modelfile;
pub mod pre_tokenizer;
mod read;
mod sentence_piece;
pub mod tensors;
pub mod vocabulary;
mod write;

use candle_core::quantized::gguf_file::Value;

pub use encoding::Encoding;
pub use modelfile::Modelfile;
pub use read::GgufModel;
pub use write::{GgufExport, Progress};

use crate::error::ModelError;

/// Keys and values of a file's head, in the order of writing.
pub type Metadata = Vec<(String, Value)>;

pub(crate) fn refuse<T>(key: impl Into<String>, value: impl ToString, remedy: &'static str) -> Result<T, ModelError> {
    Err(ModelError::NotInGguf { key: key.into(), value: value.to_string(), remedy })
}
