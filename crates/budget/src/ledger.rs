//! Reserving and settling money: what would be written, never the writing itself.
//!
//! A caller reads both budgets and the run, asks for a plan, and writes it in one transaction on condition that nothing it
//! read has changed. So plans made from the same reading exclude each other, and a budget cannot be exceeded however many
//! pipelines start at once.
//!
//! A run's money over all its executions: `reserved = settled + returned + open`, where `open` is what its budgets hold for
//! it now. While no pipeline owns it, `open` is zero.

use tunesmith_contract::{
    ErrorName, ProjectId, RunId, Usd,
    error_name::Failure,
    ledger::{BudgetItem, RunRecord, RunStatus},
    plan::Quote,
    tasks::GuardAction,
};

use crate::reached_percents;

/// A budget before and after: the writer's condition and its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetChange {
    /// What was read; `None` when there was no item.
    pub before: Option<BudgetItem>,
    /// What to write.
    pub after: BudgetItem,
}

/// Whether the execution that a run's record names is still at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// It is.
    Alive,
    /// It ended: failed, was aborted, or is forgotten.
    Gone,
}

/// What decides about a reservation.
#[derive(Debug, Clone, Copy)]
pub struct ReserveInput<'a> {
    /// The project.
    pub project: &'a ProjectId,
    /// The run.
    pub run: &'a RunId,
    /// Who asks.
    pub execution: &'a str,
    /// Month `YYYY-MM` to charge.
    pub month: &'a str,
    /// What the run will cost.
    pub quote: Quote,
    /// The project's limit as its settings say now.
    pub project_limit: Usd,
    /// The account's limit.
    pub account_limit: Usd,
    /// The project's budget of the month.
    pub project_budget: Option<&'a BudgetItem>,
    /// The account's budget of the month.
    pub account_budget: Option<&'a BudgetItem>,
    /// What the project's endpoints that are billed by the hour will cost while the run may last. Left free, not reserved:
    /// otherwise a training would take the money of what is live, and that would be deleted.
    pub project_endpoints: Usd,
    /// The same of all projects.
    pub account_endpoints: Usd,
    /// The run, when it was reserved for before.
    pub record: Option<&'a RunRecord>,
    /// Whether it is this run that is deployed now.
    pub is_live: bool,
    /// Whether the record's execution works; of no consequence when it is the one that asks.
    pub owner: Owner,
}

/// What to do about a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReservePlan {
    /// Write all three.
    Reserve {
        /// The project's budget.
        project: BudgetChange,
        /// The account's budget.
        account: BudgetChange,
        /// The run.
        record: Box<RunRecord>,
    },
    /// This very execution reserved it before.
    Already,
    /// Another pipeline works on it.
    AlreadyRunning,
    /// It is deployed.
    AlreadyPublished,
    /// Its last pipeline is gone and left a reservation: settle that ([`plan_settle`] with [`GuardAction::Release`] in the
    /// name of that pipeline), read again, plan again.
    SettleFirst,
}

/// A reservation that must not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// It does not fit.
    #[error(
        "the run may cost up to {needed}, and of the {limit} that {whose} may spend in {month}, {spent} is spent, \
         {reserved} reserved, and {endpoints} what its endpoints will cost meanwhile: {left} is left; {remedy}"
    )]
    Exceeded {
        /// `project handbook` or `the account`.
        whose: String,
        /// The month.
        month: String,
        /// The quote's upper bound.
        needed: Usd,
        /// The limit.
        limit: Usd,
        /// Settled.
        spent: Usd,
        /// Reserved by other runs.
        reserved: Usd,
        /// What endpoints will cost while the run may last.
        endpoints: Usd,
        /// What is left.
        left: Usd,
        /// What to do.
        remedy: &'static str,
    },
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::new(ErrorName::BudgetExceeded, error.to_string())
    }
}

/// Plans a reservation of the quote's upper bound in the budgets of project and account.
///
/// # Errors
/// [`LedgerError::Exceeded`] when either budget has less left.
pub fn plan_reserve(input: &ReserveInput<'_>) -> Result<ReservePlan, LedgerError> {
    if let Some(record) = input.record {
        let mine = record.execution == input.execution;
        let at_work = matches!(record.status, RunStatus::Reserved | RunStatus::Trained);
        match record.status {
            RunStatus::Reserved if mine => return Ok(ReservePlan::Already),
            RunStatus::Published if input.is_live => return Ok(ReservePlan::AlreadyPublished),
            _ if at_work && !mine && input.owner == Owner::Alive => return Ok(ReservePlan::AlreadyRunning),
            _ if open_reservation(record) > Usd::ZERO => return Ok(ReservePlan::SettleFirst),
            _ => {}
        }
    }
    let needed = input.quote.upper_bound;
    let project = reserve(
        input.project_budget,
        input.project_limit,
        (needed, input.project_endpoints),
        (&format!("project {}", input.project), input.month),
        "raise budget.monthly_limit_usd in project.toml, choose a smaller model or fewer epochs, or wait for the next month",
    )?;
    let account = reserve(
        input.account_budget,
        input.account_limit,
        (needed, input.account_endpoints),
        ("the account", input.month),
        "wait for other runs to end, raise the stack's parameter MonthlyCapUsd, or wait for the next month",
    )?;
    let (settled, metered, attempts) =
        input.record.map_or_else(Default::default, |r| (r.settled, r.metered, r.attempts));
    let record = RunRecord {
        run: input.run.clone(),
        project: input.project.clone(),
        execution: input.execution.to_owned(),
        status: RunStatus::Reserved,
        month: input.month.to_owned(),
        quoted: input.quote.expected,
        // earlier executions of the same run keep what they were charged; what they gave back is gone
        reserved: settled.saturating_add(needed),
        metered: metered.max(settled),
        settled,
        returned: Usd::ZERO,
        attempts,
        interruptions: 0,    // counted anew for each execution
        stop_mail_due: None, // it goes on, and its owner is mailed about that
        stop_mail_claimed_at: None,
    };
    Ok(ReservePlan::Reserve { project, account, record: Box::new(record) })
}

