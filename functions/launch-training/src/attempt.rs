//! Decisions about one attempt at a run: its id, its machines, what it may spend, its user data. No I/O.

use sha2::{Digest, Sha256};
use tunesmith_contract::{
    ErrorName, Seconds, UnixTime, Usd,
    error_name::Failure,
    ledger::{LEASE_TIME, Lease, LeaseStatus, RunRecord, RunStatus},
    plan::{MachineChoice, Plan},
    settings::Market,
};

/// The script every training machine starts with.
const USER_DATA: &str = include_str!("../../../infra/user-data/train.sh");

/// Machines are asked to report this often; the state machine gives up after `HeartbeatSeconds` (900).
pub const HEARTBEAT_EVERY: Seconds = Seconds(30);

/// A new machine needs minutes to boot and to pull the image before its trainer can renew the lease.
/// Measured boot and pull times of GPU images are 3 to 8 minutes; 15 is the heartbeat limit of the state machine.
const BOOT_TIME: Seconds = Seconds(900);

/// The id of an attempt: the same task token gives the same id, so a repeated invocation launches nothing twice.
#[must_use]
pub fn attempt_id(task_token: &str) -> String {
    hex::encode(Sha256::digest(task_token.as_bytes()))[..32].to_owned()
}

/// Whether this execution may launch a machine for this run.
///
/// # Errors
/// [`ErrorName::InvalidInput`] when nothing is reserved for the run or another execution owns it;
/// [`ErrorName::CapReached`] when earlier attempts used up the reservation.
pub fn check_owner(record: &RunRecord, execution: &str) -> Result<(), Failure> {
    if record.execution != execution {
        return Err(Failure::new(
            ErrorName::InvalidInput,
            format!("run {} belongs to execution {}, not to {execution}", record.run, record.execution),
        ));
    }
    if record.status != RunStatus::Reserved {
        return Err(Failure::new(
            ErrorName::InvalidInput,
            format!("run {} is {:?}: nothing is reserved for it", record.run, record.status),
        ));
    }
    if record.metered >= record.reserved {
        return Err(Failure::new(
            ErrorName::CapReached,
            format!(
                "run {} has used {} of the {} reserved for it; raise budget.max_run_usd and start again: it resumes",
                record.run, record.metered, record.reserved
            ),
        ));
    }
    Ok(())
}

/// How often this execution's machines were taken away or lost. What earlier executions of the run met, or what failed for
/// another reason, says nothing about the spot market now.
#[must_use]
pub fn interruptions(earlier: &[Lease], execution: &str) -> u32 {
    let count =
        earlier.iter().filter(|l| l.execution == execution && l.interrupted && l.market == Market::Spot).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// An earlier attempt's lease, closed. A machine that had to be ended because the next attempt begins was lost: it did not
/// report.
#[must_use]
pub fn closed(lease: &Lease, now: UnixTime) -> Lease {
    let was_open = lease.status != LeaseStatus::Closed;
    Lease { interrupted: lease.interrupted || (was_open && lease.instance_id.is_some()), ..lease.closed_at(now) }
}

/// The machines to try, in order. After too many interruptions only on-demand ones.
#[must_use]
pub fn candidates<'a>(plan: &'a Plan, record: &RunRecord) -> Vec<&'a MachineChoice> {
    let on_demand_only = record.interruptions >= plan.settings.machines.interruptions_before_on_demand;
    let fitting: Vec<_> = plan.machines.iter().filter(|m| !on_demand_only || m.market == Market::OnDemand).collect();
    // A plan whose settings allow spot only has no on-demand machine: then spot is better than nothing.
    if fitting.is_empty() { plan.machines.iter().collect() } else { fitting }
}

/// How long a machine at this price may run for what is left of the reservation, at most the plan's longest time.
#[must_use]
pub fn longest(plan: &Plan, left: Usd, price_per_hour: Usd) -> Seconds {
    let price = price_per_hour.micros().max(1);
    let affordable = i128::from(left.micros().max(0)) * 3600 / i128::from(price);
    Seconds(u64::try_from(affordable).unwrap_or(u64::MAX).min(plan.max_time.0))
}

/// The lease of this attempt on this machine.
#[must_use]
pub fn lease(record: &RunRecord, machine: &MachineChoice, attempt: &str, task_token: &str, now: UnixTime) -> Lease {
    Lease {
        attempt: attempt.to_owned(),
        project: record.project.clone(),
        run: record.run.clone(),
        execution: record.execution.clone(),
        instance_id: None,
        instance_type: machine.instance_type.clone(),
        market: machine.market,
        price_per_hour: machine.price_per_hour,
        cap: record.reserved.saturating_sub(record.metered),
        launched_at: now,
        expires_at: now.after(Seconds(BOOT_TIME.0 + LEASE_TIME.0)),
        status: LeaseStatus::Active,
        interrupted: false,
        metered: Usd::ZERO,
        ended_at: None,
        task_token: task_token.to_owned(),
        stop_mail_due: None,
        ttl: None,
    }
}

