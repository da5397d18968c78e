//! The outcome of an evaluation: `runs/{run}/evaluation.json`.

use serde::{Deserialize, Serialize};

use crate::ids::{DatasetId, RunId};

/// A value with its 95 % confidence interval (bootstrap over documents).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// Perplexity in its three units. The same model and text give three very different numbers: never quote one without its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// Per token of the model's own tokenizer.
    pub token: Interval,
    /// Per white-space separated word.
    pub word: Interval,
    /// Per UTF-8 byte.
    pub byte: Interval,
}

/// One answer side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What was asked.
    pub prompt: String,
    /// The base model's answer.
    pub base: String,
    /// The tuned model's answer.
    pub tuned: String,
    /// What the documents say, where the test split knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// Evaluation of a run on the untouched test split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The run.
    pub run: RunId,
    /// The dataset whose test split was used.
    pub dataset: DatasetId,
    /// Number of documents in the test split.
    pub documents: u64,
    /// Number of examples.
    pub examples: u64,
    /// Number of scored tokens.
    pub tokens: u64,
    /// Number of scored words.
    pub words: u64,
    /// Number of scored bytes.
    pub bytes: u64,
    /// The base model.
    pub base: Perplexity,
    /// The tuned model.
    pub tuned: Perplexity,
    /// The live model, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Perplexity>,
    /// By how many per cent the tuned token perplexity lies below the base's, paired over documents.
    pub improvement_percent: Interval,
    /// By how many per cent the tuned token perplexity lies below the live model's, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub improvement_over_live_percent: Option<Interval>,
    /// Side by side.
    pub samples: Vec<Sample>,
}

/// One named condition of the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateCheck {
    /// The setting that asked for it, e.g. `gate.min_improvement_percent`.
    pub name: String,
    /// What was asked.
    pub wanted: f64,
    /// What was found.
    pub found: f64,
    /// Whether it holds.
    pub passed: bool,
    /// The same in plain words.
    pub message: String,
}

/// The gate's decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateDecision {
    /// Whether every check passed.
    pub passed: bool,
    /// Every check, in a fixed order.
    pub checks: Vec<GateCheck>,
}
