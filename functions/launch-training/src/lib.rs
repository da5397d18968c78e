//! Lambda function `launch-training`: starts the machine of one attempt at a run.
//!
//! Promise: for one task token at most one machine is launched, however often the function is invoked; no machine is launched
//! that has no lease; earlier machines of the same run are ended first, so that two never write the same checkpoints.

pub mod attempt;

use std::collections::BTreeMap;

use serde::Serialize;
use tunesmith_aws::{
    dynamodb::{Conditional, Expression, Table},
    ec2::{Ec2, LaunchRequest, Launched, Subnet},
    s3::S3,
};
use tunesmith_contract::{
    ErrorName, S3Uri, Seconds, UnixTime,
    deployment::LiveRecord,
    error_name::Failure,
    job::{BaseSource, Control, Location, TrainJob},
    keys::workspace,
    ledger::{ItemKey, Lease, LeaseStatus, RunRecord},
    plan::{MachineChoice, Plan},
    tasks::LaunchTrainingInput,
};

/// Tag that carries the attempt: what `sweep-resources` finds machines by.
pub const ATTEMPT_TAG: &str = "tunesmith:attempt";

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Plans and jobs.
    pub s3: S3,
    /// Runs and leases.
    pub table: Table,
    /// Machines.
    pub ec2: Ec2,
}

/// What the function is told by its environment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `WORKSPACE_BUCKET`
    pub workspace_bucket: String,
    /// `TABLE`
    pub table: String,
    /// `LAUNCH_TEMPLATE_ID`
    pub launch_template_id: String,
    /// `SUBNET_IDS`
    pub subnet_ids: Vec<String>,
    /// `TRAINER_IMAGE`
    pub trainer_image: String,
    /// `AWS_REGION`
    pub region: String,
}

/// What was launched; for the log, since the state machine waits for the trainer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaunchedTraining {
    /// The attempt.
    pub attempt: String,
    /// The machine.
    pub instance_id: String,
    /// Its type.
    pub instance_type: String,
}

/// Launches the machine of this attempt, or finds that it was launched before.
///
/// # Errors
/// [`ErrorName::NoCapacity`] and [`ErrorName::ServiceUnavailable`] (try again), [`ErrorName::QuotaExceeded`],
/// [`ErrorName::CapReached`], [`ErrorName::InvalidInput`], [`ErrorName::NotFound`], [`ErrorName::AccessDenied`].
pub async fn handle(
    input: LaunchTrainingInput,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<LaunchedTraining, Failure> {
    let folder = S3Uri::new(&settings.workspace_bucket, workspace::run(&input.project, &input.run));
    let missing = |what: &str| Failure::missing(what, &input.run);
    let plan: Plan = clients.s3.get_json(&folder.join("plan.json")).await?.ok_or_else(|| missing("the plan"))?;
    let run_key = ItemKey::run(&input.project, &input.run);
    let record: RunRecord = clients.table.get(&run_key).await?.ok_or_else(|| missing("the reservation"))?;

    let attempt = attempt::attempt_id(&input.task_token);
    let leases: Vec<Lease> = clients.table.query("LEASE", "").await?;
    let (mine, earlier): (Vec<_>, Vec<_>) =
        leases.into_iter().filter(|l| l.run == input.run).partition(|l| l.attempt == attempt);
    if let Some(Lease { instance_id: Some(instance_id), instance_type, .. }) = mine.into_iter().next() {
        tracing::info!(run = %input.run, attempt, instance_id, "the machine was launched before");
        return Ok(LaunchedTraining { attempt, instance_id, instance_type });
    }

    let earlier = end_earlier(clients, &earlier, now).await?;
    let record = RunRecord {
        metered: earlier.iter().map(|l| l.metered).sum(),
        interruptions: attempt::interruptions(&earlier, &input.execution),
        ..record
    };
    attempt::check_owner(&record, &input.execution)?;
    count_attempt(clients, &run_key, &record).await?;

    let live_adapter = live_adapter(clients, settings, &plan).await?;
    let base_folder = S3Uri::new(&settings.workspace_bucket, workspace::model(&plan.base));
    let has_folder = clients.s3.head(&base_folder.join("config.json")).await?.is_some();
    let job = TrainJob {
        run: plan.run.clone(),
        project: plan.project.clone(),
        base: BaseSource { name: plan.base.clone(), folder: has_folder.then_some(Location::S3(base_folder)) },
        dataset_id: plan.dataset.clone(),
        dataset: Location::S3(S3Uri::new(&settings.workspace_bucket, workspace::dataset(&plan.project, &plan.dataset))),
        output: Location::S3(folder.clone()),
        live_adapter,
        training: plan.settings.training.clone(),
        control: None,
    };
    launch(clients, settings, &Launch { plan: &plan, record: &record, attempt: &attempt, input: &input, now }, job)
        .await
}

/// What does not change from one candidate machine to the next.
struct Launch<'a> {
    plan: &'a Plan,
    record: &'a RunRecord,
    attempt: &'a str,
    input: &'a LaunchTrainingInput,
    now: UnixTime,
}