/// A budget with this limit. A new limit is a new budget: alarms that it has not reached go off again. What is reserved reaches
/// none. Here only what is settled does, while `watch-costs` counts the meters of running machines too: an alarm that was reached
/// with them is forgotten, and mailed again. So too many mails are possible, never too few.
#[must_use]
pub fn with_limit(item: BudgetItem, limit: Usd) -> BudgetItem {
    let reached = reached_percents(item.spent, limit);
    let is_kept = |percent: &u8| limit == item.limit || reached.contains(percent);
    let alarms_sent = item.alarms_sent.iter().copied().filter(is_kept).collect();
    BudgetItem { limit, alarms_sent, ..item }
}

/// What the budgets hold for this run now.
#[must_use]
pub fn open_reservation(record: &RunRecord) -> Usd {
    record.reserved.saturating_sub(record.settled).saturating_sub(record.returned).max(Usd::ZERO)
}

/// What decides about settling.
#[derive(Debug, Clone, Copy)]
pub struct SettleInput<'a> {
    /// Why: every action but [`GuardAction::Reserve`].
    pub action: GuardAction,
    /// Who asks.
    pub execution: &'a str,
    /// The run.
    pub record: &'a RunRecord,
    /// What its machines have cost until now, over all attempts.
    pub metered: Usd,
    /// The project's budget of the run's month.
    pub project_budget: Option<&'a BudgetItem>,
    /// The account's budget of the run's month.
    pub account_budget: Option<&'a BudgetItem>,
}

/// What to do about settling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettlePlan {
    /// Write all three.
    Settle {
        /// The project's budget.
        project: BudgetChange,
        /// The account's budget.
        account: BudgetChange,
        /// The run.
        record: Box<RunRecord>,
    },
    /// It is as asked already, or the run belongs to another pipeline.
    Nothing,
}

/// Plans charging what was metered and giving back the rest of the reservation.
///
/// What was metered is charged even beyond the reservation (machines stop before their cap, so that is a few seconds at the
/// most): money that was spent is never hidden. The run's record then counts the excess as reserved too.
#[must_use]
pub fn plan_settle(input: &SettleInput<'_>) -> SettlePlan {
    let before = input.record;
    if before.execution != input.execution || input.action == GuardAction::Reserve {
        return SettlePlan::Nothing;
    }
    let open = open_reservation(before);
    let metered = before.metered.max(input.metered);
    let charge = metered.saturating_sub(before.settled).max(Usd::ZERO);
    let excess = charge.saturating_sub(open).max(Usd::ZERO);
    let back = open.saturating_sub(charge).max(Usd::ZERO);
    let after = RunRecord {
        status: status_after(input.action, before.status),
        reserved: before.reserved.saturating_add(excess),
        metered,
        settled: before.settled.saturating_add(charge),
        returned: before.returned.saturating_add(back),
        ..before.clone()
    };
    if after == *before {
        return SettlePlan::Nothing;
    }
    let settle = |budget: Option<&BudgetItem>| {
        let item = budget.cloned().unwrap_or_default();
        BudgetChange {
            before: budget.cloned(),
            after: BudgetItem {
                reserved: item.reserved.saturating_sub(open).max(Usd::ZERO),
                spent: item.spent.saturating_add(charge),
                ..item
            },
        }
    };
    SettlePlan::Settle {
        project: settle(input.project_budget),
        account: settle(input.account_budget),
        record: Box::new(after),
    }
}

const fn status_after(action: GuardAction, status: RunStatus) -> RunStatus {
    match (action, status) {
        (GuardAction::Settle, RunStatus::Reserved) => RunStatus::Trained,
        (GuardAction::Release, RunStatus::Reserved | RunStatus::Trained) => RunStatus::Failed,
        (GuardAction::GateRefused, RunStatus::Reserved | RunStatus::Trained) => RunStatus::GateRefused,
        (GuardAction::Rejected, RunStatus::Reserved | RunStatus::Trained) => RunStatus::Rejected,
        (_, status) => status,
    }
}

fn reserve(
    budget: Option<&BudgetItem>,
    limit: Usd,
    (needed, endpoints): (Usd, Usd),
    (whose, month): (&str, &str),
    remedy: &'static str,
) -> Result<BudgetChange, LedgerError> {
    let item = budget.cloned().unwrap_or_default();
    let used = item.reserved.saturating_add(item.spent);
    if used.saturating_add(endpoints).saturating_add(needed) > limit {
        return Err(LedgerError::Exceeded {
            whose: whose.to_owned(),
            month: month.to_owned(),
            needed,
            limit,
            spent: item.spent,
            reserved: item.reserved,
            endpoints,
            left: limit.saturating_sub(used).saturating_sub(endpoints).max(Usd::ZERO),
            remedy,
        });
    }
    let reserved = item.reserved.saturating_add(needed);
    let after = BudgetItem { reserved, ..with_limit(item, limit) };
    Ok(BudgetChange { before: budget.cloned(), after })
}
