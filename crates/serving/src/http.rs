//! The server of the container: SageMaker's `/ping` and `/invocations`, and the OpenAI API for people who run it themselves.
//! Source: Amazon SageMaker AI Developer Guide, "Custom Inference Code with Hosting Services".

mod stream;

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, State, rejection::BytesRejection},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde::Serialize;

use crate::{
    engine::{Engine, EngineError, Piece, Pieces, Prompt},
    openai::{
        ApiError, ChatRequest, CompletionRequest, FinishReason, Heading, Invocation, InvocationKind, LogitsAnswer,
        ModelCard, ModelList, Options, Usage, Weights,
    },
};

/// SageMaker passes bodies of up to 25 MB on; no model here reads as much text.
const MAX_BODY: usize = 2 << 20;

/// The routes over an engine. Names of the model: its own, and with `:base` after it the base model's.
pub fn router(engine: Engine) -> Router {
    Router::new()
        .route("/ping", get(ping))
        .route("/invocations", post(invocations))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_path)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(engine)
}

/// Serves until `stop` resolves, then finishes the answers that have begun.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: tokio::net::TcpListener,
    engine: Engine,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(engine)).with_graceful_shutdown(stop).await
}

/// SageMaker asks this until it is 200; the server listens only once the model is loaded.
async fn ping() -> StatusCode {
    StatusCode::OK
}

async fn unknown_path(method: Method, uri: Uri) -> Response {
    refused(&ApiError::unknown_path(method.as_str(), uri.path()))
}

async fn models(State(engine): State<Engine>) -> Response {
    let base = base_name(&engine);
    json(&ModelList::new([engine.name(), base.as_str()], now()))
}

async fn model(State(engine): State<Engine>, Path(id): Path<String>) -> Response {
    match weights(&engine, Some(&id)) {
        Ok(_) => json(&ModelCard::new(&id, now())),
        Err(error) => refused(&error),
    }
}

async fn invocations(State(engine): State<Engine>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(async {
        let Invocation { weights, kind } = Invocation::parse(&read(body)?)?;
        match kind {
            InvocationKind::Chat(request) => answer_chat(&engine, request, weights).await,
            InvocationKind::Completion(request) => answer_completion(&engine, request, weights).await,
            InvocationKind::Logits(tokens) => {
                let logits = engine.logits(tokens, weights).await.map_err(|error| error.to_api("tokens"))?;
                Ok(json(&LogitsAnswer { logits }))
            }
        }
    })
    .await
}

async fn chat(State(engine): State<Engine>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(async {
        let request = ChatRequest::parse(&read(body)?)?;
        let weights = weights(&engine, request.model.as_deref())?;
        answer_chat(&engine, request, weights).await
    })
    .await
}

async fn completion(State(engine): State<Engine>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(async {
        let request = CompletionRequest::parse(&read(body)?)?;
        let weights = weights(&engine, request.model.as_deref())?;
        answer_completion(&engine, request, weights).await
    })
    .await
}

async fn answer_chat(engine: &Engine, request: ChatRequest, weights: Weights) -> Result<Response, ApiError> {
    let (stream, include_usage) = (request.options.stream, request.options.include_usage());
    let heading = heading(engine, "chatcmpl", request.model);
    let pieces = engine
        .generate(Prompt::Chat(&request.messages), request.options, weights, random())
        .map_err(|error| error.to_api("messages"))?;
    if stream {
        return Ok(events(stream::chat(heading, pieces, include_usage)));
    }
    let (text, finish, usage) = collect(pieces).await.map_err(|error| error.to_api("messages"))?;
    Ok(json(&heading.reply(text, finish, usage)))
}

async fn answer_completion(
    engine: &Engine,
    request: CompletionRequest,
    weights: Weights,
) -> Result<Response, ApiError> {
    // OpenAI's default for completions is 16 tokens; for chats it is as many as fit
    let options = Options { max_tokens: request.options.max_tokens.or(Some(16)), ..request.options };
    let (stream, include_usage) = (options.stream, options.include_usage());
    let heading = heading(engine, "cmpl", request.model);
    let pieces = engine
        .generate(Prompt::Text(&request.prompt), options, weights, random())
        .map_err(|error| error.to_api("prompt"))?;
    if stream {
        return Ok(events(stream::completion(heading, pieces, include_usage)));
    }
    let (text, finish, usage) = collect(pieces).await.map_err(|error| error.to_api("prompt"))?;
    let mut completion = heading.completion(Some((text, Some(finish))));
    completion.usage = Some(usage);
    Ok(json(&completion))
}

async fn collect(mut pieces: Pieces) -> Result<(String, FinishReason, Usage), EngineError> {
    let mut answer = String::new();
    while let Some(piece) = pieces.recv().await {
        match piece? {
            Piece::Text(text) => answer.push_str(&text),
            Piece::Done { finish, usage } => return Ok((answer, finish, usage)),
        }
    }
    Err(EngineError::Stopped)
}

fn weights(engine: &Engine, model: Option<&str>) -> Result<Weights, ApiError> {
    let base = base_name(engine);
    match model {
        None => Err(ApiError::invalid(Some("model"), format!("model is missing; send {:?}", engine.name()))),
        Some(name) if name == engine.name() => Ok(Weights::Tuned),
        Some(name) if name == base => Ok(Weights::Base),
        Some(name) => Err(ApiError::unknown_model(name, &[engine.name(), &base])),
    }
}

fn base_name(engine: &Engine) -> String {
    format!("{}:base", engine.name())
}

fn heading(engine: &Engine, prefix: &str, model: Option<String>) -> Heading {
    let id = format!("{prefix}-{:016x}", random());
    Heading { id, created: now(), model: model.unwrap_or_else(|| engine.name().to_owned()) }
}

/// The standard library seeds every `RandomState` anew from the system: enough for names and for unseeded sampling.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn read(body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(MAX_BODY),
        _ => ApiError::invalid(None, format!("the body could not be read: {rejection}")),
    })
}

async fn answer(work: impl Future<Output = Result<Response, ApiError>>) -> Response {
    work.await.unwrap_or_else(|error| refused(&error))
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => refused(&ApiError::internal(format!("the answer cannot be written as JSON: {error}"))),
    }
}

fn refused(error: &ApiError) -> Response {
    tracing::info!(status = error.status, message = %error.body.message, "request refused");
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], error.to_json()).into_response();
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn events(stream: impl futures::Stream<Item = Result<String, std::convert::Infallible>> + Send + 'static) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(stream)).into_response()
}
