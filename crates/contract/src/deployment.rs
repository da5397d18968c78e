//! What is deployed: `runs/{run}/deployment.json` and the table item `LIVE`.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{IndexId, ProjectId, RunId},
    time::UnixTime,
};

/// `runs/{run}/deployment.json`, and the output of `DeployEndpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
    /// SageMaker endpoint `tunesmith-{project}`.
    pub endpoint: String,
    /// SageMaker model `tunesmith-{project}-{digits of the run}`.
    pub model: String,
    /// SageMaker endpoint configuration, named as the model.
    pub config: String,
    /// The configuration that was live before; absent for the first deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_config: Option<String>,
}

/// Output of `VerifyEndpoint`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// The endpoint.
    pub endpoint: String,
    /// SageMaker's word: `InService`.
    pub status: String,
    /// Largest absolute difference between the endpoint's logits and the trainer's.
    pub logit_max_abs_diff: f64,
    /// The answer to the smoke request.
    pub smoke_answer: String,
}

/// Table item `LIVE` of a project: what the gateway asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRecord {
    /// The run.
    pub run: RunId,
    /// The endpoint.
    pub endpoint: String,
    /// Its configuration.
    pub config: String,
    /// The retrieval index.
    pub index: IndexId,
    /// Since when.
    pub since: UnixTime,
    /// Gateway settings of the project at the time.
    pub retrieved_passages: u32,
    /// Requests per minute for each API key.
    pub requests_per_minute: u32,
    /// Tokens per day for each API key.
    pub tokens_per_day: u64,
}
