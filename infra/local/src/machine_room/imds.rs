//! The instance metadata service, version 2, one listener per machine.
//! Source: Amazon EC2 User Guide, "Instance metadata categories" and "Spot Instance interruption notices".

use axum::{
    Router,
    extract::{Path, State},
    response::Response,
    routing::{get, put},
};
use http::HeaderMap;
use serde_json::json;
use time::{OffsetDateTime, macros::format_description};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Room, access::random_hex, response};
use crate::{
    LocalError,
    client::{ACCOUNT, REGION},
};

/// Whose metadata it is.
#[derive(Debug, Clone)]
pub struct Machine {
    /// `i-…`
    pub id: String,
    /// ARN of its role.
    pub role: Option<String>,
    /// Availability zone.
    pub zone: String,
}

#[derive(Debug, Clone)]
struct Service {
    room: Room,
    machine: Machine,
    token: String,
}

/// Starts the service of one machine: its address, and the task that ends with the machine.
///
/// # Errors
/// When no port is free.
pub async fn serve(room: Room, machine: Machine) -> Result<(String, JoinHandle<()>), LocalError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(LocalError::io("listen on", "127.0.0.1:0"))?;
    let address = listener.local_addr().map_err(LocalError::io("listen on", "127.0.0.1:0"))?;
    let service = Service { room, machine, token: random_hex(24) };
    let router =
        Router::new().route("/latest/api/token", put(token)).route("/latest/{*path}", get(data)).with_state(service);
    let task = tokio::spawn(async move {
        let _ = axum::serve(listener, router).await;
    });
    Ok((format!("http://{address}"), task))
}

async fn token(State(service): State<Service>, headers: HeaderMap) -> Response {
    let seconds = headers.get("x-aws-ec2-metadata-token-ttl-seconds").and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !seconds.parse::<u32>().is_ok_and(|s| (1..=21_600).contains(&s)) {
        return response(400, "text/plain", "X-aws-ec2-metadata-token-ttl-seconds must be 1 to 21600");
    }
    let mut answer = response(200, "text/plain", service.token);
    if let Ok(value) = seconds.parse() {
        answer.headers_mut().insert("x-aws-ec2-metadata-token-ttl-seconds", value);
    }
    answer
}

async fn data(State(service): State<Service>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    if headers.get("x-aws-ec2-metadata-token").is_none_or(|value| value.as_bytes() != service.token.as_bytes()) {
        return response(401, "text/plain", "PUT /latest/api/token first");
    }
    match service.value(path.trim_end_matches('/')).await {
        Some(text) => response(200, "text/plain", text),
        None => response(404, "text/plain", "Not Found"),
    }
}

impl Service {
    async fn value(&self, path: &str) -> Option<String> {
        let Machine { id, role, zone } = &self.machine;
        if let Some(name) = path.strip_prefix("meta-data/iam/security-credentials/") {
            let role = role.as_ref().filter(|role| role.rsplit('/').next() == Some(name))?;
            return match self.room.session(id, role).await {
                Ok(session) => Some(session.document().to_string()),
                Err(error) => {
                    tracing::error!(instance = id, %error, "no credentials for the machine");
                    None
                }
            };
        }
        let tables = self.room.tables();
        let instance = tables.instances.get(id)?;
        let notice = |name: &str| {
            let at = instance.notice?.at.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z"));
            let at = at.ok()?;
            Some(if name == "action" { json!({"action": "terminate", "time": at}).to_string() } else { at })
        };
        let launched = instance.launched;
        match path {
            "meta-data/instance-id" => Some(id.clone()),
            "meta-data/instance-type" => Some(instance.launch.instance_type.clone()),
            "meta-data/ami-id" => Some(instance.launch.image.clone()),
            "meta-data/local-ipv4" => Some("127.0.0.1".to_owned()),
            "meta-data/placement/availability-zone" => Some(zone.clone()),
            "meta-data/placement/region" => Some(REGION.to_owned()),
            "meta-data/instance-life-cycle" => Some(if instance.launch.spot { "spot" } else { "on-demand" }.to_owned()),
            "meta-data/spot/instance-action" => notice("action"),
            "meta-data/spot/termination-time" => notice("time"),
            "meta-data/iam/security-credentials" => role.as_ref()?.rsplit('/').next().map(str::to_owned),
            "meta-data/iam/info" => {
                let profile = instance.launch.profile_arn.as_ref()?;
                Some(
                    json!({"Code": "Success", "InstanceProfileArn": profile, "InstanceProfileId": "AIPALOCAL"})
                        .to_string(),
                )
            }
            "user-data" => String::from_utf8(instance.launch.user_data.clone()).ok().filter(|text| !text.is_empty()),
            "dynamic/instance-identity/document" => Some(identity(id, zone, &instance.launch, launched)),
            _ => {
                let tag = path.strip_prefix("meta-data/tags/instance/")?;
                instance.launch.tags.get(tag).cloned()
            }
        }
    }
}

fn identity(id: &str, zone: &str, launch: &super::launch_request::Launch, launched: OffsetDateTime) -> String {
    let time = launched.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    json!({
        "accountId": ACCOUNT,
        "architecture": std::env::consts::ARCH,
        "availabilityZone": zone,
        "imageId": launch.image,
        "instanceId": id,
        "instanceType": launch.instance_type,
        "pendingTime": time,
        "privateIp": "127.0.0.1",
        "region": REGION,
        "version": "2017-09-30",
    })
    .to_string()
}
