//! Lambda function `verify-endpoint`: does the endpoint answer what was trained?
//!
//! Promise: succeeds only when the endpoint is in service with this run's configuration, its logits equal the trainer's within
//! [`check::TOLERANCE`], and it answers a question. Still creating is [`ErrorName::EndpointNotReady`], which the state machine
//! repeats; everything else leaves the old model live.

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
    let missing = |what: &str| Failure::new(ErrorName::NotFound, format!("{what} of {} is missing", input.run));
    let deployment: Deployment =
        clients.s3.get_json(&folder.join("deployment.json")).await?.ok_or_else(|| missing("the deployment"))?;
    let reference: ReferenceLogits = clients
        .s3
        .get_json(&folder.join("reference-logits.json"))
        .await?
        .ok_or_else(|| missing("the reference logits"))?;
    let endpoint = clients.sagemaker.describe_endpoint(&deployment.endpoint).await?;
    let endpoint = in_service(endpoint, &deployment)?;

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

/// The endpoint, if it serves this deployment.
///
/// # Errors
/// As [`handle`]. Pure.
pub fn in_service(endpoint: Option<Endpoint>, deployment: &Deployment) -> Result<Endpoint, Failure> {
    let endpoint = endpoint.ok_or_else(|| {
        Failure::new(ErrorName::EndpointFailed, format!("endpoint {} does not exist", deployment.endpoint))
    })?;
    match endpoint.status {
        EndpointStatus::Changing => {
            Err(Failure::new(ErrorName::EndpointNotReady, format!("endpoint {} is {}", endpoint.name, endpoint.word)))
        }
        EndpointStatus::Failed => Err(Failure::new(
            ErrorName::EndpointFailed,
            format!("endpoint {} failed: {}", endpoint.name, endpoint.failure_reason),
        )),
        // A failed update leaves the endpoint in service with its old configuration.
        EndpointStatus::InService if endpoint.config != deployment.config => Err(Failure::new(
            ErrorName::EndpointFailed,
            format!(
                "endpoint {} went back to {} instead of changing to {}: {}",
                endpoint.name, endpoint.config, deployment.config, endpoint.failure_reason
            ),
        )),
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
    use tunesmith_contract::UnixTime;

    use super::*;

    fn deployment() -> Deployment {
        Deployment {
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            endpoint: "tunesmith-handbook".into(),
            model: "new".into(),
            config: "new".into(),
            previous_config: Some("old".into()),
        }
    }

    fn endpoint(status: EndpointStatus, config: &str) -> Option<Endpoint> {
        Some(Endpoint {
            name: "tunesmith-handbook".into(),
            word: format!("{status:?}"),
            status,
            config: config.into(),
            failure_reason: "no memory".into(),
            created_at: UnixTime(0),
        })
    }

    #[test]
    fn only_the_new_configuration_in_service_is_verified() {
        let name = |e| in_service(e, &deployment()).unwrap_err().name;
        assert!(in_service(endpoint(EndpointStatus::InService, "new"), &deployment()).is_ok());
        assert_eq!(name(endpoint(EndpointStatus::Changing, "old")), ErrorName::EndpointNotReady);
        assert_eq!(name(endpoint(EndpointStatus::Failed, "new")), ErrorName::EndpointFailed);
        assert_eq!(name(endpoint(EndpointStatus::InService, "old")), ErrorName::EndpointFailed);
        assert_eq!(name(None), ErrorName::EndpointFailed);
    }
}
