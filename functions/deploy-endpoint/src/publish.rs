//! A verified endpoint becomes the live one.

use tunesmith_aws::dynamodb::{Expression, Transacted, Write};
use tunesmith_contract::{
    ErrorName, UnixTime,
    deployment::{LiveRecord, endpoint_name},
    error_name::Failure,
    ledger::{ItemKey, RunStatus},
    plan::Plan,
};

use crate::Clients;

/// Writes `LIVE`, the run's status and the endpoint's `published_at` in one transaction: whatever dies, they agree. From here on
/// the gateway asks the new model; the endpoint that was live is deleted later, by `sweep-resources`.
///
/// # Errors
/// [`ErrorName::EndpointFailed`] when the endpoint is no longer this pipeline's, AWS errors. May be repeated.
pub(crate) async fn publish(
    plan: &Plan,
    execution: &str,
    clients: &Clients,
    now: UnixTime,
) -> Result<LiveRecord, Failure> {
    let live_key = ItemKey::live(&plan.project);
    let before: Option<LiveRecord> = clients.table.get(&live_key).await?;
    let live = record(plan, before.as_ref(), now);
    let published =
        Expression::new("SET #status = :published").name("#status", "status").value(":published", RunStatus::Published);
    let standing = Expression::new("SET published_at = :now").value(":now", now);
    let mine = Expression::new("#execution = :execution AND attribute_not_exists(ended_at)")
        .name("#execution", "execution")
        .value(":execution", execution);
    let writes = vec![
        Write::put(&live_key, &live),
        Write::update(&ItemKey::run(&plan.project, &plan.run), published).when(Expression::present()),
        Write::update(&ItemKey::endpoint(&live.endpoint), standing).when(mine),
    ];
    match clients.table.transact(writes, None).await? {
        Transacted::Done => {}
        Transacted::Conflict => {
            let message = format!("the records of {} are being written by somebody else", plan.run);
            return Err(Failure::new(ErrorName::ServiceUnavailable, message));
        }
        Transacted::ConditionFailed(_) => {
            let message = format!(
                "endpoint {} was deleted, or taken over by another pipeline, after it had been checked; what was live stays: \
                 start approve-deployment for {} again",
                live.endpoint, plan.run
            );
            return Err(Failure::new(ErrorName::EndpointFailed, message));
        }
    }
    tracing::info!(run = %plan.run, project = %plan.project, endpoint = live.endpoint, replaces = ?live.replaces, "published");
    Ok(live)
}

/// The new record. Published again, it says what it said: since when, and what it replaced.
fn record(plan: &Plan, before: Option<&LiveRecord>, now: UnixTime) -> LiveRecord {
    let (since, replaces) = match before {
        Some(live) if live.run == plan.run => (live.since, live.replaces.clone()),
        other => (now, other.map(|live| live.run.clone())),
    };
    let serving = &plan.settings.serving;
    LiveRecord {
        run: plan.run.clone(),
        endpoint: endpoint_name(&plan.project, &plan.run),
        replaces,
        index: plan.index.clone(),
        since,
        retrieved_passages: serving.retrieved_passages,
        requests_per_minute: serving.requests_per_minute,
        tokens_per_day: serving.tokens_per_day,
    }
}
