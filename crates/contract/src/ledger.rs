//! The table: budgets, runs, leases, endpoints, API keys. Keys and items, no arithmetic (that is in `budget`).
//!
//! | pk | sk | item |
//! |---|---|---|
//! | `BUDGET#{yyyy-mm}` | `ACCOUNT` | [`BudgetItem`]: cap over all projects |
//! | `BUDGET#{yyyy-mm}` | `{project}` | [`BudgetItem`] |
//! | `PROJECT#{project}` | `RUN#{run}` | [`RunRecord`] |
//! | `PROJECT#{project}` | `SOURCE#{path}` | [`crate::documents::SourceRecord`] |
//! | `PROJECT#{project}` | `READING#{path}` | [`crate::documents::ReadingRecord`], while it is read |
//! | `PROJECT#{project}` | `REFUSALS#{hour}` | [`crate::documents::RefusalCount`] |
//! | `PROJECT#{project}` | `APPROVAL#{run}` | [`crate::approval::ApprovalRecord`] |
//! | `PROJECT#{project}` | `LIVE` | [`crate::deployment::LiveRecord`] |
//! | `LEASE` | `{attempt}` | [`Lease`] |
//! | `ENDPOINT` | `{name}` | [`EndpointMeter`] |
//! | `KEY#{sha256 of the key}` | `KEY` | [`ApiKeyItem`] |
//! | `USAGE#{sha256 of the key}` | `{yyyy-mm-dd}` or `{minute}` | [`UsageItem`] |

use serde::{Deserialize, Serialize};

use crate::{
    ids::{ProjectId, RunId},
    money::Usd,
    settings::Market,
    time::{Seconds, UnixTime},
};

/// Primary key of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemKey {
    /// Partition key `pk`.
    pub pk: String,
    /// Sort key `sk`.
    pub sk: String,
}

impl ItemKey {
    fn new(pk: impl Into<String>, sk: impl Into<String>) -> Self {
        Self { pk: pk.into(), sk: sk.into() }
    }

    /// Partition of everything of one project.
    #[must_use]
    pub fn project(project: &ProjectId) -> String {
        format!("PROJECT#{project}")
    }

    /// Partition of all budgets of a month `YYYY-MM`.
    #[must_use]
    pub fn month(month: &str) -> String {
        format!("BUDGET#{month}")
    }

    /// Budget of a project in a month `YYYY-MM`.
    #[must_use]
    pub fn budget(project: &ProjectId, month: &str) -> Self {
        Self::new(Self::month(month), project.as_str())
    }

    /// Budget of the whole account in a month. Upper case, so that no project can have this name.
    #[must_use]
    pub fn account_budget(month: &str) -> Self {
        Self::new(Self::month(month), "ACCOUNT")
    }

    /// A run.
    #[must_use]
    pub fn run(project: &ProjectId, run: &RunId) -> Self {
        Self::new(Self::project(project), format!("RUN#{run}"))
    }

    /// A source file.
    #[must_use]
    pub fn source(project: &ProjectId, path: &str) -> Self {
        Self::new(Self::project(project), format!("SOURCE#{path}"))
    }

    /// A source file that is being read.
    #[must_use]
    pub fn reading(project: &ProjectId, path: &str) -> Self {
        Self::new(Self::project(project), format!("READING#{path}"))
    }

    /// Refused files of the hour that this is in.
    #[must_use]
    pub fn refusals(project: &ProjectId, now: UnixTime) -> Self {
        Self::new(Self::project(project), format!("REFUSALS#{}", now.0.div_euclid(3600)))
    }

    /// An approval.
    #[must_use]
    pub fn approval(project: &ProjectId, run: &RunId) -> Self {
        Self::new(Self::project(project), format!("APPROVAL#{run}"))
    }

    /// The live deployment of a project.
    #[must_use]
    pub fn live(project: &ProjectId) -> Self {
        Self::new(Self::project(project), "LIVE")
    }

    /// The lease of an attempt.
    #[must_use]
    pub fn lease(attempt: &str) -> Self {
        Self::new("LEASE", attempt)
    }

    /// The meter of an endpoint.
    #[must_use]
    pub fn endpoint(name: &str) -> Self {
        Self::new("ENDPOINT", name)
    }

    /// An API key, by the hexadecimal SHA-256 of the secret.
    #[must_use]
    pub fn api_key(hash: &str) -> Self {
        Self::new(format!("KEY#{hash}"), "KEY")
    }

    /// Usage of an API key in a window (`YYYY-MM-DD` for a day, `YYYY-MM-DDTHH:MM` for a minute).
    #[must_use]
    pub fn usage(hash: &str, window: &str) -> Self {
        Self::new(format!("USAGE#{hash}"), window)
    }
}

