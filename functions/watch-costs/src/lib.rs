//! Lambda function `watch-costs`: meters what runs, warns, and stops what would exceed its cap.
//!
//! Promise: the alarms at 50, 80 and 100 % of a month's budget are mailed once each, whoever else runs at the same time, and
//! are mailed although a look dies in the middle (once more, when it dies between mailing and remembering that); a
//! machine that would pass its cap before the next look is told to stop (its trainer checkpoints first); an endpoint billed by
//! the hour is charged to its project, and deleted when the project's month is used up.

pub mod mail;
pub mod meter;

use std::collections::BTreeMap;

use tunesmith_aws::{
    dynamodb::{Conditional, Expression, Table, Transacted, Write},
    sagemaker::SageMaker,
    sns::Topic,
};
use tunesmith_contract::{
    ProjectId, RunId, Seconds, UnixTime, Usd,
    deployment::LiveRecord,
    error_name::Failure,
    ledger::{BudgetItem, EndpointMeter, ItemKey, Lease, LeaseStatus, RunRecord},
    tasks::WatchedCosts,
};

/// The schedule's interval: how far ahead a machine's cost is looked at.
pub const INTERVAL: Seconds = Seconds(300);

/// How long a look may take to mail an alarm it has claimed: this function's time limit. After it the look is dead.
const CLAIM: i64 = 120;

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Leases, runs, budgets, endpoint meters.
    pub table: Table,
    /// Who is warned.
    pub alarms: Topic,
    /// Endpoints billed by the hour.
    pub sagemaker: SageMaker,
}

/// Looks once. `account_cap` is what all projects together may spend in a month.
///
/// # Errors
/// AWS errors; everything may be repeated.
pub async fn handle(clients: &Clients, account_cap: Usd, now: UnixTime) -> Result<WatchedCosts, Failure> {
    let mut watched = WatchedCosts::default();
    meter_machines(clients, now, &mut watched).await?;
    let endpoints: Vec<EndpointMeter> = clients.table.query("ENDPOINT", "").await?;
    for endpoint in &endpoints {
        charge_endpoint(clients, endpoint, account_cap, now).await?;
    }
    let month = now.month();
    let budgets: Vec<(String, BudgetItem)> = clients.table.query_keyed(&ItemKey::month(&month), "").await?;
    let mut account = Usd::ZERO;
    for (sk, item) in &budgets {
        let Ok(project) = sk.parse::<ProjectId>() else { continue };
        let runs: Vec<RunRecord> = clients.table.query(&ItemKey::project(&project), "RUN#").await?;
        let runs: Vec<_> = runs.into_iter().filter(|r| r.month == month).collect();
        let used = meter::used(item, &runs);
        account = account.saturating_add(used);
        let spending = Spending { key: ItemKey::budget(&project, &month), whose: project.as_str(), budget: item, used };
        warn(clients, &spending, now, &mut watched).await?;
        if used > Usd::ZERO && used >= item.limit {
            stop_endpoints(clients, endpoints.iter().filter(|e| e.project == project), now, &mut watched).await?;
        }
    }
    if account > Usd::ZERO && account >= account_cap {
        stop_endpoints(clients, endpoints.iter(), now, &mut watched).await?;
    }
    if let Some((_, item)) = budgets.iter().find(|(sk, _)| sk == "ACCOUNT") {
        let key = ItemKey::account_budget(&month);
        let spending = Spending { key, whose: "the whole account", budget: item, used: account };
        warn(clients, &spending, now, &mut watched).await?;
    }
    tracing::info!(machines = watched.machines, alarms = ?watched.alarms, stopped = ?watched.stopped, used = %account,
        "watched");
    Ok(watched)
}

