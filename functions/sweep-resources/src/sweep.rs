//! Which machines must end and which leases must close. No I/O.

use std::collections::BTreeSet;

use tunesmith_contract::{
    RunId, Seconds, UnixTime,
    ledger::{Lease, LeaseStatus},
};

/// A revoked machine (its `expires_at` is when it was revoked) has this long to checkpoint and end itself before it is ended from outside: the trainer looks at its
/// lease every 30 s, finishes a step and uploads a checkpoint; AWS itself gives two minutes on a spot notice.
const GRACE: Seconds = Seconds(120);

/// A machine that EC2 does not show is lost only this long after its lease was written. `launch-training` asks for machines
/// up to its time limit (two minutes) after that, and DescribeInstances may not show a new machine for some minutes more.
/// Source: Amazon EC2 API Reference, "Eventual consistency".
const NOT_SHOWN_YET: Seconds = Seconds(240);

/// A machine as EC2 shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// EC2's id.
    pub instance_id: String,
    /// Value of its tag `tunesmith:attempt`.
    pub attempt: String,
    /// Whether it is pending or running (anything that is billed).
    pub is_running: bool,
}

/// Whose leases are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// The schedule: expired and revoked leases and orphans of everybody.
    All,
    /// A pipeline that is done with a run: every machine that it launched, expired or not.
    Run {
        /// The run.
        run: &'a RunId,
        /// The pipeline; absent means: every machine of the run, whoever launched it.
        execution: Option<&'a str>,
    },
}

/// What is known.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Every lease, closed ones too.
    pub leases: &'a [Lease],
    /// Every machine that carries our tag.
    pub machines: &'a [Machine],
    /// Pipelines that have ended, of those that open leases name.
    pub ended: &'a BTreeSet<String>,
    /// Now.
    pub now: UnixTime,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sweep {
    /// Machines to terminate.
    pub terminate: Vec<String>,
    /// Leases to revoke: their pipelines have ended. Their machines checkpoint and end themselves, or are ended later.
    pub revoke: Vec<Lease>,
    /// Leases to close, with their final meter.
    pub close: Vec<Lease>,
    /// Closed leases whose state machine still waits: it must be told that the machine is lost.
    pub lost: Vec<Lease>,
}

impl Sweep {
    /// The leases to close when `standing` could not be terminated: a closed lease has its final meter, so none is closed while
    /// its machine may run on.
    #[must_use]
    pub fn closable(&self, machines: &[Machine], standing: &BTreeSet<String>) -> Vec<&Lease> {
        let runs_on =
            |lease: &Lease| machines.iter().any(|m| m.attempt == lease.attempt && standing.contains(&m.instance_id));
        self.close.iter().filter(|lease| !runs_on(lease)).collect()
    }
}

