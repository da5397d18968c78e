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
    /// Its SageMaker endpoint, [`endpoint_name`]. Model and endpoint configuration have the same name.
    pub endpoint: String,
}

/// Name of a run's endpoint, of its SageMaker model and of its endpoint configuration: `tunesmith-{project}-{digits of the run}`.
///
/// One endpoint for each run: what is live is never changed, it is replaced in the table once the new one has been verified.
/// SageMaker allows 63 letters, digits and hyphens; the longest name has 10 + 40 + 1 + 12.
#[must_use]
pub fn endpoint_name(project: &ProjectId, run: &RunId) -> String {
    let digits = run.as_str().trim_start_matches("run-");
    format!("tunesmith-{project}-{digits}")
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

/// Table item `LIVE` of a project: what the gateway asks. Output of `PublishModel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRecord {
    /// The run.
    pub run: RunId,
    /// The endpoint.
    pub endpoint: String,
    /// The run that was live before; none for a project's first model.
    pub replaces: Option<RunId>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_of_an_endpoint_fits_sagemaker_and_every_run_has_its_own() {
        let project = "p".repeat(40).parse().unwrap();
        let name = endpoint_name(&project, &"run-0123456789ab".parse().unwrap());
        assert_eq!(name.len(), 63);
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));
        assert_ne!(name, endpoint_name(&project, &"run-ba9876543210".parse().unwrap()));
    }
}