async fn meter_machines(clients: &Clients, now: UnixTime, watched: &mut WatchedCosts) -> Result<(), Failure> {
    let leases: Vec<Lease> = clients.table.query("LEASE", "").await?;
    let mut runs: BTreeMap<(ProjectId, RunId), Usd> = BTreeMap::new();
    for lease in &leases {
        let total = runs.entry((lease.project.clone(), lease.run.clone())).or_default();
        *total = total.saturating_add(lease.metered_at(now));
    }
    for lease in leases.iter().filter(|l| l.status != LeaseStatus::Closed && l.instance_id.is_some()) {
        watched.machines += 1;
        let key = ItemKey::lease(&lease.attempt);
        clients.table.raise(&key, "metered", lease.metered_at(now)).await?;
        if meter::must_stop(lease, now, INTERVAL) {
            let revoke = Expression::new("SET #status = :revoked, #expires = :now")
                .name("#status", "status")
                .name("#expires", "expires_at")
                .value(":revoked", LeaseStatus::Revoked)
                .value(":now", now);
            let active = Expression::new("#status = :active").value(":active", LeaseStatus::Active);
            if let Conditional::Done(_) = clients.table.update::<Lease>(&key, revoke, Some(active)).await? {
                watched.stopped.push(lease.instance_id.clone().unwrap_or_default());
                let (subject, body) = mail::machine_stopped(lease, lease.metered_at(now));
                clients.alarms.publish(&subject, &body).await?;
            }
        }
    }
    let open = |run: &RunId| leases.iter().any(|l| l.run == *run && l.status != LeaseStatus::Closed);
    for ((project, run), total) in runs.into_iter().filter(|((_, run), _)| open(run)) {
        clients.table.raise(&ItemKey::run(&project, &run), "metered", total).await?;
    }
    Ok(())
}

async fn charge_endpoint(
    clients: &Clients,
    endpoint: &EndpointMeter,
    account_cap: Usd,
    now: UnixTime,
) -> Result<(), Failure> {
    if meter::endpoint_charge(endpoint, now) <= Usd::ZERO {
        return Ok(());
    }
    let is_there = clients.sagemaker.describe_endpoint(&endpoint.name).await?.is_some();
    let until = match endpoint.ended_at {
        Some(end) if !is_there => end,
        _ if is_there => now,
        // The meter is written before the endpoint is created: one that began just now is about to be.
        _ if now < endpoint.metered_until.after(INTERVAL) => return Ok(()),
        _ => return forget(clients, endpoint).await,
    };
    let charge = meter::endpoint_charge(endpoint, until);
    if charge <= Usd::ZERO {
        return Ok(());
    }
    // A month without a reservation has no budget item yet: it is made with the limit that holds.
    let add = |limit: Usd| {
        Expression::new(
            "SET #spent = if_not_exists(#spent, :zero) + :charge, #reserved = if_not_exists(#reserved, :zero), \
             #limit = if_not_exists(#limit, :limit)",
        )
        .name("#spent", "spent")
        .name("#reserved", "reserved")
        .name("#limit", "limit")
        .value(":zero", 0)
        .value(":limit", limit)
        .value(":charge", charge)
    };
    let metered = Expression::new("SET metered_until = :until").value(":until", until);
    let unchanged = Expression::new("metered_until = :before").value(":before", endpoint.metered_until);
    let month = now.month();
    let writes = vec![
        Write::update(&ItemKey::endpoint(&endpoint.name), metered).when(unchanged),
        Write::update(&ItemKey::budget(&endpoint.project, &month), add(endpoint.monthly_limit)),
        Write::update(&ItemKey::account_budget(&month), add(account_cap)),
    ];
    match clients.table.transact(writes, None).await? {
        Transacted::Done => tracing::info!(endpoint = endpoint.name, charge = %charge, "charged"),
        // Somebody else charged the same time, or touched the budget at this moment: the next look charges what is left.
        Transacted::ConditionFailed(_) | Transacted::Conflict => {}
    }
    Ok(())
}

