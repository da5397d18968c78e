//! Lambda function `deploy-endpoint`: a run's model behind the project's endpoint, back again, or published.
//!
//! Promise: each action may be repeated; until a new endpoint configuration has been verified and published, the gateway and
//! the `LIVE` record stay with the old one.

pub mod names;
pub mod publish;

use std::collections::BTreeMap;

use tunesmith_aws::{
    dynamodb::Table,
    s3::S3,
    sagemaker::{Endpoint, EndpointStatus, Hosting, NewEndpointConfig, NewModel, Rollout, SageMaker},
    sns::Topic,
};
use tunesmith_budget::{EndpointPrice, PriceTable};
use tunesmith_contract::{
    ErrorName, S3Uri, UnixTime, Usd,
    deployment::Deployment,
    error_name::Failure,
    job::{BaseSource, Location, ServeJob},
    keys::workspace,
    ledger::{EndpointMeter, ItemKey},
    plan::Plan,
    settings::{ServingMode, ServingSettings},
    tasks::{DeployAction, DeployEndpointInput},
};

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Plans, jobs, deployments.
    pub s3: S3,
    /// `LIVE`, runs, endpoint meters.
    pub table: Table,
    /// Endpoints.
    pub sagemaker: SageMaker,
    /// Where people are written to.
    pub notifications: Topic,
}

/// What the function is told by its environment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `WORKSPACE_BUCKET`
    pub workspace_bucket: String,
    /// `ENDPOINT_ROLE_ARN`
    pub endpoint_role_arn: String,
    /// `TRAINER_IMAGE`
    pub trainer_image: String,
    /// `AWS_REGION`
    pub region: String,
}

/// Does one of the actions.
///
/// # Errors
/// [`ErrorName::EndpointNotReady`] (another change is under way: try again), [`ErrorName::NotFound`], AWS errors.
pub async fn handle(
    input: DeployEndpointInput,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<Deployment, Failure> {
    let folder = S3Uri::new(&settings.workspace_bucket, workspace::run(&input.project, &input.run));
    let plan: Plan = clients
        .s3
        .get_json(&folder.join("plan.json"))
        .await?
        .ok_or_else(|| Failure::new(ErrorName::NotFound, format!("the plan of {} is missing", input.run)))?;
    let recorded: Option<Deployment> = clients.s3.get_json(&folder.join("deployment.json")).await?;
    let known = || {
        recorded
            .clone()
            .ok_or_else(|| Failure::new(ErrorName::NotFound, format!("{} has not been deployed", input.run)))
    };
    match input.action {
        DeployAction::Deploy => deploy(&plan, recorded, clients, settings, now).await,
        DeployAction::RollBack => {
            // Nothing was recorded: the deployment failed before it changed anything.
            let Some(deployment) = recorded else {
                return Ok(names::deployment(&input.project, &input.run, None, None));
            };
            roll_back(&deployment, clients).await?;
            Ok(deployment)
        }
        DeployAction::Publish => {
            let deployment = known()?;
            publish::publish(&plan, &deployment, clients, now).await?;
            Ok(deployment)
        }
    }
}

async fn deploy(
    plan: &Plan,
    recorded: Option<Deployment>,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<Deployment, Failure> {
    let endpoint = clients.sagemaker.describe_endpoint(&names::endpoint(&plan.project)).await?;
    let current = endpoint.as_ref().filter(|e| e.status != EndpointStatus::Failed).map(|e| e.config.as_str());
    let deployment = names::deployment(&plan.project, &plan.run, current, recorded.as_ref());
    create_config(plan, &deployment, clients, settings).await?;

    // The way back is recorded before the endpoint changes.
    let folder = S3Uri::new(&settings.workspace_bucket, workspace::run(&plan.project, &plan.run));
    clients.s3.put_json(&folder.join("deployment.json"), &deployment).await?;
    clients.table.put(&ItemKey::endpoint(&deployment.endpoint), &meter(plan, &deployment, now)?).await?;
    change_endpoint(plan, &deployment, endpoint, recorded.as_ref(), clients).await?;
    tracing::info!(run = %plan.run, endpoint = deployment.endpoint, config = deployment.config,
        previous = deployment.previous_config, "deploying");
    Ok(deployment)
}

/// Creates the model and the configuration of the run, unless they are there already.
async fn create_config(
    plan: &Plan,
    deployment: &Deployment,
    clients: &Clients,
    settings: &Settings,
) -> Result<(), Failure> {
    let folder = S3Uri::new(&settings.workspace_bucket, workspace::run(&plan.project, &plan.run));
    let serve_uri = folder.join("serve.json");
    clients.s3.put_json(&serve_uri, &serve_job(plan, settings, clients).await?).await?;
    let environment = BTreeMap::from([
        ("TUNESMITH_SERVE_JOB".to_owned(), serve_uri.to_string()),
        ("AWS_REGION".to_owned(), settings.region.clone()),
    ]);
    let model = NewModel {
        name: deployment.model.clone(),
        image: settings.trainer_image.clone(),
        role_arn: settings.endpoint_role_arn.clone(),
        environment,
        tags: tags(plan),
    };
    let config = NewEndpointConfig {
        name: deployment.config.clone(),
        model: deployment.model.clone(),
        hosting: hosting(&plan.settings.serving),
        tags: tags(plan),
    };
    clients.sagemaker.create_model(&model).await?;
    clients.sagemaker.create_endpoint_config(&config).await?;
    Ok(())
}

fn tags(plan: &Plan) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("tunesmith:project".to_owned(), plan.project.to_string()),
        ("tunesmith:run".to_owned(), plan.run.to_string()),
    ])
}

