//! Model, configuration and endpoint of one run.

use std::collections::BTreeMap;

use tunesmith_aws::{
    dynamodb::{Conditional, Expression},
    sagemaker::{EndpointStatus, Hosting, NewEndpointConfig, NewModel},
};
use tunesmith_budget::{EndpointPrice, PriceTable};
use tunesmith_contract::{
    ErrorName, S3Uri, UnixTime, Usd,
    deployment::{Deployment, endpoint_name},
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
        let same = format!("{standing} AND price_per_hour = :price AND instances = :instances");
        (Expression::new(owner), Expression::new(same))
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
        Conditional::ConditionFailed if is_there => Err(not_as_approved(&meter.name)),
        Conditional::ConditionFailed => Err(being_deleted(&meter.name)),
    }
}

/// Whoever made it was approved otherwise, and is done: `sweep-resources` deletes it, at the latest after its last answers.
fn not_as_approved(name: &str) -> Failure {
    let message = format!(
        "endpoint {name} is being deleted, or has another kind or price than was approved: it is created as approved when \
         that one is gone, within a quarter of an hour"
    );
    Failure::new(ErrorName::EndpointNotReady, message)
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
        EndpointPrice::Serverless { .. } => (Usd::ZERO, 0),
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
