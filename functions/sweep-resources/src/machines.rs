//! Machines without an open lease, and what becomes of leases: [`crate::sweep`] decides, this carries it out.

use std::collections::BTreeSet;

use tunesmith_aws::{
    dynamodb::{Conditional, Expression, Item},
    sfn::ExecutionState,
};
use tunesmith_contract::{
    ErrorName, ProjectId, RunId, UnixTime, Usd,
    error_name::Failure,
    ledger::{ItemKey, Lease, LeaseStatus},
    tasks::{SweepResourcesInput, SweptResources},
};
use tunesmith_lambda::Problems;

use crate::{
    ATTEMPT_TAG, Clients,
    sweep::{self, Machine, Scope, Seen},
};

/// Ends what must end: of everybody, or, for a pipeline that is done with it, of one run. What was done.
pub(crate) async fn sweep(
    input: &SweepResourcesInput,
    clients: &Clients,
    now: UnixTime,
    problems: &mut Problems,
) -> SweptResources {
    let mut swept = SweptResources::default();
    let found = async { Ok(clients.ec2.machines_tagged(ATTEMPT_TAG, None).await?) };
    let leases = async { Ok(clients.table.query_each("LEASE", "").await?) };
    let looked: Result<(_, Vec<Item<Lease>>), Failure> = machines_then_leases(found, leases).await;
    let Some((found, items)) = problems.keep("machines", looked) else { return swept };
    let (mut leases, mut unread) = (Vec::new(), BTreeSet::new());
    for (attempt, lease) in items {
        match problems.keep(&attempt, lease.map_err(Failure::from)) {
            Some(lease) => leases.push(lease),
            None => {
                unread.insert(attempt);
            }
        }
    }
    let machines: Vec<Machine> = found
        .into_iter()
        .filter_map(|m| {
            let attempt = m.tags.get(ATTEMPT_TAG)?.clone();
            // Nobody knows whether the lease of such a machine is open, so it is no orphan; it ends itself when its time is over.
            (!unread.contains(&attempt)).then(|| Machine {
                is_running: m.is_alive(),
                instance_id: m.instance_id,
                attempt,
            })
        })
        .collect();
    let execution = input.execution.as_deref();
    let scope = input.run.as_ref().map_or(Scope::All, |run| Scope::Run { run, execution });
    let ended = match scope {
        Scope::All => ended(&leases, clients, problems).await,
        Scope::Run { .. } => BTreeSet::new(),
    };
    let seen = Seen { leases: &leases, machines: &machines, ended: &ended, now };
    let due = sweep::sweep(scope, seen);

    for lease in &due.revoke {
        if problems.keep(&lease.attempt, self::revoke(lease, clients, now).await).is_some() {
            swept.revoked_leases.push(lease.attempt.clone());
        }
    }
    let mut standing = BTreeSet::new();
    // one by one: EC2 ends all the machines of a call, or none
    for id in &due.terminate {
        let terminated = clients.ec2.terminate(std::slice::from_ref(id)).await.map_err(Failure::from);
        match problems.keep(id, terminated) {
            Some(()) => swept.terminated.push(id.clone()),
            None => {
                standing.insert(id.clone());
            }
        }
    }
    for lease in due.closable(&machines, &standing) {
        let closed = clients.table.close_lease(lease).await.map_err(Failure::from);
        // otherwise somebody else has closed it at this moment, and tells whoever waits
        if let Some(Conditional::Done(_)) = problems.keep(&lease.attempt, closed) {
            swept.closed_leases.push(lease.attempt.clone());
        }
    }
    let touched = due.close.iter().map(|l| (&l.project, &l.run)).chain(input.project.as_ref().zip(input.run.as_ref()));
    meter(touched.collect(), clients, now, problems).await;
    // Nobody looks at a closed lease again. A pipeline that is not reached here, because this fails or dies, waits for at most 900 s
    // from the last heartbeat (`HeartbeatSeconds` of the state TrainModel), then goes on as after MachineLost.
    for lease in due.lost.iter().filter(|lease| swept.closed_leases.contains(&lease.attempt)) {
        problems.keep(&lease.attempt, tell_lost(lease, clients).await);
    }
    swept
}