/// Decides from what the table and EC2 say.
#[must_use]
pub fn sweep(scope: Scope<'_>, seen: Seen<'_>) -> Sweep {
    let Seen { leases, machines, ended, now } = seen;
    let mut sweep = Sweep::default();
    for lease in leases {
        let is_open = lease.status != LeaseStatus::Closed;
        let concerned = match scope {
            Scope::Run { run, execution } => lease.run == *run && execution.is_none_or(|e| lease.execution == e),
            Scope::All => true,
        };
        let machine = machines.iter().find(|m| m.attempt == lease.attempt);
        if !concerned || !is_open {
            continue;
        }
        let over = match scope {
            Scope::Run { .. } => true,
            Scope::All => {
                let is_revoked = lease.status == LeaseStatus::Revoked;
                let expired = now >= if is_revoked { lease.expires_at.after(GRACE) } else { lease.expires_at };
                let vanished = match machine {
                    Some(machine) => !machine.is_running,
                    None => lease.instance_id.is_some() && now >= lease.launched_at.after(NOT_SHOWN_YET),
                };
                expired || vanished
            }
        };
        if !over {
            if lease.status == LeaseStatus::Active && ended.contains(&lease.execution) {
                sweep.revoke.push(lease.clone());
            }
            continue;
        }
        if let Some(machine) = machine.filter(|m| m.is_running) {
            sweep.terminate.push(machine.instance_id.clone());
        }
        let mut closed = lease.closed_at(now);
        if matches!(scope, Scope::All) {
            closed.interrupted |= lease.instance_id.is_some();
            sweep.lost.push(closed.clone());
        }
        sweep.close.push(closed);
    }
    if matches!(scope, Scope::All) {
        // Orphans: machines that carry our tag and have no open lease, e.g. because the launch was cut off half-way.
        let is_open = |attempt: &str| leases.iter().any(|l| l.attempt == attempt && l.status != LeaseStatus::Closed);
        let orphans = machines.iter().filter(|m| m.is_running && !is_open(&m.attempt));
        sweep.terminate.extend(orphans.map(|m| m.instance_id.clone()));
    }
    sweep.terminate.sort();
    sweep.terminate.dedup();
    sweep
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{Usd, settings::Market};

    use super::*;

    fn lease(attempt: &str, expires_at: i64) -> Lease {
        Lease {
            attempt: attempt.into(),
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            execution: format!("arn:{attempt}"),
            instance_id: Some(format!("i-{attempt}")),
            instance_type: "c7i.large".into(),
            market: Market::Spot,
            price_per_hour: Usd::from_micros(3_600_000),
            cap: Usd::from_micros(1_000_000),
            launched_at: UnixTime(1000),
            expires_at: UnixTime(expires_at),
            status: LeaseStatus::Active,
            interrupted: false,
            metered: Usd::ZERO,
            ended_at: None,
            task_token: "t".into(),
            stop_mail_due: None,
            ttl: None,
        }
    }

    fn sweep(scope: Scope<'_>, leases: &[Lease], machines: &[Machine], now: UnixTime) -> Sweep {
        super::sweep(scope, Seen { leases, machines, ended: &BTreeSet::new(), now })
    }

    fn machine(attempt: &str) -> Machine {
        Machine { instance_id: format!("i-{attempt}"), attempt: attempt.into(), is_running: true }
    }

    #[test]
    fn an_expired_lease_ends_its_machine_and_tells_the_pipeline() {
        let sweep =
            sweep(Scope::All, &[lease("a", 1100), lease("b", 9000)], &[machine("a"), machine("b")], UnixTime(1200));
        assert_eq!(sweep.terminate, ["i-a"]);
        assert_eq!(sweep.close.len(), 1);
        assert_eq!(sweep.close[0].metered, Usd::from_micros(200_000));
        assert_eq!(sweep.lost.len(), 1);
        assert!(sweep.close[0].interrupted, "it counts on the way to on-demand machines");
    }

    #[test]
    fn the_machine_of_a_pipeline_that_ended_is_revoked_and_ended_when_its_grace_is_over() {
        let (leases, machines) = ([lease("a", 9000), lease("b", 9000)], [machine("a"), machine("b")]);
        let ended = BTreeSet::from(["arn:a".to_owned()]);
        let seen = Seen { leases: &leases, machines: &machines, ended: &ended, now: UnixTime(1200) };
        let first = super::sweep(Scope::All, seen);
        assert_eq!(first.revoke, [leases[0].clone()]);
        assert!(first.terminate.is_empty() && first.close.is_empty(), "it may save a checkpoint");

        let revoked = Lease { status: LeaseStatus::Revoked, expires_at: UnixTime(1200), ..lease("a", 9000) };
        let leases = [revoked, lease("b", 9000)];
        let later = super::sweep(Scope::All, Seen { leases: &leases, now: UnixTime(1500), ..seen });
        assert_eq!((later.terminate.as_slice(), later.revoke.len()), (["i-a".to_owned()].as_slice(), 0));
        assert_eq!(later.close.len(), 1);
    }

    #[test]
    fn a_machine_without_a_lease_is_an_orphan() {
        let sweep = sweep(Scope::All, &[lease("b", 9000)], &[machine("a"), machine("b")], UnixTime(1200));
        assert_eq!(sweep.terminate, ["i-a"]);
        assert!(sweep.close.is_empty());
    }

    #[test]
    fn a_pipeline_that_is_done_ends_its_own_machines_and_nobody_elses() {
        let mut other = lease("b", 9000);
        other.run = "run-ba9876543210".parse().unwrap();
        let run = "run-0123456789ab".parse().unwrap();
        let (leases, machines) = ([lease("a", 9000), other, lease("c", 9000)], ["a", "b", "c"].map(machine));
        let of = |execution| sweep(Scope::Run { run: &run, execution }, &leases, &machines, UnixTime(1200));
        let own = of(Some("arn:a"));
        assert_eq!(own.terminate, ["i-a"]);
        assert_eq!(own.close.len(), 1);
        assert!(own.lost.is_empty());
        assert_eq!(of(Some("arn:again")), Sweep::default(), "one that only deploys the run has launched none");
        assert_eq!(of(None).terminate, ["i-a", "i-c"]);
    }

    #[test]
    fn a_revoked_machine_has_time_to_checkpoint() {
        let revoked = Lease { status: LeaseStatus::Revoked, ..lease("a", 1100) };
        assert_eq!(
            sweep(Scope::All, std::slice::from_ref(&revoked), &[machine("a")], UnixTime(1150)),
            Sweep::default()
        );
        assert_eq!(sweep(Scope::All, &[revoked], &[machine("a")], UnixTime(1220)).terminate, ["i-a"]);
    }

    #[test]
    fn a_lease_that_never_got_a_machine_costs_nothing() {
        let lease = Lease { instance_id: None, ..lease("a", 1100) };
        let sweep = sweep(Scope::All, &[lease], &[], UnixTime(5000));
        assert_eq!(sweep.close[0].metered, Usd::ZERO);
    }

    #[test]
    fn a_machine_that_vanished_is_lost_at_once() {
        let gone = Machine { is_running: false, ..machine("a") };
        let sweep = sweep(Scope::All, &[lease("a", 9000)], &[gone], UnixTime(1200));
        assert_eq!(sweep.lost.len(), 1);
        assert!(sweep.terminate.is_empty());
    }

    #[test]
    fn a_machine_that_ec2_does_not_show_yet_is_not_lost() {
        let leases = [lease("a", 9000)];
        assert_eq!(sweep(Scope::All, &leases, &[], UnixTime(1030)), Sweep::default());
        assert_eq!(sweep(Scope::All, &leases, &[], UnixTime(1239)), Sweep::default());
        assert_eq!(sweep(Scope::All, &leases, &[], UnixTime(1240)).lost.len(), 1, "EC2 has forgotten it");
    }

    #[test]
    fn a_machine_that_cannot_be_terminated_keeps_only_its_own_lease_open() {
        let leases = [lease("a", 1100), lease("b", 1100), lease("vanished", 1100)];
        let machines = [machine("a"), machine("b")];
        let sweep = sweep(Scope::All, &leases, &machines, UnixTime(1300));
        assert_eq!(sweep.terminate, ["i-a", "i-b"]);
        let closable = |standing: &[&str]| -> Vec<String> {
            let standing = standing.iter().map(|id| (*id).to_owned()).collect();
            sweep.closable(&machines, &standing).into_iter().map(|lease| lease.attempt.clone()).collect()
        };
        assert_eq!(closable(&["i-a"]), ["b", "vanished"]);
        assert_eq!(closable(&[]), ["a", "b", "vanished"]);
    }

    #[test]
    fn sweeping_twice_does_nothing_more() {
        let leases = [lease("a", 1100)];
        let first = sweep(Scope::All, &leases, &[machine("a")], UnixTime(1200));
        let gone = Machine { is_running: false, ..machine("a") };
        assert_eq!(sweep(Scope::All, &first.close, &[gone], UnixTime(1300)), Sweep::default());
    }
}
