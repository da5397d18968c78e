//! One error for every service.

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::{display::DisplayErrorContext, metadata::ProvideErrorMetadata};
use tunesmith_contract::error_name::{ErrorName, Failure};

/// A call to AWS that failed after the SDK's own retries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{service} {operation} failed with {code}: {message}")]
pub struct AwsError {
    /// The service, e.g. `dynamodb`.
    pub service: &'static str,
    /// The operation as in the API reference, e.g. `TransactWriteItems`.
    pub operation: &'static str,
    /// The service's error code; or one of the codes below for what never was an answer.
    pub code: String,
    /// The service's message.
    pub message: String,
    /// Whether the same call may succeed later.
    pub retryable: bool,
}

impl AwsError {
    /// Code of an answer that did not come in time.
    pub const TIMEOUT: &'static str = "Timeout";
    /// Code of a connection that could not be made or broke.
    pub const DISPATCH: &'static str = "DispatchFailure";
    /// Code of a request that could not be built, or an answer that could not be read.
    pub const MALFORMED: &'static str = "Malformed";

    /// The failure name that people and state machines see.
    #[must_use]
    pub fn name(&self) -> ErrorName {
        let code = self.code.as_str();
        if self.retryable {
            ErrorName::ServiceUnavailable
        } else if DENIED.contains(&code) {
            ErrorName::AccessDenied
        } else if MISSING.contains(&code) {
            ErrorName::NotFound
        } else if LIMITED.contains(&code) {
            ErrorName::QuotaExceeded
        } else {
            ErrorName::Internal
        }
    }

    /// An error of data that is not what it must be: it will be the same next time.
    pub(crate) fn malformed(service: &'static str, operation: &'static str, message: impl std::fmt::Display) -> Self {
        Self { service, operation, code: Self::MALFORMED.into(), message: message.to_string(), retryable: false }
    }

    pub(crate) fn from_sdk<E>(service: &'static str, operation: &'static str, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let (code, message, retryable) = match error {
            SdkError::TimeoutError(_) => (Self::TIMEOUT.to_owned(), None, true),
            SdkError::DispatchFailure(failure) => (Self::DISPATCH.to_owned(), None, !failure.is_user()),
            SdkError::ServiceError(service_error) => {
                let meta = service_error.err().meta();
                let code = meta.code().map_or_else(|| status_code(status), str::to_owned);
                let retryable = THROTTLED.contains(&code.as_str()) || status.is_some_and(|s| s >= 500 || s == 429);
                (code, meta.message().map(str::to_owned), retryable)
            }
            SdkError::ResponseError(_) => (Self::MALFORMED.to_owned(), None, true),
            _ => (Self::MALFORMED.to_owned(), None, false),
        };
        // SageMaker's ModelError comes as 424 or 5xx and is the container's doing; the caller decides (EndpointNotReady).
        let message = message.unwrap_or_else(|| DisplayErrorContext(error).to_string());
        Self { service, operation, code, message, retryable }
    }
}

/// A name for an error that came without a code (S3 answers HEAD without a body).
fn status_code(status: Option<u16>) -> String {
    match status {
        Some(403) => "AccessDenied".into(),
        Some(404) => "NotFound".into(),
        Some(412) => "PreconditionFailed".into(),
        Some(status) => format!("Http{status}"),
        None => AwsError::MALFORMED.into(),
    }
}

impl From<AwsError> for Failure {
    fn from(error: AwsError) -> Self {
        let name = error.name();
        Self::new(name, format!("{error}. {}", name.remedy()))
    }
}

/// Codes by which services say that the role may not. S3, DynamoDB, EC2, STS, SageMaker use different ones.
const DENIED: [&str; 6] = [
    "AccessDenied",
    "AccessDeniedException",
    "UnauthorizedOperation",
    "AuthorizationError",
    "AuthFailure",
    "Forbidden",
];
/// Codes by which services say that the account's quota does not allow it.
const LIMITED: [&str; 2] = ["ResourceLimitExceeded", "ServiceQuotaExceededException"];
/// Codes by which services say that something is not there.
const MISSING: [&str; 8] = [
    "NoSuchKey",
    "NoSuchBucket",
    "NotFound",
    "ResourceNotFoundException",
    "ResourceNotFound",
    "StateMachineDoesNotExist",
    "ExecutionDoesNotExist",
    "NoSuchResourceException",
];
/// Codes of throttling and passing trouble, which do not all come with status 429 or 5xx.
const THROTTLED: [&str; 12] = [
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "ProvisionedThroughputExceededException",
    "RequestTimeout",
    "SlowDown",
    "TransactionInProgressException",
    "TransactionConflictException",
    "ConflictException",
    "InternalServerError",
];

/// `call.await.map_err(aws!("s3", "GetObject"))`.
macro_rules! aws {
    ($service:literal, $operation:literal) => {
        |error| $crate::AwsError::from_sdk($service, $operation, &error)
    };
}
pub(crate) use aws;

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str, retryable: bool) -> AwsError {
        AwsError { service: "s3", operation: "GetObject", code: code.into(), message: "m".into(), retryable }
    }

    #[test]
    fn each_class_of_error_has_its_name() {
        for (code, retryable, name) in [
            ("AccessDenied", false, ErrorName::AccessDenied),
            ("UnauthorizedOperation", false, ErrorName::AccessDenied),
            ("NoSuchKey", false, ErrorName::NotFound),
            ("ResourceNotFoundException", false, ErrorName::NotFound),
            ("ResourceLimitExceeded", false, ErrorName::QuotaExceeded),
            ("SlowDown", true, ErrorName::ServiceUnavailable),
            (AwsError::TIMEOUT, true, ErrorName::ServiceUnavailable),
            ("ValidationException", false, ErrorName::Internal),
        ] {
            assert_eq!(error(code, retryable).name(), name, "{code}");
        }
    }

    #[test]
    fn a_failure_names_service_operation_code_and_remedy() {
        let failure = Failure::from(error("AccessDenied", false));
        assert_eq!(failure.name, ErrorName::AccessDenied);
        assert!(failure.message.contains("s3 GetObject failed with AccessDenied: m"), "{}", failure.message);
        assert!(failure.message.contains("docs/security.md"), "{}", failure.message);
    }
}
