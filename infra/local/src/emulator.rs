//! Starting the AWS emulator on a free loopback port, with the endpoints of the machine room in its environment: functions
//! inherit it, and so find EC2 and SageMaker there without any setting of ours.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Method;
use tokio::time::{Instant, sleep};

use crate::{
    LocalError,
    client::{ACCOUNT, Http, REGION},
    guard::{Guarded, Job},
    paths::Paths,
    sigv4::Credentials,
};

/// The emulator answers within seconds; a cold disk may take longer.
const START_SECONDS: u64 = 90;

/// A running emulator. Dropping it ends it and every Lambda process.
#[derive(Debug)]
pub struct Emulator {
    /// `http://127.0.0.1:{port}`
    pub endpoint: String,
    process: Guarded,
}

/// What the emulator is started with.
#[derive(Debug)]
pub struct Start<'a> {
    /// Where things lie.
    pub paths: &'a Paths,
    /// Python of the virtual environment.
    pub python: &'a Path,
    /// The simulated account's root user.
    pub root: &'a Credentials,
    /// The machine room's address.
    pub machine_room: &'a str,
    /// State folder.
    pub folder: &'a Path,
}

/// Service endpoints that the machine room answers instead of the emulator: read by every AWS SDK.
#[must_use]
pub fn machine_room_endpoints(address: &str) -> BTreeMap<String, OsString> {
    ["EC2", "SAGEMAKER", "SAGEMAKER_RUNTIME", "SERVICE_QUOTAS"]
        .iter()
        .map(|service| (format!("AWS_ENDPOINT_URL_{service}"), OsString::from(address)))
        .collect()
}

/// Variables of this process that every child gets: where programs and temporary files are, nothing of AWS.
#[must_use]
pub fn plain_environment() -> BTreeMap<String, OsString> {
    let names = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH"];
    names.iter().filter_map(|name| env::var_os(name).map(|value| ((*name).to_owned(), value))).collect()
}

/// A port that was free a moment ago.
///
/// # Errors
/// When the machine has no loopback interface or no free port.
pub fn free_port() -> Result<u16, LocalError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(LocalError::io("listen on", "127.0.0.1:0"))?;
    Ok(listener.local_addr().map_err(LocalError::io("listen on", "127.0.0.1:0"))?.port())
}

impl Emulator {
    /// Starts it and waits until it is healthy.
    ///
    /// # Errors
    /// When it ends early or does not become healthy; the error holds the end of its log.
    pub async fn start(start: &Start<'_>) -> Result<Self, LocalError> {
        let port = free_port()?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let temporary = start.folder.join("tmp");
        fs::create_dir_all(&temporary).map_err(LocalError::io("make", &temporary))?;
        let log = start.folder.join("logs/emulator.log");
        let mut env = plain_environment();
        env.extend(machine_room_endpoints(start.machine_room));
        let own: [(&str, OsString); 17] = [
            ("BIND_HOST", "127.0.0.1".into()),
            ("MINISTACK_HOST", "127.0.0.1".into()),
            ("GATEWAY_PORT", port.to_string().into()),
            ("MINISTACK_ACCOUNT_ID", ACCOUNT.into()),
            ("MINISTACK_REGION", REGION.into()),
            ("AUTH", "true".into()),
            ("AWS_ACCESS_KEY_ID", start.root.access_key.clone().into()),
            ("AWS_SECRET_ACCESS_KEY", start.root.secret.clone().into()),
            ("AWS_ENDPOINT_URL", endpoint.clone().into()),
            ("AWS_EC2_METADATA_DISABLED", "true".into()),
            ("LAMBDA_WARM_TTL_SECONDS", "300".into()),
            ("LAMBDA_EXECUTOR", "local".into()),
            ("TMPDIR", temporary.clone().into()),
            ("S3_DATA_DIR", temporary.join("s3").into()),
            ("PYTHONDONTWRITEBYTECODE", "1".into()),
            ("PYTHONUNBUFFERED", "1".into()),
            ("TUNESMITH_LOCAL", "1".into()),
        ];
        env.extend(own.map(|(name, value)| (name.to_owned(), value)));
        let launcher = start.paths.infra_local().join("emulator/launch.py");
        let job = Job { command: vec![start.python.into(), launcher.into()], env, folder: temporary, log: log.clone() };
        let mut emulator = Self { endpoint, process: Guarded::start(&job)? };
        emulator.wait_healthy(&log).await?;
        Ok(emulator)
    }

    async fn wait_healthy(&mut self, log: &Path) -> Result<(), LocalError> {
        let (http, url) = (Http::default(), format!("{}/_ministack/health", self.endpoint));
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS);
        while Instant::now() < deadline {
            if let Some(status) = self.process.ended() {
                return Err(LocalError::Program {
                    program: "the emulator".into(),
                    status: status.to_string(),
                    detail: tail(log, 5),
                    remedy: "see the log under target/local-cloud/logs",
                });
            }
            if matches!(http.fetch(Method::GET, &url, &[], "").await, Ok((200, _))) {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
        let remedy = format!("see {}", log.display());
        Err(LocalError::TooLate { what: "the start of the emulator".into(), seconds: START_SECONDS, remedy })
    }

    /// Ends it and every Lambda process; returns when none is left.
    pub async fn stop(self) {
        self.process.stop().await;
    }
}

/// The last lines of a file, for error messages.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let last: Vec<&str> = text.lines().rev().take(lines).collect();
    last.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// Where the emulator's log is.
#[must_use]
pub fn log_path(folder: &Path) -> PathBuf {
    folder.join("logs/emulator.log")
}
