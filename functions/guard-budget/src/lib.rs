//! Lambda function `guard-budget`: reserves, settles and returns the money of a run; on a schedule, that of pipelines that are
//! gone ([`reclaim`]), and takes over limits that were changed ([`limit`]).
//!
//! Promise: a budget is never exceeded, however many pipelines ask at once. Each answer is one transaction over the budgets of
//! project and account and the run's record, on condition that none of the three has changed since they were read; the
//! arithmetic is `tunesmith_budget`'s. Every action may be repeated.

mod limit;
pub mod mail;
pub mod reclaim;
pub mod transaction;

use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};
use tunesmith_aws::{
    dynamodb::{Table, Transacted},
    s3::S3,
    sfn::{ExecutionState, StepFunctions},
    sns::Topic,
};
use tunesmith_budget::{Owner, ReserveInput, ReservePlan, SettleInput, SettlePlan, plan_reserve, plan_settle};
use tunesmith_contract::{
    ErrorName, ProjectId, ProjectSettings, RunId, S3Uri, Seconds, UnixTime, Usd,
    deployment::LiveRecord,
    error_name::Failure,
    keys::{uploads, workspace},
    ledger::{BudgetItem, EndpointMeter, ItemKey, Lease, RunRecord, RunStatus},
    plan::Plan,
    tasks::{GuardAction, GuardBudgetEvent, GuardBudgetInput, GuardOutcome, GuardedBudget, ReclaimedBudgets},
};
use tunesmith_lambda::{Environment, Metric, SettingError, Storage, Unit, publish_metrics};

/// Readings of the same items by others fail a transaction; with eight pipelines at once the last one succeeds at its
/// eighth try.
const TRIES: u32 = 30;

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Plans and settings.
    pub s3: S3,
    /// Budgets, runs, leases.
    pub table: Table,
    /// Whether another pipeline is still at work.
    pub step_functions: StepFunctions,
    /// Mails to owners.
    pub notifications: Topic,
}

/// What the CDK sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Table and buckets.
    pub storage: Storage,
    /// Topic of mails to owners.
    pub notifications_topic_arn: String,
    /// What all projects together may spend in a month.
    pub account_limit: Usd,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`SettingError`] with the variable's name.
    pub fn from_environment(environment: &Environment) -> Result<Self, SettingError> {
        Ok(Self {
            storage: Storage::from_environment(environment)?,
            notifications_topic_arn: environment.text("NOTIFICATIONS_TOPIC_ARN")?,
            account_limit: Usd::from_micros(environment.parsed_or("ACCOUNT_MONTHLY_CAP_MICROS", 500_000_000)?),
        })
    }
}

/// What a decision is made from.
#[derive(Debug, Clone)]
struct Books {
    record: Option<RunRecord>,
    project: Option<BudgetItem>,
    account: Option<BudgetItem>,
}

/// What the function answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To a pipeline.
    Run(GuardedBudget),
    /// To the schedule.
    All(ReclaimedBudgets),
}

