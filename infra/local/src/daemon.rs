//! The daemon: emulator, machine room and mailbox in one process that the commands talk to.
//!
//! Whoever starts it holds the other end of its standard input. When that closes, the daemon ends everything and itself; after
//! the line `keep` it stays until `cargo local-cloud down`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    process::{Child, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
};

use crate::{
    LocalError,
    client::Aws,
    emulator::{Emulator, Start, plain_environment},
    guard::no_guards_left,
    machine_room::{Room, Setup},
    mailbox,
    paths::Paths,
    programs::Programs,
    sigv4::Credentials,
    state::State,
};

/// Time everything has to end: the guards give their processes eight seconds.
const STOP_SECONDS: u64 = 30;

/// A daemon started by this process. Dropping it ends the daemon, unless it was told to [`Daemon::keep`] going.
#[derive(Debug)]
pub struct Daemon {
    /// How it is reached.
    pub state: State,
    process: Child,
    lifeline: Option<ChildStdin>,
}

impl Daemon {
    /// Starts a daemon and waits until emulator and machine room answer.
    ///
    /// # Errors
    /// When one is running already, or this one does not come up.
    pub async fn start(paths: &Paths, python: &Path) -> Result<Self, LocalError> {
        let folder = paths.local_cloud();
        if let Ok(state) = State::read(&folder) {
            return Err(LocalError::AlreadyUp { pid: state.pid });
        }
        clear(&folder)?;
        let log = folder.join("logs/local-cloud.log");
        let file = fs::File::create(&log).map_err(LocalError::io("make", &log))?;
        let mut command = Command::new(program(paths));
        command.arg("serve").arg("--python").arg(python).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        command.env_clear().envs(plain_environment()).process_group(0);
        for name in ["CARGO_TARGET_DIR", "TUNESMITH_LOCAL_STATE", "TUNESMITH_TRAINER", "RUST_LOG"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let mut process = command.spawn().map_err(LocalError::io("start", "the local cloud's daemon"))?;
        let lifeline = process.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            let mut lines = BufReader::new(stdout);
            lines.read_line(&mut line).await.map_err(LocalError::io("read from", "the local cloud's daemon"))?;
        }
        match serde_json::from_str::<Result<State, String>>(&line) {
            Ok(Ok(state)) => Ok(Self { state, process, lifeline }),
            answer => {
                drop(lifeline);
                let status = process.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string());
                let detail = match answer {
                    Ok(Err(message)) => message,
                    _ => crate::emulator::tail(&log, 4),
                };
                let program = "the local cloud's daemon".to_owned();
                Err(LocalError::Program { program, status, detail, remedy: "see target/local-cloud/logs" })
            }
        }
    }

    /// Lets the daemon live on after this process.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn keep(mut self) -> Result<(), LocalError> {
        if let Some(mut lifeline) = self.lifeline.take() {
            lifeline.write_all(b"keep\n").await.map_err(LocalError::io("tell", "the local cloud's daemon"))?;
            lifeline.flush().await.map_err(LocalError::io("tell", "the local cloud's daemon"))?;
        }
        Ok(())
    }

    /// Ends everything; what is still there after the time limit (nothing, when all is well).
    pub async fn stop(mut self) -> Vec<String> {
        let pid = self.process.id();
        self.lifeline = None;
        let ended = tokio::time::timeout(Duration::from_secs(STOP_SECONDS), self.process.wait()).await;
        if ended.is_err() {
            let _ = self.process.kill().await;
            return vec![format!("process {} (killed)", pid.unwrap_or_default())];
        }
        Vec::new()
    }
}

/// The binary that knows the command `serve`: this process, or (in a test) the one that Cargo built beside it.
fn program(paths: &Paths) -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    let is_local_cloud = this.file_name().is_some_and(|name| name == "local-cloud");
    if is_local_cloud { PathBuf::from("/proc/self/exe") } else { paths.target.join("debug/local-cloud") }
}

/// Removes what an earlier local cloud left; keeps settings and caches.
fn clear(folder: &Path) -> Result<(), LocalError> {
    for name in ["state.json", "logs", "mailbox", "instances", "endpoints", "bin", "tmp"] {
        let path = folder.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LocalError::io("remove", path)(error));
            }
            _ => {}
        }
    }
    let logs = folder.join("logs");
    fs::create_dir_all(&logs).map_err(LocalError::io("make", &logs))
}

/// The `serve` command: runs until standard input closes, `cargo local-cloud down`, or a signal.
///
/// # Errors
/// When it does not come up; whoever started it is told on standard output as well.
pub async fn serve(paths: Paths, python: PathBuf) -> Result<(), LocalError> {
    let mut lifeline = Box::pin(lifeline());
    let brought_up = tokio::select! {
        up = bring_up(paths, &python) => up,
        // Whoever wanted it has gone: dropping what was begun ends it.
        () = &mut lifeline => {
            no_guards_left(Duration::from_secs(10)).await;
            std::process::exit(0)
        }
    };
    let told = match &brought_up {
        Ok(up) => Ok(&up.state),
        Err(error) => Err(error.to_string()),
    };
    println!("{}", serde_json::to_string(&told).unwrap_or_default());
    let up = brought_up?;
    wait_for_the_end(&up.room, lifeline).await;
    tracing::info!("going down");
    let _ = fs::remove_file(up.folder.join("state.json"));
    up.room.stop_everything().await;
    up.emulator.stop().await;
    no_guards_left(Duration::from_secs(10)).await;
    let _ = fs::remove_dir_all(up.folder.join("tmp"));
    // A blocking read of standard input would keep the runtime from ending: leave at once.
    std::process::exit(0)
}

struct Up {
    state: State,
    room: Room,
    emulator: Emulator,
    folder: PathBuf,
}

async fn bring_up(paths: Paths, python: &Path) -> Result<Up, LocalError> {
    let folder = paths.local_cloud();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(LocalError::io("listen on", "127.0.0.1:0"))?;
    let port = listener.local_addr().map_err(LocalError::io("listen on", "127.0.0.1:0"))?.port();
    let address = format!("http://127.0.0.1:{port}");
    let (token, secret) = (random(), random());
    let root = Credentials { access_key: "root".to_owned(), secret };
    let setup = Setup {
        paths: paths.clone(),
        programs: Programs::copy(&paths, &folder)?,
        folder: folder.clone(),
        address: address.clone(),
        token: token.clone(),
        root: root.clone(),
    };
    let room = Room::new(setup)?;
    let start = Start { paths: &paths, python, root: &root, machine_room: &address, folder: &folder };
    let emulator = Emulator::start(&start).await?;
    let aws = Aws::new(&emulator.endpoint, root.clone());
    room.connect(aws.clone());
    let router = room.router();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the machine room's listener ended");
        }
    });
    mailbox::subscribe(&aws, &[]).await?;
    tokio::spawn(mailbox::collect(aws, folder.join("mailbox")));
    let state = State {
        pid: std::process::id(),
        emulator: emulator.endpoint.clone(),
        machine_room: address,
        token,
        root,
        outputs: std::collections::BTreeMap::new(),
        project: None,
    };
    state.write(&folder)?;
    Ok(Up { state, room, emulator, folder })
}

fn random() -> String {
    crate::machine_room::random_secret()
}

/// Resolves when standard input closes without the line `keep`.
async fn lifeline() {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line == "keep" {
            tracing::info!("staying up until `cargo local-cloud down`");
            std::future::pending::<()>().await;
        }
    }
}

async fn wait_for_the_end(room: &Room, lifeline: impl Future<Output = ()>) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        () = lifeline => {}
        () = room.asked_to_stop() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
