//! The container's HTTP API: shapes, errors, streams.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use axum::{Router, body::Body, http::Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;
use tunesmith_serving::{http::router, sse::EventReader};

struct Server {
    router: Router,
    _folder: tempfile::TempDir,
}

impl Server {
    fn new() -> Self {
        let folder = common::folder();
        Self { router: router(common::engine(&folder)), _folder: folder }
    }

    async fn send(&self, method: &str, path: &str, body: impl Into<Body>) -> (u16, String, Vec<u8>) {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let content_type = response.headers().get("content-type").map_or("", |v| v.to_str().unwrap()).to_owned();
        let status = response.status().as_u16();
        (status, content_type, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    async fn json(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, content_type, body) = self.send(method, path, body.to_string()).await;
        assert_eq!(content_type, "application/json", "{}", String::from_utf8_lossy(&body));
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn events(&self, path: &str, body: &Value) -> Vec<String> {
        let (status, content_type, body) = self.send("POST", path, body.to_string()).await;
        assert_eq!((status, content_type.as_str()), (200, "text/event-stream"));
        EventReader::default().push(&body).unwrap()
    }
}

fn chat() -> Value {
    json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 12})
}

#[tokio::test]
async fn ping_and_models_answer() {
    let server = Server::new();
    assert_eq!(server.send("GET", "/ping", "").await.0, 200);
    let (status, models) = server.json("GET", "/v1/models", &Value::Null).await;
    assert_eq!((status, &models["object"]), (200, &json!("list")));
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][1]["id"], "tiny:base");
}

#[tokio::test]
async fn a_chat_and_its_stream_say_the_same() {
    let server = Server::new();
    let (status, reply) = server.json("POST", "/v1/chat/completions", &chat()).await;
    assert_eq!((status, &reply["object"]), (200, &json!("chat.completion")));
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &reply["choices"][0];
    assert_eq!((&choice["message"]["role"], &choice["finish_reason"]), (&json!("assistant"), &json!("length")));
    assert_eq!(reply["usage"]["completion_tokens"], 12);

    let mut request = chat();
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    let events = server.events("/v1/chat/completions", &request).await;
    let (done, parts) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let parts: Vec<Value> = parts.iter().map(|part| serde_json::from_str(part).unwrap()).collect();
    assert!(parts.iter().all(|part| part["object"] == "chat.completion.chunk" && part["id"] == parts[0]["id"]));
    assert_eq!(parts[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = parts.iter().filter_map(|part| part["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(json!(text), choice["message"]["content"]);
    let [.., end, usage] = &parts[..] else { panic!("{parts:?}") };
    assert_eq!(end["choices"][0]["finish_reason"], "length");
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &reply["usage"]));
}

#[tokio::test]
async fn a_completion_and_its_stream_say_the_same() {
    let server = Server::new();
    let mut request = json!({"model": "tiny", "prompt": "hello", "temperature": 0});
    let (status, whole) = server.json("POST", "/v1/completions", &request).await;
    assert_eq!((status, &whole["object"]), (200, &json!("text_completion")));
    assert_eq!(whole["usage"]["completion_tokens"], 16, "OpenAI's default");
    request["stream"] = json!(true);
    let events = server.events("/v1/completions", &request).await;
    let text: String = events[..events.len() - 1]
        .iter()
        .map(|part| serde_json::from_str::<Value>(part).unwrap()["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(json!(text), whole["choices"][0]["text"]);
    assert!(events.iter().all(|part| !part.contains("\"usage\"")), "not asked for");
}

#[tokio::test]
async fn invocations_are_the_same_api() {
    let server = Server::new();
    let (_, direct) = server.json("POST", "/v1/chat/completions", &chat()).await;
    let (status, invoked) = server.json("POST", "/invocations", &json!({"kind": "chat", "request": chat()})).await;
    assert_eq!((status, &invoked["choices"]), (200, &direct["choices"]));
    let base = json!({"kind": "chat", "request": chat(), "adapter": false});
    let (_, base) = server.json("POST", "/invocations", &base).await;
    assert_ne!(base["choices"], direct["choices"]);
    let (status, logits) = server.json("POST", "/invocations", &json!({"kind": "logits", "tokens": [5, 6]})).await;
    assert_eq!((status, logits["logits"].as_array().unwrap().len()), (200, 260));
    let mut streamed = json!({"kind": "completion", "request": {"prompt": "x", "stream": true}});
    assert_eq!(server.events("/invocations", &streamed).await.last().unwrap(), "[DONE]");
    streamed["kind"] = json!("dance");
    assert_eq!(server.json("POST", "/invocations", &streamed).await.0, 400);
}

#[tokio::test]
async fn one_model_is_described_as_in_the_list() {
    let server = Server::new();
    for (path, id) in [("tiny", "tiny"), ("tiny:base", "tiny:base"), ("tiny%3Abase", "tiny:base")] {
        let (status, card) = server.json("GET", &format!("/v1/models/{path}"), &json!({})).await;
        assert_eq!((status, &card["id"], &card["object"]), (200, &json!(id), &json!("model")), "{path}: {card}");
        assert!(card["created"].is_i64() && card["owned_by"].is_string(), "{card}");
    }
}

#[tokio::test]
async fn errors_have_openais_shape() {
    let server = Server::new();
    let with = |key: &str, value: Value| {
        let mut request = chat();
        request[key] = value;
        request
    };
    for (method, path, body, status, param, code) in [
        ("POST", "/v1/chat/completions", json!("not an object"), 400, Value::Null, Value::Null),
        ("POST", "/v1/chat/completions", with("temperature", json!(3)), 400, json!("temperature"), Value::Null),
        ("POST", "/v1/chat/completions", with("model", json!("gpt-4o")), 404, json!("model"), json!("model_not_found")),
        ("POST", "/v1/chat/completions", with("model", Value::Null), 400, json!("model"), Value::Null),
        (
            "POST",
            "/v1/chat/completions",
            with("messages", json!([{"role": "user", "content": "y".repeat(400)}])),
            400,
            json!("messages"),
            json!("context_length_exceeded"),
        ),
        ("POST", "/v1/embeddings", json!({}), 404, Value::Null, json!("unknown_url")),
        ("GET", "/v1/models/gpt-4o", json!({}), 404, json!("model"), json!("model_not_found")),
        ("DELETE", "/v1/models", json!({}), 404, Value::Null, json!("unknown_url")),
        (
            "POST",
            "/v1/completions",
            json!({"prompt": "y".repeat(3 << 20)}),
            413,
            Value::Null,
            json!("request_too_large"),
        ),
        ("POST", "/invocations", json!({"kind": "logits", "tokens": [260]}), 400, json!("tokens"), Value::Null),
    ] {
        let (found, answer) = server.json(method, path, &body).await;
        let error = &answer["error"];
        assert_eq!((found, &error["param"], &error["code"]), (status, &param, &code), "{method} {path}: {answer}");
        assert!(error["message"].as_str().unwrap().len() > 10 && error["type"].is_string());
    }
    let (status, _, body) = server.send("POST", "/v1/chat/completions", "{").await;
    assert_eq!(status, 400, "{}", String::from_utf8_lossy(&body));
}