/// The user data of this attempt.
///
/// # Errors
/// [`ErrorName::Internal`] when a value holds a character that could end the script's quotes: none of ours does.
pub fn user_data(
    job_uri: &str,
    image: &str,
    has_gpu: bool,
    region: &str,
    attempt: &str,
    longest: Seconds,
) -> Result<String, Failure> {
    let max_seconds = longest.0.to_string();
    let values = [
        ("@JOB_URI@", job_uri),
        ("@IMAGE@", image),
        ("@GPU@", if has_gpu { "yes" } else { "no" }),
        ("@REGION@", region),
        ("@ATTEMPT@", attempt),
        ("@MAX_SECONDS@", max_seconds.as_str()),
    ];
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    if let Some((name, value)) = values.iter().find(|(_, value)| !value.chars().all(plain)) {
        return Err(Failure::new(ErrorName::Internal, format!("{name} of the user data is not plain: {value:?}")));
    }
    Ok(values.iter().fold(USER_DATA.to_owned(), |script, (name, value)| script.replace(name, value)))
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{ProjectSettings, plan::Quote};

    use super::*;

    fn machine(market: Market) -> MachineChoice {
        MachineChoice {
            instance_type: "c7i.large".into(),
            zone: None,
            market,
            price_per_hour: Usd::from_micros(36_000),
            predicted: Seconds(60),
            has_gpu: false,
        }
    }

    fn plan() -> Plan {
        Plan {
            run: "run-0123456789ab".parse().unwrap(),
            project: "handbook".parse().unwrap(),
            dataset: "ds-0123456789abcdef".parse().unwrap(),
            index: "ix-0123456789abcdef".parse().unwrap(),
            base: "tunesmith-mini".parse().unwrap(),
            parameters: 5_000_000,
            steps: 10,
            tokens: 1000,
            machines: vec![machine(Market::Spot), machine(Market::OnDemand)],
            quote: Quote { expected: Usd::from_micros(1), upper_bound: Usd::from_micros(72_000) },
            max_time: Seconds(3600),
            settings: ProjectSettings::default(),
        }
    }

    fn record() -> RunRecord {
        RunRecord {
            run: "run-0123456789ab".parse().unwrap(),
            project: "handbook".parse().unwrap(),
            execution: "arn:e1".into(),
            status: RunStatus::Reserved,
            month: "2026-11".into(),
            quoted: Usd::from_micros(1),
            reserved: Usd::from_micros(72_000),
            metered: Usd::ZERO,
            settled: Usd::ZERO,
            returned: Usd::ZERO,
            attempts: 0,
            interruptions: 0,
            stop_mail_due: None,
            stop_mail_claimed_at: None,
        }
    }

    #[test]
    fn the_same_token_is_the_same_attempt() {
        assert_eq!(attempt_id("token"), attempt_id("token"));
        assert_ne!(attempt_id("token"), attempt_id("other"));
        assert_eq!(attempt_id("token").len(), 32);
    }

    #[test]
    fn after_n_interruptions_the_run_continues_on_demand() {
        let (plan, mut record) = (plan(), record());
        assert_eq!(candidates(&plan, &record).len(), 2);
        record.interruptions = 2;
        let left = candidates(&plan, &record);
        assert!(left.iter().all(|m| m.market == Market::OnDemand) && left.len() == 1);
    }

    #[test]
    fn only_what_interrupted_spot_machines_of_this_execution_counts() {
        let (spot, on_demand) = (machine(Market::Spot), machine(Market::OnDemand));
        let ended = |machine, execution: &str, interrupted| Lease {
            execution: execution.into(),
            instance_id: Some("i-1".into()),
            status: LeaseStatus::Closed,
            interrupted,
            ..lease(&record(), machine, "a", "t", UnixTime(0))
        };
        let earlier = [
            ended(&spot, "arn:e0", true),
            ended(&spot, "arn:e1", false),
            ended(&on_demand, "arn:e1", true),
            ended(&spot, "arn:e1", true),
        ];
        assert_eq!(interruptions(&earlier, "arn:e1"), 1);

        let silent = Lease { instance_id: Some("i-2".into()), ..lease(&record(), &spot, "b", "t", UnixTime(0)) };
        assert!(closed(&silent, UnixTime(9)).interrupted, "a machine that never reported was lost");
        let refused = lease(&record(), &spot, "c", "t", UnixTime(0));
        assert!(!closed(&refused, UnixTime(9)).interrupted, "no machine, no interruption");
        assert!(!closed(&earlier[1], UnixTime(9)).interrupted, "a failure that was reported is none");
    }

    #[test]
    fn only_the_owner_of_a_reservation_launches_and_only_within_it() {
        let mut record = record();
        assert!(check_owner(&record, "arn:e1").is_ok());
        assert_eq!(check_owner(&record, "arn:e2").unwrap_err().name, ErrorName::InvalidInput);
        record.metered = record.reserved;
        assert_eq!(check_owner(&record, "arn:e1").unwrap_err().name, ErrorName::CapReached);
        record.status = RunStatus::Failed;
        assert_eq!(check_owner(&record, "arn:e1").unwrap_err().name, ErrorName::InvalidInput);
    }

    #[test]
    fn a_machine_may_run_as_long_as_its_money_lasts() {
        assert_eq!(longest(&plan(), Usd::from_micros(36_000), Usd::from_micros(36_000)), Seconds(3600));
        assert_eq!(longest(&plan(), Usd::from_micros(18_000), Usd::from_micros(36_000)), Seconds(1800));
        assert_eq!(longest(&plan(), Usd::from_micros(1_000_000), Usd::from_micros(36_000)), Seconds(3600));
        assert_eq!(longest(&plan(), Usd::ZERO, Usd::ZERO), Seconds(0));
    }

    #[test]
    fn the_user_data_has_no_placeholder_left_and_refuses_quotes() {
        let script =
            user_data("s3://b/j.json", "1.dkr.ecr.us-east-1.amazonaws.com/t:1", true, "us-east-1", "ab", Seconds(60));
        let script = script.unwrap();
        for name in ["@JOB_URI@", "@IMAGE@", "@GPU@", "@REGION@", "@ATTEMPT@", "@MAX_SECONDS@"] {
            assert!(!script.contains(name), "{name}");
        }
        assert!(script.contains("job_uri='s3://b/j.json'") && script.contains("gpu='yes'"));
        assert!(user_data("s3://b/'; rm -rf /", "i", false, "r", "a", Seconds(1)).is_err());
    }
}
