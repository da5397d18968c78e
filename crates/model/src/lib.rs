//! Decoder models on candle: operations with hand-written backward, weights, tokenizer, chat templates.
//!
//! Start at [`Decoder::load`] and [`Tokenizer::load`] with a folder in Hugging Face layout; [`Decoder::advance`] generates,
//! [`Decoder::loss_and_gradients`] trains an adapter; [`EncoderDecoder`] is the same for T5. The mathematics of one operation is in one file of [`ops`]; what an
//! architecture consists of is in [`config`].

pub mod adapters;
pub mod batch;
pub mod chat;
pub mod config;
#[cfg(any(test, feature = "cuda"))]
pub mod cuda;
pub mod decode;
pub mod decoder;
pub mod encoder_decoder;
pub mod error;
mod fingerprint;
pub mod frozen;
pub mod gguf;
pub mod memory;
pub mod ops;
pub mod peft;
pub mod rng;
pub mod tokenizer;
pub mod weights;
mod whole_file;

pub use adapters::{AdaLoraConfig, Adapter, AdapterConfig, Ia3Config, LoraConfig, Method, Module, RankAllocator};
pub use batch::Batch;
pub use chat::{GenerationPrompt, Message, Role, encode_conversation, encode_prompt};
pub use config::ModelConfig;
pub use decode::KvCache;
pub use decoder::{Card, Decoder, LossGradients, Recompute, parts_at_once};
pub use encoder_decoder::{EncoderDecoder, EncoderDecoderConfig, PairBatch};
pub use error::ModelError;
pub use fingerprint::Fingerprint;
pub use frozen::Quantization;
pub use ops::cross_entropy::IGNORE;
pub use tokenizer::{Foreign, Tokenizer};
