//! Functions that die: once at their first start, before they ask for work, and once in the middle of their work: right after
//! the first change they make at a service, before its answer reaches them. Everything a function did then happened and is
//! done again by whoever retries it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use axum::{
    Router,
    body::{self, Body},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode};
use tokio::net::TcpListener;
use tunesmith_local::client::Http;

/// Where it is remembered which function has died how.
pub struct Faults {
    folder: PathBuf,
    emulator: String,
}

/// How a function died.
#[derive(Clone, Copy)]
pub enum Death {
    AtStart,
    MidWork,
}

impl Death {
    fn folder(self) -> &'static str {
        match self {
            Self::AtStart => "at-start",
            Self::MidWork => "mid-work",
        }
    }
}

impl Faults {
    /// `emulator` is where the functions' requests go.
    pub fn new(folder: PathBuf, emulator: String) -> Self {
        let _ = fs::remove_dir_all(&folder);
        for name in [Death::AtStart.folder(), Death::MidWork.folder(), PROCESSES] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        Self { folder, emulator }
    }

    /// A bootstrap that dies both ways and then is the function. Until it has died in the middle of its work it talks to the
    /// emulator through a proxy, which ends with the runtime.
    pub async fn wrap(&self, function: &str, binary: &Path) -> PathBuf {
        let path = |folder: &str| self.folder.join(folder).join(function);
        let (mark, processes) = (path(Death::MidWork.folder()), path(PROCESSES));
        // a port of its own tells the proxy who asks: a path would be part of the signature
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let binary = binary.canonicalize().unwrap();
        let text = format!(
            "#!/bin/sh\nmkdir '{at_start}' 2>/dev/null && exit 7\necho $$ >> '{processes}'\n\
             [ -e '{mark}' ] || export AWS_ENDPOINT_URL='http://{proxy}'\nexec '{binary}'\n",
            at_start = path(Death::AtStart.folder()).display(),
            processes = processes.display(),
            mark = mark.display(),
            proxy = listener.local_addr().unwrap(),
            binary = binary.display()
        );
        let state = Arc::new(Proxy { emulator: self.emulator.clone(), binary, mark, processes, http: Http::default() });
        let router = Router::new().fallback(forward).with_state(state);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let script = self.folder.join(function);
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        script
    }

    /// The functions that have died this way.
    pub fn happened(&self, death: Death) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join(death.folder())).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Folder with the process ids of each function.
const PROCESSES: &str = "processes";

struct Proxy {
    emulator: String,
    binary: PathBuf,
    mark: PathBuf,
    processes: PathBuf,
    http: Http,
}

async fn forward(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let url = format!("{}{path}", proxy.emulator);
    let Ok(bytes) = body::to_bytes(body, usize::MAX).await else { return StatusCode::BAD_REQUEST.into_response() };
    let headers: Vec<(&str, &str)> =
        head.headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect();
    let Ok(answer) = proxy.http.send(head.method.clone(), &url, &headers, bytes).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let done = answer.status().is_success() && changes(&head.method, &head.headers);
    if done && fs::create_dir(&proxy.mark).is_ok() {
        let processes = fs::read_to_string(&proxy.processes).unwrap_or_default();
        // all of this function; the id of one that has ended may be another program's by now
        let is_function = |id: &&str| fs::read_link(format!("/proc/{id}/exe")).is_ok_and(|exe| exe == proxy.binary);
        let running: Vec<&str> = processes.split_whitespace().filter(is_function).collect();
        let killed = Command::new("kill").arg("-9").args(&running).status();
        assert!(killed.is_ok_and(|status| status.success()), "{running:?} could not be killed");
    }
    answer.map(Body::new)
}

/// Whether the request changes something at the service.
fn changes(method: &Method, headers: &HeaderMap) -> bool {
    const READS: [&str; 6] = ["Get", "BatchGet", "Query", "Scan", "List", "Describe"];
    let target = headers.get("x-amz-target").and_then(|value| value.to_str().ok());
    let operation = target.and_then(|target| target.rsplit('.').next());
    match operation {
        Some(operation) => !READS.iter().any(|read| operation.starts_with(read)),
        None => method != Method::GET && method != Method::HEAD,
    }
}
