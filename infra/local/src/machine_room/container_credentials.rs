//! `GET /credentials/{id}`: what `AWS_CONTAINER_CREDENTIALS_FULL_URI` points a container to.
//! Source: AWS SDKs and Tools Reference Guide, "Container credential provider".

use axum::{
    extract::{Path, State},
    response::Response,
};
use http::HeaderMap;

use super::{Room, response};

/// Answers with the credentials of one container, to whoever has its authorization token.
pub async fn get(State(room): State<Room>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let session = room.tables().sessions.get(&id).cloned();
    let given = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    match session {
        Some(session) if !session.authorization.is_empty() && session.authorization == given => {
            match room.session(&id, &session.role_arn).await {
                Ok(session) => response(200, "application/json", session.document().to_string()),
                Err(error) => response(500, "text/plain", error.to_string()),
            }
        }
        _ => response(401, "text/plain", "unknown container or wrong authorization token"),
    }
}
