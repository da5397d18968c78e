//! Errors as OpenAI clients read them: `{"error": {"message", "type", "param", "code"}}` with a fitting status.

use serde::{Deserialize, Serialize};

/// Why a request was not answered. The status decides what a client does: the official ones retry 408, 409, 429 and 5xx.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {}", body.message)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// What is sent, inside `{"error": …}`. Boxed: results carry it up through every call.
    pub body: Box<ErrorBody>,
    /// Seconds for the header `retry-after`.
    pub retry_after: Option<u64>,
}

/// The content of `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong, with values and remedy.
    pub message: String,
    /// Family: `invalid_request_error`, `authentication_error`, `rate_limit_error`, `server_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The request's field that is wrong.
    pub param: Option<String>,
    /// Machine-readable name.
    pub code: Option<String>,
    /// Only with code `context_length_exceeded`: tokens of the prompt, and how many fit. An addition to OpenAI's shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextUse>,
}

/// How much too long a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextUse {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// How many fit.
    pub limit: usize,
}

#[derive(Serialize, Deserialize)]
struct Envelope<B> {
    error: B,
}

impl ApiError {
    fn new(status: u16, kind: &str, code: Option<&str>, message: String) -> Self {
        let body = ErrorBody { message, kind: kind.into(), param: None, code: code.map(str::to_owned), context: None };
        Self { status, body: Box::new(body), retry_after: None }
    }

    /// 400: the request as a whole, or its field `param`, is wrong.
    #[must_use]
    pub fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        let mut error = Self::new(400, "invalid_request_error", None, message.into());
        error.body.param = param.map(str::to_owned);
        error
    }

    /// 400 `context_length_exceeded`: a prompt of `tokens` tokens, of which `limit` fit.
    #[must_use]
    pub fn too_long(param: &str, tokens: usize, limit: usize) -> Self {
        let message = format!("the prompt has {tokens} tokens, {limit} fit into this model; send a shorter one");
        let mut error = Self::invalid(Some(param), message);
        error.body.code = Some("context_length_exceeded".into());
        error.body.context = Some(ContextUse { tokens, limit });
        error
    }

    /// 401 `invalid_api_key`.
    #[must_use]
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(401, "authentication_error", Some("invalid_api_key"), message.into())
    }

    /// 404 `model_not_found`.
    #[must_use]
    pub fn unknown_model(model: &str, known: &[&str]) -> Self {
        let message = format!("there is no model {model:?} for this key; use one of: {}", known.join(", "));
        let mut error = Self::new(404, "invalid_request_error", Some("model_not_found"), message);
        error.body.param = Some("model".into());
        error
    }

    /// 404 for a path that does not exist.
    #[must_use]
    pub fn unknown_path(method: &str, path: &str) -> Self {
        let message = format!(
            "there is no {method} {path}; there are GET /v1/models, GET /v1/models/<id>, POST /v1/chat/completions and \
             POST /v1/completions"
        );
        Self::new(404, "invalid_request_error", Some("unknown_url"), message)
    }

    /// 405 for a path that exists for another method.
    #[must_use]
    pub fn wrong_method(method: &str, path: &str, allowed: &str) -> Self {
        let message = format!("{method} is not allowed for {path}; use {allowed}");
        Self::new(405, "invalid_request_error", Some("method_not_allowed"), message)
    }

    /// 413: a body of more than `limit` bytes.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes; send a shorter conversation");
        Self::new(413, "invalid_request_error", Some("request_too_large"), message)
    }

    /// 429: a limit was reached that is lifted in `retry_after` seconds.
    #[must_use]
    pub fn limited(code: &str, message: impl Into<String>, retry_after: u64) -> Self {
        let mut error = Self::new(429, "rate_limit_error", Some(code), message.into());
        error.retry_after = Some(retry_after);
        error
    }

    /// 500: a defect.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "server_error", Some("internal_error"), message.into())
    }

    /// 502: what stands behind this server answered with something unusable.
    #[must_use]
    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self::new(502, "server_error", Some("bad_gateway"), message.into())
    }

    /// 503: not able to answer now, perhaps in `retry_after` seconds.
    #[must_use]
    pub fn unavailable(code: &str, message: impl Into<String>, retry_after: u64) -> Self {
        let mut error = Self::new(503, "server_error", Some(code), message.into());
        error.retry_after = Some(retry_after);
        error
    }

    /// The JSON to send.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(&Envelope { error: &self.body }).unwrap_or_default()
    }

    /// Reads an error that another server sent with `status`; `None` when it is not of this shape.
    #[must_use]
    pub fn from_json(status: u16, json: &str) -> Option<Self> {
        let envelope: Envelope<ErrorBody> = serde_json::from_str(json).ok()?;
        Some(Self { status, body: Box::new(envelope.error), retry_after: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_openais_shape_and_come_back() {
        let error = ApiError::too_long("messages", 1400, 900);
        let json: serde_json::Value = serde_json::from_str(&error.to_json()).unwrap();
        assert_eq!(json["error"]["type"], "invalid_request_error");
        assert_eq!(json["error"]["param"], "messages");
        assert_eq!(json["error"]["code"], "context_length_exceeded");
        assert_eq!(ApiError::from_json(400, &error.to_json()).unwrap(), error);
        let plain: serde_json::Value = serde_json::from_str(&ApiError::unauthorized("no").to_json()).unwrap();
        assert!(plain["error"]["param"].is_null() && plain["error"].get("context").is_none());
        assert!(ApiError::from_json(500, "<html>").is_none());
    }
}