/// Machines are listed before leases are read. A lease is written before its machine is launched: so every machine that was
/// listed has a lease that is read, or none. The other way round, a machine launched between the two would look like an orphan.
async fn machines_then_leases<M, L>(
    machines: impl Future<Output = Result<M, Failure>>,
    leases: impl Future<Output = Result<L, Failure>>,
) -> Result<(M, L), Failure> {
    let machines = machines.await?;
    Ok((machines, leases.await?))
}

/// The machine has from now on the time that [`crate::sweep`] leaves a revoked one; its trainer sees this within 30 s.
async fn revoke(lease: &Lease, clients: &Clients, now: UnixTime) -> Result<(), Failure> {
    let revoked = Expression::new("SET #status = :revoked, expires_at = :now")
        .name("#status", "status")
        .value(":revoked", LeaseStatus::Revoked)
        .value(":now", now);
    let active = Expression::new("#status = :active").value(":active", LeaseStatus::Active);
    let done = clients.table.update::<Lease>(&ItemKey::lease(&lease.attempt), revoked, Some(active)).await?;
    tracing::warn!(run = %lease.run, attempt = lease.attempt, execution = lease.execution,
        is_new = matches!(done, Conditional::Done(_)), "its pipeline has ended: the lease is revoked");
    Ok(())
}

/// A run's meter is the sum of its leases. They are read again: what somebody else has closed since has an exact meter now. What
/// fails or dies here `watch-costs` writes, which looks at runs until ten minutes after their last machine.
async fn meter(runs: BTreeSet<(&ProjectId, &RunId)>, clients: &Clients, now: UnixTime, problems: &mut Problems) {
    if runs.is_empty() {
        return;
    }
    let items = clients.table.query_each::<Lease>("LEASE", "").await.map_err(Failure::from);
    let Some(items) = problems.keep("meters", items) else { return };
    // those that cannot be read were told when they were read first
    let leases: Vec<Lease> = items.into_iter().filter_map(|(_, lease)| lease.ok()).collect();
    for (project, run) in runs {
        let total: Usd = leases.iter().filter(|lease| lease.run == *run).map(|lease| lease.metered_at(now)).sum();
        let raised = clients.table.raise(&ItemKey::run(project, run), "metered", total).await;
        problems.keep(run, raised.map_err(Failure::from));
    }
}

/// Tells the pipeline that waits for the machine.
async fn tell_lost(lease: &Lease, clients: &Clients) -> Result<(), Failure> {
    let machine = lease.instance_id.as_deref().unwrap_or("no machine yet");
    let failure = Failure::new(
        ErrorName::MachineLost,
        format!("{machine} ({}) stopped reporting. {}", lease.instance_type, ErrorName::MachineLost.remedy()),
    );
    clients.step_functions.send_task_failure(&lease.task_token, &failure).await?;
    tracing::warn!(run = %lease.run, attempt = lease.attempt, machine, "lost");
    Ok(())
}

/// Which of the pipelines that open leases name have ended. One that Step Functions does not know is not counted: right after
/// its start it may not be found yet.
async fn ended(leases: &[Lease], clients: &Clients, problems: &mut Problems) -> BTreeSet<String> {
    let is_open = |lease: &&Lease| lease.status != LeaseStatus::Closed && !lease.execution.is_empty();
    let named: BTreeSet<&String> = leases.iter().filter(is_open).map(|lease| &lease.execution).collect();
    let mut ended = BTreeSet::new();
    for execution in named {
        let state = clients.step_functions.describe_execution(execution).await.map_err(Failure::from);
        if problems.keep(execution, state) == Some(ExecutionState::Ended) {
            ended.insert(execution.clone());
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn a_machine_launched_while_a_sweep_looks_is_no_orphan() {
        // (leases, machines); whoever looks second sees what was launched after the first look
        let world = RefCell::new((Vec::new(), Vec::new()));
        let looks = RefCell::new(0);
        let look = || {
            *looks.borrow_mut() += 1;
            if *looks.borrow() == 2 {
                world.replace((vec!["a"], vec!["a"]));
            }
            world.borrow().clone()
        };
        let (machines, leases) =
            machines_then_leases(async { Ok(look().1) }, async { Ok(look().0) }).await.unwrap_or_default();
        assert_eq!(leases, ["a"]);
        assert!(machines.iter().all(|machine| leases.contains(machine)), "an orphan: {machines:?} of {leases:?}");
        assert!(machines.is_empty(), "machines were listed first");
    }
}
