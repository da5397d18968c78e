//! Who may end the work from outside: signals, and the notice that a spot machine gets two minutes before it is taken back.
//!
//! Source of the notice: Amazon EC2 User Guide, "Spot Instance interruption notices": `spot/instance-action` in the instance
//! metadata, absent (404) until there is one; AWS recommends to look every 5 seconds. Version 2 of the metadata service wants a
//! session token (`PUT /latest/api/token`).

use std::{io::Read, time::Duration};

use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    error::{Result, TrainerError},
    stop::{Signal, Stop, StopReason},
};

const EVERY: Duration = Duration::from_secs(5);
/// The service answers in milliseconds; a machine without one must not hang.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Longest life of a token that the service gives.
const TOKEN_SECONDS: &str = "21600";
const DEFAULT_ENDPOINT: &str = "http://169.254.169.254";
const TOKEN_HEADER: &str = "X-aws-ec2-metadata-token";

/// Turns SIGTERM and SIGINT into a request to stop. A second SIGINT ends the process at once.
///
/// # Errors
/// When the system refuses a handler.
pub fn watch_signals(stop: Stop) -> Result<()> {
    let handler = |kind| signal(kind).map_err(TrainerError::io("signal handler"));
    let (mut terminate, mut interrupt) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    tokio::spawn(async move {
        let mut interrupts = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => stop.ask(StopReason::Signal(Signal::Terminate)),
                _ = interrupt.recv() => {
                    interrupts += 1;
                    if interrupts > 1 {
                        std::process::exit(i32::from(Signal::Interrupt.exit_code()));
                    }
                    stop.ask(StopReason::Signal(Signal::Interrupt));
                }
            }
        }
    });
    Ok(())
}

/// Looks for a spot notice every 5 seconds, the first time at once, until there is one. `None` when the metadata service is
/// switched off (`AWS_EC2_METADATA_DISABLED=true`).
pub async fn watch_spot(stop: Stop) {
    let Some(endpoint) = endpoint(|name| std::env::var(name).ok()) else { return };
    let mut metadata = Metadata { endpoint, token: None };
    let mut reachable = true;
    loop {
        let looked = tokio::task::spawn_blocking(move || {
            let notice = metadata.notice();
            (metadata, notice)
        });
        let Ok((back, notice)) = looked.await else { return };
        metadata = back;
        match notice {
            Ok(Some(notice)) => return stop.ask(StopReason::SpotNotice { action: notice.action, time: notice.time }),
            Ok(None) => reachable = true,
            Err(error) => {
                if reachable {
                    tracing::warn!(endpoint = metadata.endpoint, error, "the machine's metadata cannot be read");
                }
                reachable = false;
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn endpoint(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    if variable("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return None;
    }
    let chosen = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT").filter(|endpoint| !endpoint.is_empty());
    Some(chosen.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()).trim_end_matches('/').to_owned())
}

/// What `spot/instance-action` holds.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Notice {
    /// `terminate`, `stop` or `hibernate`.
    pub action: String,
    /// When, in UTC, as RFC 3339 writes it.
    pub time: String,
}

struct Metadata {
    endpoint: String,
    token: Option<String>,
}

impl Metadata {
    fn notice(&mut self) -> Result<Option<Notice>, String> {
        let agent = ureq::AgentBuilder::new().timeout(TIMEOUT).redirects(0).build();
        // a token that ended early (the service restarted) is fetched anew, once
        for _ in 0..2 {
            let token = match &self.token {
                Some(token) => token.clone(),
                None => {
                    let url = format!("{}/latest/api/token", self.endpoint);
                    let answer = agent.put(&url).set("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS).call();
                    let token = text(answer.map_err(|error| error.to_string())?)?;
                    self.token.insert(token).clone()
                }
            };
            let url = format!("{}/latest/meta-data/spot/instance-action", self.endpoint);
            match agent.get(&url).set(TOKEN_HEADER, &token).call() {
                Ok(answer) => {
                    let text = text(answer)?;
                    return serde_json::from_str(&text).map(Some).map_err(|error| format!("{text:?}: {error}"));
                }
                Err(ureq::Error::Status(404, _)) => return Ok(None),
                Err(ureq::Error::Status(401, _)) => self.token = None,
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("the service refuses its own token".to_owned())
    }
}

/// Answers of the service are short.
fn text(answer: ureq::Response) -> Result<String, String> {
    let mut text = String::new();
    answer.into_reader().take(4096).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_comes_from_the_standard_variables() {
        assert_eq!(endpoint(|_| None).as_deref(), Some(DEFAULT_ENDPOINT));
        let set = |name: &str| (name == "AWS_EC2_METADATA_SERVICE_ENDPOINT").then(|| "http://127.0.0.1:9/".to_owned());
        assert_eq!(endpoint(set).as_deref(), Some("http://127.0.0.1:9"));
        let off = |name: &str| (name == "AWS_EC2_METADATA_DISABLED").then(|| "True".to_owned());
        assert_eq!(endpoint(off), None);
    }

    #[test]
    fn a_notice_has_action_and_time() {
        let notice: Notice = serde_json::from_str(include_str!("../../events/trainer/spot-notice.json")).unwrap();
        assert_eq!((notice.action.as_str(), notice.time.as_str()), ("terminate", "2026-11-20T08:22:00Z"));
    }
}
