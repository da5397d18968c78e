//! Jobs of `tunesmith-trainer <train|evaluate|serve|export> --job <file or s3 uri>`.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{BaseModel, DatasetId, ProjectId, RunId},
    keys::S3Uri,
    money::Usd,
    settings::TrainingSettings,
    time::{Seconds, UnixTime},
};

/// A file or folder: local, or in S3. On the wire: a path, or `s3://bucket/key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Location {
    /// On this machine.
    Local(PathBuf),
    /// In S3.
    S3(S3Uri),
}

impl Location {
    /// The location of `name` below this folder.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        match self {
            Self::Local(path) => Self::Local(path.join(name)),
            Self::S3(uri) => Self::S3(uri.join(name)),
        }
    }
}

impl From<String> for Location {
    fn from(value: String) -> Self {
        S3Uri::from_str(&value).map_or_else(|_| Self::Local(value.into()), Self::S3)
    }
}

impl From<Location> for String {
    fn from(location: Location) -> Self {
        location.to_string()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::S3(uri) => write!(f, "{uri}"),
        }
    }
}

/// Where a base model is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BaseSource {
    /// Its name.
    pub name: BaseModel,
    /// Folder in Hugging Face layout; without it, the model is downloaded by its Hugging Face id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<Location>,
}

/// `train` and `evaluate`: one job file serves both, since the machine does one after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TrainJob {
    /// The run.
    pub run: RunId,
    /// The project.
    pub project: ProjectId,
    /// What to start from.
    pub base: BaseSource,
    /// Id of the dataset.
    pub dataset_id: DatasetId,
    /// Folder of the dataset.
    pub dataset: Location,
    /// Folder of the run: checkpoints, metrics, adapter and evaluation are written below it.
    pub output: Location,
    /// Adapter of the live model, to be evaluated beside the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_adapter: Option<Location>,
    /// How to train.
    pub training: TrainingSettings,
    /// Absent on a person's own machine: no reporting, no lease, no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
}

/// How a machine that is paid for is kept under control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Control {
    /// Which attempt this is: also the key of the lease.
    pub attempt: String,
    /// Where success, failure and heartbeats are reported.
    pub task_token: String,
    /// DynamoDB table that holds the lease.
    pub table: String,
    /// Price of the machine.
    pub price_per_hour: Usd,
    /// What this attempt may still spend; the trainer stops, checkpointed, before it is reached.
    pub cap: Usd,
    /// How long this attempt may run.
    pub max_time: Seconds,
    /// When the machine was launched: what it costs is counted from here.
    pub launched_at: UnixTime,
    /// Seconds between heartbeats (also lease renewals).
    pub heartbeat_every: Seconds,
}

/// `serve`: what an endpoint runs. `runs/{run}/serve.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServeJob {
    /// The run.
    pub run: RunId,
    /// The project: also the name of the model in the API.
    pub project: ProjectId,
    /// The base model.
    pub base: BaseSource,
    /// Folder of the adapter.
    pub adapter: Location,
}

/// `export`: another form of a trained model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExportJob {
    /// The base model.
    pub base: BaseSource,
    /// Folder of the adapter.
    pub adapter: Location,
    /// Which form.
    pub format: ExportFormat,
    /// Folder to write.
    pub output: Location,
    /// Folder of the dataset on whose test split `--verify` compares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<Location>,
    /// Longest sequence of the test split; that of the training settings when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<u32>,
}

/// Forms a trained model can be exported in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ExportFormat {
    /// An adapter that Python `peft` loads.
    PeftAdapter,
    /// Base and adapter merged, as `transformers` loads it.
    MergedSafetensors,
    /// Base and adapter merged in one file of llama.cpp and Ollama, 16 bits a weight.
    GgufF16,
    /// The same, 8.5 bits a weight.
    #[serde(rename = "gguf-q8_0")]
    GgufQ8_0,
    /// The same, 4.5 bits a weight.
    #[serde(rename = "gguf-q4_k")]
    GgufQ4K,
}

/// What an export wrote, and how near it is to the trained model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExportReport {
    /// The folder.
    pub output: Location,
    /// The form.
    pub format: ExportFormat,
    /// Whether the test split was compared; otherwise one sentence was.
    pub verified: bool,
    /// Tokens compared.
    pub tokens: u64,
    /// Mean Kullback-Leibler divergence of the next token's distribution from the trained model's, in nats.
    pub mean_kl: f64,
    /// The most that is allowed for this form.
    pub mean_kl_limit: f64,
    /// Share of tokens for which both think the same one most likely.
    pub same_top: f64,
    /// Perplexity per token of the trained model.
    pub trained_perplexity: f64,
    /// Perplexity per token of the exported one.
    pub exported_perplexity: f64,
}

/// What the trainer reports to Step Functions when training and evaluation are done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// The run.
    pub run: RunId,
    /// Optimizer steps done in all attempts.
    pub steps: u32,
    /// Training loss (nats per token) of the last step.
    pub final_loss: f64,
    /// Seconds this attempt trained and evaluated.
    pub seconds: Seconds,
    /// Step this attempt resumed from; absent when it began at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_from: Option<u32>,
    /// Where the adapter is.
    pub adapter: Location,
    /// Where the evaluation is.
    pub evaluation: Location,
}

/// One line of `runs/{run}/metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricLine {
    /// Optimizer step, counted from 1.
    pub step: u32,
    /// Steps in the whole run.
    pub steps: u32,
    /// Mean loss in nats per trained token.
    pub loss: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Trained tokens of this step.
    pub tokens: u64,
    /// Tokens (trained or not) per second since the last line.
    pub tokens_per_second: f64,
    /// Seconds until the end at this speed.
    pub seconds_left: f64,
    /// When the step ended; absent in lines of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<UnixTime>,
    /// Mean loss of the validation split in nats per token, when it was scored after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

/// `runs/{run}/reference-logits.json`: what the endpoint must reproduce.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReferenceLogits {
    /// Input token ids.
    pub tokens: Vec<u32>,
    /// Logits of the tuned model after the last token, one for each vocabulary entry.
    pub logits: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_paths_or_s3_addresses() {
        let s3: Location = serde_json::from_str("\"s3://bucket/models/x/\"").unwrap();
        assert_eq!(s3.join("config.json").to_string(), "s3://bucket/models/x/config.json");
        let local: Location = serde_json::from_str("\"target/x\"").unwrap();
        assert_eq!(local, Location::Local("target/x".into()));
    }
}
