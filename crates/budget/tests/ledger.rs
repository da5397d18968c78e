//! The ledger under any sequence of events. One test for each promise about money.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use tunesmith_budget::{
    LedgerError, Owner, ReserveInput, ReservePlan, SettleInput, SettlePlan, open_reservation, plan_reserve, plan_settle,
};
use tunesmith_contract::{
    ProjectId, RunId, Usd,
    ledger::{BudgetItem, RunRecord, RunStatus},
    plan::Quote,
    tasks::GuardAction,
};

const MONTH: &str = "2026-11";

fn usd(micros: i64) -> Usd {
    Usd::from_micros(micros)
}

/// Two budgets and some runs, as a table would hold them.
#[derive(Debug, Clone, Default)]
struct Books {
    project: Option<BudgetItem>,
    account: Option<BudgetItem>,
    runs: BTreeMap<RunId, RunRecord>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    project: Usd,
    account: Usd,
    /// What endpoints will cost meanwhile.
    endpoints: Usd,
}

impl Books {
    fn reserve(
        &mut self,
        run: &RunId,
        execution: &str,
        upper: Usd,
        owner: Owner,
        limits: Limits,
    ) -> Result<bool, LedgerError> {
        let project: ProjectId = "handbook".parse().unwrap();
        let plan = plan_reserve(&ReserveInput {
            project: &project,
            run,
            execution,
            month: MONTH,
            quote: Quote { expected: upper, upper_bound: upper },
            project_limit: limits.project,
            account_limit: limits.account,
            project_budget: self.project.as_ref(),
            account_budget: self.account.as_ref(),
            project_endpoints: limits.endpoints,
            account_endpoints: limits.endpoints,
            record: self.runs.get(run),
            is_live: true,
            owner,
        })?;
        match plan {
            ReservePlan::Reserve { project, account, record } => {
                (self.project, self.account) = (Some(project.after), Some(account.after));
                self.runs.insert(run.clone(), *record);
                Ok(true)
            }
            ReservePlan::SettleFirst => {
                let old = self.runs[run].execution.clone();
                self.settle(run, &old, GuardAction::Release, Usd::ZERO);
                self.reserve(run, execution, upper, owner, limits)
            }
            _ => Ok(false),
        }
    }

    fn settle(&mut self, run: &RunId, execution: &str, action: GuardAction, metered: Usd) {
        let Some(record) = self.runs.get(run) else { return };
        let plan = plan_settle(&SettleInput {
            action,
            execution,
            record,
            metered,
            project_budget: self.project.as_ref(),
            account_budget: self.account.as_ref(),
        });
        if let SettlePlan::Settle { project, account, record } = plan {
            (self.project, self.account) = (Some(project.after), Some(account.after));
            self.runs.insert(run.clone(), *record);
        }
    }

    fn used(&self) -> (Usd, Usd) {
        let used = |b: &Option<BudgetItem>| b.as_ref().map_or(Usd::ZERO, |b| b.reserved.saturating_add(b.spent));
        (used(&self.project), used(&self.account))
    }
}

fn run(number: u8) -> RunId {
    format!("run-{number:012x}").parse().unwrap()
}

const ENDS: [GuardAction; 4] =
    [GuardAction::Settle, GuardAction::Release, GuardAction::GateRefused, GuardAction::Rejected];

