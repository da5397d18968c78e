//! Endpoints: each variant is a process `tunesmith-trainer serve` with its model's environment and role. In service is one whose
//! processes answer `/ping`; of one that failed, `FailureReason` says why. An endpoint is never changed, so there is no update.

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path, sync::Arc, time::Duration};

use http::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use super::{
    Room,
    sagemaker::{Config, Model, VariantConfig, seconds},
};
use crate::{
    LocalError,
    client::{Http, REGION},
    emulator::{free_port, machine_room_endpoints, plain_environment, tail},
    guard::{Guarded, Job},
};

/// Where an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its processes are starting.
    Creating,
    /// It answers.
    InService,
    /// It never answered.
    Failed,
}

impl Status {
    /// SageMaker's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Creating => "Creating",
            Self::InService => "InService",
            Self::Failed => "Failed",
        }
    }
}

/// A running variant.
#[derive(Debug)]
pub struct Variant {
    /// Its configuration.
    pub config: VariantConfig,
    /// Where its container listens.
    pub address: String,
    /// Limits concurrent requests, when it is serverless.
    pub permits: Option<Arc<Semaphore>>,
    process: Option<Guarded>,
    holder: String,
}

/// An endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it stands.
    pub status: Status,
    /// When it was made.
    pub created: OffsetDateTime,
    /// Tags.
    pub tags: Vec<Value>,
    /// Its variants that answer.
    pub live: Arc<Vec<Variant>>,
    config: String,
    modified: OffsetDateTime,
    failure: Option<String>,
}

impl Endpoint {
    /// As `DescribeEndpoint` shows it, without ARN and creation time.
    #[must_use]
    pub fn describe(&self, name: &str) -> Value {
        let variants: Vec<Value> = self
            .live
            .iter()
            .map(|variant| {
                json!({
                    "VariantName": variant.config.name,
                    "CurrentWeight": variant.config.weight,
                    "DesiredWeight": variant.config.weight,
                    "CurrentInstanceCount": 1,
                    "DesiredInstanceCount": 1,
                })
            })
            .collect();
        let mut value = json!({
            "EndpointName": name,
            "EndpointConfigName": self.config,
            "EndpointStatus": self.status.name(),
            "LastModifiedTime": seconds(self.modified),
            "ProductionVariants": variants,
        });
        if let Some(failure) = &self.failure {
            value["FailureReason"] = json!(failure);
        }
        value
    }
}

/// Begins to make an endpoint; processes start in the background.
///
/// # Errors
/// SageMaker's message when the request makes no sense now.
pub fn begin(room: &Room, name: &str, config: &str, tags: Vec<Value>) -> Result<(), String> {
    let mut tables = room.tables();
    let Some(found) = tables.configs.get(config).cloned() else {
        return Err(format!(
            "Could not find endpoint configuration \"{}\".",
            super::sagemaker::arn("endpoint-config", config)
        ));
    };
    let models: BTreeMap<String, Model> = tables.models.clone();
    let now = OffsetDateTime::now_utc();
    let endpoint_arn = super::sagemaker::arn("endpoint", name);
    if tables.endpoints.contains_key(name) {
        return Err(format!("Cannot create already existing endpoint \"{endpoint_arn}\"."));
    }
    let endpoint = Endpoint {
        status: Status::Creating,
        created: now,
        tags,
        live: Arc::default(),
        config: config.to_owned(),
        modified: now,
        failure: None,
    };
    tables.endpoints.insert(name.to_owned(), endpoint);
    drop(tables);
    tokio::spawn(deploy(room.clone(), name.to_owned(), now, found, models));
    Ok(())
}

async fn deploy(room: Room, name: String, created: OffsetDateTime, config: Config, models: BTreeMap<String, Model>) {
    let mut fleet = Vec::new();
    let mut failure = None;
    for variant in config.variants {
        let model = models.get(&variant.model);
        let started = match model {
            Some(model) => start_variant(&room, &name, variant, model).await,
            None => Err(LocalError::Usage(format!("model {} was deleted", variant.model))),
        };
        match started {
            Ok(variant) => fleet.push(variant),
            Err(error) => {
                failure = Some(error.to_string());
                break;
            }
        }
    }
    // what is not in use ends: processes of an endpoint that failed, or that was deleted meanwhile
    if let Some(unused) = settle(&room, &name, created, fleet, failure) {
        stop_fleet(&room, unused).await;
    }
}

