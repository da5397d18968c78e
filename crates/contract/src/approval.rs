//! A person's decision about a model.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{ProjectId, RunId},
    settings::ServingSettings,
    time::{Seconds, UnixTime},
};

/// Silence is a rejection after this long.
pub const APPROVAL_TIME: Seconds = Seconds(7 * 24 * 3600);

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Deploy it.
    Approve,
    /// Do not.
    Reject,
}

/// How a decision was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// The one-time link in the e-mail.
    Link,
    /// The state machine `approve-deployment` in the console.
    Console,
    /// The command line.
    Cli,
}

/// Table item `APPROVAL#{run}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApprovalRecord {
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
    /// Where Step Functions waits.
    pub task_token: String,
    /// Hexadecimal SHA-256 of the secret in the link; the secret itself is only in the e-mail.
    pub secret_hash: String,
    /// When the question was asked.
    pub asked_at: UnixTime,
    /// When it lapses.
    pub expires_at: UnixTime,
    /// How the model is served if the answer is yes: what the price in the question is of. It holds however often the run is
    /// deployed, whatever `project.toml` says by then. A record that does not say it approved nothing that is billed by the hour:
    /// the default is serverless.
    #[serde(default)]
    pub serving: ServingSettings,
    /// The answer; written once, by a conditional update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<ApprovalDecision>,
}

/// The answer, and the output of `RequestApproval`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalDecision {
    /// Yes or no.
    pub verdict: Verdict,
    /// How.
    pub via: Via,
    /// Who: a name, an ARN, or `link`.
    pub by: String,
    /// Why, in the person's words.
    #[serde(default)]
    pub reason: String,
    /// When.
    pub at: UnixTime,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ServingMode;

    #[test]
    fn an_approval_that_does_not_say_how_is_one_of_nothing_that_is_billed_by_the_hour() {
        let written = r#"{"project": "handbook", "run": "run-0123456789ab", "task_token": "t", "secret_hash": "",
            "asked_at": 0, "expires_at": 1}"#;
        let record: ApprovalRecord = serde_json::from_str(written).unwrap();
        assert_eq!(record.serving.mode, ServingMode::Serverless);
    }
}