#[derive(Debug, Clone)]
enum Event {
    Reserve { run: u8, execution: u8, upper: i64, owner_gone: bool },
    Meter { run: u8, share: u8 },
    End { run: u8, execution: u8, action: GuardAction },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..4_u8, 0..3_u8, 0..600_000_i64, any::<bool>())
            .prop_map(|(run, execution, upper, owner_gone)| Event::Reserve { run, execution, upper, owner_gone }),
        (0..4_u8, 0..=100_u8).prop_map(|(run, share)| Event::Meter { run, share }),
        (0..4_u8, 0..3_u8, prop::sample::select(ENDS.to_vec())).prop_map(|(run, execution, action)| Event::End {
            run,
            execution,
            action
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Reserved and spent together never exceed either limit, under any sequence of events, as long as machines stop at
    /// their cap; and every dollar reserved is settled, returned or still open.
    #[test]
    fn a_budget_is_never_exceeded(events in prop::collection::vec(event(), 1..80)) {
        let limits = Limits { project: usd(1_000_000), account: usd(1_500_000), endpoints: Usd::ZERO };
        let mut books = Books::default();
        for event in events {
            match event {
                Event::Reserve { run: number, execution, upper, owner_gone } => {
                    let owner = if owner_gone { Owner::Gone } else { Owner::Alive };
                    let before = books.clone();
                    let made = books.reserve(&run(number), &format!("e{execution}"), usd(upper), owner, limits);
                    if let Err(LedgerError::Exceeded { left, needed, .. }) = made {
                        prop_assert!(left < needed);
                        prop_assert!(books.used() <= before.used());
                    }
                }
                Event::Meter { run: number, share } => {
                    if let Some(record) = books.runs.get_mut(&run(number)) && record.status == RunStatus::Reserved {
                        let room = record.reserved.saturating_sub(record.metered).micros();
                        record.metered = record.metered.saturating_add(usd(room * i64::from(share) / 100));
                    }
                }
                Event::End { run: number, execution, action } => {
                    books.settle(&run(number), &format!("e{execution}"), action, Usd::ZERO);
                }
            }
            let (project, account) = books.used();
            prop_assert!(project <= limits.project && account <= limits.account, "{project} {account}");
            let open: Usd = books.runs.values().map(open_reservation).sum();
            let reserved = books.project.as_ref().map_or(Usd::ZERO, |b| b.reserved);
            prop_assert_eq!(open, reserved);
            for record in books.runs.values() {
                let all = record.settled.saturating_add(record.returned).saturating_add(open_reservation(record));
                prop_assert_eq!(record.reserved, all);
                prop_assert!(record.status == RunStatus::Reserved || open_reservation(record) == Usd::ZERO);
            }
        }
    }
}

const LIMITS: Limits =
    Limits { project: Usd::from_micros(1_000_000), account: Usd::from_micros(500_000_000), endpoints: Usd::ZERO };

#[test]
fn what_was_reserved_is_settled_or_returned() {
    let mut books = Books::default();
    assert!(books.reserve(&run(1), "e1", usd(600_000), Owner::Alive, LIMITS).unwrap());
    books.settle(&run(1), "e1", GuardAction::Settle, usd(150_000));
    let record = &books.runs[&run(1)];
    assert_eq!((record.settled, record.returned), (usd(150_000), usd(450_000)));
    assert_eq!(record.status, RunStatus::Trained);
    let project = books.project.clone().unwrap();
    assert_eq!((project.spent, project.reserved), (usd(150_000), Usd::ZERO));
    // a second time changes nothing
    let before = books.project.clone();
    books.settle(&run(1), "e1", GuardAction::Settle, usd(150_000));
    assert_eq!(books.project, before);
}

#[test]
fn two_pipelines_of_one_run_get_one_reservation() {
    let mut books = Books::default();
    assert!(books.reserve(&run(1), "e1", usd(600_000), Owner::Alive, LIMITS).unwrap());
    assert!(!books.reserve(&run(1), "e2", usd(600_000), Owner::Alive, LIMITS).unwrap());
    assert!(!books.reserve(&run(1), "e1", usd(600_000), Owner::Alive, LIMITS).unwrap());
    assert_eq!(books.project.unwrap().reserved, usd(600_000));
}

#[test]
fn the_reservation_of_a_dead_pipeline_is_taken_over_not_doubled() {
    let mut books = Books::default();
    assert!(books.reserve(&run(1), "e1", usd(600_000), Owner::Alive, LIMITS).unwrap());
    books.runs.get_mut(&run(1)).unwrap().metered = usd(100_000);
    assert!(books.reserve(&run(1), "e2", usd(600_000), Owner::Gone, LIMITS).unwrap());
    let project = books.project.clone().unwrap();
    assert_eq!((project.spent, project.reserved), (usd(100_000), usd(600_000)));
    let record = &books.runs[&run(1)];
    // what a machine may still cost is the new reservation, whole
    assert_eq!(record.reserved.saturating_sub(record.metered), usd(600_000));
    // the dead one cannot settle any more
    books.settle(&run(1), "e1", GuardAction::Settle, usd(900_000));
    assert_eq!(books.project.unwrap().reserved, usd(600_000));
}

#[test]
fn a_failed_or_refused_run_may_be_started_again() {
    for action in [GuardAction::Release, GuardAction::GateRefused, GuardAction::Rejected] {
        let mut books = Books::default();
        assert!(books.reserve(&run(1), "e1", usd(100), Owner::Alive, LIMITS).unwrap());
        books.settle(&run(1), "e1", action, usd(40));
        assert!(books.reserve(&run(1), "e2", usd(100), Owner::Alive, LIMITS).unwrap(), "{action:?}");
        books.settle(&run(1), "e2", GuardAction::Settle, usd(70));
        assert_eq!(books.project.unwrap().spent, usd(70));
        let record = &books.runs[&run(1)];
        assert_eq!(record.reserved, record.settled.saturating_add(record.returned));
    }
}

#[test]
fn a_lower_limit_holds_at_once_and_a_higher_one_lets_more_in() {
    let mut books = Books::default();
    assert!(books.reserve(&run(1), "e1", usd(600_000), Owner::Alive, LIMITS).unwrap());
    let error = books.reserve(&run(2), "e2", usd(600_000), Owner::Alive, LIMITS).unwrap_err().to_string();
    assert!(error.contains("$0.40 is left") && error.contains("budget.monthly_limit_usd"), "{error}");
    let more = Limits { project: usd(1_200_000), ..LIMITS };
    assert!(books.reserve(&run(2), "e2", usd(600_000), Owner::Alive, more).unwrap());
    assert_eq!(books.project.as_ref().unwrap().limit, usd(1_200_000));
    let less = Limits { project: usd(100), ..LIMITS };
    let error = books.reserve(&run(3), "e3", usd(1), Owner::Alive, less).unwrap_err().to_string();
    assert!(error.contains("$0.00 is left"), "{error}");
}

#[test]
fn a_training_leaves_the_money_of_what_is_live() {
    let mut books = Books::default();
    let limits = Limits { endpoints: usd(300_000), ..LIMITS };
    let error = books.reserve(&run(1), "e1", usd(700_001), Owner::Alive, limits).unwrap_err().to_string();
    assert!(error.contains("$0.30 what its endpoints") && error.contains("$0.70 is left"), "{error}");
    assert!(books.reserve(&run(1), "e1", usd(700_000), Owner::Alive, limits).unwrap());
    assert_eq!(books.project.as_ref().unwrap().reserved, usd(700_000), "left free, not reserved");
}

#[test]
fn the_account_limits_all_projects_together() {
    let mut books =
        Books { account: Some(BudgetItem { spent: usd(499_999_950), ..BudgetItem::default() }), ..Books::default() };
    let error = books.reserve(&run(1), "e1", usd(100), Owner::Alive, LIMITS).unwrap_err().to_string();
    assert!(error.contains("the account") && error.contains("$0.00005 is left"), "{error}");
    assert_eq!(books.project, None);
}

#[test]
fn money_spent_beyond_the_reservation_is_charged_and_blocks_what_comes_next() {
    let mut books = Books::default();
    assert!(books.reserve(&run(1), "e1", usd(900_000), Owner::Alive, LIMITS).unwrap());
    books.settle(&run(1), "e1", GuardAction::Release, usd(1_100_000));
    let record = &books.runs[&run(1)];
    assert_eq!((record.reserved, record.settled, record.returned), (usd(1_100_000), usd(1_100_000), Usd::ZERO));
    assert_eq!(books.project.as_ref().unwrap().spent, usd(1_100_000));
    assert!(books.reserve(&run(2), "e2", usd(1), Owner::Alive, LIMITS).is_err());
}

#[test]
fn a_raised_limit_lets_its_alarms_go_off_again() {
    let project = BudgetItem { limit: usd(100), spent: usd(90), alarms_sent: vec![50, 80], ..BudgetItem::default() };
    let mut books = Books { project: Some(project), ..Books::default() };
    assert!(books.reserve(&run(1), "e1", usd(1), Owner::Alive, Limits { project: usd(100), ..LIMITS }).unwrap());
    assert_eq!(books.project.as_ref().unwrap().alarms_sent, [50, 80]);
    assert!(books.reserve(&run(2), "e2", usd(1), Owner::Alive, Limits { project: usd(150), ..LIMITS }).unwrap());
    assert_eq!(books.project.as_ref().unwrap().alarms_sent, [50]);
    // of 200 less than half is spent, and more than half spent or reserved
    assert!(books.reserve(&run(3), "e3", usd(50), Owner::Alive, Limits { project: usd(170), ..LIMITS }).unwrap());
    assert!(books.reserve(&run(4), "e4", usd(1), Owner::Alive, Limits { project: usd(200), ..LIMITS }).unwrap());
    assert!(books.project.unwrap().alarms_sent.is_empty(), "what is reserved is not spent");
}
