//! Inputs and outputs of the state machines' tasks: what stands between `infra/state-machines/*.asl.json` and the functions.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::Value;

use crate::{
    approval::{ApprovalDecision, Verdict},
    documents::{SplitSize, UnreadUploads},
    ids::{DatasetId, IndexId, ProjectId, RunId},
    job::TrainReport,
    money::Usd,
    plan::Quote,
    time::Seconds,
};

/// Input of `training-pipeline`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineInput {
    /// The project.
    pub project: ProjectId,
}

/// Input of `training-pipeline` that deploys a run again which was approved before: nothing is trained, nobody is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployAgainInput {
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
}

/// Input of `prepare-dataset`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareDatasetInput {
    /// The project.
    pub project: ProjectId,
}

/// Output of `prepare-dataset`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedDataset {
    /// The dataset.
    pub dataset: DatasetId,
    /// Number of documents in it.
    pub documents: u64,
    /// Training split.
    pub train: SplitSize,
    /// Test split.
    pub test: SplitSize,
    /// Uploads it was made without: told in the mail that says training has started.
    pub unread: UnreadUploads,
}

/// Input of `index-documents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexDocumentsInput {
    /// The project.
    pub project: ProjectId,
    /// The dataset: its manifest names the documents.
    pub dataset: DatasetId,
}

/// Output of `index-documents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedDocuments {
    /// The index.
    pub index: IndexId,
    /// Number of chunks.
    pub chunks: u64,
}

/// Input of `plan-training`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanTrainingInput {
    /// The project.
    pub project: ProjectId,
    /// The dataset.
    pub dataset: DatasetId,
    /// The index.
    pub index: IndexId,
}

/// Output of `plan-training`; the whole plan is in `runs/{run}/plan.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTraining {
    /// The run.
    pub run: RunId,
    /// The price.
    pub quote: Quote,
    /// First choice of machine.
    pub instance_type: String,
    /// How long `TrainModel` waits for one attempt: the plan's longest time, and what a machine needs beyond it to save and end.
    pub train_timeout: Seconds,
}

/// Input of `guard-budget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardBudgetInput {
    /// What to do.
    pub action: GuardAction,
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
    /// Execution ARN of the pipeline.
    pub execution: String,
}

/// Event of `guard-budget`: a pipeline asks about its run, a schedule about the runs of pipelines that are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum GuardBudgetEvent {
    /// About one run.
    Run(GuardBudgetInput),
    /// `{"action": "reclaim"}`: settle every run whose pipeline has ended without doing so.
    Reclaim(ReclaimInput),
}

/// Input of `guard-budget` from its schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReclaimInput {
    /// The word.
    pub action: ReclaimAction,
}

/// The one thing that the schedule asks of `guard-budget`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReclaimAction {
    /// Settle what pipelines that have ended left behind.
    Reclaim,
}

// By the word, not by trying one shape after the other: a wrong input is told what is wrong with it.
impl<'de> Deserialize<'de> for GuardBudgetEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value["action"] == "reclaim" {
            ReclaimInput::deserialize(value).map(Self::Reclaim).map_err(D::Error::custom)
        } else {
            GuardBudgetInput::deserialize(value).map(Self::Run).map_err(D::Error::custom)
        }
    }
}

/// What `guard-budget` can do. Each is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardAction {
    /// Reserve the quote's upper bound in the budgets of project and account.
    Reserve,
    /// Charge what was metered, give the rest back; the run is `trained`.
    Settle,
    /// The run failed: the same as settle, and the run is `failed`. Does nothing without a reservation.
    Release,
    /// The gate refused: the run is `gate_refused`.
    GateRefused,
    /// The approver refused: the run is `rejected`.
    Rejected,
}

/// Output of `guard-budget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardedBudget {
    /// What happened.
    pub outcome: GuardOutcome,
    /// Reserved for this run.
    pub reserved: Usd,
    /// Charged for this run.
    pub settled: Usd,
    /// Given back.
    pub returned: Usd,
    /// What is left of the project's month.
    pub left: Usd,
}

