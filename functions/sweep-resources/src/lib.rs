//! Lambda function `sweep-resources`: nothing runs that nobody pays attention to.
//!
//! Promise: a machine without an open lease, or whose lease has expired, is terminated within one schedule interval; the
//! pipeline that waits for it is told; the run's meter is the sum of its leases. A machine whose pipeline has ended (stopped by
//! a person, timed out) loses its lease: it saves a checkpoint and ends, or is ended by the next round. For a pipeline that is done
//! with its run: its machines, at once, and its endpoint unless that is live; what another pipeline of the same run works with
//! stays. A machine that cannot be terminated keeps its own lease open, an item that cannot be read its own machine or endpoint
//! standing, and nothing else. Endpoints: see [`endpoints`].

pub mod endpoints;
mod machines;
pub mod sweep;

use tunesmith_aws::{dynamodb::Table, ec2::Ec2, sagemaker::SageMaker, sfn::StepFunctions};
use tunesmith_contract::{
    UnixTime,
    error_name::Failure,
    tasks::{SweepResourcesInput, SweptResources},
};
use tunesmith_lambda::Problems;

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

/// Sweeps once. Machines and endpoints do not wait for each other, nor does one of them for another.
///
/// # Errors
/// Whatever could not be done, after everything that does not wait for it was; everything may be repeated.
pub async fn handle(input: SweepResourcesInput, clients: &Clients, now: UnixTime) -> Result<SweptResources, Failure> {
    let mut problems = Problems::default();
    let mut swept = machines::sweep(&input, clients, now, &mut problems).await;
    swept.deleted_endpoints = endpoints::sweep(&input, clients, now, &mut problems).await;
    tracing::info!(terminated = ?swept.terminated, revoked_leases = ?swept.revoked_leases,
        closed_leases = ?swept.closed_leases, deleted_endpoints = ?swept.deleted_endpoints, "swept");
    problems.none()?;
    Ok(swept)
}
