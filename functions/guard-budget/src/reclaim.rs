//! What the schedule does: money of pipelines that ended without settling (a person stopped them, they timed out, or their own
//! cleaning up failed), the mails about them, and limits that were changed.
//!
//! Step Functions runs nothing in a stopped execution, and an event about it may get lost: so this looks. Machines come first
//! (`sweep-resources` revokes their leases); money follows once their meters are final. What fails keeps nothing else from being
//! done, and fails the look in the end.

use std::collections::BTreeSet;

use tunesmith_aws::{
    dynamodb::{Conditional, Expression},
    sfn::ExecutionState,
};
use tunesmith_contract::{
    ProjectId, Seconds, UnixTime,
    error_name::Failure,
    ledger::{BudgetItem, ItemKey, Lease, LeaseStatus, RunRecord, RunStatus},
    tasks::{GuardAction, GuardBudgetInput, ReclaimedBudgets},
};
use tunesmith_lambda::Problems;

use crate::{Clients, End, Owed, Settings, end, limit, mail};

/// Looks so far apart meet every month, the shortest of which has four weeks.
const STEP: Seconds = Seconds(14 * 24 * 3600);

/// Eight weeks back: longer than a run is trained and waits for its approval.
const LOOKS: usize = 5;

/// How long a look may take to mail what it has claimed: this function's time limit. After it the look is dead.
const CLAIM: Seconds = Seconds(30);

