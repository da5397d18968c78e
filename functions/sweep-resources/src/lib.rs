//! Lambda function `sweep-resources`: nothing runs that nobody pays attention to.
//!
//! Promise: a machine without an open lease, or whose lease has expired, is terminated within one schedule interval; the
//! pipeline that waits for it is told; the run's meter is the sum of its leases. A machine whose pipeline has ended (stopped by
//! a person, timed out) loses its lease: it saves a checkpoint and ends, or is ended by the next round. For a pipeline that is done
//! with its run: its machines, at once, and its endpoint unless that is live; what another pipeline of the same run works with
//! stays. Endpoints: see [`endpoints`].

pub mod endpoints;
pub mod sweep;

use std::collections::BTreeSet;

use tunesmith_aws::{
    dynamodb::{Conditional, Expression, Table},
    ec2::Ec2,
    sagemaker::SageMaker,
    sfn::{ExecutionState, StepFunctions},
};
use tunesmith_contract::{
    ErrorName, UnixTime, Usd,
    error_name::Failure,
    ledger::{ItemKey, Lease, LeaseStatus},
    tasks::{SweepResourcesInput, SweptResources},
};

use crate::sweep::{Machine, Scope, Seen, Sweep};

/// Tag that carries the attempt.
const ATTEMPT_TAG: &str = "tunesmith:attempt";

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Leases and runs.
    pub table: Table,
    /// Machines.
    pub ec2: Ec2,
    /// Endpoints.
    pub sagemaker: SageMaker,
    /// Pipelines that wait for machines, or have ended.
    pub step_functions: StepFunctions,
}

/// Sweeps once.
///
/// # Errors
/// AWS errors; every step may be repeated.
pub async fn handle(input: SweepResourcesInput, clients: &Clients, now: UnixTime) -> Result<SweptResources, Failure> {
    let found = async { Ok(clients.ec2.machines_tagged(ATTEMPT_TAG, None).await?) };
    let leases = async { Ok(clients.table.query("LEASE", "").await?) };
    let (found, leases): (_, Vec<Lease>) = machines_then_leases(found, leases).await?;
    let machines: Vec<Machine> = found
        .into_iter()
        .filter_map(|m| {
            let attempt = m.tags.get(ATTEMPT_TAG)?.clone();
            Some(Machine { is_running: m.is_alive(), instance_id: m.instance_id, attempt })
        })
        .collect();
    let execution = input.execution.as_deref();
    let scope = input.run.as_ref().map_or(Scope::All, |run| Scope::Run { run, execution });
    let ended = match scope {
        Scope::All => ended(&leases, clients).await?,
        Scope::Run { .. } => BTreeSet::new(),
    };
    let seen = Seen { leases: &leases, machines: &machines, ended: &ended, now };
    let Sweep { terminate, revoke, close, lost } = sweep::sweep(scope, seen);

    clients.ec2.terminate(&terminate).await?;
    for lease in &revoke {
        self::revoke(lease, clients, now).await?;
    }
    for lease in &close {
        clients.table.put(&ItemKey::lease(&lease.attempt), lease).await?;
    }
    let touched = close.iter().map(|l| (&l.project, &l.run)).chain(input.project.as_ref().zip(input.run.as_ref()));
    for (project, run) in touched {
        let total: Usd = leases
            .iter()
            .filter(|l| l.run == *run)
            .map(|l| close.iter().find(|c| c.attempt == l.attempt).unwrap_or(l).metered_at(now))
            .sum();
        clients.table.raise(&ItemKey::run(project, run), "metered", total).await?;
    }
    for lease in &lost {
        let machine = lease.instance_id.as_deref().unwrap_or("no machine yet");
        let failure = Failure::new(
            ErrorName::MachineLost,
            format!("{machine} ({}) stopped reporting. {}", lease.instance_type, ErrorName::MachineLost.remedy()),
        );
        clients.step_functions.send_task_failure(&lease.task_token, &failure).await?;
        tracing::warn!(run = %lease.run, attempt = lease.attempt, machine, "lost");
    }
    let attempts = |leases: Vec<Lease>| leases.into_iter().map(|lease| lease.attempt).collect();
    let swept = SweptResources {
        terminated: terminate,
        revoked_leases: attempts(revoke),
        closed_leases: attempts(close),
        deleted_endpoints: endpoints::sweep(&input, clients, now).await?,
    };
    tracing::info!(terminated = ?swept.terminated, revoked_leases = ?swept.revoked_leases,
        closed_leases = ?swept.closed_leases, deleted_endpoints = ?swept.deleted_endpoints, "swept");
    Ok(swept)
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

/// The machine has from now on the time that [`sweep`] leaves a revoked one; its trainer sees this within 30 s.
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

/// Which of the pipelines that open leases name have ended. One that Step Functions does not know is not counted: right after
/// its start it may not be found yet.
async fn ended(leases: &[Lease], clients: &Clients) -> Result<BTreeSet<String>, Failure> {
    let is_open = |lease: &&Lease| lease.status != LeaseStatus::Closed && !lease.execution.is_empty();
    let named: BTreeSet<&String> = leases.iter().filter(is_open).map(|lease| &lease.execution).collect();
    let mut ended = BTreeSet::new();
    for execution in named {
        if clients.step_functions.describe_execution(execution).await? == ExecutionState::Ended {
            ended.insert(execution.clone());
        }
    }
    Ok(ended)
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
