//! Every fixture of `events/gateway` is parsed, and refused where it is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::Path};

use gateway::{Call, Route, parse_event};
use serde_json::{Value, json};
use tunesmith_serving::openai::{ApiError, ChatRequest, CompletionRequest};

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/gateway").join(format!("{name}.json"));
    serde_json::from_str(&fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn names(folder: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/gateway").join(folder);
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// As far as a request gets without the table.
fn parse(name: &str) -> Result<Call, ApiError> {
    let call = parse_event(fixture(name))?;
    if call.secret.is_none() {
        return Err(ApiError::unauthorized("no key"));
    }
    match call.route {
        Route::Models | Route::Model(_) => {}
        Route::Chat => drop(ChatRequest::parse(&call.body)?),
        Route::Completions => drop(CompletionRequest::parse(&call.body)?),
    }
    Ok(call)
}

#[test]
fn every_right_event_is_understood() {
    let expected = [
        ("chat", Route::Chat),
        ("chat-base64", Route::Chat),
        ("chat-stream", Route::Chat),
        ("completion", Route::Completions),
        ("model", Route::Model("handbook:base".into())),
        ("models", Route::Models),
    ];
    assert_eq!(names(""), expected.each_ref().map(|(name, _)| *name));
    for (name, route) in expected {
        let call = parse(name).unwrap();
        assert_eq!((call.route, call.secret.as_deref()), (route, Some("ts-demo-key")), "{name}");
    }
    let question = |name| ChatRequest::parse(&parse(name).unwrap().body).unwrap();
    assert_eq!(question("chat").messages, question("chat-base64").messages);
    let streamed = question("chat-stream");
    assert_eq!(streamed.question(), "Dürfen Fahrgäste Hunde mitnehmen?");
    assert!(streamed.options.stream && streamed.options.include_usage());
}

#[test]
fn every_wrong_event_is_refused_in_openais_shape() {
    let expected = [
        ("basic-authorization", 401, None),
        ("no-key", 401, None),
        ("no-messages", 400, Some("messages")),
        ("not-a-function-url", 400, None),
        ("not-base64", 400, None),
        ("not-json", 400, None),
        ("temperature", 400, Some("temperature")),
        ("tools", 400, Some("tools")),
        ("unknown-path", 404, None),
        ("wrong-method", 405, None),
    ];
    assert_eq!(names("invalid"), expected.map(|(name, _, _)| name));
    for (name, status, param) in expected {
        let error = parse(&format!("invalid/{name}")).unwrap_err();
        assert_eq!((error.status, error.body.param.as_deref()), (status, param), "{name}: {error}");
        let sent: Value = serde_json::from_str(&error.to_json()).unwrap();
        assert!(sent["error"]["message"].is_string() && sent["error"]["type"].is_string());
    }
}

#[test]
fn bodies_are_limited_however_they_come() {
    let mut event = fixture("chat");
    event["body"] = json!("x".repeat(256 * 1024));
    assert!(parse_event(event.clone()).is_ok());
    event["body"] = json!("x".repeat(256 * 1024 + 1));
    assert_eq!(parse_event(event.clone()).unwrap_err().status, 413);
    event["isBase64Encoded"] = json!(true);
    event["body"] = json!("QUFB".repeat(256 * 1024 / 3 + 1));
    assert_eq!(parse_event(event.clone()).unwrap_err().status, 413);
    event["body"] = json!("QUFB".repeat(9 << 20));
    assert_eq!(parse_event(event).unwrap_err().status, 413);
}
