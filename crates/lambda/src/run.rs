//! From an invocation to a typed result or a named failure.

use std::{any::Any, fmt::Debug, panic::AssertUnwindSafe, time::Instant};

use futures::{FutureExt as _, Stream};
use lambda_runtime::{Diagnostic, IntoFunctionResponse, LambdaEvent, service_fn};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tracing::Instrument as _;
use tracing_subscriber::EnvFilter;
use tunesmith_contract::error_name::{ErrorName, Failure};

use crate::{
    Environment,
    metric::{invocation, publish_metrics},
};

/// The Lambda runtime ended: its API could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("the lambda runtime ended: {0}")]
pub struct RunError(lambda_runtime::Error);

/// Runs a function until Lambda ends it.
///
/// `start` builds settings and clients once. When it fails, every invocation answers with that failure: a crash at start
/// would reach the state machine as `Runtime.ExitError`, without a name and a cause.
///
/// `handle` gets the parsed input. Input of another shape is `InvalidInput`; a panic is `Internal`. Logs carry the request
/// and, where the input names them, project and run; never the input itself. The result is JSON, or a
/// [`lambda_runtime::StreamResponse`]. Every invocation reports its time and whether it failed.
///
/// # Errors
/// Only when the runtime API cannot be reached.
pub async fn run<C, I, R, B, S, D, E>(
    start: impl AsyncFnOnce(&Environment) -> Result<C, Failure>,
    handle: impl AsyncFn(&C, I) -> Result<R, Failure>,
) -> Result<(), RunError>
where
    I: DeserializeOwned,
    R: IntoFunctionResponse<B, S>,
    B: Serialize,
    S: Stream<Item = Result<D, E>> + Unpin + Send + 'static,
    D: Into<bytes::Bytes> + Send,
    E: Into<lambda_runtime::Error> + Send + Debug,
{
    init_tracing();
    let environment = Environment::of_process();
    let started = AssertUnwindSafe(Box::pin(start(&environment))).catch_unwind().await;
    let context = started.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
    if let Err(failure) = &context {
        tracing::error!(error = %failure.name, cause = %failure.message, "start failed");
    }
    let (context, handle) = (&context, &handle);
    let service = service_fn(move |event: LambdaEvent<Value>| async move {
        let field = |name: &str| event.payload.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let span = tracing::info_span!(
            "invocation",
            request = %event.context.request_id,
            project = %field("project"),
            run = %field("run")
        );
        async move {
            let began = Instant::now();
            let done = match context {
                Ok(context) => guarded(context, handle, event.payload).await,
                Err(failure) => Err(failure.clone()),
            };
            publish_metrics(crate::now(), &invocation(began.elapsed(), done.is_err()));
            done.map_err(|failure| {
                tracing::error!(error = %failure.name, cause = %failure.message, "failed");
                diagnostic(&failure)
            })
        }
        .instrument(span)
        .await
    });
    lambda_runtime::run(service).await.map_err(RunError)
}

async fn guarded<C, I: DeserializeOwned, R>(
    context: &C,
    handle: &impl AsyncFn(&C, I) -> Result<R, Failure>,
    payload: Value,
) -> Result<R, Failure> {
    let input: I = serde_json::from_value(payload).map_err(|error| {
        Failure::new(ErrorName::InvalidInput, format!("the input does not have its shape: {error}; see events/"))
    })?;
    // boxed: the SDK's futures are deep enough to overflow the compiler's layout computation
    let done = AssertUnwindSafe(Box::pin(handle(context, input))).catch_unwind().await;
    done.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
}

/// A panic as a failure: a defect, with the words it was thrown with.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let words = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Failure::new(ErrorName::Internal, format!("panicked: {words}. {}", ErrorName::Internal.remedy()))
}

/// What Lambda hands to Step Functions: `errorType` is the name that state machines match.
fn diagnostic(failure: &Failure) -> Diagnostic {
    Diagnostic { error_type: failure.name.to_string(), error_message: failure.message.clone() }
}

/// JSON lines on standard output, filtered by `RUST_LOG` (default `info`). A second call does nothing.
fn init_tracing() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_target(false)
        .with_env_filter(filter)
        .try_init();
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{ProjectId, tasks::PipelineInput};

    use super::*;

    async fn call(payload: &str) -> Result<ProjectId, Failure> {
        let handle = async |limit: &usize, input: PipelineInput| {
            assert!(input.project.as_str().len() <= *limit, "longer than {limit}");
            Ok(input.project)
        };
        guarded(&8, &handle, serde_json::from_str(payload).unwrap()).await
    }

    #[tokio::test]
    async fn input_of_another_shape_is_invalid_input() {
        assert_eq!(call(r#"{"project": "handbook"}"#).await.unwrap().as_str(), "handbook");
        for wrong in [r#"{"project": "Hand Book"}"#, r#"{"project": "handbook", "verbose": true}"#, "[]"] {
            assert_eq!(call(wrong).await.unwrap_err().name, ErrorName::InvalidInput, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_internal_with_its_words() {
        let failure = call(r#"{"project": "much-too-long"}"#).await.unwrap_err();
        assert_eq!(failure.name, ErrorName::Internal);
        assert!(failure.message.contains("longer than 8"), "{}", failure.message);
    }

    #[test]
    fn the_error_type_is_the_failure_name() {
        let diagnostic = diagnostic(&Failure::new(ErrorName::BudgetExceeded, "needs $3.00, $1.00 is left"));
        let text = serde_json::to_string(&diagnostic).unwrap();
        assert_eq!(text, r#"{"errorType":"BudgetExceeded","errorMessage":"needs $3.00, $1.00 is left"}"#);
    }
}