/// Creates the endpoint, or changes it over to the deployment's configuration.
async fn change_endpoint(
    plan: &Plan,
    deployment: &Deployment,
    endpoint: Option<Endpoint>,
    recorded: Option<&Deployment>,
    clients: &Clients,
) -> Result<(), Failure> {
    match endpoint {
        None => {
            clients.sagemaker.create_endpoint(&deployment.endpoint, &deployment.config, &tags(plan)).await?;
        }
        Some(found) => match found.status {
            EndpointStatus::InService if found.config == deployment.config => {}
            EndpointStatus::InService => {
                let rollout = rollout(&plan.settings.serving);
                clients.sagemaker.update_endpoint(&deployment.endpoint, &deployment.config, &rollout).await?;
            }
            // Our own change, started by an earlier call of this same deployment.
            EndpointStatus::Changing if recorded == Some(deployment) => {}
            EndpointStatus::Changing => {
                return Err(Failure::new(
                    ErrorName::EndpointNotReady,
                    format!("endpoint {} is {}: another change is under way", found.name, found.word),
                ));
            }
            EndpointStatus::Failed => {
                clients.sagemaker.delete_endpoint(&found.name).await?;
                return Err(Failure::new(
                    ErrorName::EndpointNotReady,
                    format!("endpoint {} had failed ({}) and is being replaced", found.name, found.failure_reason),
                ));
            }
        },
    }
    Ok(())
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

async fn roll_back(deployment: &Deployment, clients: &Clients) -> Result<(), Failure> {
    let Some(endpoint) = clients.sagemaker.describe_endpoint(&deployment.endpoint).await? else { return Ok(()) };
    match &deployment.previous_config {
        Some(previous) if endpoint.config == *previous && endpoint.status != EndpointStatus::Changing => {}
        // Updating: SageMaker itself goes back when the update fails; when it succeeds, the next try comes here again.
        Some(_) if endpoint.status == EndpointStatus::Changing => {
            return Err(Failure::new(
                ErrorName::EndpointNotReady,
                format!("endpoint {} is {}: it cannot be changed back yet", endpoint.name, endpoint.word),
            ));
        }
        Some(previous) => {
            clients.sagemaker.update_endpoint(&endpoint.name, previous, &Rollout::AllAtOnce).await?;
        }
        None => {
            clients.sagemaker.delete_endpoint(&endpoint.name).await?;
            clients.table.delete(&ItemKey::endpoint(&endpoint.name)).await?;
        }
    }
    tracing::warn!(run = %deployment.run, endpoint = endpoint.name, previous = deployment.previous_config, "rolled back");
    Ok(())
}

fn hosting(serving: &ServingSettings) -> Hosting {
    match serving.mode {
        ServingMode::Serverless => {
            Hosting::Serverless { memory_mb: serving.memory_mb, max_concurrency: serving.max_concurrency }
        }
        ServingMode::Instance => Hosting::Instances { instance_type: serving.instance_type.clone(), count: 1 },
    }
}

/// Canary: a tenth of the traffic for five minutes. Serverless endpoints only know all at once (SageMaker Developer Guide,
/// "Deployment guardrails": blue/green needs instances).
fn rollout(serving: &ServingSettings) -> Rollout {
    match serving.mode {
        ServingMode::Serverless => Rollout::AllAtOnce,
        ServingMode::Instance => Rollout::Canary { percent: 10, wait_seconds: 300, alarms: Vec::new() },
    }
}

/// How the endpoint is metered.
///
/// # Errors
/// [`ErrorName::SettingsInvalid`] when the price of the instance type is not known: what cannot be metered is not started.
fn meter(plan: &Plan, deployment: &Deployment, now: UnixTime) -> Result<EndpointMeter, Failure> {
    let table = PriceTable::embedded().map_err(|error| Failure::new(ErrorName::Internal, error.to_string()))?;
    let (price_per_hour, instances) = match EndpointPrice::of(&plan.settings.serving, &table)? {
        EndpointPrice::Serverless { .. } => (Usd::ZERO, 0),
        EndpointPrice::Instances { count, hour, .. } => (hour, count),
    };
    Ok(EndpointMeter {
        name: deployment.endpoint.clone(),
        project: plan.project.clone(),
        price_per_hour,
        instances,
        monthly_limit: plan.settings.monthly_limit().unwrap_or(Usd::ZERO),
        metered_until: now,
    })
}
