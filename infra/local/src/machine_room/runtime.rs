//! SageMaker's runtime: `InvokeEndpoint` and `InvokeEndpointWithResponseStream`, proxied to a variant's process.
//! Source: Amazon SageMaker API Reference, SageMaker Runtime.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, Request, State},
    response::Response,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    MAX_BODY, Room,
    endpoints::{Status, Variant},
    eventstream::{model_stream_error, payload_part},
    identity::{Denied, Need},
    response,
    sagemaker::arn,
};
use crate::client::Http;

const JSON: &str = "application/json";

/// A request on its way to a variant: holds the fleet alive and one permit of a serverless variant.
struct Call {
    fleet: Arc<Vec<Variant>>,
    index: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Call {
    fn variant(&self) -> Option<&Variant> {
        self.fleet.get(self.index)
    }
}

/// `POST /endpoints/{name}/invocations`
pub async fn invoke(State(room): State<Room>, Path(name): Path<String>, request: Request) -> Response {
    let (call, answer) = match send(&room, &name, request, "sagemaker:InvokeEndpoint").await {
        Ok(sent) => sent,
        Err(refusal) => return *refusal,
    };
    let (head, body) = answer.into_parts();
    let Ok(body) = body.collect().await else {
        return error(424, "ModelError", "the container closed the connection before its answer was complete");
    };
    let body = body.to_bytes();
    if !head.status.is_success() {
        let original = String::from_utf8_lossy(&body).into_owned();
        let text = json!({
            "Message": format!("Received error ({}) from primary with message \"{original}\".", head.status.as_u16()),
            "OriginalMessage": original,
            "OriginalStatusCode": head.status.as_u16(),
            "LogStreamArn": "",
        });
        return with_error_type(response(424, JSON, text.to_string()), "ModelError");
    }
    let mut out = Response::new(Body::from(body));
    label(&mut out, &call, head.headers.get("content-type"));
    out
}

/// `POST /endpoints/{name}/invocations-response-stream`
pub async fn invoke_streaming(State(room): State<Room>, Path(name): Path<String>, request: Request) -> Response {
    let (call, answer) = match send(&room, &name, request, "sagemaker:InvokeEndpointWithResponseStream").await {
        Ok(sent) => sent,
        Err(refusal) => return *refusal,
    };
    let (head, body) = answer.into_parts();
    if !head.status.is_success() {
        let text =
            body.collect().await.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
        let text = json!({"Message": text, "OriginalMessage": text, "OriginalStatusCode": head.status.as_u16(), "LogStreamArn": ""});
        return with_error_type(response(424, JSON, text.to_string()), "ModelError");
    }
    let content_type = head.headers.get("content-type").cloned();
    // The fleet and the permit live as long as the stream.
    let mut out = Response::new(Body::empty());
    label(&mut out, &call, None);
    if let Some(value) = content_type {
        out.headers_mut().insert(HeaderName::from_static("x-amzn-sagemaker-content-type"), value);
    }
    out.headers_mut().insert("content-type", HeaderValue::from_static("application/vnd.amazon.eventstream"));
    let parts = stream::unfold((body, call, false), |(mut body, call, ended)| async move {
        if ended {
            return None;
        }
        loop {
            match body.frame().await {
                None => return None,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Some((payload_part(&data), (body, call, false))),
                    _ => {}
                },
                Some(Err(error)) => return Some((model_stream_error(&error.to_string()), (body, call, true))),
            }
        }
    });
    *out.body_mut() = Body::from_stream(parts.map(|part| Ok::<Bytes, std::convert::Infallible>(part.into())));
    out
}

