//! What can go wrong in training.

use std::path::{Path, PathBuf};

use tunesmith_model::ModelError;

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// A setting that makes no sense.
    #[error("training setting {key} = {value} is impossible; {remedy}")]
    BadSetting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// Sequences longer than the base model was made for.
    #[error(
        "sequence_length {length} exceeds the {limit} positions of the base model; choose at most {limit}, or a base model with \
         longer context"
    )]
    SequenceBeyondModel {
        /// `sequence_length`.
        length: usize,
        /// `max_position_embeddings` of the base model.
        limit: usize,
    },
    /// No example at all.
    #[error("the dataset has no example long enough to learn from ({num_examples} given); add documents")]
    EmptyDataset {
        /// Examples given.
        num_examples: usize,
    },
    /// No token of any example counts: training would report a loss of zero and learn nothing.
    #[error(
        "none of the {num_tokens} tokens in {num_examples} examples counts for the loss; \
         conversations need at least one turn of a role that train_on names (assistant unless it is set)"
    )]
    AllLabelsMasked {
        /// Examples given.
        num_examples: usize,
        /// Their tokens.
        num_tokens: usize,
    },
    /// A conversation does not fit.
    #[error(
        "example {example} has {length} tokens, more than sequence_length {limit}; raise sequence_length or split the example"
    )]
    SequenceTooLong {
        /// Index of the example.
        example: usize,
        /// Its tokens.
        length: usize,
        /// `sequence_length`.
        limit: usize,
    },
    /// The loss is not a number. The adapter still has its values from before this step.
    #[error(
        "loss is {loss} at step {step} on dataset examples {examples:?}; lower learning_rate or clip_norm, \
         or look at these examples"
    )]
    NonFiniteLoss {
        /// The step that failed, counted from 1.
        step: usize,
        /// What the loss was.
        loss: f64,
        /// Indices of the examples in the batch.
        examples: Vec<usize>,
    },
    /// The gradient is not a number although the loss is. The adapter still has its values from before this step.
    #[error(
        "gradient norm is {norm} at step {step} on dataset examples {examples:?}; lower learning_rate, \
         or look at these examples"
    )]
    NonFiniteGradient {
        /// The step that failed, counted from 1.
        step: usize,
        /// The norm.
        norm: f64,
        /// Indices of the examples of the step.
        examples: Vec<usize>,
    },
    /// The loss has risen far above what it was (see [`crate::divergence`]). The adapter still has its values from before this
    /// step, but they are no good.
    #[error(
        "loss has risen to {to:.3} nats per token from {from:.3} by step {step}, last on dataset examples {examples:?}; \
         lower learning_rate, raise warmup_ratio, or take an adapter from before"
    )]
    Diverged {
        /// The step, counted from 1.
        step: usize,
        /// Running mean of the loss now.
        to: f64,
        /// Its lowest value.
        from: f64,
        /// Indices of the examples of the step.
        examples: Vec<usize>,
    },
    /// Some tensors of the adapter are trained in name only.
    #[error(
        "after step {step} these adapter tensors have not moved: {names:?}; raise learning_rate, use longer sequences, or \
         leave these out of target_modules"
    )]
    AdapterUnmoved {
        /// Steps completed.
        step: usize,
        /// Names of the tensors.
        names: Vec<String>,
    },
    /// No tensor of the adapter gets a gradient.
    #[error(
        "no adapter tensor gets a gradient at step {step}; nothing would be learnt: check target_modules and the base model's weights"
    )]
    NoGradient {
        /// The step, counted from 1.
        step: usize,
    },
    /// All steps are done.
    #[error("training is complete after {total} steps; start another run to train longer")]
    Complete {
        /// Number of steps.
        total: usize,
    },
    /// A checkpoint that was made for other data.
    #[error("the checkpoint belongs to dataset {wanted}, this dataset is {found}; resume with the dataset of the run")]
    DatasetMismatch {
        /// Fingerprint in the checkpoint.
        wanted: String,
        /// Fingerprint of the dataset given.
        found: String,
    },
    /// A checkpoint that was made on another base model.
    #[error("the checkpoint belongs to another base model ({reason}); resume with the base model of the run")]
    BaseModelMismatch {
        /// In what they differ.
        reason: String,
    },
    /// A tensor of the checkpoint or of a gradient does not fit the adapter.
    #[error("tensor {name} does not fit the adapter: {reason}; resume with the settings of the run")]
    AdapterMismatch {
        /// The tensor.
        name: String,
        /// What differs.
        reason: String,
    },
    /// A file of a checkpoint is missing or changed.
    #[error("checkpoint file {path} is damaged: {reason}; remove this checkpoint and resume from the one before")]
    CheckpointCorrupt {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A checkpoint of another version of this program.
    #[error(
        "checkpoint {path} has format {found}, this version reads {wanted}; resume with the version that wrote it, or start \
         the run again"
    )]
    CheckpointFormat {
        /// The checkpoint.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format of this version.
        wanted: u32,
    },
    /// The run would not fit into memory: known before its first step.
    #[error(
        "the run needs {needed_mb} MB ({weights_mb} MB weights, {adapter_mb} MB adapter and optimizer, {activations_mb} MB \
         activations of {num_tokens} tokens), the limit is {limit_mb} MB on {place}; {remedy}, choose a smaller quantization, or \
         {else_remedy}"
    )]
    OutOfMemory {
        /// Predicted for the whole run.
        needed_mb: u64,
        /// What it may take.
        limit_mb: u64,
        /// Of it the base model.
        weights_mb: u64,
        /// Of it adapter, gradients and optimizer.
        adapter_mb: u64,
        /// Of it activations.
        activations_mb: u64,
        /// Tokens of the largest batch.
        num_tokens: usize,
        /// Whose memory.
        place: &'static str,
        /// The first thing to change.
        remedy: &'static str,
        /// The last.
        else_remedy: &'static str,
    },
    /// The base model alone would not fit into memory: known before it is loaded.
    #[error(
        "the base model needs {needed_mb} MB with quantization {quantization}, the limit is {limit_mb} MB; quantization nf4 \
         would need {nf4_mb} MB; choose that, a smaller base model, or a machine with more memory"
    )]
    BaseTooLarge {
        /// Weights, and what is there while they are loaded.
        needed_mb: u64,
        /// What it may take.
        limit_mb: u64,
        /// The form of storage asked for.
        quantization: &'static str,
        /// What the smallest form would take.
        nf4_mb: u64,
    },
    /// An export would not fit into memory: known before anything is written.
    #[error(
        "an export holds the base model as f32 and, but for peft-adapter, beside it the written one, which is read back to be \
         compared: {needed_mb} MB for {num_models} of the two, the limit is {limit_mb} MB; use a machine with more memory"
    )]
    ExportTooLarge {
        /// How many.
        num_models: u8,
        /// Their weights, and what is there while the last is loaded.
        needed_mb: u64,
        /// What it may take.
        limit_mb: u64,
    },
    /// What is to be written will not fit: checkpoints, or an export.
    #[error("{folder} has {free} bytes free, {needed} are needed; free some space or choose another disk")]
    DiskFull {
        /// The folder.
        folder: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free for this user.
        free: u64,
    },
    /// A file cannot be read or written.
    #[error("cannot read or write {path}: {source}; check space and permissions")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The model refused.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl TrainingError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }
}

/// Shorthand of this crate.
pub type Result<T, E = TrainingError> = std::result::Result<T, E>;
