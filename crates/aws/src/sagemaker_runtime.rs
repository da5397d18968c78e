//! Asking an endpoint, at once or as a stream.

use std::time::Duration;

use aws_sdk_sagemakerruntime::{
    Client, operation::invoke_endpoint_with_response_stream::InvokeEndpointWithResponseStreamOutput, primitives::Blob,
    types::ResponseStream,
};
use bytes::Bytes;

use crate::{AwsError, Config, config};

/// SageMaker gives a container 60 s for an answer; a serverless one may need as long again to start.
const ANSWER: Duration = Duration::from_secs(130);

/// Client for SageMaker Runtime. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SageMakerRuntime {
    client: Client,
}

/// An answer that comes in parts.
#[derive(Debug)]
pub struct AnswerStream {
    output: InvokeEndpointWithResponseStreamOutput,
}

impl SageMakerRuntime {
    /// A client.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let conf = aws_sdk_sagemakerruntime::config::Builder::from(config).timeout_config(config::slow(ANSWER)).build();
        Self { client: Client::from_conf(conf) }
    }

    /// Sends a JSON body and returns the container's answer.
    ///
    /// # Errors
    /// Code `ModelError` when the container answered with an error: the message carries its status and words.
    pub async fn invoke(&self, endpoint: &str, body: impl Into<Vec<u8>>) -> Result<Bytes, AwsError> {
        let sent = self
            .client
            .invoke_endpoint()
            .endpoint_name(endpoint)
            .content_type("application/json")
            .accept("application/json")
            .body(Blob::new(body.into()))
            .send()
            .await;
        match sent {
            Ok(answer) => Ok(answer.body.map(Blob::into_inner).unwrap_or_default().into()),
            Err(error) => {
                use aws_sdk_sagemakerruntime::operation::invoke_endpoint::InvokeEndpointError::ModelError;
                let model = match error.as_service_error() {
                    Some(ModelError(model)) => Some((model.original_status_code(), model.original_message())),
                    _ => None,
                };
                Err(with_model(AwsError::from_sdk("sagemaker-runtime", "InvokeEndpoint", &error), model))
            }
        }
    }

    /// Sends a JSON body and returns the container's answer part by part.
    pub async fn invoke_stream(&self, endpoint: &str, body: impl Into<Vec<u8>>) -> Result<AnswerStream, AwsError> {
        let sent = self
            .client
            .invoke_endpoint_with_response_stream()
            .endpoint_name(endpoint)
            .content_type("application/json")
            .body(Blob::new(body.into()))
            .send()
            .await;
        match sent {
            Ok(output) => Ok(AnswerStream { output }),
            Err(error) => {
                use aws_sdk_sagemakerruntime::operation::invoke_endpoint_with_response_stream::InvokeEndpointWithResponseStreamError::ModelError;
                let model = match error.as_service_error() {
                    Some(ModelError(model)) => Some((model.original_status_code(), model.original_message())),
                    _ => None,
                };
                Err(with_model(
                    AwsError::from_sdk("sagemaker-runtime", "InvokeEndpointWithResponseStream", &error),
                    model,
                ))
            }
        }
    }
}

impl AnswerStream {
    /// The next part; `None` after the last. Parts end anywhere, also within a line or a character.
    pub async fn next(&mut self) -> Result<Option<Bytes>, AwsError> {
        loop {
            let event = self.output.body.recv().await.map_err(|error| {
                let mut failed = AwsError::malformed(
                    "sagemaker-runtime",
                    "InvokeEndpointWithResponseStream",
                    aws_smithy_types::error::display::DisplayErrorContext(&error),
                );
                failed.code = "ModelStreamError".to_owned();
                failed.retryable = true;
                failed
            })?;
            match event {
                None => return Ok(None),
                Some(ResponseStream::PayloadPart(part)) => {
                    if let Some(bytes) = part.bytes {
                        return Ok(Some(bytes.into_inner().into()));
                    }
                }
                Some(_) => {}
            }
        }
    }
}

/// The container's own status decides whether asking again can help: 4xx will be refused again.
fn with_model(mut error: AwsError, model: Option<(Option<i32>, Option<&str>)>) -> AwsError {
    if let Some((status, words)) = model {
        let status = status.unwrap_or(500);
        error.message = format!("the container answered {status}: {}", words.unwrap_or("no message"));
        error.retryable = status >= 500 || status == 429;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_status_decides_about_a_retry() {
        let error = AwsError::malformed("sagemaker-runtime", "InvokeEndpoint", "x");
        let refused = with_model(error.clone(), Some((Some(400), Some("max_tokens must be positive"))));
        assert!(!refused.retryable && refused.message.contains("400: max_tokens"));
        assert!(with_model(error, Some((Some(503), None))).retryable);
    }
}
