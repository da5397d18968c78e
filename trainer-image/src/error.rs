//! Everything that ends a job, and the name that a state machine sees for it.

use std::{any::Any, path::PathBuf};

use tunesmith_aws::AwsError;
use tunesmith_contract::{
    BaseModel, DocumentId, ErrorName,
    error_name::Failure,
    job::{BaseSource, Location},
};
use tunesmith_training::TrainingError;

/// Result of everything a job does.
pub type Result<T, E = TrainerError> = std::result::Result<T, E>;

/// Why a job could not be done. Being stopped is not among these: that is [`crate::stop::StopReason`].
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// A call to AWS.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// Model, tokenizer or adapter.
    #[error(transparent)]
    Model(#[from] tunesmith_model::ModelError),
    /// Training.
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// The loss or the gradient is no number, or the loss has risen too far.
    #[error(
        "{source}; these come from documents {}; {}",
        documents.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        checkpoint_opt.as_ref().map_or("no checkpoint was made before".to_owned(), |at| format!("the last good checkpoint is {at}"))
    )]
    Diverged {
        /// Step and examples.
        source: Box<TrainingError>,
        /// Documents of the examples.
        documents: Vec<DocumentId>,
        /// The newest checkpoint, from before this step.
        checkpoint_opt: Option<Location>,
    },
    /// Evaluation.
    #[error(transparent)]
    Evaluation(#[from] tunesmith_evaluation::EvaluationError),
    /// Reading a split of the dataset.
    #[error("{location}: {source}; start the pipeline again so that the dataset is written anew")]
    Dataset {
        /// The file.
        location: Location,
        /// What its reader said.
        source: tunesmith_documents::DatasetError,
    },
    /// A file or folder of this machine.
    #[error(
        "cannot read or write {path}: {source}; check that it exists, that it may be written and that the disk has room"
    )]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// JSON that is not what it must be.
    #[error("{location} is not a valid {what}: {source}; compare it with events/trainer/")]
    Json {
        /// The file.
        location: Location,
        /// What was expected.
        what: &'static str,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// Something that an earlier step must have written.
    #[error("{what} {location} is missing; start the pipeline again, or correct the path in the job")]
    Missing {
        /// What was looked for.
        what: &'static str,
        /// Where.
        location: Location,
    },
    /// A file that is larger than anything of its kind may be.
    #[error("{location} has {bytes} bytes, the limit is {limit}; it is not what the job says it is")]
    TooLarge {
        /// The file.
        location: Location,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The base model is not where the job says, or is incomplete.
    #[error(
        "base model {} ({}): {detail}; upload config.json, tokenizer.json and the safetensors files to models/{}/, or correct base_model",
        base.name, base.folder.as_ref().map_or("by its Hugging Face id".to_owned(), ToString::to_string), base.name.folder()
    )]
    UnknownBaseModel {
        /// The job's words.
        base: Box<BaseSource>,
        /// What is wrong with it.
        detail: String,
    },
    /// The output folder holds checkpoints of a run with other settings.
    #[error(
        "{location} was made with other training settings ({differs}); choose another output folder, or delete the checkpoints \
         in this one"
    )]
    OtherSettings {
        /// The checkpoint's folder.
        location: Location,
        /// Which settings differ.
        differs: String,
    },
    /// The Hugging Face hub could not be reached, or refused.
    #[error("base model {name} could not be fetched from the hub: {detail}; try again, or upload its files to models/{}/", name.folder())]
    Hub {
        /// The model's id.
        name: BaseModel,
        /// What the client said.
        detail: String,
    },
    /// An adapter would be evaluated on another form of the base model than it was trained on and is served with.
    #[error(
        "the adapter was trained on the base model with quantization {trained}, the job says {loaded}; write training.quantization = \
         {trained:?} into the job"
    )]
    OtherQuantization {
        /// What the adapter says.
        trained: &'static str,
        /// What the job says.
        loaded: &'static str,
    },
    /// The exported model does not answer as the trained one does.
    #[error(
        "the exported {format} diverges from the trained model by {found:.3e} nats per token over {tokens} tokens, allowed are \
         {limit:.0e}; choose a form with more bits, or export peft-adapter"
    )]
    ExportDiverges {
        /// The form.
        format: &'static str,
        /// Mean Kullback-Leibler divergence.
        found: f64,
        /// What the form explains.
        limit: f64,
        /// Tokens compared.
        tokens: u64,
    },
    /// The exported model would end its answers elsewhere.
    #[error(
        "the exported {format} stops at the tokens {exported:?}, the trained model at {trained:?}; correct eos_token_id in \
         generation_config.json of the base model, then export again"
    )]
    ExportStops {
        /// The form.
        format: &'static str,
        /// Of the trained model.
        trained: Vec<u32>,
        /// Of the exported one.
        exported: Vec<u32>,
    },
    /// The exported model would read a text or write a conversation otherwise.
    #[error(
        "the exported {format} has another {what}: example {example} is {exported:?}, with the trained model {trained:?}; use the \
         tokenizer files that came with the base model, then export again"
    )]
    ExportReads {
        /// The form.
        format: &'static str,
        /// Template or vocabulary.
        what: &'static str,
        /// Index of the example in the split.
        example: usize,
        /// The beginning of it, as the trained model has it.
        trained: String,
        /// As the exported one has it.
        exported: String,
    },
    /// Adapters that cannot become one.
    #[error(transparent)]
    Combine(#[from] CombineError),
    /// The command line or the environment.
    #[error("{0}")]
    Usage(String),
    /// A defect.
    #[error("the trainer stopped at a defect: {message}; report it with the log lines of this run")]
    Panicked {
        /// The panic's message.
        message: String,
    },
}

