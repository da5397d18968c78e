//! Training machines: what they have cost, and which must stop.

use std::collections::BTreeMap;

use tunesmith_aws::dynamodb::{Conditional, Expression};
use tunesmith_contract::{
    ProjectId, RunId, Seconds, UnixTime, Usd,
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

/// What the runs have cost whose machines are not all closed, or were within the last two looks: whoever closes a lease may die, or
/// fail, before the run's meter is written, and a closed lease is looked at by nobody else.
fn totals(leases: &[Lease], now: UnixTime) -> BTreeMap<(ProjectId, RunId), Usd> {
    let mut runs: BTreeMap<(ProjectId, RunId), Usd> = BTreeMap::new();
    for lease in leases {
        let total = runs.entry((lease.project.clone(), lease.run.clone())).or_default();
        *total = total.saturating_add(lease.metered_at(now));
    }
    let is_fresh = |lease: &Lease| {
        let just_ended = |end: UnixTime| now < end.after(Seconds(2 * INTERVAL.0));
        lease.status != LeaseStatus::Closed || lease.ended_at.is_some_and(just_ended)
    };
    runs.retain(|(_, run), _| leases.iter().any(|lease| lease.run == *run && is_fresh(lease)));
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

#[cfg(test)]
mod tests {
    use tunesmith_contract::settings::Market;

    use super::*;

    #[test]
    fn what_a_run_has_cost_is_written_until_two_looks_after_its_last_machine() {
        let ended = |attempt: &str, launched_at, ended_at| {
            let lease = Lease {
                attempt: attempt.into(),
                project: "handbook".parse().unwrap(),
                run: "run-0123456789ab".parse().unwrap(),
                execution: "arn:e1".into(),
                instance_id: Some("i-1".into()),
                instance_type: "c7i.large".into(),
                market: Market::Spot,
                price_per_hour: Usd::from_micros(3_600_000),
                cap: Usd::from_micros(100_000),
                launched_at: UnixTime(launched_at),
                expires_at: UnixTime(9_000),
                status: LeaseStatus::Active,
                interrupted: false,
                metered: Usd::ZERO,
                ended_at: None,
                task_token: "t".into(),
                stop_mail_due: None,
                ttl: None,
            };
            lease.closed_at(UnixTime(ended_at))
        };
        let leases = [ended("a", 0, 10), ended("b", 1_000, 1_005)];
        let totals = |now| totals(&leases, UnixTime(now)).into_values().collect::<Vec<_>>();
        assert_eq!(totals(1_604), [Usd::from_micros(15_000)], "both machines, though one ended long ago");
        assert!(totals(1_605).is_empty());
    }
}