/// Settles the runs whose pipelines have ended and left money reserved, a run unfinished, or machines uncharged; mails their
/// owners; takes over the limits of this month.
///
/// # Errors
/// Whatever could not be done, after everything else was; everything may be repeated.
pub(crate) async fn reclaim(
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<ReclaimedBudgets, Failure> {
    let (mut reclaimed, mut problems) = (ReclaimedBudgets::default(), Problems::default());
    for project in projects(clients, settings, now, &mut problems).await {
        let runs = clients.table.query(&ItemKey::project(&project), "RUN#").await.map_err(Failure::from);
        let runs: Vec<RunRecord> = problems.keep(&project, runs).unwrap_or_default();
        for record in runs.into_iter().filter(is_unsettled) {
            let found = problems.keep(&record.run, look(&record, clients, now).await);
            match found {
                Some(Found::Settled) => reclaimed.settled.push(record.run),
                Some(Found::Waiting) => reclaimed.waiting.push(record.run),
                Some(Found::Nothing) | None => {}
            }
        }
    }
    tracing::info!(settled = ?reclaimed.settled, waiting = ?reclaimed.waiting, "reclaimed");
    problems.none()?;
    Ok(reclaimed)
}

/// Whether something is left to do about a run: its money, or the mail that its pipeline is gone.
fn is_unsettled(record: &RunRecord) -> bool {
    has_open_money(record) || record.stop_mail_due.is_some()
}

/// Whether a pipeline still has to settle this run: it is reserved or waits for a decision, or a machine that ended late has
/// cost more than was charged.
fn has_open_money(record: &RunRecord) -> bool {
    matches!(record.status, RunStatus::Reserved | RunStatus::Trained) || record.metered > record.settled
}

/// What a look at a run has found.
enum Found {
    /// It was settled now.
    Settled,
    /// It will be, once its machines have ended.
    Waiting,
    /// Its pipeline is at work, or nothing was left but perhaps a mail.
    Nothing,
}

async fn look(record: &RunRecord, clients: &Clients, now: UnixTime) -> Result<Found, Failure> {
    let mut found = Found::Nothing;
    if has_open_money(record) {
        // One that Step Functions does not know is left alone: right after its start it may not be found yet.
        if clients.step_functions.describe_execution(&record.execution).await? != ExecutionState::Ended {
            return Ok(Found::Nothing);
        }
        let leases: Vec<Lease> = clients.table.query("LEASE", "").await?;
        if leases.iter().any(|lease| lease.run == record.run && lease.status != LeaseStatus::Closed) {
            return Ok(Found::Waiting);
        }
        if settle(record, clients, now).await? {
            found = Found::Settled;
        }
    }
    mail_stopped(record, clients, now).await?;
    Ok(found)
}

/// Settles in the name of the pipeline that is gone: nothing happens when another has taken the run over.
async fn settle(record: &RunRecord, clients: &Clients, now: UnixTime) -> Result<bool, Failure> {
    let release = GuardBudgetInput {
        action: GuardAction::Release,
        project: record.project.clone(),
        run: record.run.clone(),
        execution: record.execution.clone(),
    };
    let End { answer, is_new } = end(&release, Owed::StopMail, clients, now).await?;
    if is_new {
        tracing::warn!(run = %record.run, project = %record.project, execution = record.execution,
            settled = %answer.settled, returned = %answer.returned, "its pipeline is gone: settled");
    }
    Ok(is_new)
}

/// Mails that the pipeline is gone, if that is owed and no other look is about to, then crosses it out: one that dies or fails in
/// between leaves it to a later one. Only a death between mailing and crossing out mails twice.
async fn mail_stopped(seen: &RunRecord, clients: &Clients, now: UnixTime) -> Result<(), Failure> {
    let key = ItemKey::run(&seen.project, &seen.run);
    let claim = Expression::new("SET stop_mail_claimed_at = :now").value(":now", now);
    let free = Expression::new(
        "attribute_exists(stop_mail_due) AND \
         (attribute_not_exists(stop_mail_claimed_at) OR stop_mail_claimed_at <= :dead)",
    )
    .value(":dead", now.before(CLAIM));
    let Conditional::Done(record) = clients.table.update::<RunRecord>(&key, claim, Some(free)).await? else {
        return Ok(());
    };
    let Some(before) = record.stop_mail_due else { return Ok(()) };
    // of the month that the next run is paid from: the run's own may be over
    let budget: Option<BudgetItem> = clients.table.get(&ItemKey::budget(&record.project, &now.month())).await?;
    let (subject, body) = mail::stopped(&record, before, budget.as_ref().map(|budget| crate::left(Some(budget))));
    clients.notifications.publish(&subject, &body).await?;
    let sent = Expression::new("REMOVE stop_mail_due, stop_mail_claimed_at");
    let _: Conditional<RunRecord> = clients.table.update(&key, sent, Some(Expression::present())).await?;
    Ok(())
}

/// The projects that have a budget in a month of the last eight weeks. On the way, this month's limits are taken over.
async fn projects(
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
    problems: &mut Problems,
) -> BTreeSet<ProjectId> {
    let mut projects = BTreeSet::new();
    for month in months(now) {
        let budgets = clients.table.query_keyed(&ItemKey::month(&month), "").await.map_err(Failure::from);
        let budgets: Vec<(String, BudgetItem)> = problems.keep(&month, budgets).unwrap_or_default();
        for (name, item) in budgets {
            // the account's own item has no project's name
            let Ok(project) = name.parse::<ProjectId>() else { continue };
            if month == now.month() {
                problems.keep(&project, limit::take_over(&project, &month, &item, clients, settings).await);
            }
            projects.insert(project);
        }
    }
    projects
}

fn months(now: UnixTime) -> BTreeSet<String> {
    std::iter::successors(Some(now), |at| Some(at.before(STEP))).take(LOOKS).map(UnixTime::month).collect()
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::Usd;

    use super::*;

    fn record(status: RunStatus, metered: i64, settled: i64) -> RunRecord {
        RunRecord {
            run: "run-0123456789ab".parse().unwrap(),
            project: "handbook".parse().unwrap(),
            execution: "arn:e1".into(),
            status,
            month: "2026-11".into(),
            quoted: Usd::from_micros(1),
            reserved: Usd::from_micros(90_000),
            metered: Usd::from_micros(metered),
            settled: Usd::from_micros(settled),
            returned: Usd::ZERO,
            attempts: 1,
            interruptions: 0,
            stop_mail_due: None,
            stop_mail_claimed_at: None,
        }
    }

    #[test]
    fn a_run_is_unsettled_while_a_pipeline_should_own_it_or_a_machine_was_not_charged() {
        for (status, metered, settled, expected) in [
            (RunStatus::Reserved, 0, 0, true),
            (RunStatus::Trained, 5, 5, true),
            (RunStatus::Published, 5, 5, false),
            (RunStatus::Failed, 5, 5, false),
            (RunStatus::Failed, 7, 5, true),
        ] {
            assert_eq!(is_unsettled(&record(status, metered, settled)), expected, "{status:?} {metered} {settled}");
        }
    }

    #[test]
    fn a_run_whose_end_was_not_mailed_is_looked_at_again() {
        let settled = RunRecord { stop_mail_due: Some(RunStatus::Trained), ..record(RunStatus::Failed, 5, 5) };
        assert!(is_unsettled(&settled));
        assert!(!has_open_money(&settled), "its money is settled");
    }

    #[test]
    fn a_reservation_of_last_month_is_found_on_every_day_of_this_one() {
        // noon of 2027-03-01, after the shortest month, and of its 31st
        for now in [1_803_902_400, 1_806_494_400] {
            let months = months(UnixTime(now));
            assert!(months.contains("2027-03") && months.contains("2027-02"), "{months:?}");
        }
    }
}