/// What may be spent in one month and what was. Invariant: `reserved + spent <= limit` after every accepted reservation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BudgetItem {
    /// What may be spent.
    pub limit: Usd,
    /// Reserved by runs that have not been settled.
    pub reserved: Usd,
    /// Settled.
    pub spent: Usd,
    /// Thresholds (per cent) whose alarm was mailed.
    #[serde(default)]
    pub alarms_sent: Vec<u8>,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Money is reserved; a pipeline works on it.
    Reserved,
    /// Money is settled; the model waits for gate, approval or deployment.
    Trained,
    /// Live, or was.
    Published,
    /// The gate refused it.
    GateRefused,
    /// A person, or seven days of silence, refused it.
    Rejected,
    /// It failed, or its pipeline was stopped; the same run may be started again and resumes.
    Failed,
}

/// A run and its money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The run.
    pub run: RunId,
    /// The project.
    pub project: ProjectId,
    /// Execution ARN of the pipeline that owns it: only the owner may go on.
    pub execution: String,
    /// Where it stands.
    pub status: RunStatus,
    /// Month `YYYY-MM` whose budget it is charged to.
    pub month: String,
    /// Predicted cost.
    pub quoted: Usd,
    /// Reserved at the start.
    pub reserved: Usd,
    /// What the meter says so far, over all attempts.
    pub metered: Usd,
    /// Charged to the budget; zero until settled.
    pub settled: Usd,
    /// Given back to the budget; zero until settled.
    pub returned: Usd,
    /// Attempts launched.
    pub attempts: u32,
    /// How many attempts of the execution that owns the run ended in a spot interruption or were lost.
    pub interruptions: u32,
    /// Its pipeline was gone and `guard-budget` settled it: where it stood then, until its owner was mailed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_mail_due: Option<RunStatus>,
    /// When a look of `guard-budget` began to send that mail; nobody else does while it may still be at it. Here so that whoever
    /// writes the whole record keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_mail_claimed_at: Option<UnixTime>,
}

/// Whether a lease still allows its machine to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseStatus {
    /// The machine may run until `expires_at`.
    Active,
    /// The machine must stop; set by people, `watch-costs` or a pipeline that failed.
    Revoked,
    /// The machine has stopped and `metered` is final.
    Closed,
}

/// A machine's permission to run. Written before the machine is launched, so that nothing runs that is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The attempt: first 32 hexadecimal digits of the SHA-256 of its task token. EC2's client token too.
    pub attempt: String,
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
    /// Execution ARN of the pipeline that launched the machine: when that has ended, nobody needs the machine.
    #[serde(default)]
    pub execution: String,
    /// The machine, once AWS has named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Its type.
    pub instance_type: String,
    /// Spot or on demand.
    pub market: Market,
    /// Its price.
    pub price_per_hour: Usd,
    /// What it may cost.
    pub cap: Usd,
    /// When it was launched.
    pub launched_at: UnixTime,
    /// Until when it may run; the trainer renews it with each heartbeat.
    pub expires_at: UnixTime,
    /// Whether it may run.
    pub status: LeaseStatus,
    /// Whether the machine was taken away, or lost, before its work was done.
    #[serde(default)]
    pub interrupted: bool,
    /// What it has cost so far.
    pub metered: Usd,
    /// When it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<UnixTime>,
    /// Where the waiting state machine is told when the machine is lost.
    pub task_token: String,
    /// `watch-costs` has stopped the machine and owes the mail about it: when the next look may send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_mail_due: Option<UnixTime>,
    /// When DynamoDB may delete the item; set when the lease is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<i64>,
}

/// Closed leases are kept this long for people who look, then DynamoDB deletes them.
const KEEP_CLOSED: Seconds = Seconds(90 * 24 * 3600);

impl Lease {
    /// What the machine has cost until `now`: by the second since its launch, whether it has booted or not. Never less than
    /// what was metered before, final once closed, nothing without a machine.
    #[must_use]
    pub fn metered_at(&self, now: UnixTime) -> Usd {
        if self.status == LeaseStatus::Closed || self.instance_id.is_none() {
            return self.metered;
        }
        let end = self.ended_at.unwrap_or(now);
        self.price_per_hour.per_hour_for(end.since(self.launched_at)).max(self.metered)
    }

    /// This lease, closed at `now` with its final meter. Closing twice changes nothing.
    #[must_use]
    pub fn closed_at(&self, now: UnixTime) -> Self {
        if self.status == LeaseStatus::Closed {
            return self.clone();
        }
        Self {
            metered: self.metered_at(now),
            status: LeaseStatus::Closed,
            ended_at: Some(self.ended_at.unwrap_or(now)),
            ttl: Some(now.after(KEEP_CLOSED).0),
            ..self.clone()
        }
    }
}

/// How long a lease lives without renewal.
pub const LEASE_TIME: Seconds = Seconds(600);

