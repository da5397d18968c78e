//! Money of pipelines that ended without settling: a person stopped them, they timed out, or their own cleaning up failed.
//!
//! Step Functions runs nothing in a stopped execution, and an event about it may get lost: so this looks. Machines come first
//! (`sweep-resources` revokes their leases); money follows once their meters are final.

use std::collections::BTreeSet;

use tunesmith_aws::sfn::ExecutionState;
use tunesmith_contract::{
    ProjectId, Seconds, UnixTime,
    error_name::Failure,
    ledger::{BudgetItem, ItemKey, Lease, LeaseStatus, RunRecord, RunStatus},
    tasks::{GuardAction, GuardBudgetInput, ReclaimedBudgets},
};

use crate::{Clients, End, end, mail};

/// Looks so far apart meet every month, the shortest of which has four weeks.
const STEP: Seconds = Seconds(14 * 24 * 3600);

/// Eight weeks back: longer than a run is trained and waits for its approval.
const LOOKS: usize = 5;

/// Settles the runs whose pipelines have ended and left money reserved, a run unfinished, or machines uncharged.
///
/// # Errors
/// AWS errors; everything may be repeated.
pub(crate) async fn reclaim(clients: &Clients, now: UnixTime) -> Result<ReclaimedBudgets, Failure> {
    let mut reclaimed = ReclaimedBudgets::default();
    for project in projects(clients, now).await? {
        let runs: Vec<RunRecord> = clients.table.query(&ItemKey::project(&project), "RUN#").await?;
        for record in runs.into_iter().filter(is_unsettled) {
            // One that Step Functions does not know is left alone: right after its start it may not be found yet.
            if clients.step_functions.describe_execution(&record.execution).await? != ExecutionState::Ended {
                continue;
            }
            let leases: Vec<Lease> = clients.table.query("LEASE", "").await?;
            if leases.iter().any(|lease| lease.run == record.run && lease.status != LeaseStatus::Closed) {
                reclaimed.waiting.push(record.run);
                continue;
            }
            if settle(&record, clients, now).await? {
                reclaimed.settled.push(record.run);
            }
        }
    }
    tracing::info!(settled = ?reclaimed.settled, waiting = ?reclaimed.waiting, "reclaimed");
    Ok(reclaimed)
}

/// Whether a pipeline still has to settle this run: it is reserved or waits for a decision, or a machine that ended late has
/// cost more than was charged.
fn is_unsettled(record: &RunRecord) -> bool {
    matches!(record.status, RunStatus::Reserved | RunStatus::Trained) || record.metered > record.settled
}

/// Settles in the name of the pipeline that is gone: nothing happens when another has taken the run over. Whoever settles
/// sends the mail.
async fn settle(record: &RunRecord, clients: &Clients, now: UnixTime) -> Result<bool, Failure> {
    let release = GuardBudgetInput {
        action: GuardAction::Release,
        project: record.project.clone(),
        run: record.run.clone(),
        execution: record.execution.clone(),
    };
    let End { answer, is_new } = end(&release, clients, now).await?;
    if is_new {
        tracing::warn!(run = %record.run, project = %record.project, execution = record.execution,
            settled = %answer.settled, returned = %answer.returned, "its pipeline is gone: settled");
    }
    if is_new && matches!(record.status, RunStatus::Reserved | RunStatus::Trained) {
        let (subject, body) = mail::stopped(record, &answer);
        clients.notifications.publish(&subject, &body).await?;
    }
    Ok(is_new)
}

/// The projects that have a budget in a month of the last eight weeks.
async fn projects(clients: &Clients, now: UnixTime) -> Result<BTreeSet<ProjectId>, Failure> {
    let mut projects = BTreeSet::new();
    for month in months(now) {
        let budgets: Vec<(String, BudgetItem)> = clients.table.query_keyed(&ItemKey::month(&month), "").await?;
        // the account's own item has no project's name
        projects.extend(budgets.into_iter().filter_map(|(name, _)| name.parse::<ProjectId>().ok()));
    }
    Ok(projects)
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
    fn a_reservation_of_last_month_is_found_on_every_day_of_this_one() {
        // noon of 2027-03-01, after the shortest month, and of its 31st
        for now in [1_803_902_400, 1_806_494_400] {
            let months = months(UnixTime(now));
            assert!(months.contains("2027-03") && months.contains("2027-02"), "{months:?}");
        }
    }
}
