//! The function binaries: built once with Cargo, stripped of debug information, zipped as `bootstrap`.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::UNIX_EPOCH,
};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::{LocalError, emulator::tail, paths::Paths, stage::Stages};

/// What Cargo built.
#[derive(Debug, Clone)]
pub struct Built {
    /// Function name → binary.
    pub functions: BTreeMap<String, PathBuf>,
    /// `tunesmith-trainer`.
    pub trainer: PathBuf,
}

/// Builds every function and the trainer, with the profile that tests use too.
///
/// # Errors
/// When Cargo fails; the error holds the end of its output.
pub async fn build(paths: &Paths, stages: &Stages) -> Result<Built, LocalError> {
    let names = function_names(&paths.root)?;
    let stage = stages.begin("build", None);
    let log = paths.local_cloud().join("build.log");
    fs::create_dir_all(paths.local_cloud()).map_err(LocalError::io("make", paths.local_cloud()))?;
    let file = fs::File::create(&log).map_err(LocalError::io("make", &log))?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = tokio::process::Command::new(cargo);
    // All binaries of the workspace, as `cargo demo` itself and `cargo verify` select them: another selection would unify
    // features differently and compile half of the dependencies again.
    command.args(["build", "--bins", "--message-format=json-render-diagnostics"]);
    command.current_dir(&paths.root).env("CARGO_TARGET_DIR", &paths.target);
    // What the outer `cargo run` or `cargo test` says about its own package: build scripts that watch these variables (ring's
    // does) would run again, and everything above them be compiled again, at each change between outer and inner Cargo.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|start| text.starts_with(start)) {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).kill_on_drop(true);
    let mut child = command.spawn().map_err(LocalError::io("run", "cargo"))?;
    let mut executables = BTreeMap::new();
    let mut compiled = 0_u64;
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let message: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
            if message["reason"] != "compiler-artifact" {
                continue;
            }
            let name = message["target"]["name"].as_str().unwrap_or_default();
            if message["fresh"] == false {
                compiled += 1;
                stage.tick(&format!("{compiled} crates compiled, last {name}"));
            }
            if let Some(executable) = message["executable"].as_str() {
                executables.insert(name.to_owned(), PathBuf::from(executable));
            }
        }
    }
    let status = child.wait().await.map_err(LocalError::io("wait for", "cargo"))?;
    if !status.success() {
        let detail = tail(&log, 20);
        let remedy = "correct what the compiler says; the whole output is in target/local-cloud/build.log";
        return Err(LocalError::Program { program: "cargo build".into(), status: status.to_string(), detail, remedy });
    }
    let find = |name: &str| {
        executables.get(name).cloned().ok_or_else(|| LocalError::bad_answer("cargo build", format!("no binary {name}")))
    };
    let functions = names.iter().map(|name| Ok((name.clone(), find(name)?))).collect::<Result<_, LocalError>>()?;
    let built = Built { functions, trainer: find("tunesmith-trainer")? };
    stage.done(&format!("{} functions and the trainer ({compiled} crates compiled)", names.len()));
    Ok(built)
}

/// The folders under `functions/` that are packages.
fn function_names(root: &Path) -> Result<Vec<String>, LocalError> {
    let folder = root.join("functions");
    let entries = fs::read_dir(&folder).map_err(LocalError::io("read", &folder))?;
    let packages = entries.flatten().filter(|entry| entry.path().join("Cargo.toml").exists());
    let mut names: Vec<String> = packages.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// A zip with the binary as `bootstrap`, made anew only when the binary has changed.
///
/// # Errors
/// When a file cannot be read or written.
pub fn zip(paths: &Paths, name: &str, binary: &Path) -> Result<Vec<u8>, LocalError> {
    let about = fs::metadata(binary).map_err(LocalError::io("read", binary))?;
    let modified = about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let folder = paths.target.join("local-cloud/zips");
    fs::create_dir_all(&folder).map_err(LocalError::io("make", &folder))?;
    let cached = folder.join(format!("{name}-{}-{}.zip", about.len(), modified.as_nanos()));
    if let Ok(bytes) = fs::read(&cached) {
        return Ok(bytes);
    }
    for old in fs::read_dir(&folder).into_iter().flatten().flatten() {
        if old.file_name().to_string_lossy().strip_prefix(name).is_some_and(|rest| rest.split('-').count() == 3) {
            let _ = fs::remove_file(old.path());
        }
    }
    let zipped = pack(&stripped(binary, &folder.join(format!("{name}.stripped")))?)?;
    let partial = cached.with_extension("partial");
    fs::write(&partial, &zipped).map_err(LocalError::io("write", &partial))?;
    fs::rename(&partial, &cached).map_err(LocalError::io("write", &cached))?;
    Ok(zipped)
}

/// The binary without debug information, where the C compiler brought `strip`; else as it is: only larger.
fn stripped(binary: &Path, scratch: &Path) -> Result<Vec<u8>, LocalError> {
    let done = Command::new("strip").arg("--strip-debug").arg("-o").arg(scratch).arg(binary).output();
    let source = if done.is_ok_and(|output| output.status.success()) { scratch } else { binary };
    let bytes = fs::read(source).map_err(LocalError::io("read", source));
    let _ = fs::remove_file(scratch);
    bytes
}

/// Stored, not deflated: it never leaves this machine, and deflating debug binaries takes longer than everything else.
fn pack(binary: &[u8]) -> Result<Vec<u8>, LocalError> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::with_capacity(binary.len() + 512)));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).unix_permissions(0o755);
    let wrong = |detail: String| LocalError::bad_answer("zip", detail);
    archive.start_file("bootstrap", options).map_err(|e| wrong(e.to_string()))?;
    archive.write_all(binary).map_err(|e| wrong(e.to_string()))?;
    Ok(archive.finish().map_err(|e| wrong(e.to_string()))?.into_inner())
}
