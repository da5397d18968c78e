//! A verified deployment becomes the live one.

use tunesmith_aws::dynamodb::{Conditional, Expression};
use tunesmith_contract::{
    UnixTime,
    deployment::{Deployment, LiveRecord},
    error_name::Failure,
    ledger::{ItemKey, RunRecord, RunStatus},
    plan::Plan,
};

use crate::Clients;

/// Writes `LIVE`, marks the run published and tells people. From here on the gateway asks the new model.
///
/// # Errors
/// AWS errors; every step may be repeated.
pub async fn publish(plan: &Plan, deployment: &Deployment, clients: &Clients, now: UnixTime) -> Result<(), Failure> {
    let live_key = ItemKey::live(&plan.project);
    let live: Option<LiveRecord> = clients.table.get(&live_key).await?;
    let is_new = live.as_ref().is_none_or(|l| l.run != plan.run);
    if is_new {
        clients.table.put(&live_key, &record(plan, deployment, now)).await?;
    }
    let update =
        Expression::new("SET #status = :published").name("#status", "status").value(":published", RunStatus::Published);
    let run_key = ItemKey::run(&plan.project, &plan.run);
    let _: Conditional<RunRecord> = clients.table.update(&run_key, update, Some(Expression::present())).await?;
    if is_new {
        let (subject, body) = mail(plan, deployment, live.as_ref());
        clients.notifications.publish(&subject, &body).await?;
    }
    tracing::info!(run = %plan.run, project = %plan.project, endpoint = deployment.endpoint, is_new, "published");
    Ok(())
}

fn record(plan: &Plan, deployment: &Deployment, now: UnixTime) -> LiveRecord {
    let serving = &plan.settings.serving;
    LiveRecord {
        run: plan.run.clone(),
        endpoint: deployment.endpoint.clone(),
        config: deployment.config.clone(),
        index: plan.index.clone(),
        since: now,
        retrieved_passages: serving.retrieved_passages,
        requests_per_minute: serving.requests_per_minute,
        tokens_per_day: serving.tokens_per_day,
    }
}

fn mail(plan: &Plan, deployment: &Deployment, before: Option<&LiveRecord>) -> (String, String) {
    let before = before.map_or_else(
        || "It is the first model of this project.".to_owned(),
        |live| format!("It replaces {}.", live.run),
    );
    (
        format!("Tunesmith: {} - the new model is live", plan.project),
        format!(
            "{run} of {project} passed its check and is live behind endpoint {endpoint}. {before}\n\n\
             Ask it through the gateway: model \"{project}\" (\"{project}:base\" is the base model for comparison).\n\
             To go back, see docs/runbook.md, \"Roll back\".\n",
            run = plan.run,
            project = plan.project,
            endpoint = deployment.endpoint,
        ),
    )
}
