//! Lambda function `verify-endpoint`: does the endpoint answer what was trained?
//!
//! Promise: succeeds only when the run's endpoint is in service, its logits equal the trainer's within [`check::TOLERANCE`], and
//! it answers a question. Still creating is [`ErrorName::EndpointNotReady`], which the state machine repeats. Until this has
//! succeeded nobody else asks the endpoint: what is live is another one.

pub mod check;

use serde::Deserialize;
use serde_json::{Value, json};
use tunesmith_aws::{
    AwsError,
    s3::S3,
    sagemaker::{Endpoint, EndpointStatus, SageMaker},
    sagemaker_runtime::SageMakerRuntime,
};
use tunesmith_contract::{
    ErrorName, S3Uri,
    deployment::{Deployment, Verification},
    error_name::Failure,
    job::ReferenceLogits,
    keys::workspace,
    tasks::VerifyEndpointInput,
};

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// What was deployed and what it must answer.
    pub s3: S3,
    /// Where the endpoint stands.
    pub sagemaker: SageMaker,
    /// The endpoint itself.
    pub runtime: SageMakerRuntime,
}

#[derive(Debug, Deserialize)]
struct Logits {
    logits: Vec<f32>,
}

/// Verifies once.
///
/// # Errors
/// [`ErrorName::EndpointNotReady`] (try again), [`ErrorName::EndpointFailed`], [`ErrorName::VerificationFailed`],
/// [`ErrorName::NotFound`], AWS errors.
pub async fn handle(
    input: VerifyEndpointInput,
    clients: &Clients,
    workspace_bucket: &str,
) -> Result<Verification, Failure> {
    let folder = S3Uri::new(workspace_bucket, workspace::run(&input.project, &input.run));
    let missing = |what: &str| Failure::missing(what, &input.run);
    let deployment: Deployment =
        clients.s3.get_json(&folder.join("deployment.json")).await?.ok_or_else(|| missing("the deployment"))?;
    let reference: ReferenceLogits = clients
        .s3
        .get_json(&folder.join("reference-logits.json"))
        .await?
        .ok_or_else(|| missing("the reference logits"))?;
    let endpoint = clients.sagemaker.describe_endpoint(&deployment.endpoint).await?;
    let endpoint = in_service(endpoint, &deployment.endpoint)?;

    let asked = json!({"kind": "logits", "tokens": reference.tokens});
    let found: Logits = ask(clients, &deployment, &asked).await?;
    let logit_max_abs_diff = check::compare(&reference, &found.logits)?;

    let question = json!({"kind": "chat", "request": {
        "model": input.project, "max_tokens": 24, "temperature": 0.0,
        "messages": [{"role": "user", "content": "What is this documentation about?"}],
    }});
    let answer: Value = ask(clients, &deployment, &question).await?;
    let smoke_answer = answer.pointer("/choices/0/message/content").and_then(Value::as_str).ok_or_else(|| {
        Failure::new(ErrorName::VerificationFailed, "the endpoint's answer to a question holds no message".to_owned())
    })?;
    tracing::info!(run = %input.run, endpoint = endpoint.name, logit_max_abs_diff, "verified");
    Ok(Verification {
        endpoint: endpoint.name,
        status: endpoint.word,
        logit_max_abs_diff,
        smoke_answer: smoke_answer.to_owned(),
    })
}

/// The endpoint, if it answers.
///
/// # Errors
/// As [`handle`]. Pure.
pub fn in_service(endpoint: Option<Endpoint>, name: &str) -> Result<Endpoint, Failure> {
    let endpoint =
        endpoint.ok_or_else(|| Failure::new(ErrorName::EndpointFailed, format!("endpoint {name} does not exist")))?;
    match endpoint.status {
        EndpointStatus::Changing => {
            Err(Failure::new(ErrorName::EndpointNotReady, format!("endpoint {} is {}", endpoint.name, endpoint.word)))
        }
        EndpointStatus::Failed => Err(Failure::new(
            ErrorName::EndpointFailed,
            format!("endpoint {} failed: {}", endpoint.name, endpoint.failure_reason),
        )),
        EndpointStatus::Deleting => {
            Err(Failure::new(ErrorName::EndpointFailed, format!("endpoint {} is being deleted", endpoint.name)))
        }
        EndpointStatus::InService => Ok(endpoint),
    }
}

async fn ask<T: for<'de> Deserialize<'de>>(
    clients: &Clients,
    deployment: &Deployment,
    body: &Value,
) -> Result<T, Failure> {
    let answer = clients.runtime.invoke(&deployment.endpoint, body.to_string()).await.map_err(not_answered)?;
    serde_json::from_slice(&answer).map_err(|error| {
        Failure::new(ErrorName::VerificationFailed, format!("the endpoint's answer cannot be read: {error}"))
    })
}

/// A container that is still loading its model answers with an error for a while.
fn not_answered(error: AwsError) -> Failure {
    if error.retryable || error.code == "ModelNotReadyException" {
        Failure::new(ErrorName::EndpointNotReady, format!("the endpoint does not answer yet: {error}"))
    } else if error.code == "ModelError" {
        Failure::new(ErrorName::VerificationFailed, format!("the endpoint answered with an error: {error}"))
    } else {
        error.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(status: EndpointStatus) -> Option<Endpoint> {
        Some(Endpoint {
            name: "tunesmith-handbook-0123456789ab".into(),
            word: format!("{status:?}"),
            status,
            failure_reason: "no memory".into(),
        })
    }

    #[test]
    fn only_an_endpoint_in_service_is_verified() {
        let name = |e| in_service(e, "tunesmith-handbook-0123456789ab").unwrap_err().name;
        assert!(in_service(endpoint(EndpointStatus::InService), "").is_ok());
        assert_eq!(name(endpoint(EndpointStatus::Changing)), ErrorName::EndpointNotReady);
        assert_eq!(name(endpoint(EndpointStatus::Failed)), ErrorName::EndpointFailed);
        assert_eq!(name(endpoint(EndpointStatus::Deleting)), ErrorName::EndpointFailed);
        assert_eq!(name(None), ErrorName::EndpointFailed);
    }
}
