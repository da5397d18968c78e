//! The machine room: EC2 instances and SageMaker endpoints as processes of this machine.
//!
//! One loopback listener answers the EC2 query protocol, SageMaker's JSON protocol, the SageMaker runtime, Service Quotas,
//! the credentials of containers, and the daemon's own commands. What it does not know of EC2 it forwards to the emulator.
//! Every caller's role is checked as IAM would ([`identity`]).

mod access;
mod commands;
mod container_credentials;
mod ec2;
mod endpoints;
mod eventstream;
mod identity;
mod imds;
mod instance_xml;
mod instances;
mod launch_request;
mod quotas;
mod runtime;
mod sagemaker;
mod sessions;
mod spot_prices;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::{get, post},
};
use http::StatusCode;
use http_body_util::BodyExt;
use tokio::sync::Notify;

use crate::{LocalError, client::Aws, paths::Paths, programs::Programs, settings::RoomSettings, sigv4::Credentials};

pub use instances::Summary as InstanceSummary;

/// A secret of 32 hexadecimal digits.
#[must_use]
pub fn random_secret() -> String {
    access::random_hex(16)
}

/// Largest request body: SageMaker takes 6 MB for an invocation, EC2 user data 16 kB.
const MAX_BODY: usize = 16 << 20;

/// The machine room.
#[derive(Clone, Debug)]
pub struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    paths: Paths,
    programs: Programs,
    folder: PathBuf,
    address: String,
    token: String,
    root: Credentials,
    emulator: OnceLock<Aws>,
    tables: Mutex<Tables>,
    shutdown: Notify,
    prices: spot_prices::Prices,
}

#[derive(Debug, Default)]
struct Tables {
    instances: BTreeMap<String, instances::Instance>,
    client_tokens: BTreeMap<String, (String, Vec<String>)>,
    models: BTreeMap<String, sagemaker::Model>,
    configs: BTreeMap<String, sagemaker::Config>,
    endpoints: BTreeMap<String, endpoints::Endpoint>,
    sessions: BTreeMap<String, sessions::Session>,
    function_keys: BTreeMap<String, String>,
    next: u64,
}

/// What a machine room needs.
#[derive(Debug)]
pub struct Setup {
    /// Where things lie.
    pub paths: Paths,
    /// What machines and endpoints run.
    pub programs: Programs,
    /// State folder.
    pub folder: PathBuf,
    /// Its own address, `http://127.0.0.1:{port}`.
    pub address: String,
    /// Secret of the daemon's own commands.
    pub token: String,
    /// The simulated account's root user.
    pub root: Credentials,
}

impl Room {
    /// A machine room without machines.
    ///
    /// # Errors
    /// When the spot prices cannot be read.
    pub fn new(setup: Setup) -> Result<Self, LocalError> {
        let prices = spot_prices::Prices::read(&setup.paths.infra_local().join("spot-prices.json"))?;
        Ok(Self(Arc::new(Inner {
            paths: setup.paths,
            programs: setup.programs,
            folder: setup.folder,
            address: setup.address,
            token: setup.token,
            root: setup.root,
            emulator: OnceLock::new(),
            tables: Mutex::default(),
            shutdown: Notify::new(),
            prices,
        })))
    }

    /// Tells it where the emulator is. Only the first call counts.
    pub fn connect(&self, emulator: Aws) {
        let _ = self.0.emulator.set(emulator);
    }

    /// Its routes.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/", post(front))
            .route("/endpoints/{name}/invocations", post(runtime::invoke))
            .route("/endpoints/{name}/invocations-response-stream", post(runtime::invoke_streaming))
            .route("/credentials/{id}", get(container_credentials::get))
            .route("/_local/{command}", post(commands::run))
            .with_state(self.clone())
    }

    /// Resolves when somebody asked the daemon to stop.
    pub async fn asked_to_stop(&self) {
        self.0.shutdown.notified().await;
    }

    /// Ends every machine and endpoint; returns when no process is left.
    pub async fn stop_everything(&self) {
        let machines: Vec<String> = self.tables().instances.keys().cloned().collect();
        for id in &machines {
            self.end_instance(id, instances::Reason::RoomClosed);
        }
        let names: Vec<String> = self.tables().endpoints.keys().cloned().collect();
        for name in &names {
            self.remove_endpoint(name);
        }
        for id in &machines {
            self.instance_gone(id).await;
        }
    }

    fn emulator(&self) -> Result<&Aws, LocalError> {
        self.0.emulator.get().ok_or_else(|| LocalError::Usage("the emulator has not been started yet".into()))
    }

    fn settings(&self) -> Result<RoomSettings, LocalError> {
        RoomSettings::read(&self.0.folder)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that was not given out before.
    fn next(&self) -> u64 {
        let mut tables = self.tables();
        tables.next += 1;
        tables.next
    }
}

/// `POST /`: EC2 sends a form, SageMaker and Service Quotas name their action in a header.
async fn front(State(room): State<Room>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = http_body_util::Limited::new(body, MAX_BODY).collect().await else {
        return plain(StatusCode::PAYLOAD_TOO_LARGE, "request body is too large");
    };
    let body = body.to_bytes();
    let target = head.headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    match target.split_once('.') {
        Some(("SageMaker", action)) => sagemaker::answer(&room, action, &head.headers, &body).await,
        Some(("ServiceQuotasV20190624", action)) => quotas::answer(&room, action, &head.headers, &body).await,
        Some(_) => plain(StatusCode::BAD_REQUEST, "the machine room has no such service"),
        None => ec2::answer(&room, head, body).await,
    }
}

fn plain(status: StatusCode, text: &str) -> Response {
    let mut response = Response::new(axum::body::Body::from(text.to_owned()));
    *response.status_mut() = status;
    response
}

/// A response with a content type.
fn response(status: u16, content_type: &'static str, body: impl Into<axum::body::Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", http::HeaderValue::from_static(content_type));
    response
}
