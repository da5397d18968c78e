//! What can go wrong in the local cloud, with what to do about it.

use std::path::PathBuf;

/// A failure of the local cloud.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// No usable Python.
    #[error(
        "no python >= 3.10 on PATH (looked for {looked_for}); install python3 (on Debian: apt-get install python3 python3-venv)"
    )]
    NoPython {
        /// The names that were tried.
        looked_for: String,
    },
    /// A program that was run ended badly.
    #[error("{program} failed with {status}: {detail}; {remedy}")]
    Program {
        /// Its name with arguments.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        detail: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A file or a process could not be used.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file holds something else than expected.
    #[error("{path} cannot be used: {detail}; {remedy}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A request got no answer.
    #[error(
        "{method} {url}: {detail}; is the local cloud up? see `cargo local-cloud status` and `cargo local-cloud logs`"
    )]
    Unreachable {
        /// HTTP method.
        method: String,
        /// Where to.
        url: String,
        /// What the client said.
        detail: String,
    },
    /// A service refused a request.
    #[error("{action} was refused with {status} {code}: {message}")]
    Refused {
        /// The API action.
        action: String,
        /// HTTP status.
        status: u16,
        /// The service's error code.
        code: String,
        /// Its message.
        message: String,
    },
    /// An answer does not have the expected form.
    #[error("{action} answered something unexpected: {detail}")]
    BadAnswer {
        /// The API action.
        action: String,
        /// What was missing.
        detail: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s; {remedy}")]
    TooLate {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// What to do.
        remedy: String,
    },
    /// A stack could not be created.
    #[error("stack {stack} ended as {status}: {reasons}; the template is infra/template.json, details are in {log}")]
    Stack {
        /// Its name.
        stack: String,
        /// CloudFormation's status.
        status: String,
        /// The failed resources.
        reasons: String,
        /// The emulator's log.
        log: PathBuf,
    },
    /// The local cloud is not running.
    #[error("the local cloud is not running (no {0}); start it with `cargo local-cloud up` or `cargo demo -- --keep`")]
    NotUp(PathBuf),
    /// The local cloud is running already.
    #[error("a local cloud is running already (process {pid}); stop it with `cargo local-cloud down`")]
    AlreadyUp {
        /// Its process.
        pid: u32,
    },
    /// The pipeline ended in a way the demo cannot go on from.
    #[error("the pipeline ended as {status}: {cause}")]
    Pipeline {
        /// The execution's status.
        status: String,
        /// Error and cause.
        cause: String,
    },
    /// The pipeline ended well, but without a new model.
    #[error(
        "the pipeline ended in {state}: no new model is served; the last mail says why (`cargo local-cloud mailbox`)"
    )]
    NotPublished {
        /// The last state.
        state: String,
    },
    /// What a person asked for cannot be.
    #[error("{0}")]
    Usage(String),
    /// Ctrl-C.
    #[error("stopped by the person; everything that was started has been stopped")]
    Interrupted,
}

impl LocalError {
    /// For `map_err` on file and process operations.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// An answer without what was expected in it.
    pub fn bad_answer(action: &str, detail: impl Into<String>) -> Self {
        Self::BadAnswer { action: action.to_owned(), detail: detail.into() }
    }
}
