//! `POST /_local/{command}`: the daemon's own commands, for `local-cloud` and for the stand-ins of machines.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::{
    Room,
    instances::{Reason, Status},
};
use crate::LocalError;

/// Answers one command. `shutdown-machine` takes the machine's own secret, everything else the daemon's.
pub async fn run(
    State(room): State<Room>,
    Path(command): Path<String>,
    headers: HeaderMap,
    Json(input): Json<Value>,
) -> Response {
    let token = headers.get("x-tunesmith-token").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let result = if command == "shutdown-machine" {
        shutdown_machine(&room, token, &input)
    } else if token == room.0.token {
        operate(&room, &command, &input)
    } else {
        Err(LocalError::Usage("wrong token: this is not the owner of the local cloud".into()))
    };
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, Json(json!({"message": error.to_string()}))).into_response(),
    }
}

/// `shutdown` on a machine: now, or in a number of seconds.
fn shutdown_machine(room: &Room, token: &str, input: &Value) -> Result<Value, LocalError> {
    let id = input["instance"].as_str().unwrap_or_default().to_owned();
    let known = room.tables().instances.get(&id).is_some_and(|instance| instance.token == token);
    if !known {
        return Err(LocalError::Usage(format!("{id} is not this machine")));
    }
    let delay = Duration::from_secs(input["seconds"].as_u64().unwrap_or(0));
    let room = room.clone();
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        room.end_instance(&id, Reason::Instance);
    });
    Ok(json!({}))
}

fn operate(room: &Room, command: &str, input: &Value) -> Result<Value, LocalError> {
    match command {
        "status" => {
            let instances = room.instance_summaries();
            let tables = room.tables();
            let endpoints: Vec<Value> = tables.endpoints.iter().map(|(name, e)| e.describe(name)).collect();
            Ok(json!({"instances": instances, "endpoints": endpoints}))
        }
        "interrupt" => {
            let notice =
                input["notice_seconds"].as_u64().map_or_else(|| room.settings().map(|s| s.spot_notice_seconds), Ok)?;
            let id = match input["instance"].as_str() {
                Some(id) => id.to_owned(),
                None => running_spot_machine(room)?,
            };
            let at = room.interrupt(&id, Duration::from_secs(notice))?;
            Ok(json!({"instance": id, "ends_at": at}))
        }
        "terminate" => {
            let id = input["instance"].as_str().unwrap_or_default();
            let change = room.end_instance(id, Reason::User);
            change.map(|_| json!({})).ok_or_else(|| LocalError::Usage(format!("there is no machine {id}")))
        }
        "shutdown" => {
            room.0.shutdown.notify_one();
            Ok(json!({}))
        }
        other => Err(LocalError::Usage(format!("the daemon has no command {other}"))),
    }
}

fn running_spot_machine(room: &Room) -> Result<String, LocalError> {
    let tables = room.tables();
    let running =
        tables.instances.values().find(|i| i.launch.spot && i.status == Status::Running && i.notice.is_none());
    running
        .map(|i| i.id.clone())
        .ok_or_else(|| LocalError::Usage("no spot machine is running; see `cargo local-cloud status`".into()))
}
