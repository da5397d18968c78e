//! What machines and endpoints have cost, and which alarms are due. No I/O.

use tunesmith_contract::{
    Seconds, UnixTime, Usd,
    ledger::{BudgetItem, EndpointMeter, Lease, LeaseStatus, RunRecord, RunStatus},
};

/// Whether a machine must stop now: the next look, `until_next` from here, would find it over its cap.
#[must_use]
pub fn must_stop(lease: &Lease, now: UnixTime, until_next: Seconds) -> bool {
    lease.status == LeaseStatus::Active
        && lease.instance_id.is_some()
        && lease.metered_at(now.after(until_next)) > lease.cap
}

/// What an endpoint has cost since it was last charged.
#[must_use]
pub fn endpoint_charge(meter: &EndpointMeter, now: UnixTime) -> Usd {
    let one = meter.price_per_hour.per_hour_for(now.since(meter.metered_until));
    Usd::from_micros(one.micros().saturating_mul(i64::from(meter.instances)))
}

/// What a project has used of its month: settled runs, and what the meter says of those that are not settled.
#[must_use]
pub fn used(budget: &BudgetItem, runs: &[RunRecord]) -> Usd {
    let open: Usd = runs.iter().filter(|r| r.status == RunStatus::Reserved).map(|r| r.metered).sum();
    budget.spent.saturating_add(open)
}

/// The thresholds (per cent) that are reached and whose alarm has not been sent, lowest first.
#[must_use]
pub fn due_alarms(budget: &BudgetItem, used: Usd) -> Vec<u8> {
    let reached = tunesmith_budget::reached_percents(used, budget.limit);
    reached.into_iter().filter(|percent| !budget.alarms_sent.contains(percent)).collect()
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::settings::Market;

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
            ttl: None,
        }
    }

    #[test]
    fn a_machine_is_stopped_before_its_cap_not_after() {
        assert!(!must_stop(&lease(), UnixTime(1010), Seconds(60)));
        assert!(must_stop(&lease(), UnixTime(1050), Seconds(60)));
    }

    #[test]
    fn a_lease_without_a_machine_costs_nothing() {
        let lease = Lease { instance_id: None, ..lease() };
        assert!(!must_stop(&lease, UnixTime(5000), Seconds(60)));
    }

    #[test]
    fn each_alarm_is_due_once() {
        let mut budget = BudgetItem { limit: Usd::from_micros(100), ..BudgetItem::default() };
        assert_eq!(due_alarms(&budget, Usd::from_micros(49)), Vec::<u8>::new());
        assert_eq!(due_alarms(&budget, Usd::from_micros(80)), vec![50, 80]);
        budget.alarms_sent = vec![50, 80];
        assert_eq!(due_alarms(&budget, Usd::from_micros(100)), vec![100]);
        assert_eq!(due_alarms(&BudgetItem::default(), Usd::from_micros(100)), Vec::<u8>::new());
    }

    #[test]
    fn an_endpoint_is_charged_for_each_instance_since_the_last_time() {
        let meter = EndpointMeter {
            name: "tunesmith-handbook-0123456789ab".into(),
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            execution: "arn:e1".into(),
            deployed_at: UnixTime(100),
            published_at: None,
            ended_at: None,
            price_per_hour: Usd::from_micros(3_600),
            instances: 2,
            monthly_limit: Usd::ZERO,
            metered_until: UnixTime(100),
        };
        assert_eq!(endpoint_charge(&meter, UnixTime(110)), Usd::from_micros(20));
    }
}
