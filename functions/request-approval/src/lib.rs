//! Lambda function `request-approval`: asks a person whether a model may go live.
//!
//! Promise: the question is asked by e-mail with the numbers, what the endpoint will cost, the rollback plan and three ways to
//! answer; asking again for the
//! same task token (a retry) sends the same link. Silence is a rejection after seven days.

pub mod mail;

use sha2::{Digest, Sha256};
use tunesmith_aws::{
    dynamodb::{Conditional, Expression, Table},
    s3::S3,
    sns::Topic,
};
use tunesmith_budget::{EndpointPrice, PriceTable};
use tunesmith_contract::{
    ErrorName, S3Uri, UnixTime, Usd,
    approval::{APPROVAL_TIME, ApprovalRecord},
    deployment::LiveRecord,
    error_name::Failure,
    evaluation::Evaluation,
    job::TrainReport,
    keys::workspace,
    ledger::{ItemKey, RunRecord},
    plan::Plan,
    settings::{Method, TrainingSettings},
    tasks::RequestApprovalInput,
};
use tunesmith_evaluation::{CostLine, DecisionPage, Fact, decision_page};

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Plan, evaluation, report.
    pub s3: S3,
    /// Runs and approvals.
    pub table: Table,
    /// Where people are written to.
    pub notifications: Topic,
}

/// What the function is told by its environment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `WORKSPACE_BUCKET`
    pub workspace_bucket: String,
    /// `ANSWER_URL`
    pub answer_url: String,
    /// `APPROVE_DEPLOYMENT_ARN`
    pub approve_deployment_arn: String,
}

/// The secret in the link: a hash of the task token, which nobody but Step Functions and the table knows. So a retry sends the
/// same link, and no secret is stored beside the record's hash of it.
#[must_use]
pub fn link_secret(task_token: &str) -> String {
    hex::encode(Sha256::new().chain_update("tunesmith approval link\n").chain_update(task_token).finalize())
}

