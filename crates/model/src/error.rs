//! What can go wrong with a model folder, a tokenizer, an adapter or a computation.

use std::path::{Path, PathBuf};

use crate::tokenizer::Foreign;

/// Every failure of this crate. None of them is cured by trying again: each says what was found and what to change.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read or written.
    #[error("cannot read or write {path}: {source}; check the path, its permissions and the room on the disk")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file is not what its name promises.
    #[error("{path} is not valid: {source}; fetch the file again or correct it")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// A value of `config.json` asks for mathematics that this crate does not compute.
    #[error("config.json: {key} = {value} is not supported ({supported}); choose another base model")]
    UnsupportedConfig {
        /// The key.
        key: String,
        /// The value found.
        value: String,
        /// What would be accepted.
        supported: &'static str,
    },
    /// An encoder-decoder where a decoder is needed. [`crate::EncoderDecoder`] computes it and trains adapters on it, but the chat
    /// template, the training loop, serving and export take decoders only.
    #[error(
        "config.json: model_type = \"t5\" is an encoder-decoder, which training runs, chats, serving and exports cannot use; choose \
         a base model of type llama, mistral, qwen2, qwen3, phi3, gemma2 or gpt2"
    )]
    EncoderDecoderModel,
    /// A safetensors file is truncated or not a safetensors file.
    #[error("{path} is not a complete safetensors file ({reason}); fetch it again")]
    BadSafetensors {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// A tensor that the configuration promises is absent.
    #[error(
        "tensor {name} with shape {wanted:?} is missing in {folder}; the weights do not belong to this config.json"
    )]
    MissingTensor {
        /// Its name.
        name: String,
        /// The shape that the configuration implies.
        wanted: Vec<usize>,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A layer has a tensor that the configuration gives no place.
    #[error("config.json gives tensor {name} no place; the weights do not belong to this config.json")]
    SurplusTensor {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("tensor {name} has shape {found:?}, wanted {wanted:?}; the weights do not belong to this configuration")]
    WrongShape {
        /// Its name.
        name: String,
        /// The shape that the configuration implies.
        wanted: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a number format that is not read.
    #[error("tensor {name} is stored as {found}; store it as F32, F16 or BF16")]
    WrongDtype {
        /// Its name.
        name: String,
        /// The format in the file.
        found: String,
    },
    /// A file that the index names is not there.
    #[error(
        "shard {path} is missing, {index} wants {num_tensors} tensors from it; fetch it again, or all files of the base model"
    )]
    MissingShard {
        /// The file.
        path: PathBuf,
        /// `model.safetensors.index.json`.
        index: PathBuf,
        /// Tensors that it should hold.
        num_tensors: usize,
    },
    /// A matrix whose rows a block format cannot divide.
    #[error(
        "tensor {name} has rows of {width} values, {format} stores whole blocks of {block}; choose quantization nf4, which takes \
         any width, or q8_0, which takes multiples of 32"
    )]
    Unquantisable {
        /// The tensor.
        name: String,
        /// Values in a row.
        width: usize,
        /// The format.
        format: &'static str,
        /// Values in a block of it.
        block: usize,
    },
    /// A token id lies outside the model's vocabulary.
    #[error("token id {id} is outside the model's vocabulary of {vocabulary}; the tokenizer belongs to another model")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// The number of rows of the embedding.
        vocabulary: usize,
    },
    /// More positions than the model was made for.
    #[error(
        "{length} tokens exceed the model's {limit} positions; shorten the text or choose a model with longer context"
    )]
    TooManyPositions {
        /// Tokens asked for.
        length: usize,
        /// `max_position_embeddings`, or the capacity of the cache.
        limit: usize,
    },
    /// Nothing to compute.
    #[error("the batch holds no token; pass at least one")]
    EmptyBatch,
    /// A batch whose parts do not fit together.
    #[error("batch of {ids} ids has {targets} targets and lengths that add up to {lengths}; make the three equal")]
    BadBatch {
        /// Number of ids.
        ids: usize,
        /// Number of targets.
        targets: usize,
        /// Sum of the lengths.
        lengths: usize,
    },
    /// The tokenizer cannot be loaded or refuses the text.
    #[error("tokenizer {path}: {reason}; use the tokenizer.json that came with the base model")]
    Tokenizer {
        /// `tokenizer.json`.
        path: PathBuf,
        /// The library's words.
        reason: String,
    },
    /// The tokenizer is that of another model.
    #[error(
        "tokenizer {path} does not belong to this model: {foreign}; use the tokenizer files that came with the base model"
    )]
    WrongTokenizer {
        /// `tokenizer.json`.
        path: PathBuf,
        /// By what it was recognised.
        foreign: Foreign,
    },
    /// The tokenizer has no chat template and a chat was to be rendered.
    #[error("the tokenizer has no chat_template; add one to tokenizer_config.json or train on plain text")]
    NoChatTemplate,
    /// The chat template refuses these messages or is wrong itself.
    #[error("the chat template fails: {reason}; check the order of the roles and the template")]
    ChatTemplate {
        /// The template engine's words, with line numbers.
        reason: String,
    },
    /// A turn that counts cannot be located in the rendered conversation.
    #[error(
        "turn {turn} cannot be located in the rendered conversation because the template rewrites or repeats it; \
         split the conversation so that this turn is the last, or leave its role out of train_on"
    )]
    TurnNotLocated {
        /// Index of the message.
        turn: usize,
    },
    /// No token ends a turn.
    #[error("no end-of-turn token: neither generation_config.json, config.json nor tokenizer_config.json names one")]
    NoTerminator,
    /// Settings of an adapter that make no sense or are not computed here.
    #[error("adapter: {key} = {value} is not supported; {remedy}")]
    UnsupportedAdapter {
        /// The setting.
        key: String,
        /// Its value.
        value: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// A target module that the model does not have.
    #[error("target module {name:?} does not exist in this model; it has {existing}")]
    UnknownModule {
        /// The name.
        name: String,
        /// Those which exist.
        existing: String,
    },
    /// An adapter that was trained for another base model.
    #[error("adapter tensor {name}: {reason}; the adapter belongs to another base model or is incomplete")]
    AdapterMismatch {
        /// The tensor.
        name: String,
        /// What differs.
        reason: String,
    },
    /// An adapter on the disk that was trained on another base model than the one it is to sit on.
    #[error(
        "adapter {adapter} does not belong to this base model: {reason}; load the base model that adapter_config.json names \
         ({base:?}), or fetch the adapter again"
    )]
    ForeignAdapter {
        /// Its folder.
        adapter: PathBuf,
        /// The base model that it names; empty when it names none.
        base: String,
        /// By what it was recognised.
        reason: String,
    },
    /// Adapters that cannot be combined into one.
    #[error("adapters cannot be combined: {reason}; {remedy}")]
    CannotCombine {
        /// What stands against it.
        reason: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A model or tokenizer that llama.cpp, which reads GGUF, would compute otherwise.
    #[error("{key} = {value} cannot be said in GGUF; {remedy}")]
    NotInGguf {
        /// Which property.
        key: String,
        /// Its value.
        value: String,
        /// What would be accepted, or what to do instead.
        remedy: &'static str,
    },
    /// A GGUF file that is incomplete or not what it says.
    #[error("{path} is not a complete GGUF file of a decoder ({reason}); export it again")]
    BadGguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No GPU where one was asked for.
    #[error(
        "no NVIDIA GPU can be used: {reason}; compute on the CPU, or choose a machine where nvidia-smi answers and the CUDA \
         libraries named are installed"
    )]
    NoGpu {
        /// What the driver or the loader said.
        reason: String,
    },
    /// The GPU's half of the engine has no kernel for this.
    #[error("{what}: not computed on a GPU yet; compute on the CPU, or choose another setting")]
    NotOnGpu {
        /// What was asked for.
        what: String,
    },
    /// The driver is older than the CUDA libraries beside it.
    #[error(
        "the NVIDIA driver runs CUDA {driver}, the runtime compiler libnvrtc is of CUDA {compiler}; update the driver until \
         nvidia-smi shows CUDA {}.0 or later, or install libnvrtc and libcublas of CUDA {}",
        .compiler.0,
        .driver.0
    )]
    OldDriver {
        /// The latest version that the driver runs.
        driver: Version,
        /// The compiler's.
        compiler: Version,
    },
    /// The runtime compiler makes no code for the card.
    #[error(
        "the card has compute capability {card}, the runtime compiler libnvrtc of CUDA {compiler} makes code for {oldest} to {newest} \
         and not for this; install libnvrtc and libcublas of a CUDA that does: a newer one for a newer card, an older one for an older"
    )]
    UnknownArchitecture {
        /// The card's compute capability.
        card: Version,
        /// The compiler's version.
        compiler: Version,
        /// The first architecture that it knows.
        oldest: Version,
        /// The last.
        newest: Version,
    },
    /// The GPU has too little memory.
    #[error(
        "the GPU is full: {call} found no room{} ({free} of {total} bytes are free); choose a smaller batch, recompute activations, \
         quantise the base, or choose a larger card",
        .wanted_opt.map_or_else(String::new, |bytes| format!(" for {bytes} bytes more"))
    )]
    GpuMemory {
        /// Which call or kernel.
        call: &'static str,
        /// Bytes asked for; a kernel or a product does not say how much it lacks.
        wanted_opt: Option<usize>,
        /// Bytes that are free.
        free: usize,
        /// Bytes that the card has.
        total: usize,
    },
    /// A call of the GPU's driver or libraries failed.
    #[error("gpu: {call} failed: {reason}; look at nvidia-smi and the system log, then start again")]
    Gpu {
        /// Which call or kernel.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// The tensor library failed.
    #[error("tensor library: {0}")]
    Compute(#[from] candle_core::Error),
}

/// A version of CUDA, or the compute capability of a card: major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub i32, pub i32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl ModelError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self + '_ {
        move |source| Self::Json { path: path.to_path_buf(), source }
    }
}

/// Shorthand of this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;