/// Ends the meter of an endpoint that somebody deleted by hand, where it was last charged; `sweep-resources` takes it away.
async fn forget(clients: &Clients, endpoint: &EndpointMeter) -> Result<(), Failure> {
    tracing::warn!(endpoint = endpoint.name, "deleted by somebody else: no longer metered");
    let ended = Expression::new("SET ended_at = :until").value(":until", endpoint.metered_until);
    let unchanged = Expression::new("attribute_not_exists(ended_at) AND metered_until = :until");
    let key = ItemKey::endpoint(&endpoint.name);
    let _: Conditional<EndpointMeter> = clients.table.update(&key, ended, Some(unchanged)).await?;
    Ok(())
}

/// What somebody has spent this month.
struct Spending<'a> {
    key: ItemKey,
    whose: &'a str,
    budget: &'a BudgetItem,
    used: Usd,
}

async fn warn(
    clients: &Clients,
    spending: &Spending<'_>,
    now: UnixTime,
    watched: &mut WatchedCosts,
) -> Result<(), Failure> {
    let Spending { key, whose, budget, used } = spending;
    for percent in meter::due_alarms(budget, *used) {
        // Whoever claims the threshold sends the mail and then adds it to the list; a second caller finds the claim.
        let claimed = format!("alarm_{percent}_claimed_at");
        let claim = Expression::new("SET #claimed = :now").name("#claimed", &claimed).value(":now", now);
        let free = Expression::new(
            "attribute_exists(pk) AND NOT contains(#sent, :percent) AND \
             (attribute_not_exists(#claimed) OR #claimed <= :dead)",
        )
        .name("#sent", "alarms_sent")
        .value(":percent", percent)
        .value(":dead", UnixTime(now.0 - CLAIM));
        if let Conditional::Done(_) = clients.table.update::<BudgetItem>(key, claim, Some(free)).await? {
            let (subject, body) = mail::alarm(whose, percent, budget, *used);
            clients.alarms.publish(&subject, &body).await?;
            let add = Expression::new("SET #sent = list_append(if_not_exists(#sent, :none), :one)")
                .name("#sent", "alarms_sent")
                .value(":none", Vec::<u8>::new())
                .value(":one", vec![percent]);
            let _: Conditional<BudgetItem> = clients.table.update(key, add, None).await?;
            watched.alarms.push(format!("{whose} {percent}"));
        }
    }
    Ok(())
}

/// Deletes those of the endpoints that are billed by the hour. The live record goes too, if it names one of them: the gateway
/// then says that nothing is live, and the next pipeline deploys the run again.
async fn stop_endpoints(
    clients: &Clients,
    endpoints: impl Iterator<Item = &EndpointMeter>,
    now: UnixTime,
    watched: &mut WatchedCosts,
) -> Result<(), Failure> {
    for endpoint in endpoints.filter(|e| e.is_billed_by_the_hour() && e.ended_at.is_none()) {
        if watched.stopped.contains(&endpoint.name) {
            continue;
        }
        // The meter's end is written last: whatever dies before, the next look does it all again; what dies after is left to
        // sweep-resources.
        let (subject, body) = mail::endpoint_stopped(endpoint);
        clients.alarms.publish(&subject, &body).await?;
        let ended = Expression::new("SET ended_at = :now").value(":now", now);
        let standing = Expression::new("attribute_exists(pk) AND attribute_not_exists(ended_at)");
        let mut writes = vec![Write::update(&ItemKey::endpoint(&endpoint.name), ended).when(standing)];
        let live_key = ItemKey::live(&endpoint.project);
        let live: Option<LiveRecord> = clients.table.get(&live_key).await?;
        if live.is_some_and(|live| live.endpoint == endpoint.name) {
            let same = Expression::new("endpoint = :name").value(":name", &endpoint.name);
            writes.push(Write::delete(&live_key).when(same));
        }
        if clients.table.transact(writes, None).await? != Transacted::Done {
            continue; // another became live, or was deleted, at this moment: the next look sees it
        }
        clients.sagemaker.delete_endpoint(&endpoint.name).await?;
        watched.stopped.push(endpoint.name.clone());
    }
    Ok(())
}
