//! A person's decision about a model.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{ProjectId, RunId},
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
