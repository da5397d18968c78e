//! Lambda function `sweep-resources`: nothing runs that nobody pays attention to.
//!
//! Promise: a machine without an open lease, or whose lease has expired, is terminated within one schedule interval; the
//! pipeline that waits for it is told; the run's meter is the sum of its leases. For one run (a pipeline that is done with it):
//! all its machines, at once.

pub mod sweep;

use tunesmith_aws::{dynamodb::Table, ec2::Ec2, sfn::StepFunctions};
use tunesmith_contract::{
    ErrorName, UnixTime, Usd,
    error_name::Failure,
    ledger::{ItemKey, Lease},
    tasks::{SweepResourcesInput, SweptResources},
};

use crate::sweep::{Machine, Scope, Sweep};

/// Tag that carries the attempt.
const ATTEMPT_TAG: &str = "tunesmith:attempt";

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Leases and runs.
    pub table: Table,
    /// Machines.
    pub ec2: Ec2,
    /// Pipelines that wait for machines.
    pub step_functions: StepFunctions,
}

/// Sweeps once.
///
/// # Errors
/// AWS errors; every step may be repeated.
pub async fn handle(input: SweepResourcesInput, clients: &Clients, now: UnixTime) -> Result<SweptResources, Failure> {
    let leases: Vec<Lease> = clients.table.query("LEASE", "").await?;
    let found = clients.ec2.machines_tagged(ATTEMPT_TAG, None).await?;
    let machines: Vec<Machine> = found
        .into_iter()
        .filter_map(|m| {
            let attempt = m.tags.get(ATTEMPT_TAG)?.clone();
            Some(Machine { is_running: m.is_alive(), instance_id: m.instance_id, attempt })
        })
        .collect();
    let scope = input.run.as_ref().map_or(Scope::All, Scope::Run);
    let Sweep { terminate, close, lost } = sweep::sweep(scope, &leases, &machines, now);

    clients.ec2.terminate(&terminate).await?;
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
    let swept = SweptResources { terminated: terminate, closed_leases: close.into_iter().map(|l| l.attempt).collect() };
    tracing::info!(terminated = ?swept.terminated, closed_leases = ?swept.closed_leases, "swept");
    Ok(swept)
}
