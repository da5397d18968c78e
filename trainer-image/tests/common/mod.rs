//! A small run on the embedded base model: its dataset, its job, and the real process.

#![allow(dead_code)] // each test file uses its part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod cloud;
pub mod hub;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Output, Stdio},
};

use serde_json::{Value, json};
use tunesmith_contract::{
    DocumentId,
    documents::{Example, Message, Role},
    job::{ExportJob, TrainJob},
};

/// A folder with dataset, base model and jobs; deleted at the end.
pub struct Fixture {
    pub folder: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        fs::create_dir(&base).unwrap();
        for name in
            ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
        {
            fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("base-model").join(name), base.join(name)).unwrap();
        }
        let dataset = folder.path().join("dataset");
        fs::create_dir(&dataset).unwrap();
        for (name, from, to) in [("train", 0, 24), ("validation", 24, 28), ("test", 28, 36)] {
            let lines: Vec<Example> = (from..to).flat_map(document).collect();
            let bytes = tunesmith_documents::write_jsonl_zst(&lines).unwrap();
            fs::write(dataset.join(format!("{name}.jsonl.zst")), bytes).unwrap();
        }
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A job that writes to `output`: 18 steps of two batches, a checkpoint after every second one.
    pub fn job(&self, output: &str) -> Value {
        json!({
            "run": "run-0123456789ab",
            "project": "handbook",
            "base": {"name": "tunesmith-mini", "folder": self.path("base")},
            "dataset_id": "ds-0123456789abcdef",
            "dataset": self.path("dataset"),
            "output": self.path(output),
            "training": {"rank": 4, "alpha": 8.0, "epochs": 3, "batch_size": 3, "accumulation": 2, "sequence_length": 96,
                         "learning_rate": 0.005, "checkpoint_every": 2}
        })
    }

    /// The job of an export, as a file.
    pub fn write_export(&self, name: &str, job: &Value) -> PathBuf {
        serde_json::from_value::<ExportJob>(job.clone()).expect("a job of the contract");
        let path = self.path(name);
        fs::write(&path, job.to_string()).unwrap();
        path
    }

    pub fn write_job(&self, name: &str, job: &Value) -> PathBuf {
        serde_json::from_value::<TrainJob>(job.clone()).expect("a job of the contract");
        let path = self.path(name);
        fs::write(&path, job.to_string()).unwrap();
        path
    }

    /// The trainer with this command and job, outside every cloud.
    pub fn trainer(&self, command: &str, job: &Path) -> Command {
        let mut trainer = Command::new(env!("CARGO_BIN_EXE_tunesmith-trainer"));
        trainer.args([command, "--job"]).arg(job).env_clear();
        trainer.env("TUNESMITH_CACHE", self.path("cache")).env("TMPDIR", self.folder.path());
        trainer.stdout(Stdio::piped()).stderr(Stdio::piped());
        trainer
    }

    /// Runs a train job to its end.
    pub fn train(&self, output: &str) -> Output {
        let job = self.write_job(&format!("{output}.json"), &self.job(output));
        self.trainer("train", &job).output().unwrap()
    }

    /// Every file below a folder with its bytes.
    pub fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let root = self.path(folder);
        let mut files = BTreeMap::new();
        let mut waiting = vec![root.clone()];
        while let Some(folder) = waiting.pop() {
            for item in fs::read_dir(folder).unwrap() {
                let path = item.unwrap().path();
                if path.is_dir() {
                    waiting.push(path);
                } else {
                    let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                    files.insert(name, fs::read(&path).unwrap());
                }
            }
        }
        files
    }
}

/// Lines of one document: a text and a question about it.
fn document(number: u32) -> Vec<Example> {
    let document = DocumentId::of(&number.to_le_bytes());
    let (room, hour) = (100 + number, 7 + number % 5);
    let text = format!(
        "Room {room} of the harbour office opens at {hour} o'clock. Visitors of room {room} sign the blue book before {hour} \
         o'clock and return the key to the harbour office. The harbour office keeps the blue book for {} years.",
        number % 9 + 1
    );
    let turn = |role, content: String| Message { role, content };
    let messages = vec![
        turn(Role::User, format!("When does room {room} open?")),
        turn(Role::Assistant, format!("Room {room} opens at {hour} o'clock.")),
    ];
    vec![Example::Text { text, document: document.clone() }, Example::Chat { messages, document }]
}

/// A running trainer whose log is read line by line, as it comes.
pub struct Running {
    pub child: Child,
    log: BufReader<ChildStderr>,
    pub seen: String,
}

impl Running {
    pub fn start(mut trainer: Command) -> Self {
        let mut child = trainer.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log, seen: String::new() }
    }

    /// Returns when a log line has this message (and step, if one is given).
    pub fn wait_for(&mut self, message: &str, step: Option<u64>) -> Value {
        loop {
            let line = self.next().unwrap_or_else(|| panic!("no {message:?} in the log:\n{}", self.seen));
            if line["message"] == message && step.is_none_or(|step| line["step"] == step) {
                return line;
            }
        }
    }

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        (self.log.read_line(&mut line).unwrap() > 0).then(|| {
            self.seen.push_str(&line);
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?} is no JSON line: {error}"))
        })
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// The exit status, after the rest of the log.
    pub fn end(&mut self) -> std::process::ExitStatus {
        while self.next().is_some() {}
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