/// Output of `guard-budget` for its schedule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReclaimedBudgets {
    /// Runs that were settled, because their pipelines had ended without doing so.
    pub settled: Vec<RunId>,
    /// Runs that will be, once their machines have ended.
    pub waiting: Vec<RunId>,
}

/// What `guard-budget` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardOutcome {
    /// Reserved now, or before by this same execution.
    Reserved,
    /// Another pipeline works on this very run: this one ends without an effect.
    AlreadyRunning,
    /// This very run is published already: this pipeline ends without an effect.
    AlreadyPublished,
    /// Settled now or before.
    Settled,
    /// Nothing to do.
    Nothing,
}

/// Input of `launch-training` (state `TrainModel`, waits for the task token; output [`crate::job::TrainReport`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchTrainingInput {
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
    /// Execution ARN of the pipeline.
    pub execution: String,
    /// Where the trainer reports.
    pub task_token: String,
}

/// Input of `gate-model`; output [`crate::evaluation::GateDecision`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateModelInput {
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
}

/// Input of `request-approval` (waits for the task token; output [`crate::approval::ApprovalDecision`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestApprovalInput {
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
    /// What the trainer reported.
    pub training: TrainReport,
    /// Where the answer is reported.
    pub task_token: String,
}

/// Input of `answer-approval` when invoked by `approve-deployment` or the CLI, and of `approve-deployment` itself
/// (there `by` may be absent: the state machine fills in its own execution ARN).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerApprovalInput {
    /// The project.
    pub project: ProjectId,
    /// The run; absent means: the only one that waits. One that was approved before is deployed again: the way back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Yes or no.
    pub verdict: Verdict,
    /// Who.
    #[serde(default)]
    pub by: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

/// Output of `answer-approval` when invoked by `approve-deployment` or the CLI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnsweredApproval {
    /// The decision that holds.
    #[serde(flatten)]
    pub decision: ApprovalDecision,
    /// Name of the execution of `training-pipeline` that deploys the run again; absent when a pipeline waited for the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployed_again_by: Option<String>,
}

/// Input of `deploy-endpoint`; output [`crate::deployment::Deployment`], of `publish` [`crate::deployment::LiveRecord`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployEndpointInput {
    /// What to do.
    pub action: DeployAction,
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
    /// Execution ARN of the pipeline: while it runs, the endpoint is not swept away.
    pub execution: String,
}

/// What `deploy-endpoint` can do. Each is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeployAction {
    /// Create model, configuration and endpoint of the run.
    Deploy,
    /// Verified: write `LIVE` and mark the run published, in one transaction.
    Publish,
}

/// Input of `verify-endpoint`; output [`crate::deployment::Verification`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyEndpointInput {
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
}

/// Input of `sweep-resources`: a schedule sends none of the fields, a pipeline that is done with its run sends all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepResourcesInput {
    /// Only this project's.
    #[serde(default)]
    pub project: Option<ProjectId>,
    /// Only this run's machines and its endpoint.
    #[serde(default)]
    pub run: Option<RunId>,
    /// Execution ARN of the pipeline that sends this, and is done: its own machines end, expired or not, and its own endpoint,
    /// unless that is live. What another pipeline of the same run works with stays.
    #[serde(default)]
    pub execution: Option<String>,
}

/// Output of `sweep-resources`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SweptResources {
    /// Machines ended.
    pub terminated: Vec<String>,
    /// Leases revoked, because their pipelines have ended.
    pub revoked_leases: Vec<String>,
    /// Leases closed.
    pub closed_leases: Vec<String>,
    /// Endpoints deleted.
    pub deleted_endpoints: Vec<String>,
}

/// Input of `watch-costs`: its schedule says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchCostsInput {}

/// Output of `watch-costs`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WatchedCosts {
    /// Machines metered.
    pub machines: u64,
    /// Alarms mailed, as `project percent`.
    pub alarms: Vec<String>,
    /// Machines told to stop.
    pub stopped: Vec<String>,
}
