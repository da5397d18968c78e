//! Endpoints that nobody needs: those of pipelines that failed or were stopped, and those that were live.
//!
//! Every endpoint has an [`EndpointMeter`] from before it is created until after it is deleted, so the table knows them all.
//! Deleting begins with `ended_at`, on condition that the endpoint was not taken or published meanwhile: what has it never
//! becomes live, and whoever finds it deletes on, however often somebody died on the way.

use tunesmith_aws::{
    dynamodb::{Conditional, Expression},
    sfn::ExecutionState,
};
use tunesmith_contract::{
    Seconds, UnixTime,
    deployment::LiveRecord,
    error_name::Failure,
    ledger::{EndpointMeter, ItemKey},
    tasks::SweepResourcesInput,
};
use tunesmith_lambda::Problems;

use crate::Clients;

/// An endpoint that was live stays this long after another took its place: the gateway looks up what is live for each request
/// and gives an answer at most five minutes (its time limit), so the last one is finished by then.
const LAST_ANSWERS: Seconds = Seconds(600);

/// Step Functions may not find an execution right after its start; later, one that it does not know is over 90 days old.
const JUST_STARTED: Seconds = Seconds(3600);

/// Deletes what nobody needs: of everybody, or, for a pipeline that is done with it, of one run. The names of what was deleted.
pub(crate) async fn sweep(
    input: &SweepResourcesInput,
    clients: &Clients,
    now: UnixTime,
    problems: &mut Problems,
) -> Vec<String> {
    let endpoints = clients.table.query_each::<EndpointMeter>("ENDPOINT", "").await.map_err(Failure::from);
    let mut deleted = Vec::new();
    for (name, endpoint) in problems.keep("endpoints", endpoints).unwrap_or_default() {
        let Some(endpoint) = problems.keep(name, endpoint.map_err(Failure::from)) else { continue };
        if input.run.as_ref().is_some_and(|run| endpoint.run != *run) {
            continue;
        }
        let ended = end(&endpoint, input.execution.as_deref(), clients, now).await;
        if problems.keep(&endpoint.name, ended) == Some(true) {
            deleted.push(endpoint.name);
        }
    }
    deleted
}

/// Whether the endpoint had to be, and was, deleted. `done` is a pipeline that runs, and is done with what it deployed.
async fn end(endpoint: &EndpointMeter, done: Option<&str>, clients: &Clients, now: UnixTime) -> Result<bool, Failure> {
    let ended_at = match endpoint.ended_at {
        Some(ended_at) => ended_at,
        None => {
            let live: Option<LiveRecord> = clients.table.get(&ItemKey::live(&endpoint.project)).await?;
            // The endpoint of this run may be another pipeline's by now, which deploys the same run.
            let pipeline = match done {
                Some(done) if done == endpoint.execution => ExecutionState::Ended,
                _ => clients.step_functions.describe_execution(&endpoint.execution).await?,
            };
            if is_needed(endpoint, live.as_ref(), pipeline, now) || !claim(endpoint, clients, now).await? {
                return Ok(false);
            }
            now
        }
    };
    let key = ItemKey::endpoint(&endpoint.name);
    let Some(ended) = still_ended(clients.table.get(&key).await?, endpoint, ended_at) else { return Ok(false) };
    clients.sagemaker.delete_endpoint(&ended.name).await?;
    clients.sagemaker.delete_endpoint_config(&ended.name).await?;
    clients.sagemaker.delete_model(&ended.name).await?;
    // One that is billed by the hour is forgotten in a later round: watch-costs charges it up to its end first, and mails that it
    // has ended it.
    if ended.is_settled() {
        let same = Expression::new("ended_at = :ended_at").value(":ended_at", ended_at);
        let _: Conditional<()> = clients.table.delete_if(&key, same).await?;
    }
    tracing::warn!(endpoint = ended.name, run = %ended.run, execution = ended.execution, "deleted");
    Ok(true)
}

/// The endpoint as the table has it now, if it is the one that was listed and has ended. The list is older: somebody else may
/// have deleted and forgotten the endpoint since, and a pipeline created it anew.
fn still_ended(found: Option<EndpointMeter>, listed: &EndpointMeter, ended_at: UnixTime) -> Option<EndpointMeter> {
    found.filter(|found| found.ended_at == Some(ended_at) && found.deployed_at == listed.deployed_at)
}

/// Whether anybody may still ask the endpoint, or is about to make it live.
#[must_use]
pub fn is_needed(endpoint: &EndpointMeter, live: Option<&LiveRecord>, pipeline: ExecutionState, now: UnixTime) -> bool {
    let is_live = live.is_some_and(|live| live.endpoint == endpoint.name);
    let is_answering = endpoint.published_at.is_some() && live.is_some_and(|live| now < live.since.after(LAST_ANSWERS));
    let is_deploying = match pipeline {
        ExecutionState::Running => true,
        ExecutionState::Unknown => now < endpoint.deployed_at.after(JUST_STARTED),
        ExecutionState::Ended => false,
    };
    is_live || is_answering || is_deploying
}