/// Puts the endpoint into service, or says why it failed. What is left over are processes that nobody will ask.
fn settle(
    room: &Room,
    name: &str,
    created: OffsetDateTime,
    fleet: Vec<Variant>,
    failure: Option<String>,
) -> Option<Vec<Variant>> {
    let mut tables = room.tables();
    // deleted, and perhaps made anew with processes of its own, while these were starting
    let Some(endpoint) = tables.endpoints.get_mut(name).filter(|endpoint| endpoint.created == created) else {
        return Some(fleet);
    };
    endpoint.modified = OffsetDateTime::now_utc();
    if let Some(reason) = failure {
        tracing::warn!(endpoint = name, reason, "the endpoint could not be brought up");
        endpoint.status = Status::Failed;
        endpoint.failure = Some(reason);
        return Some(fleet);
    }
    endpoint.status = Status::InService;
    endpoint.live = Arc::new(fleet);
    None
}

fn retire(room: &Room, fleet: &[Variant]) {
    let mut tables = room.tables();
    for variant in fleet.iter() {
        tables.sessions.remove(&variant.holder);
    }
}

async fn stop_fleet(room: &Room, fleet: Vec<Variant>) {
    for variant in fleet {
        room.tables().sessions.remove(&variant.holder);
        if let Some(process) = variant.process {
            process.stop().await;
        }
    }
}

async fn start_variant(
    room: &Room,
    endpoint: &str,
    config: VariantConfig,
    model: &Model,
) -> Result<Variant, LocalError> {
    let holder = format!("endpoint-{}", room.next());
    let session = room.session(&holder, &model.role_arn).await?;
    let port = free_port()?;
    let folder = room.0.folder.join("endpoints").join(endpoint).join(&holder);
    fs::create_dir_all(&folder).map_err(LocalError::io("make", &folder))?;
    let mut env = plain_environment();
    env.extend(machine_room_endpoints(&room.0.address));
    let own: [(&str, OsString); 9] = [
        ("HOME", folder.as_os_str().to_owned()),
        ("TMPDIR", folder.as_os_str().to_owned()),
        ("AWS_REGION", REGION.into()),
        ("AWS_ENDPOINT_URL", room.emulator()?.endpoint.clone().into()),
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/credentials/{holder}", room.0.address).into()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", session.authorization.into()),
        ("SAGEMAKER_BIND_TO_PORT", port.to_string().into()),
        ("TUNESMITH_LOCAL", "1".into()),
    ];
    env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    env.extend(model.environment.iter().map(|(name, value)| (name.clone(), OsString::from(value))));
    let log = folder.join("log");
    let job =
        Job { command: vec![room.0.programs.trainer.clone().into(), "serve".into()], env, log: log.clone(), folder };
    let mut process = Guarded::start(&job)?;
    let address = format!("http://127.0.0.1:{port}");
    let limit = room.settings()?.endpoint_start_seconds;
    wait_for_ping(&mut process, &address, limit, &log).await?;
    let permits = config.max_concurrency.map(|n| Arc::new(Semaphore::new(n as usize)));
    Ok(Variant { config, address, permits, process: Some(process), holder })
}

async fn wait_for_ping(process: &mut Guarded, address: &str, limit: u64, log: &Path) -> Result<(), LocalError> {
    let (http, url) = (Http::default(), format!("{address}/ping"));
    let deadline = Instant::now() + Duration::from_secs(limit);
    while Instant::now() < deadline {
        if let Some(status) = process.ended() {
            return Err(LocalError::Program {
                program: "the primary container".into(),
                status: status.to_string(),
                detail: tail(log, 3),
                remedy: "the whole log is under target/local-cloud/endpoints",
            });
        }
        if matches!(http.fetch(Method::GET, &url, &[], "").await, Ok((200, _))) {
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
    }
    let what = "the primary container's answer to the ping health check".to_owned();
    Err(LocalError::TooLate { what, seconds: limit, remedy: format!("see {}", log.display()) })
}

impl Room {
    /// Takes an endpoint away; its processes end. Whether there was one.
    pub(super) fn remove_endpoint(&self, name: &str) -> bool {
        let removed = self.tables().endpoints.remove(name);
        removed.is_some_and(|endpoint| {
            retire(self, &endpoint.live);
            true
        })
    }
}