async fn launch(
    clients: &Clients,
    settings: &Settings,
    launch: &Launch<'_>,
    mut job: TrainJob,
) -> Result<LaunchedTraining, Failure> {
    let subnets = clients.ec2.subnets(&settings.subnet_ids).await?;
    let folder = S3Uri::new(&settings.workspace_bucket, workspace::run(&launch.plan.project, &launch.plan.run));
    let job_uri = folder.join(&format!("attempts/{}.json", launch.attempt));
    let key = ItemKey::lease(launch.attempt);
    let (mut refused, mut only_quota) = (Vec::new(), true);
    for (index, machine) in attempt::candidates(launch.plan, launch.record).into_iter().enumerate() {
        let lease = attempt::lease(launch.record, machine, launch.attempt, &launch.input.task_token, launch.now);
        let longest = attempt::longest(launch.plan, lease.cap, machine.price_per_hour);
        job.control = Some(control(launch, settings, &lease, longest));
        // Lease and job exist before the machine does: whatever happens in between, sweep-resources knows of it.
        clients.s3.put_json(&job_uri, &job).await?;
        clients.table.put(&key, &lease).await?;
        let user_data = attempt::user_data(
            &job_uri.to_string(),
            &settings.trainer_image,
            machine.has_gpu,
            &settings.region,
            launch.attempt,
            longest,
        )?;
        for subnet in in_zone(&subnets, machine) {
            let request = LaunchRequest {
                // Another machine or subnet is another request; the same one again is the same machine.
                client_token: format!("{}-{index}-{}", launch.attempt, subnet.zone),
                launch_template_id: settings.launch_template_id.clone(),
                instance_type: machine.instance_type.clone(),
                subnet_id: subnet.id.clone(),
                market: machine.market,
                user_data: user_data.clone(),
                tags: tags(launch),
            };
            match clients.ec2.run_instance(&request).await? {
                Launched::Started { instance_id } => {
                    return started(clients, &key, launch, machine, instance_id).await;
                }
                Launched::NoCapacity { reason } => {
                    only_quota = false;
                    refused.push(format!("{} in {}: {reason}", machine.instance_type, subnet.zone));
                }
                Launched::QuotaExceeded { reason } => {
                    refused.push(format!("{}: {reason}", machine.instance_type));
                    break; // a quota is the same in every zone
                }
            }
        }
    }
    if let Some(lease) = clients.table.get::<Lease>(&key).await? {
        let _: Conditional<Lease> = clients.table.close_lease(&lease.closed_at(launch.now)).await?;
    }
    let name = if only_quota && !refused.is_empty() { ErrorName::QuotaExceeded } else { ErrorName::NoCapacity };
    Err(Failure::new(name, format!("no machine for {}: {}. {}", launch.plan.run, refused.join("; "), name.remedy())))
}

/// By what the trainer's machine is kept under control.
fn control(launch: &Launch<'_>, settings: &Settings, lease: &Lease, max_time: Seconds) -> Control {
    Control {
        attempt: launch.attempt.to_owned(),
        task_token: launch.input.task_token.clone(),
        table: settings.table.clone(),
        price_per_hour: lease.price_per_hour,
        cap: lease.cap,
        max_time,
        launched_at: launch.now,
        heartbeat_every: attempt::HEARTBEAT_EVERY,
    }
}