/// Begins the end of an endpoint, unless somebody deploys or publishes it at this moment.
async fn claim(endpoint: &EndpointMeter, clients: &Clients, now: UnixTime) -> Result<bool, Failure> {
    let published = match endpoint.published_at {
        Some(_) => "published_at = :published",
        None => "attribute_not_exists(published_at)",
    };
    let unchanged =
        Expression::new(format!("#execution = :execution AND attribute_not_exists(ended_at) AND {published}"))
            .name("#execution", "execution")
            .value(":execution", &endpoint.execution);
    let unchanged = match endpoint.published_at {
        Some(at) => unchanged.value(":published", at),
        None => unchanged,
    };
    let ended = Expression::new("SET ended_at = :now").value(":now", now);
    let key = ItemKey::endpoint(&endpoint.name);
    let claimed = clients.table.update::<EndpointMeter>(&key, ended, Some(unchanged)).await?;
    Ok(matches!(claimed, Conditional::Done(_)))
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::Usd;

    use super::*;

    fn endpoint(published_at: Option<UnixTime>) -> EndpointMeter {
        EndpointMeter {
            name: "tunesmith-handbook-0123456789ab".into(),
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            execution: "arn:e1".into(),
            deployed_at: UnixTime(1_000),
            published_at,
            ended_at: None,
            stop_mail_due: None,
            price_per_hour: Usd::ZERO,
            instances: 0,
            monthly_limit: Usd::ZERO,
            metered_until: UnixTime(1_000),
        }
    }

    fn live(endpoint: &str, since: i64) -> LiveRecord {
        LiveRecord {
            run: "run-ba9876543210".parse().unwrap(),
            endpoint: endpoint.into(),
            replaces: None,
            index: "ix-0123456789abcdef".parse().unwrap(),
            since: UnixTime(since),
            retrieved_passages: 0,
            requests_per_minute: 1,
            tokens_per_day: 1,
        }
    }

    fn needed(endpoint: &EndpointMeter, live: Option<&LiveRecord>, pipeline: ExecutionState, now: i64) -> bool {
        is_needed(endpoint, live, pipeline, UnixTime(now))
    }

    #[test]
    fn the_live_endpoint_is_never_swept_away() {
        let endpoint = endpoint(Some(UnixTime(2_000)));
        let live = live(&endpoint.name, 2_000);
        for pipeline in [ExecutionState::Running, ExecutionState::Ended, ExecutionState::Unknown] {
            assert!(needed(&endpoint, Some(&live), pipeline, 900_000_000), "{pipeline:?}");
        }
    }

    #[test]
    fn an_endpoint_that_was_live_gives_its_last_answers_and_then_goes() {
        let endpoint = endpoint(Some(UnixTime(2_000)));
        let live = live("tunesmith-handbook-ba9876543210", 5_000);
        assert!(needed(&endpoint, Some(&live), ExecutionState::Ended, 5_599));
        assert!(!needed(&endpoint, Some(&live), ExecutionState::Ended, 5_600));
        assert!(!needed(&endpoint, Some(&live), ExecutionState::Unknown, 5_600), "its pipeline is over 90 days old");
    }

    #[test]
    fn an_endpoint_that_was_never_live_goes_with_its_pipeline() {
        let endpoint = endpoint(None);
        let live = live("tunesmith-handbook-ba9876543210", 1_000);
        for live in [None, Some(&live)] {
            assert!(needed(&endpoint, live, ExecutionState::Running, 900_000_000));
            assert!(!needed(&endpoint, live, ExecutionState::Ended, 1_001));
            assert!(needed(&endpoint, live, ExecutionState::Unknown, 1_001), "it may have started this moment");
        }
    }

    #[test]
    fn an_endpoint_that_was_created_anew_since_it_was_listed_is_left_alone() {
        let listed = endpoint(None);
        let ended = EndpointMeter { ended_at: Some(UnixTime(3_000)), ..listed.clone() };
        let anew = EndpointMeter { deployed_at: UnixTime(4_000), ..listed.clone() };
        let ended_again = EndpointMeter { deployed_at: UnixTime(4_000), ..ended.clone() };
        let still = |found| still_ended(found, &listed, UnixTime(3_000));
        assert_eq!(still(Some(ended.clone())), Some(ended));
        for other in [None, Some(anew), Some(ended_again)] {
            assert_eq!(still(other.clone()), None, "{other:?}");
        }
    }

    #[test]
    fn an_endpoint_billed_by_the_hour_is_forgotten_when_it_is_charged_to_its_end() {
        let serverless = EndpointMeter { ended_at: Some(UnixTime(3_000)), ..endpoint(None) };
        assert!(serverless.is_settled());
        let billed = EndpointMeter { instances: 1, price_per_hour: Usd::from_micros(1), ..serverless };
        assert!(!billed.is_settled());
        assert!(EndpointMeter { metered_until: UnixTime(3_000), ..billed }.is_settled());
        assert!(!endpoint(None).is_settled(), "it stands");
    }
}
