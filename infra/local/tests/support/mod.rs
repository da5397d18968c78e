//! A local cloud of its own for a test.
// Each test file uses a part of it; a test helper may panic.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tunesmith_local::{
    paths::Paths,
    state::State,
    venv::{self, Contents},
};

/// A daemon of its own, with a trainer that is a script.
pub struct Cloud {
    pub daemon: Child,
    pub folder: PathBuf,
    pub state: Value,
}

impl Cloud {
    pub fn start(name: &str, python: &Path) -> Self {
        let folder = Paths::of_this_checkout().target.join("local-cloud-tests").join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("logs")).unwrap();
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let trainer = folder.join("trainer");
        let script = format!("#!/bin/sh\nexec {} {}/fake_trainer.py \"$@\"\n", python.display(), tests.display());
        fs::write(&trainer, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&trainer, mode).unwrap();
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_local-cloud"))
            .args(["serve", "--python"])
            .arg(python)
            .env("TUNESMITH_LOCAL_STATE", &folder)
            .env("TUNESMITH_TRAINER", &trainer)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.join("logs/local-cloud.log")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        let state = told["Ok"].clone();
        assert!(state.is_object(), "{line}");
        Self { daemon, folder, state }
    }

    pub fn text(&self, key: &str) -> &str {
        self.state[key].as_str().unwrap()
    }

    /// Processes whose environment or command line names this cloud's folder.
    pub fn processes(&self) -> Vec<String> {
        let mark = self.folder.to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy() == std::process::id().to_string() {
                continue;
            }
            let read = |name: &str| {
                fs::read(path.join(name)).map(|b| String::from_utf8_lossy(&b).replace('\0', " ")).unwrap_or_default()
            };
            if read("environ").contains(&mark) || read("cmdline").contains(&mark) {
                found.push(read("cmdline"));
            }
        }
        found
    }

    pub fn ports_are_closed(&self) -> bool {
        ["emulator", "machine_room"].iter().all(|key| {
            let address = self.text(key).trim_start_matches("http://").to_owned();
            std::net::TcpStream::connect(address).is_err()
        })
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        drop(self.daemon.stdin.take());
        let _ = self.daemon.wait();
    }
}

/// Python of the emulator's environment, made when it is not there.
pub async fn python() -> PathBuf {
    venv::ensure(&Paths::of_this_checkout(), Contents::Emulator, &|text| eprintln!("{text}")).await.unwrap()
}

impl Cloud {
    pub fn as_state(&self) -> State {
        serde_json::from_value(self.state.clone()).unwrap()
    }

    /// Runs a script of this folder with boto3; it must end well and print OK last.
    pub fn script(&self, python: &Path, name: &str) {
        let output = Command::new(python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name))
            .args([self.text("emulator"), self.text("machine_room"), self.state["root"]["secret"].as_str().unwrap()])
            .arg(&self.folder)
            .arg(Paths::of_this_checkout().root)
            .output()
            .unwrap();
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success() && out.trim_end().ends_with("OK"),
            "{out}\n{error}\nlogs in {}",
            self.folder.display()
        );
    }
}
