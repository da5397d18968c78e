//! Model, configuration and endpoint of one run.

use std::collections::BTreeMap;

use tunesmith_aws::{
    dynamodb::{Conditional, Expression},
    sagemaker::{EndpointStatus, Hosting, NewEndpointConfig, NewModel},
};
use tunesmith_budget::{EndpointPrice, PriceTable};
use tunesmith_contract::{
    ErrorName, S3Uri, UnixTime, Usd,
    deployment::{Deployment, LiveRecord, endpoint_name},
    error_name::Failure,
    job::{BaseSource, Location, ServeJob},
    keys::workspace,
    ledger::{EndpointMeter, ItemKey},
    plan::Plan,
    settings::{ServingMode, ServingSettings},
};

use crate::{Clients, Settings};

/// Creates the run's endpoint, unless it is there already.
///
/// The meter is written first: an endpoint without one does not exist. The configuration is made anew each time an endpoint is
/// created, so that what was approved last holds and not what the run was deployed with before.
///
/// # Errors
/// As [`crate::handle`].
pub(crate) async fn create(
    plan: &Plan,
    execution: &str,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<Deployment, Failure> {
    let name = endpoint_name(&plan.project, &plan.run);
    let deployment = Deployment { project: plan.project.clone(), run: plan.run.clone(), endpoint: name.clone() };
    let found = clients.sagemaker.describe_endpoint(&name).await?;
    let status = found.as_ref().map(|endpoint| endpoint.status);
    if status == Some(EndpointStatus::Deleting) {
        return Err(being_deleted(&name));
    }
    let is_there = matches!(status, Some(EndpointStatus::InService | EndpointStatus::Changing));
    take(&meter(plan, execution, now)?, is_there, clients).await?;
    if is_there {
        tracing::info!(run = %plan.run, endpoint = name, "it is there already");
        return Ok(deployment);
    }
    if let Some(failed) = found {
        clients.sagemaker.delete_endpoint(&name).await?;
        let message = format!("endpoint {name} had failed ({}) and is being replaced", failed.failure_reason);
        return Err(Failure::new(ErrorName::EndpointNotReady, message));
    }
    clients.sagemaker.delete_endpoint_config(&name).await?;
    clients.sagemaker.delete_model(&name).await?;
    let folder = S3Uri::new(&settings.workspace_bucket, workspace::run(&plan.project, &plan.run));
    let serve_uri = folder.join("serve.json");
    clients.s3.put_json(&serve_uri, &serve_job(plan, settings, clients).await?).await?;
    clients.s3.put_json(&folder.join("deployment.json"), &deployment).await?;
    let tags = BTreeMap::from([
        ("tunesmith:project".to_owned(), plan.project.to_string()),
        ("tunesmith:run".to_owned(), plan.run.to_string()),
    ]);
    let environment = BTreeMap::from([
        ("TUNESMITH_SERVE_JOB".to_owned(), serve_uri.to_string()),
        ("AWS_REGION".to_owned(), settings.region.clone()),
    ]);
    let model = NewModel {
        name: name.clone(),
        image: settings.trainer_image.clone(),
        role_arn: settings.endpoint_role_arn.clone(),
        environment,
        tags: tags.clone(),
    };
    let config = NewEndpointConfig {
        name: name.clone(),
        model: name.clone(),
        hosting: hosting(&plan.settings.serving),
        tags: tags.clone(),
    };
    clients.sagemaker.create_model(&model).await?;
    clients.sagemaker.create_endpoint_config(&config).await?;
    clients.sagemaker.create_endpoint(&name, &name, &tags).await?;
    tracing::info!(run = %plan.run, endpoint = name, hosting = ?config.hosting, "creating");
    Ok(deployment)
}

/// Makes the endpoint this pipeline's: from now on nobody sweeps it away while the pipeline runs. One that is there keeps its
/// meter, so that nothing goes uncharged, and must have the kind and the price that were approved; one that is not begins to
/// cost now.
async fn take(meter: &EndpointMeter, is_there: bool, clients: &Clients) -> Result<(), Failure> {
    let key = ItemKey::endpoint(&meter.name);
    let fresh = clients.table.put_if(&key, meter, Expression::absent()).await?;
    if fresh == Conditional::Done(()) {
        return Ok(());
    }
    let owner = "SET #execution = :execution, deployed_at = :now";
    let standing = "attribute_exists(pk) AND attribute_not_exists(ended_at)";
    let (update, condition) = if is_there {
        // as `is_as_approved`
        let same =
            format!("{standing} AND instances = :instances AND (price_per_hour = :price OR price_per_hour = :unknown)");
        (Expression::new(owner), Expression::new(same).value(":unknown", Usd::ZERO))
    } else {
        let anew = format!(
            "{owner}, metered_until = :now, price_per_hour = :price, instances = :instances, monthly_limit = :limit"
        );
        (Expression::new(anew).value(":limit", meter.monthly_limit), Expression::new(standing))
    };
    let update = update
        .name("#execution", "execution")
        .value(":execution", &meter.execution)
        .value(":now", meter.deployed_at)
        .value(":price", meter.price_per_hour)
        .value(":instances", meter.instances);
    match clients.table.update::<EndpointMeter>(&key, update, Some(condition)).await? {
        Conditional::Done(_) => Ok(()),
        Conditional::ConditionFailed if is_there => Err(not_taken(meter, clients).await?),
        Conditional::ConditionFailed => Err(being_deleted(&meter.name)),
    }
}

/// Why an endpoint that stands is not taken over.
async fn not_taken(approved: &EndpointMeter, clients: &Clients) -> Result<Failure, Failure> {
    // in this order: whoever ends a live endpoint takes `LIVE` away and sets `ended_at` in one transaction
    let live: Option<LiveRecord> = clients.table.get(&ItemKey::live(&approved.project)).await?;
    let standing: Option<EndpointMeter> = clients.table.get(&ItemKey::endpoint(&approved.name)).await?;
    Ok(refusal(approved, standing.as_ref(), live.as_ref().map(|live| live.endpoint.as_str())))
}

/// What is live otherwise than it was approved stays so: waiting does not help. Otherwise whoever made it was approved otherwise,
/// and is done: `sweep-resources` deletes it, at the latest after its last answers.
fn refusal(approved: &EndpointMeter, standing: Option<&EndpointMeter>, live: Option<&str>) -> Failure {
    let (name, run) = (&approved.name, &approved.run);
    match standing {
        Some(standing)
            if live == Some(name.as_str()) && standing.ended_at.is_none() && !is_as_approved(standing, approved) =>
        {
            let message = format!(
                "endpoint {name} is live with another kind or price than was approved: it is {}, what was approved is {}. What is \
                 live is never changed: leave it so, or start approve-deployment with another approved run, and when that one is \
                 live with {run} again; its endpoint is then deleted, after ten minutes, and created as approved",
                price(standing),
                price(approved)
            );
            Failure::new(ErrorName::EndpointFailed, message)
        }
        _ => {
            let message = format!(
                "endpoint {name} is being deleted, or has another kind or price than was approved: it is created as approved \
                 when that one is gone, within half an hour"
            );
            Failure::new(ErrorName::EndpointNotReady, message)
        }
    }
}

/// Whether an endpoint has the kind and the price that were approved. Of serverless ones that were made before their meters had a
/// price nothing is known but that; they are taken for right.
fn is_as_approved(standing: &EndpointMeter, approved: &EndpointMeter) -> bool {
    standing.instances == approved.instances
        && (standing.price_per_hour == approved.price_per_hour || standing.price_per_hour == Usd::ZERO)
}

fn price(meter: &EndpointMeter) -> String {
    let price = meter.price_per_hour;
    match meter.instances {
        0 => format!("serverless at {price} an hour of answering"),
        instances => format!("{instances} instance(s) at {price} an hour each"),
    }
}

fn being_deleted(name: &str) -> Failure {
    let message = format!("endpoint {name} is being deleted: it is created anew when that is done, within ten minutes");
    Failure::new(ErrorName::EndpointNotReady, message)
}

async fn serve_job(plan: &Plan, settings: &Settings, clients: &Clients) -> Result<ServeJob, Failure> {
    let base = S3Uri::new(&settings.workspace_bucket, workspace::model(&plan.base));
    let has_folder = clients.s3.head(&base.join("config.json")).await?.is_some();
    let run = S3Uri::new(&settings.workspace_bucket, workspace::run(&plan.project, &plan.run));
    Ok(ServeJob {
        run: plan.run.clone(),
        project: plan.project.clone(),
        base: BaseSource { name: plan.base.clone(), folder: has_folder.then_some(Location::S3(base)) },
        adapter: Location::S3(run.join("adapter/")),
    })
}

/// On what the endpoint runs.
pub(crate) fn hosting(serving: &ServingSettings) -> Hosting {
    match serving.mode {
        ServingMode::Serverless => {
            Hosting::Serverless { memory_mb: serving.memory_mb, max_concurrency: serving.max_concurrency }
        }
        ServingMode::Instance => Hosting::Instances { instance_type: serving.instance_type.clone(), count: 1 },
    }
}

/// How the endpoint is metered.
///
/// # Errors
/// [`ErrorName::SettingsInvalid`] when the price of the instance type is not known: what cannot be metered is not started.
pub(crate) fn meter(plan: &Plan, execution: &str, now: UnixTime) -> Result<EndpointMeter, Failure> {
    let table = PriceTable::embedded().map_err(|error| Failure::new(ErrorName::Internal, error.to_string()))?;
    let (price_per_hour, instances) = match EndpointPrice::of(&plan.settings.serving, &table)? {
        EndpointPrice::Serverless { answering_hour } => (answering_hour, 0),
        EndpointPrice::Instances { count, hour, .. } => (hour, count),
    };
    Ok(EndpointMeter {
        name: endpoint_name(&plan.project, &plan.run),
        project: plan.project.clone(),
        run: plan.run.clone(),
        execution: execution.to_owned(),
        deployed_at: now,
        published_at: None,
        ended_at: None,
        stop_mail_due: None,
        price_per_hour,
        instances,
        monthly_limit: plan.settings.monthly_limit().unwrap_or(Usd::ZERO),
        metered_until: now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(instances: u32, micros: i64) -> EndpointMeter {
        EndpointMeter {
            name: "tunesmith-handbook-0123456789ab".into(),
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            execution: "arn:e1".into(),
            deployed_at: UnixTime(1_000),
            published_at: None,
            ended_at: None,
            stop_mail_due: None,
            price_per_hour: Usd::from_micros(micros),
            instances,
            monthly_limit: Usd::ZERO,
            metered_until: UnixTime(1_000),
        }
    }

    #[test]
    fn a_live_endpoint_with_another_price_is_no_reason_to_wait() {
        let (approved, standing) = (meter(1, 1_500_000), meter(1, 1_000_000));
        let live = refusal(&approved, Some(&standing), Some(standing.name.as_str()));
        assert_eq!(live.name, ErrorName::EndpointFailed);
        for part in
            ["another kind or price", "$1.00 an hour", "$1.50 an hour", "approve-deployment", "run-0123456789ab"]
        {
            assert!(live.message.contains(part), "{part}: {}", live.message);
        }
        let ended = EndpointMeter { ended_at: Some(UnixTime(2_000)), ..standing.clone() };
        for (standing, live) in [
            (Some(&standing), None),
            (Some(&standing), Some("tunesmith-handbook-ba9876543210")),
            (Some(&ended), Some(standing.name.as_str())),
            (None, Some(standing.name.as_str())),
        ] {
            let failure = refusal(&approved, standing, live);
            assert_eq!(failure.name, ErrorName::EndpointNotReady, "{standing:?} {live:?}");
            assert!(failure.message.contains("half an hour"), "{}", failure.message);
        }
    }

    #[test]
    fn a_serverless_endpoint_of_before_its_meter_had_a_price_is_not_refused_for_ever() {
        let approved = meter(0, 216_000);
        assert!(is_as_approved(&meter(0, 0), &approved) && is_as_approved(&approved, &approved));
        assert!(!is_as_approved(&meter(0, 144_000), &approved), "another memory size");
        assert!(!is_as_approved(&meter(1, 216_000), &approved), "another kind");
    }
}