/// An endpoint, from before it is created until after it is deleted: so none is forgotten, and each is charged to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointMeter {
    /// SageMaker's name: [`crate::deployment::endpoint_name`].
    pub name: String,
    /// The project.
    pub project: ProjectId,
    /// The run.
    pub run: RunId,
    /// Execution ARN of the pipeline that deploys it, or deployed it last.
    pub execution: String,
    /// When that was.
    pub deployed_at: UnixTime,
    /// When it became the live one, the last time; absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<UnixTime>,
    /// When somebody began to delete it. Whoever sets this deletes it; it never becomes live again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<UnixTime>,
    /// `watch-costs` has ended it and owes the mail about it: when the next look may send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_mail_due: Option<UnixTime>,
    /// Price of an hour of one instance. Without instances: that of an hour of answering, which no meter counts, or zero when the
    /// meter was written before serverless endpoints had a price.
    pub price_per_hour: Usd,
    /// Number of instances; zero for a serverless endpoint.
    pub instances: u32,
    /// The project's monthly limit when it was deployed: the limit of a month in which no run has been reserved yet.
    pub monthly_limit: Usd,
    /// Metered and charged up to here.
    pub metered_until: UnixTime,
}

impl EndpointMeter {
    /// What its instances cost from when they were last charged until then.
    #[must_use]
    pub fn cost_until(&self, then: UnixTime) -> Usd {
        let one = self.price_per_hour.per_hour_for(then.since(self.metered_until));
        Usd::from_micros(one.micros().saturating_mul(i64::from(self.instances)))
    }

    /// The same for a time to come: one that has ended costs nothing after its end.
    #[must_use]
    pub fn cost_ahead(&self, then: UnixTime) -> Usd {
        self.cost_until(self.ended_at.map_or(then, |end| end.min(then)))
    }

    /// Whether it is billed by the hour, asked or not.
    #[must_use]
    pub fn is_billed_by_the_hour(&self) -> bool {
        self.instances > 0 && self.price_per_hour > Usd::ZERO
    }

    /// Whether it has ended and nothing is left to charge or to mail: the item may go.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let is_charged = |end: UnixTime| !self.is_billed_by_the_hour() || self.metered_until >= end;
        self.ended_at.is_some_and(is_charged) && self.stop_mail_due.is_none()
    }
}

/// An API key of the gateway. The secret itself is never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKeyItem {
    /// The project it may ask.
    pub project: ProjectId,
    /// For people: who has it.
    pub label: String,
    /// Whether it is accepted.
    pub enabled: bool,
}

/// What an API key used in one window. `ttl` lets DynamoDB delete it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UsageItem {
    /// Number of requests.
    pub requests: u64,
    /// Prompt and completion tokens.
    pub tokens: u64,
    /// When DynamoDB may delete the item.
    pub ttl: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            attempt: "a".into(),
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            execution: "arn:e1".into(),
            instance_id: Some("i-1".into()),
            instance_type: "c7i.large".into(),
            market: Market::Spot,
            price_per_hour: Usd::from_micros(3_600_000),
            cap: Usd::from_micros(100_000),
            launched_at: UnixTime(1000),
            expires_at: UnixTime(2000),
            status: LeaseStatus::Active,
            interrupted: false,
            metered: Usd::ZERO,
            ended_at: None,
            task_token: "t".into(),
            stop_mail_due: None,
            ttl: None,
        }
    }

    #[test]
    fn a_machine_is_metered_by_the_second_and_a_closed_one_no_more() {
        assert_eq!(lease().metered_at(UnixTime(1090)), Usd::from_micros(90_000));
        let closed = lease().closed_at(UnixTime(1050));
        assert_eq!(closed.metered, Usd::from_micros(50_000));
        assert_eq!(closed.metered_at(UnixTime(9999)), Usd::from_micros(50_000));
        assert_eq!(closed.closed_at(UnixTime(9999)), closed);
    }

    #[test]
    fn a_lease_that_never_got_a_machine_costs_nothing() {
        let lease = Lease { instance_id: None, ..lease() };
        assert_eq!(lease.closed_at(UnixTime(5000)).metered, Usd::ZERO);
    }

    #[test]
    fn a_serverless_endpoint_has_a_price_and_is_charged_nothing() {
        let serverless = EndpointMeter {
            name: "tunesmith-handbook-0123456789ab".into(),
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            execution: "arn:e1".into(),
            deployed_at: UnixTime(1000),
            published_at: None,
            ended_at: None,
            stop_mail_due: None,
            price_per_hour: Usd::from_micros(216_000),
            instances: 0,
            monthly_limit: Usd::ZERO,
            metered_until: UnixTime(1000),
        };
        assert_eq!(serverless.cost_until(UnixTime(9999)), Usd::ZERO);
        assert!(!serverless.is_billed_by_the_hour());
        assert!(
            EndpointMeter { ended_at: Some(UnixTime(2000)), ..serverless }.is_settled(),
            "nothing is left to charge"
        );
    }

    #[test]
    fn no_project_can_take_the_place_of_the_account() {
        assert!("ACCOUNT".parse::<ProjectId>().is_err());
        assert_eq!(ItemKey::account_budget("2026-11").pk, ItemKey::month("2026-11"));
    }
}
