//! What machines and endpoints have cost, and which alarms are due. No I/O.

use tunesmith_contract::{
    Seconds, UnixTime, Usd,
    ledger::{BudgetItem, EndpointMeter, Lease, LeaseStatus, RunRecord, RunStatus},
};

use crate::INTERVAL;

/// Whether a machine must stop now: the next look, `until_next` from here, would find it over its cap.
#[must_use]
pub fn must_stop(lease: &Lease, now: UnixTime, until_next: Seconds) -> bool {
    lease.status == LeaseStatus::Active
        && lease.instance_id.is_some()
        && lease.metered_at(now.after(until_next)) > lease.cap
}

/// Whether a look must mail that something was stopped: another look stopped it, and did not come to mailing it. `due` is when
/// that one must have ended.
#[must_use]
pub fn owes_mail(due: Option<UnixTime>, now: UnixTime) -> bool {
    due.is_some_and(|due| due <= now)
}

/// Whether endpoints must be deleted now: with what is spent, what is reserved for runs, and what they cost until the look
/// after next (one look may fail), `limit` would be passed. So they never use what a running training was promised.
#[must_use]
pub fn must_stop_endpoints(budget: &BudgetItem, limit: Usd, endpoints: &[&EndpointMeter], now: UnixTime) -> bool {
    let until = now.after(Seconds(2 * INTERVAL.0));
    let ahead: Usd = endpoints.iter().map(|endpoint| endpoint.cost_ahead(until)).sum();
    ahead > Usd::ZERO && budget.spent.saturating_add(budget.reserved).saturating_add(ahead) > limit
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
            stop_mail_due: None,
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
    fn a_stop_that_was_not_mailed_is_mailed_by_a_later_look() {
        let stopped = Lease { status: LeaseStatus::Revoked, stop_mail_due: Some(UnixTime(1120)), ..lease() };
        assert!(!owes_mail(lease().stop_mail_due, UnixTime(9999)), "nothing was stopped, or it was mailed");
        assert!(!owes_mail(stopped.stop_mail_due, UnixTime(1119)), "the look that stopped it may still be mailing");
        assert!(owes_mail(stopped.stop_mail_due, UnixTime(1120)));
        let closed = stopped.closed_at(UnixTime(1150));
        assert!(owes_mail(closed.stop_mail_due, UnixTime(1200)), "the machine has ended since");
    }

    #[test]
    fn an_endpoint_is_not_forgotten_before_its_end_was_mailed() {
        let ended = EndpointMeter { ended_at: Some(UnixTime(100)), ..endpoint() };
        assert!(ended.is_settled());
        assert!(!EndpointMeter { stop_mail_due: Some(UnixTime(220)), ..ended }.is_settled());
    }

    fn endpoint() -> EndpointMeter {
        EndpointMeter {
            name: "tunesmith-handbook-0123456789ab".into(),
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            execution: "arn:e1".into(),
            deployed_at: UnixTime(100),
            published_at: None,
            ended_at: None,
            stop_mail_due: None,
            price_per_hour: Usd::from_micros(3_600),
            instances: 2,
            monthly_limit: Usd::ZERO,
            metered_until: UnixTime(100),
        }
    }

    #[test]
    fn an_endpoint_is_charged_for_each_instance_since_the_last_time() {
        assert_eq!(endpoint().cost_until(UnixTime(110)), Usd::from_micros(20));
    }

    #[test]
    fn endpoints_never_use_what_is_reserved_for_a_training() {
        let (limit, now) = (Usd::from_micros(10_000), UnixTime(100));
        let budget = |spent, reserved| BudgetItem {
            spent: Usd::from_micros(spent),
            reserved: Usd::from_micros(reserved),
            ..BudgetItem::default()
        };
        // 2 instances at 1 micro-dollar a second, looked at every 300 s: 1,200 until the look after next
        assert!(!must_stop_endpoints(&budget(800, 8_000), limit, &[&endpoint()], now));
        assert!(must_stop_endpoints(&budget(801, 8_000), limit, &[&endpoint()], now));
        assert!(must_stop_endpoints(&budget(8_801, 0), limit, &[&endpoint()], now));
        assert!(must_stop_endpoints(&budget(4_401, 4_000), limit, &[&endpoint(), &endpoint()], UnixTime(0)), "both");
        assert!(!must_stop_endpoints(&budget(99_999, 0), limit, &[], now), "nothing to delete");
        let uncharged = UnixTime(200);
        assert!(
            must_stop_endpoints(&budget(700, 8_000), limit, &[&endpoint()], uncharged),
            "a charge that failed counts"
        );

        // Whatever is reserved and charged while looks come as they should: never above the limit.
        let (mut budget, mut meter) = (budget(0, 8_000), endpoint());
        for look in 1..100 {
            let now = UnixTime(100 + look * 300);
            budget.spent = budget.spent.saturating_add(meter.cost_until(now));
            meter.metered_until = now;
            assert!(budget.spent.saturating_add(budget.reserved) <= limit, "look {look}: {budget:?}");
            if must_stop_endpoints(&budget, limit, &[&meter], now) {
                return;
            }
        }
        panic!("it was never stopped");
    }
}
