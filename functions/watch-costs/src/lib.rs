//! Lambda function `watch-costs`: meters what runs, warns, and stops what would exceed its cap.
//!
//! Promise: the alarms at 50, 80 and 100 % of a month's budget are mailed once each, whoever else runs at the same time, and
//! are mailed although a look dies in the middle (once more, when it dies between mailing and remembering that); a
//! machine that would pass its cap before the next look is told to stop (its trainer checkpoints first), and that is mailed; an
//! endpoint billed by the hour is charged to its project, and deleted before it costs what is reserved for a training or is
//! above the month's limit, which is mailed once it is certain ([`stopped`]). What fails keeps nothing else from being done, and
//! fails the look in the end.

mod machines;
pub mod mail;
pub mod meter;
mod stopped;

use tunesmith_aws::{
    dynamodb::{Conditional, Expression, Table, Transacted, Write},
    sagemaker::SageMaker,
    sns::Topic,
};
use tunesmith_contract::{
    ProjectId, Seconds, UnixTime, Usd,
    deployment::LiveRecord,
    error_name::Failure,
    ledger::{BudgetItem, EndpointMeter, ItemKey, Lease, RunRecord},
    tasks::WatchedCosts,
};
use tunesmith_lambda::{Metric, Problems, Unit, publish_metrics};

use crate::stopped::{Stopped, mail_owed};

/// The schedule's interval: how far ahead a machine's cost is looked at.
pub const INTERVAL: Seconds = Seconds(300);

/// How long a look may take to mail what it has claimed: this function's time limit. After it the look is dead.
const CLAIM: Seconds = Seconds(120);

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
/// Whatever could not be done, after everything else was; everything may be repeated.
pub async fn handle(clients: &Clients, account_cap: Usd, now: UnixTime) -> Result<WatchedCosts, Failure> {
    let (mut watched, mut problems) = (WatchedCosts::default(), Problems::default());
    let leases = clients.table.query("LEASE", "").await.map_err(Failure::from);
    let leases: Vec<Lease> = problems.keep("leases", leases).unwrap_or_default();
    let standing = problems.keep("endpoints", endpoints(clients).await).unwrap_or_default();
    mail_owed(clients, &leases, &standing, now, &mut problems).await;
    machines::meter(clients, &leases, now, &mut watched, &mut problems).await;
    for endpoint in &standing {
        problems.keep(&endpoint.name, charge_endpoint(clients, endpoint, account_cap, now).await);
    }
    // Read again: what could not be charged is still on the meter, and counts for what follows.
    let endpoints = problems.keep("endpoints", endpoints(clients).await).unwrap_or_default();
    let month = now.month();
    let budgets = clients.table.query_keyed(&ItemKey::month(&month), "").await.map_err(Failure::from);
    let budgets: Vec<(String, BudgetItem)> = problems.keep("budgets", budgets).unwrap_or_default();
    let mut account = Usd::ZERO;
    for (sk, item) in &budgets {
        let Ok(project) = sk.parse::<ProjectId>() else { continue };
        let runs = clients.table.query(&ItemKey::project(&project), "RUN#").await.map_err(Failure::from);
        let runs: Vec<RunRecord> = problems.keep(&project, runs).unwrap_or_default();
        let runs: Vec<_> = runs.into_iter().filter(|r| r.month == month).collect();
        let used = meter::used(item, &runs);
        account = account.saturating_add(used);
        let spending = Spending { key: ItemKey::budget(&project, &month), project: Some(&project), budget: item, used };
        problems.keep(&project, warn(clients, &spending, now, &mut watched).await);
        let mine: Vec<&EndpointMeter> = endpoints.iter().filter(|e| e.project == project).collect();
        if meter::must_stop_endpoints(item, item.limit, &mine, now) {
            stop_endpoints(clients, &mine, now, &mut watched, &mut problems).await;
        }
    }
    if let Some((_, item)) = budgets.iter().find(|(sk, _)| sk == "ACCOUNT") {
        let all: Vec<&EndpointMeter> = endpoints.iter().collect();
        if meter::must_stop_endpoints(item, account_cap, &all, now) {
            stop_endpoints(clients, &all, now, &mut watched, &mut problems).await;
        }
        let key = ItemKey::account_budget(&month);
        let spending = Spending { key, project: None, budget: item, used: account };
        problems.keep("account", warn(clients, &spending, now, &mut watched).await);
    }
    tracing::info!(machines = watched.machines, alarms = ?watched.alarms, stopped = ?watched.stopped, used = %account,
        "watched");
    problems.none()?;
    // only of a whole look: a part of the money would look like a saving
    publish_metrics(
        now,
        &[
            Metric { name: "SpentDollars", unit: Unit::None, value: account.dollars() },
            Metric { name: "RunningMachines", unit: Unit::Count, value: watched.machines as f64 },
        ],
    );
    Ok(watched)
}