async fn started(
    clients: &Clients,
    key: &ItemKey,
    launch: &Launch<'_>,
    machine: &MachineChoice,
    instance_id: String,
) -> Result<LaunchedTraining, Failure> {
    let update = Expression::new("SET instance_id = :id").value(":id", &instance_id);
    let _: Conditional<Lease> = clients.table.update(key, update, Some(Expression::present())).await?;
    tracing::info!(run = %launch.plan.run, attempt = launch.attempt, instance_id,
        instance_type = machine.instance_type, market = ?machine.market, price_per_hour = %machine.price_per_hour,
        interruptions = launch.record.interruptions, "launched");
    Ok(LaunchedTraining {
        attempt: launch.attempt.to_owned(),
        instance_id,
        instance_type: machine.instance_type.clone(),
    })
}

fn tags(launch: &Launch<'_>) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("Name".to_owned(), format!("tunesmith-{}", launch.plan.run)),
        (ATTEMPT_TAG.to_owned(), launch.attempt.to_owned()),
        ("tunesmith:project".to_owned(), launch.plan.project.to_string()),
        ("tunesmith:run".to_owned(), launch.plan.run.to_string()),
    ])
}

/// The subnets to try for a machine: the zone its spot price is of first.
fn in_zone<'a>(subnets: &'a [Subnet], machine: &MachineChoice) -> Vec<&'a Subnet> {
    let mut sorted: Vec<_> = subnets.iter().collect();
    sorted.sort_by_key(|subnet| machine.zone.as_deref() != Some(subnet.zone.as_str()));
    sorted
}

/// Ends machines of earlier attempts that are still there, and closes their leases. Returns all earlier leases, closed.
async fn end_earlier(clients: &Clients, earlier: &[Lease], now: UnixTime) -> Result<Vec<Lease>, Failure> {
    let open = earlier.iter().filter(|l| l.status != LeaseStatus::Closed);
    let machines: Vec<String> = open.filter_map(|l| l.instance_id.clone()).collect();
    clients.ec2.terminate(&machines).await?;
    let mut closed = Vec::new();
    for lease in earlier {
        closed.push(match lease.status {
            LeaseStatus::Closed => lease.clone(),
            _ => close(clients, lease, now).await?,
        });
    }
    Ok(closed)
}

/// Closes an open lease; as it stands then. Its trainer may have closed it at this moment, and knows best what it cost and why it
/// ended.
async fn close(clients: &Clients, lease: &Lease, now: UnixTime) -> Result<Lease, Failure> {
    let closed = attempt::closed(lease, now);
    match clients.table.close_lease(&closed).await? {
        Conditional::Done(lease) => Ok(lease),
        Conditional::ConditionFailed => {
            let found: Option<Lease> = clients.table.get(&ItemKey::lease(&closed.attempt)).await?;
            Ok(found.unwrap_or(closed))
        }
    }
}

async fn count_attempt(clients: &Clients, key: &ItemKey, record: &RunRecord) -> Result<(), Failure> {
    let update =
        Expression::new("SET #metered = :metered, #interruptions = :interruptions, #attempts = #attempts + :one")
            .name("#metered", "metered")
            .name("#interruptions", "interruptions")
            .name("#attempts", "attempts")
            .value(":metered", record.metered)
            .value(":interruptions", record.interruptions)
            .value(":one", 1);
    let condition = Expression::new("#execution = :execution")
        .name("#execution", "execution")
        .value(":execution", &record.execution);
    match clients.table.update::<RunRecord>(key, update, Some(condition)).await? {
        Conditional::Done(_) => Ok(()),
        Conditional::ConditionFailed => Err(Failure::new(
            ErrorName::InvalidInput,
            format!("run {} was taken over by another execution", record.run),
        )),
    }
}

/// The adapter of the live model, if it is for the same base: then it is evaluated beside the new one.
async fn live_adapter(clients: &Clients, settings: &Settings, plan: &Plan) -> Result<Option<Location>, Failure> {
    let Some(live) = clients.table.get::<LiveRecord>(&ItemKey::live(&plan.project)).await? else { return Ok(None) };
    if live.run == plan.run {
        return Ok(None);
    }
    let folder = S3Uri::new(&settings.workspace_bucket, workspace::run(&plan.project, &live.run));
    let live_plan: Option<Plan> = clients.s3.get_json(&folder.join("plan.json")).await?;
    Ok(live_plan.filter(|p| p.base == plan.base).map(|_| Location::S3(folder.join("adapter/"))))
}