/// Hash of a secret as the record keeps it.
#[must_use]
pub fn secret_hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Records the question, writes the decision page and sends the e-mail.
///
/// # Errors
/// [`ErrorName::NotFound`] when plan, evaluation or reservation is missing; [`ErrorName::SettingsInvalid`] when the endpoint's
/// price is not known; AWS errors.
pub async fn handle(
    input: RequestApprovalInput,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<ApprovalRecord, Failure> {
    let folder = S3Uri::new(&settings.workspace_bucket, workspace::run(&input.project, &input.run));
    let missing = |what: &str| Failure::missing(what, &input.run);
    let plan: Plan = clients.s3.get_json(&folder.join("plan.json")).await?.ok_or_else(|| missing("the plan"))?;
    let evaluation: Evaluation =
        clients.s3.get_json(&folder.join("evaluation.json")).await?.ok_or_else(|| missing("the evaluation"))?;
    let run: RunRecord = clients
        .table
        .get(&ItemKey::run(&input.project, &input.run))
        .await?
        .ok_or_else(|| missing("the reservation"))?;
    let live: Option<LiveRecord> = clients.table.get(&ItemKey::live(&input.project)).await?;

    let table = PriceTable::embedded().map_err(|error| Failure::new(ErrorName::Internal, error.to_string()))?;
    let price = EndpointPrice::of(&plan.settings.serving, &table)?;

    let secret = link_secret(&input.task_token);
    let record = ApprovalRecord {
        project: input.project.clone(),
        run: input.run.clone(),
        task_token: input.task_token.clone(),
        secret_hash: secret_hash(&secret),
        asked_at: now,
        expires_at: now.after(APPROVAL_TIME),
        serving: plan.settings.serving.clone(),
        decision: None,
    };
    let record = ask(clients, record).await?;

    let page = report(&plan, &input.training, &evaluation, &run, &price, live.as_ref());
    clients.s3.put(&folder.join("report.html"), page.into_bytes(), "text/html; charset=utf-8").await?;
    let question = mail::Question {
        project: &input.project,
        run: &input.run,
        evaluation: &evaluation,
        cost: run.settled.max(run.metered),
        price: &price,
        live_run: live.as_ref().map(|l| &l.run),
        answer_url: &settings.answer_url,
        approve_deployment_arn: &settings.approve_deployment_arn,
        secret: &secret,
    };
    clients.notifications.publish(&question.subject(), &question.body()).await?;
    tracing::info!(run = %input.run, project = %input.project, expires_at = record.expires_at.0, "asked");
    Ok(record)
}

/// Writes the record unless this very question (same task token) was recorded before: then that one counts, answered or not.
async fn ask(clients: &Clients, record: ApprovalRecord) -> Result<ApprovalRecord, Failure> {
    let key = ItemKey::approval(&record.project, &record.run);
    let fresh = Expression::new("attribute_not_exists(pk) OR #token <> :token")
        .name("#token", "task_token")
        .value(":token", &record.task_token);
    match clients.table.put_if(&key, &record, fresh).await? {
        Conditional::Done(()) => Ok(record),
        Conditional::ConditionFailed => Ok(clients.table.get(&key).await?.unwrap_or(record)),
    }
}

fn report(
    plan: &Plan,
    trained: &TrainReport,
    evaluation: &Evaluation,
    run: &RunRecord,
    price: &EndpointPrice,
    live: Option<&LiveRecord>,
) -> String {
    let gate = tunesmith_evaluation::decide(evaluation, &plan.settings.gate);
    let fact = |label: &str, value: String| Fact { label: label.to_owned(), value };
    let mut costs = vec![
        cost("Quoted", run.quoted),
        cost("Reserved", run.reserved),
        cost("Metered", run.metered),
        cost("Charged", run.settled),
        cost("Given back", run.returned),
    ];
    costs.extend(endpoint_costs(price));
    let training = &plan.settings.training;
    let facts = [
        fact("Run", plan.run.to_string()),
        fact("Dataset", plan.dataset.to_string()),
        fact("Method", method(training)),
        fact("Steps", format!("{} ({} were planned)", trained.steps, plan.steps)),
        fact("Loss of the last step", format!("{:.3} nats per token", trained.final_loss)),
        fact("Attempts", format!("{} ({} interrupted in this pipeline)", run.attempts, run.interruptions)),
    ];
    decision_page(&DecisionPage {
        project: &plan.project,
        base_model: plan.base.as_str(),
        evaluation,
        gate: &gate,
        costs: &costs,
        training: &facts,
        live_run: live.map(|l| &l.run),
        answer: None,
    })
}

fn cost(label: &str, amount: Usd) -> CostLine {
    CostLine { label: label.to_owned(), amount }
}

/// What the approver agrees to pay by saying yes.
fn endpoint_costs(price: &EndpointPrice) -> [CostLine; 2] {
    match price {
        EndpointPrice::Serverless { answering_hour } => [
            cost("Endpoint while nobody asks: nothing is billed", Usd::ZERO),
            cost("Endpoint, an hour of answering", *answering_hour),
        ],
        EndpointPrice::Instances { instance_type, count, hour } => [
            cost(&format!("Endpoint, an hour ({count} {instance_type}), asked or not"), per_hour(*count, *hour)),
            cost("Endpoint, a month (730 hours), asked or not", price.idle_month()),
        ],
    }
}

/// All instances together.
pub(crate) fn per_hour(count: u32, hour: Usd) -> Usd {
    Usd::from_micros(hour.micros().saturating_mul(i64::from(count)))
}

fn method(training: &TrainingSettings) -> String {
    let title = training.method.title();
    match training.method {
        Method::Lora | Method::Rslora | Method::Dora => {
            format!("{title}, rank {}, alpha {}", training.rank, training.alpha)
        }
        Method::Adalora => {
            let ranks = &training.adalora;
            format!("{title}, rank {} to {}, alpha {}", ranks.init_r, ranks.target_r, training.alpha)
        }
        Method::Ia3 => title.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decision_page_shows_what_the_endpoint_costs() {
        let shown = |price: &EndpointPrice| endpoint_costs(price).map(|line| format!("{} {}", line.amount, line.label));
        let hour = Usd::from_micros(1_408_000);
        let instances = EndpointPrice::Instances { instance_type: "ml.g5.xlarge".into(), count: 1, hour };
        let [an_hour, a_month] = shown(&instances);
        assert_eq!(an_hour, "$1.408 Endpoint, an hour (1 ml.g5.xlarge), asked or not");
        assert_eq!(a_month, "$1027.84 Endpoint, a month (730 hours), asked or not");
        let [idle, _] = shown(&EndpointPrice::Serverless { answering_hour: Usd::from_micros(288_000) });
        assert_eq!(idle, "$0.00 Endpoint while nobody asks: nothing is billed");
    }

    #[test]
    fn a_retry_sends_the_same_link_and_the_table_does_not_hold_its_secret() {
        assert_eq!(link_secret("token"), link_secret("token"));
        assert_ne!(link_secret("token"), link_secret("other"));
        assert_ne!(secret_hash(&link_secret("token")), link_secret("token"));
    }
}