async fn endpoints(clients: &Clients) -> Result<Vec<EndpointMeter>, Failure> {
    Ok(clients.table.query("ENDPOINT", "").await?)
}

async fn charge_endpoint(
    clients: &Clients,
    endpoint: &EndpointMeter,
    account_cap: Usd,
    now: UnixTime,
) -> Result<(), Failure> {
    if endpoint.cost_until(now) <= Usd::ZERO {
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
    let charge = endpoint.cost_until(until);
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

/// What somebody has spent this month; without a project all of them together.
struct Spending<'a> {
    key: ItemKey,
    project: Option<&'a ProjectId>,
    budget: &'a BudgetItem,
    used: Usd,
}

async fn warn(
    clients: &Clients,
    spending: &Spending<'_>,
    now: UnixTime,
    watched: &mut WatchedCosts,
) -> Result<(), Failure> {
    let Spending { key, project, budget, used } = spending;
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
        .value(":dead", UnixTime(now.0 - CLAIM.0 as i64));
        if let Conditional::Done(_) = clients.table.update::<BudgetItem>(key, claim, Some(free)).await? {
            let (subject, body) = mail::alarm(*project, percent, budget, *used);
            clients.alarms.publish(&subject, &body).await?;
            let add = Expression::new("SET #sent = list_append(if_not_exists(#sent, :none), :one)")
                .name("#sent", "alarms_sent")
                .value(":none", Vec::<u8>::new())
                .value(":one", vec![percent]);
            // a new limit has alarms of its own: that one of the old limit was sent says nothing about them
            let same = Expression::new("#limit = :limit").name("#limit", "limit").value(":limit", budget.limit);
            let _: Conditional<BudgetItem> = clients.table.update(key, add, Some(same)).await?;
            watched.alarms.push(format!("{} {percent}", mail::whose(*project)));
        }
    }
    Ok(())
}

/// Deletes those of the endpoints that are billed by the hour and have not ended.
async fn stop_endpoints(
    clients: &Clients,
    endpoints: &[&EndpointMeter],
    now: UnixTime,
    watched: &mut WatchedCosts,
    problems: &mut Problems,
) {
    for endpoint in endpoints.iter().filter(|e| e.is_billed_by_the_hour() && e.ended_at.is_none()) {
        if !watched.stopped.contains(&endpoint.name) {
            let stopped = problems.keep(&endpoint.name, stop_endpoint(clients, endpoint, now).await);
            watched.stopped.extend(stopped.filter(|is_stopped| *is_stopped).map(|_| endpoint.name.clone()));
        }
    }
}

/// The live record goes too, if it names this endpoint: the gateway then says that nothing is live, and the next pipeline deploys
/// the run again. False when another became live, or somebody deleted it, at this moment: the next look sees it.
async fn stop_endpoint(clients: &Clients, endpoint: &EndpointMeter, now: UnixTime) -> Result<bool, Failure> {
    // From here on the endpoint ends and the mail is owed, whatever dies: sweep-resources deletes it, a later look mails it.
    let ended =
        Expression::new("SET ended_at = :now, stop_mail_due = :due").value(":now", now).value(":due", now.after(CLAIM));
    let standing = Expression::new("attribute_exists(pk) AND attribute_not_exists(ended_at)");
    let mut writes = vec![Write::update(&ItemKey::endpoint(&endpoint.name), ended).when(standing)];
    let live_key = ItemKey::live(&endpoint.project);
    let live: Option<LiveRecord> = clients.table.get(&live_key).await?;
    if live.is_some_and(|live| live.endpoint == endpoint.name) {
        let same = Expression::new("endpoint = :name").value(":name", &endpoint.name);
        writes.push(Write::delete(&live_key).when(same));
    }
    if clients.table.transact(writes, None).await? != Transacted::Done {
        return Ok(false);
    }
    // Neither waits for the other: a mail that cannot be sent does not let the endpoint go on costing money.
    let deleted = clients.sagemaker.delete_endpoint(&endpoint.name).await;
    let mailed = Stopped::endpoint(endpoint).mail(clients).await;
    deleted?;
    mailed?;
    Ok(true)
}
