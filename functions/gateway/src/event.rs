//! Function URL events (payload format 2.0) and the routes of the API.

use aws_lambda_events::event::lambda_function_urls::LambdaFunctionUrlRequest;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::header::AUTHORIZATION;
use percent_encoding::percent_decode_str;
use tunesmith_serving::openai::ApiError;

/// Longer bodies hold more text than any context has room for. (Lambda itself refuses more than 6 MB.)
const MAX_BODY: usize = 256 * 1024;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/{id}`, decoded.
    Model(String),
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    Completions,
}

/// A request of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What is asked for.
    pub route: Route,
    /// The key, from `Authorization: Bearer …`.
    pub secret: Option<String>,
    /// The body, decoded.
    pub body: Vec<u8>,
}

/// Takes a function URL event apart.
///
/// # Errors
/// [`ApiError`] 400 for an event of another shape or a body that is not base64, 404 and 405 for what is no route, 413 for a
/// body of more than 256 KiB.
pub fn parse_event(event: serde_json::Value) -> Result<Call, ApiError> {
    let request: LambdaFunctionUrlRequest = serde_json::from_value(event)
        .map_err(|error| ApiError::invalid(None, format!("this is not a function URL event: {error}")))?;
    let method = request.request_context.http.method.as_deref().unwrap_or_default();
    let path = request.raw_path.as_deref().unwrap_or_default();
    let route = route(method, path)?;
    let secret = request
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, secret)| secret.trim().to_owned())
        .filter(|secret| !secret.is_empty());
    let sent = request.body.unwrap_or_default();
    // base64 is a third longer: too large either way is refused before it is decoded
    if sent.len() > MAX_BODY / 3 * 4 + 4 {
        return Err(ApiError::too_large(MAX_BODY));
    }
    let body = if request.is_base64_encoded {
        BASE64_STANDARD
            .decode(sent)
            .map_err(|error| ApiError::invalid(None, format!("the event's body is not base64: {error}")))?
    } else {
        sent.into_bytes()
    };
    if body.len() > MAX_BODY { Err(ApiError::too_large(MAX_BODY)) } else { Ok(Call { route, secret, body }) }
}

fn route(method: &str, path: &str) -> Result<Route, ApiError> {
    let (route, allowed) = match path.trim_end_matches('/') {
        "/v1/models" => (Route::Models, "GET"),
        "/v1/chat/completions" => (Route::Chat, "POST"),
        "/v1/completions" => (Route::Completions, "POST"),
        other => match other.strip_prefix("/v1/models/") {
            Some(id) => (Route::Model(percent_decode_str(id).decode_utf8_lossy().into_owned()), "GET"),
            None => return Err(ApiError::unknown_path(method, path)),
        },
    };
    if method == allowed { Ok(route) } else { Err(ApiError::wrong_method(method, path, allowed)) }
}