/// Does what the event asks.
///
/// # Errors
/// `BudgetMissing`, `BudgetExceeded`, `SettingsInvalid`, `NotFound` (no plan), `ServiceUnavailable` when others kept changing
/// the budgets, AWS errors.
pub async fn handle(
    event: GuardBudgetEvent,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<Answer, Failure> {
    match event {
        GuardBudgetEvent::Run(input) => guard(input, clients, settings, now).await.map(Answer::Run),
        GuardBudgetEvent::Reclaim(_) => reclaim::reclaim(clients, settings, now).await.map(Answer::All),
    }
}

async fn guard(
    input: GuardBudgetInput,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<GuardedBudget, Failure> {
    let answer = match input.action {
        GuardAction::Reserve => reserve(&input, clients, settings, now).await?,
        _ => end(&input, Owed::Nothing, clients, now).await?.answer,
    };
    tracing::info!(
        action = ?input.action, outcome = ?answer.outcome, reserved = %answer.reserved, settled = %answer.settled,
        returned = %answer.returned, left = %answer.left, "budget"
    );
    let dollars = |name, value: Usd| Metric { name, unit: Unit::None, value: value.dollars() };
    publish_metrics(
        now,
        &[
            dollars("ReservedDollars", answer.reserved),
            dollars("SettledDollars", answer.settled),
            dollars("LeftDollars", answer.left),
        ],
    );
    Ok(answer)
}

async fn reserve(
    input: &GuardBudgetInput,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<GuardedBudget, Failure> {
    let folder = S3Uri::new(&settings.storage.workspace_bucket, workspace::run(&input.project, &input.run));
    let plan: Plan = clients
        .s3
        .get_json(&folder.join("plan.json"))
        .await?
        .ok_or_else(|| Failure::missing("the plan", &input.run))?;
    let limit = project_limit(&input.project, clients, settings).await?;
    let month = now.month();
    for attempt in 0..TRIES {
        let books = read(&input.project, &input.run, &month, clients).await?;
        let endpoints: Vec<EndpointMeter> = clients.table.query("ENDPOINT", "").await?;
        let decision = plan_reserve(&ReserveInput {
            project: &input.project,
            run: &input.run,
            execution: &input.execution,
            month: &month,
            quote: plan.quote,
            project_limit: limit,
            account_limit: settings.account_limit,
            project_budget: books.project.as_ref(),
            account_budget: books.account.as_ref(),
            project_endpoints: cost_meanwhile(
                endpoints.iter().filter(|e| e.project == input.project),
                plan.max_time,
                now,
            ),
            account_endpoints: cost_meanwhile(endpoints.iter(), plan.max_time, now),
            record: books.record.as_ref(),
            is_live: is_live(&books, clients).await?,
            owner: owner(&books, &input.execution, clients).await?,
        })?;
        let seen = |outcome| answer(outcome, books.record.as_ref(), books.project.as_ref());
        match decision {
            ReservePlan::Already => return Ok(seen(GuardOutcome::Reserved)),
            ReservePlan::AlreadyRunning => return Ok(seen(GuardOutcome::AlreadyRunning)),
            ReservePlan::AlreadyPublished => return Ok(seen(GuardOutcome::AlreadyPublished)),
            ReservePlan::Reserve { project, account, record } => {
                let writes = transaction::writes(&project, &account, books.record.as_ref(), &record);
                if clients.table.transact(writes, None).await? == Transacted::Done {
                    return Ok(answer(GuardOutcome::Reserved, Some(&record), Some(&project.after)));
                }
            }
            ReservePlan::SettleFirst => {
                if let Some(left_behind) = &books.record {
                    tracing::warn!(execution = %left_behind.execution, "its pipeline is gone: its reservation is settled");
                    let release = GuardBudgetInput {
                        action: GuardAction::Release,
                        execution: left_behind.execution.clone(),
                        ..input.clone()
                    };
                    end(&release, Owed::Nothing, clients, now).await?;
                    continue;
                }
            }
        }
        pause(&input.execution, attempt).await;
    }
    Err(contended(input))
}

/// What endpoints cost while a run may last, from when they were last charged, and until `watch-costs` has looked twice more:
/// that is how far ahead it looks when it decides whether they must be deleted.
fn cost_meanwhile<'a>(endpoints: impl Iterator<Item = &'a EndpointMeter>, longest: Seconds, now: UnixTime) -> Usd {
    const LOOKS_AHEAD: Seconds = Seconds(600);
    let until = now.after(longest).after(LOOKS_AHEAD);
    endpoints.map(|endpoint| endpoint.cost_ahead(until)).sum()
}

/// How settling ended.
struct End {
    answer: GuardedBudget,
    /// Whether it was this call that settled.
    is_new: bool,
}

/// What settling a run leaves to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    /// Nothing: a pipeline is at work, which mails.
    Nothing,
    /// The mail that its pipeline is gone, if that has not ended the run itself.
    StopMail,
}

/// Settles in the name of the execution that the input names; nothing happens when the run is another's.
async fn end(input: &GuardBudgetInput, owed: Owed, clients: &Clients, now: UnixTime) -> Result<End, Failure> {
    for attempt in 0..TRIES {
        let run_key = ItemKey::run(&input.project, &input.run);
        let Some(record) = clients.table.get::<RunRecord>(&run_key).await? else {
            return Ok(End { answer: answer(GuardOutcome::Nothing, None, None), is_new: false });
        };
        let books = read(&input.project, &input.run, &record.month, clients).await?;
        let record = books.record.as_ref().unwrap_or(&record);
        let leases: Vec<Lease> = clients.table.query("LEASE", "").await?;
        let metered: Usd = leases.iter().filter(|l| l.run == input.run).map(|lease| lease.metered_at(now)).sum();
        let decision = plan_settle(&SettleInput {
            action: input.action,
            execution: &input.execution,
            record,
            metered,
            project_budget: books.project.as_ref(),
            account_budget: books.account.as_ref(),
        });
        match decision {
            SettlePlan::Nothing => {
                let mine = record.execution == input.execution && record.status != RunStatus::Reserved;
                let outcome = if mine { GuardOutcome::Settled } else { GuardOutcome::Nothing };
                return Ok(End { answer: answer(outcome, Some(record), books.project.as_ref()), is_new: false });
            }
            SettlePlan::Settle { project, account, record: mut after } => {
                if owed == Owed::StopMail && matches!(record.status, RunStatus::Reserved | RunStatus::Trained) {
                    after.stop_mail_due = Some(record.status);
                }
                let writes = transaction::writes(&project, &account, Some(record), &after);
                if clients.table.transact(writes, None).await? == Transacted::Done {
                    let answer = answer(GuardOutcome::Settled, Some(&after), Some(&project.after));
                    return Ok(End { answer, is_new: true });
                }
            }
        }
        pause(&input.execution, attempt).await;
    }
    Err(contended(input))
}

async fn read(project: &ProjectId, run: &RunId, month: &str, clients: &Clients) -> Result<Books, Failure> {
    let keys = (ItemKey::run(project, run), ItemKey::budget(project, month), ItemKey::account_budget(month));
    let (record, project, account) =
        tokio::try_join!(clients.table.get(&keys.0), clients.table.get(&keys.1), clients.table.get(&keys.2))?;
    Ok(Books { record, project, account })
}

/// The limit as `project.toml` says now: a raised limit lets the next run in, a lowered one holds at once.
async fn project_limit(project: &ProjectId, clients: &Clients, settings: &Settings) -> Result<Usd, Failure> {
    let uri = S3Uri::new(&settings.storage.documents_bucket, uploads::settings(project));
    let parsed = ProjectSettings::of_upload(clients.s3.get_text(&uri).await?.as_deref())?;
    parsed.monthly_limit().ok_or_else(|| {
        Failure::new(
            ErrorName::BudgetMissing,
            format!("project {project} has no budget; set budget.monthly_limit_usd in {project}/project.toml"),
        )
    })
}

async fn is_live(books: &Books, clients: &Clients) -> Result<bool, Failure> {
    match &books.record {
        Some(record) if record.status == RunStatus::Published => {
            let live: Option<LiveRecord> = clients.table.get(&ItemKey::live(&record.project)).await?;
            Ok(live.is_some_and(|live| live.run == record.run))
        }
        _ => Ok(false),
    }
}

async fn owner(books: &Books, execution: &str, clients: &Clients) -> Result<Owner, Failure> {
    match &books.record {
        Some(record)
            if record.execution != execution && matches!(record.status, RunStatus::Reserved | RunStatus::Trained) =>
        {
            Ok(match clients.step_functions.describe_execution(&record.execution).await? {
                ExecutionState::Running => Owner::Alive,
                ExecutionState::Ended | ExecutionState::Unknown => Owner::Gone,
            })
        }
        _ => Ok(Owner::Gone),
    }
}

fn answer(outcome: GuardOutcome, record: Option<&RunRecord>, project: Option<&BudgetItem>) -> GuardedBudget {
    let (reserved, settled, returned) =
        record.map_or_else(Default::default, |record| (record.reserved, record.settled, record.returned));
    GuardedBudget { outcome, reserved, settled, returned, left: left(project) }
}

/// What is left of a month.
fn left(budget: Option<&BudgetItem>) -> Usd {
    budget.map_or(Usd::ZERO, |b| b.limit.saturating_sub(b.spent).saturating_sub(b.reserved).max(Usd::ZERO))
}

fn contended(input: &GuardBudgetInput) -> Failure {
    Failure::new(
        ErrorName::ServiceUnavailable,
        format!("the budgets of project {} changed {TRIES} times while {} was decided", input.project, input.run),
    )
}

/// Waits 10 ms to 1 s, longer with each try, at a point that differs between executions: so they do not meet again.
async fn pause(execution: &str, attempt: u32) {
    let spread = Sha256::digest(format!("{execution}/{attempt}"));
    let most = 20_u64 << attempt.min(6);
    tokio::time::sleep(Duration::from_millis(most / 2 + u64::from(spread[0]) * most / 512)).await;
}
