//! Lambda function `deploy-endpoint`: an approved run's model behind an endpoint of its own, then published.
//!
//! Promise: each action may be repeated. What is live is never touched: a new endpoint stands beside it, and only
//! [`publish`] tells the gateway. Nothing is deployed that no person approved, and nothing otherwise than as it was approved. An
//! endpoint that this function leaves behind, whatever dies, is known in the table, so that `sweep-resources` deletes it.

mod create;
mod publish;

use serde::Serialize;
use tunesmith_aws::{dynamodb::Table, s3::S3, sagemaker::SageMaker};
use tunesmith_contract::{
    ErrorName, ProjectSettings, S3Uri, UnixTime,
    approval::{ApprovalRecord, Verdict},
    deployment::{Deployment, LiveRecord},
    error_name::Failure,
    keys::workspace,
    ledger::ItemKey,
    plan::Plan,
    tasks::{DeployAction, DeployEndpointInput},
};

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Plans, jobs, deployments.
    pub s3: S3,
    /// Approvals, `LIVE`, runs, endpoint meters.
    pub table: Table,
    /// Endpoints.
    pub sagemaker: SageMaker,
}

/// What the function is told by its environment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `WORKSPACE_BUCKET`
    pub workspace_bucket: String,
    /// `ENDPOINT_ROLE_ARN`
    pub endpoint_role_arn: String,
    /// `TRAINER_IMAGE`
    pub trainer_image: String,
    /// `AWS_REGION`
    pub region: String,
}

/// What the function answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To `deploy`.
    Deployed(Deployment),
    /// To `publish`.
    Live(LiveRecord),
}

/// Does one of the actions.
///
/// # Errors
/// [`ErrorName::EndpointNotReady`] (one of this name is being deleted, or is not as approved: try again), [`ErrorName::ApprovalUnknown`] (no
/// person approved the run), [`ErrorName::EndpointFailed`] (it is live otherwise than approved; or was deleted, or taken over, before it
/// could be published),
/// [`ErrorName::SettingsInvalid`] (no known price), [`ErrorName::NotFound`], AWS errors.
pub async fn handle(
    input: DeployEndpointInput,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<Answer, Failure> {
    let folder = S3Uri::new(&settings.workspace_bucket, workspace::run(&input.project, &input.run));
    let plan: Plan = clients
        .s3
        .get_json(&folder.join("plan.json"))
        .await?
        .ok_or_else(|| Failure::missing("the plan", &input.run))?;
    let approval: Option<ApprovalRecord> = clients.table.get(&ItemKey::approval(&input.project, &input.run)).await?;
    let approved = check_approved(&input, approval.as_ref())?;
    let plan = as_approved(plan, approved);
    match input.action {
        DeployAction::Deploy => {
            create::create(&plan, &input.execution, clients, settings, now).await.map(Answer::Deployed)
        }
        DeployAction::Publish => publish::publish(&plan, &input.execution, clients, now).await.map(Answer::Live),
    }
}

/// The approval, if there is one.
fn check_approved<'a>(
    input: &DeployEndpointInput,
    approval: Option<&'a ApprovalRecord>,
) -> Result<&'a ApprovalRecord, Failure> {
    let verdict = |record: &ApprovalRecord| record.decision.as_ref().map(|decision| decision.verdict);
    match approval {
        Some(record) if verdict(record) == Some(Verdict::Approve) => Ok(record),
        other => {
            let word = other.and_then(verdict).map_or("nobody has answered about it", |_| "it was rejected");
            Err(Failure::new(
                ErrorName::ApprovalUnknown,
                format!(
                    "{} of {} may not go live: {word}; start the state machine approve-deployment with a run that was approved",
                    input.run, input.project
                ),
            ))
        }
    }
}

/// The plan with the serving settings that the person who approved was shown the price of: a later `_TRAIN` with other settings
/// may have written the plan anew, and nobody has approved those.
fn as_approved(plan: Plan, approved: &ApprovalRecord) -> Plan {
    Plan { settings: ProjectSettings { serving: approved.serving.clone(), ..plan.settings }, ..plan }
}

#[cfg(test)]
mod tests {
    use tunesmith_aws::sagemaker::Hosting;
    use tunesmith_contract::{
        Seconds, Usd,
        approval::{ApprovalDecision, Via},
        plan::Quote,
        settings::{ServingMode, ServingSettings},
    };

    use super::*;

    fn record(verdict: Option<Verdict>) -> ApprovalRecord {
        ApprovalRecord {
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            task_token: "t".into(),
            secret_hash: String::new(),
            asked_at: UnixTime(0),
            expires_at: UnixTime(1),
            serving: ServingSettings::default(),
            decision: verdict.map(|verdict| ApprovalDecision {
                verdict,
                via: Via::Link,
                by: "link".into(),
                reason: String::new(),
                at: UnixTime(0),
            }),
        }
    }

    #[test]
    fn an_endpoint_is_served_and_charged_as_it_was_approved_whatever_the_plan_says_since() {
        let instance = ServingSettings { mode: ServingMode::Instance, ..ServingSettings::default() };
        let plan = Plan {
            run: "run-0123456789ab".parse().unwrap(),
            project: "handbook".parse().unwrap(),
            dataset: "ds-0123456789abcdef".parse().unwrap(),
            index: "ix-0123456789abcdef".parse().unwrap(),
            base: "tunesmith-mini".parse().unwrap(),
            parameters: 1,
            steps: 1,
            tokens: 1,
            machines: Vec::new(),
            quote: Quote { expected: Usd::ZERO, upper_bound: Usd::ZERO },
            max_time: Seconds(1),
            settings: ProjectSettings { serving: instance.clone(), ..ProjectSettings::default() },
        };
        let deployed = |approved: &ApprovalRecord| {
            let plan = as_approved(plan.clone(), approved);
            let is_charged = create::meter(&plan, "arn:e1", UnixTime(0)).unwrap().is_billed_by_the_hour();
            (create::hosting(&plan.settings.serving), is_charged)
        };
        let hour = |memory_mb| {
            let serving = ServingSettings { memory_mb, ..ServingSettings::default() };
            let approved = ApprovalRecord { serving, ..record(Some(Verdict::Approve)) };
            create::meter(&as_approved(plan.clone(), &approved), "arn:e1", UnixTime(0)).unwrap().price_per_hour
        };
        assert!(hour(1024) > Usd::ZERO && hour(1024) < hour(3072), "people approve the price of the memory");
        let serverless = record(Some(Verdict::Approve));
        let (hosting, is_charged) = deployed(&serverless);
        assert!(matches!(hosting, Hosting::Serverless { .. }) && !is_charged, "nobody was shown the price of an hour");
        let (hosting, is_charged) = deployed(&ApprovalRecord { serving: instance, ..serverless });
        assert!(matches!(hosting, Hosting::Instances { .. }) && is_charged);
    }

    #[test]
    fn nothing_is_deployed_that_no_person_approved() {
        let input = DeployEndpointInput {
            action: DeployAction::Deploy,
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            execution: "arn:e1".into(),
        };
        assert!(check_approved(&input, Some(&record(Some(Verdict::Approve)))).is_ok());
        for refused in [None, Some(record(None)), Some(record(Some(Verdict::Reject)))] {
            assert_eq!(check_approved(&input, refused.as_ref()).unwrap_err().name, ErrorName::ApprovalUnknown);
        }
    }
}