/// Why adapters cannot become one. That they are none, or of other shapes, [`tunesmith_model::ModelError::CannotCombine`] says.
#[derive(Debug, thiserror::Error)]
pub enum CombineError {
    /// A weight that is no finite number.
    #[error(
        "weight {weight:?} of adapter {adapter} is no finite number; write FOLDER:WEIGHT, for example {adapter}:0.7"
    )]
    Weight {
        /// The folder.
        adapter: String,
        /// What stands behind the colon.
        weight: String,
    },
    /// A folder that holds no adapter.
    #[error(
        "{adapter} is no adapter, it has no {name}; name the folder with that file, of a run that is its folder adapter"
    )]
    NoAdapter {
        /// The folder.
        adapter: Location,
        /// The file that is missing.
        name: &'static str,
    },
    /// An adapter whose change cannot be added to another.
    #[error(
        "adapter {adapter} is {method}, which multiplies what others add to; combine LoRA, rsLoRA and AdaLoRA only"
    )]
    Multiplies {
        /// The folder.
        adapter: Location,
        /// Its method.
        method: &'static str,
    },
    /// Adapters of different bases.
    #[error(
        "{} was trained on a base with {what} {:?}, {} on one with {:?}; {remedy}", first.0, first.1, second.0, second.1
    )]
    OtherBase {
        /// By what they differ.
        what: &'static str,
        /// An adapter and what it says.
        first: Box<(Location, String)>,
        /// Another one.
        second: Box<(Location, String)>,
        /// What to do.
        remedy: &'static str,
    },
    /// A rank that the sum has not.
    #[error(
        "rank {rank} lies outside 1 to {available}, the rank of the sum; choose --rank within, or leave it out to keep {available}"
    )]
    Rank {
        /// What was asked for.
        rank: usize,
        /// What there is.
        available: usize,
    },
    /// A sum that is no number.
    #[error("the sum has {value} in tensor {tensor}; choose smaller weights, or fetch the adapters again")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The value.
        value: f32,
    },
    /// There is something where the result is to be.
    #[error("{folder} exists and is not overwritten; choose another folder with --to, or remove this one")]
    OutputExists {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process writes the same folder.
    #[error("another process is writing {folder}; wait for it, or choose another folder with --to")]
    OutputBusy {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder in S3 cannot be there whole or not at all.
    #[error("--to {output} lies in S3; write to a folder of this machine, then aws s3 cp --recursive FOLDER {output}")]
    OutputInS3 {
        /// The location.
        output: Location,
    },
}

impl TrainerError {
    /// For `map_err`: an I/O failure at this path.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// For `map_err`: JSON at this location that is no `what`.
    pub fn json(location: &Location, what: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        let location = location.clone();
        move |source| Self::Json { location, what, source }
    }

    /// A panic that was caught.
    #[must_use]
    pub fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message =
            text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned());
        Self::Panicked { message }
    }

    /// The name that the state machine matches.
    #[must_use]
    pub fn name(&self) -> ErrorName {
        match self {
            Self::Aws(error) => error.name(),
            Self::Diverged { .. } => ErrorName::TrainingDiverged,
            Self::Model(_)
            | Self::Training(_)
            | Self::Evaluation(_)
            | Self::Dataset { .. }
            | Self::Io { .. }
            | Self::TooLarge { .. }
            | Self::ExportDiverges { .. }
            | Self::ExportStops { .. }
            | Self::ExportReads { .. } => ErrorName::TrainingFailed,
            Self::Json { .. }
            | Self::Combine(_)
            | Self::Usage(_)
            | Self::OtherSettings { .. }
            | Self::OtherQuantization { .. } => ErrorName::InvalidInput,
            Self::Hub { .. } => ErrorName::ServiceUnavailable,
            Self::Missing { .. } => ErrorName::NotFound,
            Self::UnknownBaseModel { .. } => ErrorName::UnknownBaseModel,
            Self::Panicked { .. } => ErrorName::Internal,
        }
    }
}

impl From<&TrainerError> for Failure {
    fn from(error: &TrainerError) -> Self {
        Self::new(error.name(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_of_failure_has_its_name() {
        let location = Location::from("s3://bucket/key".to_owned());
        let base = BaseSource { name: "acme/model".parse().unwrap(), folder: None };
        let unknown = TrainerError::UnknownBaseModel { base: Box::new(base), detail: "no config.json".into() };
        assert!(unknown.to_string().contains("models/acme--model/"), "{unknown}");
        for (error, name) in [
            (unknown, ErrorName::UnknownBaseModel),
            (TrainerError::Missing { what: "train.jsonl.zst", location: location.clone() }, ErrorName::NotFound),
            (TrainerError::panicked(&"boom"), ErrorName::Internal),
            (
                TrainerError::Diverged {
                    source: Box::new(TrainingError::NonFiniteLoss { step: 3, loss: f64::NAN, examples: vec![1] }),
                    documents: vec![DocumentId::of(b"x")],
                    checkpoint_opt: None,
                },
                ErrorName::TrainingDiverged,
            ),
            (TrainingError::EmptyDataset { num_examples: 0 }.into(), ErrorName::TrainingFailed),
            (TrainerError::io("/full")(std::io::ErrorKind::StorageFull.into()), ErrorName::TrainingFailed),
            (
                TrainerError::Aws(AwsError {
                    service: "s3",
                    operation: "PutObject",
                    code: "AccessDenied".into(),
                    message: "no".into(),
                    retryable: false,
                }),
                ErrorName::AccessDenied,
            ),
        ] {
            let failure = Failure::from(&error);
            assert_eq!(failure.name, name, "{error}");
            assert!(!failure.message.is_empty());
        }
    }
}
