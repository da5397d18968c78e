//! `target/local-cloud/state.json`: how the commands find a running local cloud.

use std::{collections::BTreeMap, fs, path::Path};

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    LocalError,
    client::{Aws, Http},
    sigv4::Credentials,
};

/// A running local cloud.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Process id of the daemon.
    pub pid: u32,
    /// The emulator, `http://127.0.0.1:{port}`.
    pub emulator: String,
    /// The machine room, `http://127.0.0.1:{port}`.
    pub machine_room: String,
    /// Secret of the daemon's own commands.
    pub token: String,
    /// Credentials of the simulated account's root user.
    pub root: Credentials,
    /// Outputs of all stacks; empty until they are deployed.
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
    /// The project of the last demo.
    #[serde(default)]
    pub project: Option<String>,
}

impl State {
    /// Reads the state of a running local cloud; a file left behind by a dead one counts as none.
    ///
    /// # Errors
    /// [`LocalError::NotUp`].
    pub fn read(folder: &Path) -> Result<Self, LocalError> {
        let path = folder.join("state.json");
        let state: Option<Self> = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let alive = |state: &Self| Path::new(&format!("/proc/{}/exe", state.pid)).exists();
        state.filter(alive).ok_or(LocalError::NotUp(path))
    }

    /// Writes the file, readable for its owner only: it holds secrets.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), LocalError> {
        use std::{io::Write, os::unix::fs::OpenOptionsExt};
        let path = folder.join("state.json");
        let text = serde_json::to_string_pretty(self).map_err(|e| LocalError::bad_answer("state", e.to_string()))?;
        let _ = fs::remove_file(&path);
        let mut file = fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(LocalError::io("write", &path))?;
        file.write_all(text.as_bytes()).map_err(LocalError::io("write", &path))
    }

    /// The emulator as root.
    #[must_use]
    pub fn aws(&self) -> Aws {
        Aws::new(&self.emulator, self.root.clone())
    }

    /// An output of the stacks.
    ///
    /// # Errors
    /// When the template has no such output.
    pub fn output(&self, name: &str) -> Result<&str, LocalError> {
        self.outputs
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| LocalError::Usage(format!("no stack of infra/template.json has the output {name}")))
    }

    /// A function URL as every program of this machine reaches it, ending in `/`.
    #[must_use]
    pub fn local_url(&self, url: &str) -> String {
        match url.strip_prefix("https://").and_then(|rest| rest.split_once(".lambda-url.")) {
            Some((id, _)) => format!("{}/_aws/lambda-url/{id}/", self.emulator),
            None => url.to_owned(),
        }
    }

    /// A command to the daemon.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub async fn command(&self, name: &str, input: &Value) -> Result<Value, LocalError> {
        let url = format!("{}/_local/{name}", self.machine_room);
        let headers = [("x-tunesmith-token", self.token.as_str()), ("content-type", "application/json")];
        let (status, body) = Http::default().fetch(Method::POST, &url, &headers, input.to_string()).await?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if status >= 300 {
            let message = answer["message"].as_str().unwrap_or_default().to_owned();
            return Err(LocalError::Refused { action: name.to_owned(), status, code: String::new(), message });
        }
        Ok(answer)
    }
}

/// Replaces every function URL in a text by the address under which a browser of this machine reaches it. The function has a
/// host of its own there, as on AWS, so that a page's links work: browsers (and curl) take `*.localhost` for this machine
/// (RFC 6761), and the emulator finds the function by its host name.
#[must_use]
pub fn localize(text: &str, emulator: &str) -> String {
    let port = emulator.rsplit(':').next().unwrap_or_default();
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("https://") {
        let (before, url) = rest.split_at(start);
        out.push_str(before);
        let host_end = url[8..].find(['/', '?', ' ', '\n', '"', '<', ')']).map_or(url.len(), |end| end + 8);
        match url[8..host_end].strip_suffix(".on.aws") {
            Some(host) if host.contains(".lambda-url.") => {
                out.push_str(&format!("http://{host}.localhost:{port}"));
                rest = &url[host_end..];
            }
            _ => {
                out.push_str(&url[..8]);
                rest = &url[8..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_urls_become_local_ones_and_other_links_stay() {
        let text = "see https://abc.lambda-url.us-east-1.on.aws/?run=x and https://example.org/a";
        let local = localize(text, "http://127.0.0.1:5");
        assert_eq!(local, "see http://abc.lambda-url.us-east-1.localhost:5/?run=x and https://example.org/a");
    }
}
