//! Ctrl-C during `cargo demo`: no process and no port is left behind, in whatever stage it comes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tunesmith_local::paths::Paths;

/// Trains for a moment only: this is about what is left behind.
const SETTINGS: &str = "[training]\nmax_steps = 20\n[data]\nquiet_minutes = 0\nminimum_words = 500\n\
    [gate]\nmin_improvement_percent = -100.0\nmin_test_tokens = 50\n\
    [budget]\nmonthly_limit_usd = 5.0\nmax_run_usd = 0.5\n";
/// Everything has ended so many seconds after the signal.
const LIMIT: Duration = Duration::from_secs(45);

/// The stages that have something to end: emulator, functions, a training machine, an endpoint.
#[test]
fn ctrl_c_leaves_no_process_and_no_port_behind() {
    for stage in ["local cloud", "ingest", "train and evaluate:", "deploy endpoint"] {
        interrupt_after(stage);
    }
}

/// The same for every stage; five minutes: `cargo test -p tunesmith-local --test ctrl_c -- --ignored`.
#[test]
#[ignore = "five minutes; the other test has the stages that leave the most to end"]
fn ctrl_c_in_every_stage_leaves_no_process_and_no_port_behind() {
    let stages = [
        "tools",
        "build",
        "local cloud",
        "deploy",
        "models",
        "upload",
        "ingest",
        "prepare dataset",
        "index documents",
        "plan training",
        "reserve budget",
        "train and evaluate:",
        "train and evaluate ",
        "settle budget",
        "gate",
        "approval",
        "deploy endpoint",
        "verify endpoint",
        "publish",
        "Q:",
        "   source:",
    ];
    for stage in stages {
        interrupt_after(stage);
    }
}

/// Runs the demo until a line begins with `mark`, sends what Ctrl-C sends, and looks at what is there afterwards.
fn interrupt_after(mark: &str) {
    let folder = Paths::of_this_checkout().target.join("ctrl-c-test");
    let _ = fs::remove_dir_all(&folder);
    let documents = documents(&folder);
    let state = folder.join("state");
    fs::create_dir_all(&state).unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_local-cloud"))
        .args(["demo", "--approve", "--project", "interrupted", "--documents"])
        .arg(&documents)
        .env("TUNESMITH_LOCAL_STATE", &state)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    let found = lines.by_ref().map_while(Result::ok).any(|line| {
        seen.push(line);
        seen.last().is_some_and(|line| line.starts_with(mark))
    });
    assert!(found, "the demo ended before {mark:?}:\n{}", seen.join("\n"));
    let ports = addresses(&state);
    let since = Instant::now();
    assert!(Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = demo.wait().unwrap();
    assert!(since.elapsed() < LIMIT, "{mark}: it took {:?}", since.elapsed());
    assert_eq!(status.code(), Some(130), "{mark}: {status}\n{}", rest.join("\n"));
    assert_eq!(processes(&folder), Vec::<String>::new(), "{mark}: left behind");
    for address in ports {
        assert!(std::net::TcpStream::connect(&address).is_err(), "{mark}: {address} still answers");
    }
    eprintln!("{mark}: ended {:.1} s after the signal", since.elapsed().as_secs_f64());
}

/// Eight documents of the sample and quick settings.
fn documents(folder: &Path) -> PathBuf {
    let to = folder.join("documents");
    fs::create_dir_all(&to).unwrap();
    let sample = Paths::of_this_checkout().root.join("docs/sample");
    let files = tunesmith_local::models::files(&sample).unwrap();
    for (path, name) in files.iter().filter(|(_, name)| name.ends_with(".md")).take(8) {
        fs::copy(path, to.join(name.replace('/', "-"))).unwrap();
    }
    fs::write(to.join("project.toml"), SETTINGS).unwrap();
    to
}

/// `host:port` of what the state file names; none before the daemon is up.
fn addresses(state: &Path) -> Vec<String> {
    let text = fs::read_to_string(state.join("state.json")).unwrap_or_default();
    let state: Value = serde_json::from_str(&text).unwrap_or_default();
    ["emulator", "machine_room"]
        .iter()
        .filter_map(|key| Some(state[*key].as_str()?.trim_start_matches("http://").to_owned()))
        .collect()
}

/// Command lines of the processes that belong to this folder.
fn processes(folder: &Path) -> Vec<String> {
    let mark = folder.to_string_lossy().into_owned();
    let this = std::process::id().to_string();
    let read = |path: PathBuf| {
        fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " ")).unwrap_or_default()
    };
    let entries = fs::read_dir("/proc").unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy() != this);
    entries
        .filter(|entry| {
            read(entry.path().join("environ")).contains(&mark) || read(entry.path().join("cmdline")).contains(&mark)
        })
        .map(|entry| read(entry.path().join("cmdline")))
        .collect()
}
