//! Training machines: what they have cost, and which must stop.

use std::collections::BTreeMap;

use tunesmith_aws::dynamodb::{Conditional, Expression};
use tunesmith_contract::{
    ProjectId, RunId, UnixTime, Usd,
    error_name::Failure,
    ledger::{ItemKey, Lease, LeaseStatus},
    tasks::WatchedCosts,
};
use tunesmith_lambda::Problems;

use crate::{CLAIM, Clients, INTERVAL, meter, stopped::Stopped};

/// Meters every machine, stops those that would pass their caps, mails what was stopped.
pub async fn meter(
    clients: &Clients,
    leases: &[Lease],
    now: UnixTime,
    watched: &mut WatchedCosts,
    problems: &mut Problems,
) {
    for lease in leases.iter().filter(|l| l.status != LeaseStatus::Closed && l.instance_id.is_some()) {
        watched.machines += 1;
        let raised = clients.table.raise(&ItemKey::lease(&lease.attempt), "metered", lease.metered_at(now)).await;
        problems.keep(&lease.attempt, raised.map_err(Failure::from));
        if meter::must_stop(lease, now, INTERVAL) {
            problems.keep(&lease.attempt, stop(clients, lease, now, watched).await);
        }
    }
    for ((project, run), total) in totals(leases, now) {
        let raised = clients.table.raise(&ItemKey::run(&project, &run), "metered", total).await;
        problems.keep(&run, raised.map_err(Failure::from));
    }
}

/// What the runs whose machines are not all closed have cost.
fn totals(leases: &[Lease], now: UnixTime) -> BTreeMap<(ProjectId, RunId), Usd> {
    let mut runs: BTreeMap<(ProjectId, RunId), Usd> = BTreeMap::new();
    for lease in leases {
        let total = runs.entry((lease.project.clone(), lease.run.clone())).or_default();
        *total = total.saturating_add(lease.metered_at(now));
    }
    let is_open = |run: &RunId| leases.iter().any(|l| l.run == *run && l.status != LeaseStatus::Closed);
    runs.retain(|(_, run), _| is_open(run));
    runs
}

/// Revokes the lease, then mails it. The lease remembers that the mail is owed until it was sent.
async fn stop(clients: &Clients, lease: &Lease, now: UnixTime, watched: &mut WatchedCosts) -> Result<(), Failure> {
    let revoke = Expression::new("SET #status = :revoked, #expires = :now, stop_mail_due = :due")
        .name("#status", "status")
        .name("#expires", "expires_at")
        .value(":revoked", LeaseStatus::Revoked)
        .value(":now", now)
        .value(":due", now.after(CLAIM));
    let active = Expression::new("#status = :active").value(":active", LeaseStatus::Active);
    let key = ItemKey::lease(&lease.attempt);
    if let Conditional::Done(_) = clients.table.update::<Lease>(&key, revoke, Some(active)).await? {
        watched.stopped.push(lease.instance_id.clone().unwrap_or_default());
        Stopped::machine(lease, now).mail(clients).await?;
    }
    Ok(())
}
