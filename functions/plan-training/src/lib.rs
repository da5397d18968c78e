//! Lambda function `plan-training`: what will be trained, on which machines, for how much.
//!
//! Promise: nothing is launched that has no budget, no known model, no quota or no machine that can do it: all of that is
//! refused here, with the remedy. The same project, dataset, model and training settings are the same run; while a pipeline
//! works on a run its plan does not change.

pub mod decide;

use std::collections::BTreeMap;

use tunesmith_aws::{
    dynamodb::Table,
    ec2::Ec2,
    s3::{Fetched, PutOnce, S3},
    service_quotas::ServiceQuotas,
};
use tunesmith_budget::{
    EndpointPrice, Machine, ModelShape, PriceTable, QuoteInput, SpotOffer, Workload, WorkloadInput, candidates, quote,
    workload,
};
use tunesmith_contract::{
    BaseModel, ErrorName, ProjectSettings, S3Uri, UnixTime,
    documents::DatasetManifest,
    error_name::Failure,
    keys::{uploads, workspace},
    ledger::{ItemKey, RunRecord},
    plan::Plan,
    settings::Market,
    tasks::{PlanTrainingInput, PlannedTraining},
};
use tunesmith_lambda::{Metric, Storage, Unit, publish_metrics};

/// A `config.json` has a few kilobytes.
const CONFIG_LIMIT: u64 = 1 << 20;

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Settings, manifests, models, plans.
    pub s3: S3,
    /// Runs.
    pub table: Table,
    /// Spot prices.
    pub ec2: Ec2,
    /// Quotas.
    pub service_quotas: ServiceQuotas,
}

/// Plans a run.
///
/// # Errors
/// `SettingsInvalid`, `BudgetMissing`, `BudgetExceeded` (over `max_run_usd` or `max_run_hours`), `UnknownBaseModel`,
/// `QuotaExceeded`, `NotFound` (no dataset), AWS errors.
pub async fn handle(
    input: PlanTrainingInput,
    clients: &Clients,
    storage: &Storage,
    now: UnixTime,
) -> Result<PlannedTraining, Failure> {
    let uploaded = S3Uri::new(&storage.documents_bucket, uploads::settings(&input.project));
    let project = ProjectSettings::of_upload(clients.s3.get_text(&uploaded).await?.as_deref())?;
    decide::check_budget(&input.project, &project)?;
    let base = project.base()?;
    let run = decide::run_id(&input, &base, &project.training)?;

    let uri = S3Uri::new(&storage.workspace_bucket, workspace::run(&input.project, &run)).join("plan.json");
    let stored: Option<Plan> = clients.s3.get_json(&uri).await?;
    let record: Option<RunRecord> = clients.table.get(&ItemKey::run(&input.project, &run)).await?;
    if let Some(plan) = stored.as_ref().filter(|plan| decide::is_current(plan, &input, &project, record.as_ref())) {
        tracing::info!(run = %run, "planned before");
        return decide::answer(plan);
    }

    let manifest = manifest(&input, clients, storage).await?;
    let shape = model_shape(&base, clients, storage).await?;
    let work = workload(&WorkloadInput { shape, training: &project.training, dataset: &manifest });
    let table =
        PriceTable::embedded().map_err(|error| Failure::new(ErrorName::Internal, format!("prices.json: {error}")))?;
    // a model that could not be deployed is not trained
    EndpointPrice::of(&project.serving, &table)?;
    let machines = candidates(&table, &work, &project)?;
    let spot = spot_offers(&machines, &project, clients, now).await?;
    let quotas = quotas(&table, &machines, &project, clients).await?;
    let quoted =
        quote(&QuoteInput { table: &table, workload: &work, settings: &project, spot: &spot, quotas: &quotas })?;

    let Workload { steps, tokens, parameters, .. } = work;
    let plan = Plan {
        run,
        project: input.project,
        dataset: input.dataset,
        index: input.index,
        base,
        parameters,
        steps,
        tokens,
        machines: quoted.machines,
        quote: quoted.quote,
        max_time: quoted.max_time,
        settings: project,
    };
    let plan = write(&uri, plan, stored.is_some(), clients).await?;
    tracing::info!(
        run = %plan.run, steps, tokens, parameters, expected = %plan.quote.expected, upper_bound = %plan.quote.upper_bound,
        machine = ?plan.machines.first(), "planned"
    );
    let quoted = Metric { name: "QuotedDollars", unit: Unit::None, value: plan.quote.expected.dollars() };
    publish_metrics(now, &[quoted]);
    decide::answer(&plan)
}

/// Writes the plan. Of two pipelines that plan the same run for the first time at once, both go on with the first one's.
async fn write(uri: &S3Uri, plan: Plan, replace: bool, clients: &Clients) -> Result<Plan, Failure> {
    if replace {
        clients.s3.put_json(uri, &plan).await?;
        return Ok(plan);
    }
    match clients.s3.put_json_once(uri, &plan).await? {
        PutOnce::Written => Ok(plan),
        PutOnce::Existed => Ok(clients.s3.get_json(uri).await?.unwrap_or(plan)),
    }
}

async fn manifest(input: &PlanTrainingInput, clients: &Clients, storage: &Storage) -> Result<DatasetManifest, Failure> {
    let dataset = S3Uri::new(&storage.workspace_bucket, workspace::dataset(&input.project, &input.dataset));
    let manifest = clients.s3.get_json(&dataset.join("manifest.json")).await?;
    manifest.ok_or_else(|| Failure::missing("the manifest", &input.dataset))
}

async fn model_shape(base: &BaseModel, clients: &Clients, storage: &Storage) -> Result<ModelShape, Failure> {
    let folder = S3Uri::new(&storage.workspace_bucket, workspace::model(base));
    match clients.s3.get(&folder.join("config.json"), CONFIG_LIMIT).await? {
        Fetched::Bytes(bytes) => decide::shape_of_config(base, &bytes),
        Fetched::Missing => decide::shape_of_name(base),
        Fetched::TooLarge { bytes } => Err(Failure::new(
            ErrorName::UnknownBaseModel,
            format!("models/{}/config.json has {bytes} bytes; upload the model's own config.json", base.folder()),
        )),
    }
}

async fn spot_offers(
    machines: &[&Machine],
    project: &ProjectSettings,
    clients: &Clients,
    now: UnixTime,
) -> Result<Vec<SpotOffer>, Failure> {
    if project.machines.market == Market::OnDemand {
        return Ok(Vec::new());
    }
    let types: Vec<String> = machines.iter().map(|machine| machine.instance_type.clone()).collect();
    let prices = clients.ec2.spot_prices(&types, now).await?;
    if prices.is_empty() {
        tracing::warn!(?types, "no spot prices: on-demand machines only");
    }
    let offer = |price: tunesmith_aws::ec2::SpotPrice| SpotOffer {
        instance_type: price.instance_type,
        zone: price.zone,
        price_per_hour: price.price_per_hour,
    };
    Ok(prices.into_iter().map(offer).collect())
}

/// The account's quotas that limit these machines. A quota that Service Quotas does not know does not limit.
async fn quotas(
    table: &PriceTable,
    machines: &[&Machine],
    project: &ProjectSettings,
    clients: &Clients,
) -> Result<BTreeMap<String, f64>, Failure> {
    let mut found = BTreeMap::new();
    for code in decide::quota_codes(table, machines, project.machines.market) {
        if let Some(value) = clients.service_quotas.value("ec2", &code).await? {
            found.insert(code, value);
        }
    }
    Ok(found)
}
