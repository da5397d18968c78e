//! What the function URL sends: status, headers, and a body in parts.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use lambda_runtime::{FunctionResponse, IntoFunctionResponse, MetadataPrelude, StreamResponse};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tunesmith_serving::openai::ApiError;

/// A body: at once, or part by part.
#[derive(Debug)]
pub enum Parts {
    /// All of it; taken when sent.
    Whole(Option<Bytes>),
    /// As it is made.
    Growing(UnboundedReceiverStream<Bytes>),
}

impl Stream for Parts {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Self::Whole(body) => Poll::Ready(body.take().map(Ok)),
            Self::Growing(parts) => Pin::new(parts).poll_next(context).map(|part| part.map(Ok)),
        }
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub parts: Parts,
}

impl Answer {
    fn new(status: StatusCode, content_type: &'static str, parts: Parts) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Self { status, headers, parts }
    }

    pub(crate) fn json(value: &impl Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_vec(value)
            .map_err(|error| ApiError::internal(format!("the answer cannot be written as JSON: {error}")))?;
        Ok(Self::new(StatusCode::OK, "application/json", Parts::Whole(Some(body.into()))))
    }

    pub(crate) fn events(parts: UnboundedReceiver<Bytes>) -> Self {
        Self::new(StatusCode::OK, "text/event-stream", Parts::Growing(UnboundedReceiverStream::new(parts)))
    }

    pub(crate) fn refusal(error: &ApiError) -> Self {
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = Self::new(status, "application/json", Parts::Whole(Some(error.to_json().into())));
        if let Some(seconds) = error.retry_after {
            answer.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

impl IntoFunctionResponse<(), Parts> for Answer {
    fn into_response(self) -> FunctionResponse<(), Parts> {
        let metadata_prelude = MetadataPrelude { status_code: self.status, headers: self.headers, cookies: Vec::new() };
        FunctionResponse::StreamingResponse(StreamResponse { metadata_prelude, stream: self.parts })
    }
}