async fn send(
    room: &Room,
    name: &str,
    request: Request,
    action: &'static str,
) -> Result<(Call, http::Response<Incoming>), Box<Response>> {
    let refuse = |status, code: &'static str, message: &str| Box::new(error(status, code, message));
    let (head, body) = request.into_parts();
    room.allow(&head.headers, &[Need::new(action, arn("endpoint", name))]).await.map_err(|denied| match denied {
        Denied::Unknown => refuse(403, "UnrecognizedClientException", &denied.to_string()),
        Denied::NotAllowed { .. } => refuse(403, "AccessDeniedException", &denied.to_string()),
        Denied::Unavailable(_) => refuse(500, "InternalFailure", &denied.to_string()),
    })?;
    let body = http_body_util::Limited::new(body, MAX_BODY).collect().await;
    let body = body.map_err(|_| refuse(413, "ValidationError", "the body is larger than the limit"))?.to_bytes();
    let call = choose(room, name, &head.headers)?;
    let Some(variant) = call.variant() else {
        return Err(refuse(400, "ValidationError", "the endpoint has no variant of that name"));
    };
    let text = |name: &str, default: &'static str| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or(default).to_owned()
    };
    let (content_type, accept) = (text("content-type", "application/json"), text("x-amzn-sagemaker-accept", "*/*"));
    let attributes = text("x-amzn-sagemaker-custom-attributes", "");
    let mut headers = vec![("content-type", content_type.as_str()), ("accept", accept.as_str())];
    if !attributes.is_empty() {
        headers.push(("x-amzn-sagemaker-custom-attributes", attributes.as_str()));
    }
    let url = format!("{}/invocations", variant.address);
    let answer = Http::default().send(Method::POST, &url, &headers, body).await;
    let answer = answer.map_err(|e| refuse(424, "ModelError", &e.to_string()))?;
    Ok((call, answer))
}

fn choose(room: &Room, name: &str, headers: &HeaderMap) -> Result<Call, Box<Response>> {
    let refuse = |status, code: &'static str, message: &str| Box::new(error(status, code, message));
    let fleet = {
        let tables = room.tables();
        let endpoint = tables.endpoints.get(name).filter(|e| e.status == Status::InService);
        let Some(endpoint) = endpoint else {
            return Err(refuse(
                400,
                "ValidationError",
                &format!("Endpoint {name} of account {} not found.", crate::client::ACCOUNT),
            ));
        };
        Arc::clone(&endpoint.live)
    };
    let target = headers.get("x-amzn-sagemaker-target-variant").and_then(|v| v.to_str().ok());
    let index = match target {
        Some(target) => fleet.iter().position(|v| v.config.name == target).unwrap_or(usize::MAX),
        None => by_weight(&fleet.iter().map(|v| v.config.weight).collect::<Vec<_>>(), room.next()),
    };
    let permit =
        match fleet.get(index).and_then(|v| v.permits.clone()) {
            Some(permits) => Some(permits.try_acquire_owned().map_err(|_| {
                refuse(429, "ThrottlingException", "the endpoint's MaxConcurrency is reached; try again")
            })?),
            None => None,
        };
    Ok(Call { fleet, index, permit })
}

/// The variant of the `n`-th request: each gets its share, in turn and without chance, so that a test can count.
fn by_weight(weights: &[f64], n: u64) -> usize {
    let total: f64 = weights.iter().sum();
    // The golden ratio's multiples fill the unit interval evenly (Weyl sequence).
    let mut point = (n as f64 * 0.618_033_988_749_895).fract() * total;
    for (index, weight) in weights.iter().enumerate() {
        if point < *weight {
            return index;
        }
        point -= weight;
    }
    0
}

fn label(out: &mut Response, call: &Call, content_type: Option<&HeaderValue>) {
    let variant = call.variant().and_then(|v| HeaderValue::from_str(&v.config.name).ok());
    if let Some(variant) = variant {
        out.headers_mut().insert(HeaderName::from_static("x-amzn-invoked-production-variant"), variant);
    }
    if let Some(content_type) = content_type {
        out.headers_mut().insert("content-type", content_type.clone());
    }
    let _ = &call.permit;
}

fn error(status: u16, code: &'static str, message: &str) -> Response {
    with_error_type(response(status, JSON, json!({"Message": message, "message": message}).to_string()), code)
}

fn with_error_type(mut response: Response, code: &'static str) -> Response {
    response.headers_mut().insert(HeaderName::from_static("x-amzn-errortype"), HeaderValue::from_static(code));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_follows_the_weights() {
        let mut counts = [0_u32; 2];
        for n in 0..1000 {
            counts[by_weight(&[9.0, 1.0], n)] += 1;
        }
        assert!((890..=910).contains(&counts[0]), "{counts:?}");
    }
}
