//! A decision about money as writes of one transaction.

use tunesmith_aws::dynamodb::{Expression, Write};
use tunesmith_budget::BudgetChange;
use tunesmith_contract::ledger::{ItemKey, RunRecord};

/// The three writes, each on condition that what was read still stands. Together they make the decision exclusive: whoever
/// else decided from the same reading fails.
#[must_use]
pub fn writes(
    project: &BudgetChange,
    account: &BudgetChange,
    before: Option<&RunRecord>,
    after: &RunRecord,
) -> Vec<Write> {
    vec![
        budget(&ItemKey::budget(&after.project, &after.month), project),
        budget(&ItemKey::account_budget(&after.month), account),
        run(before, after),
    ]
}

/// Only limit, reserved and spent are set: `alarms_sent` belongs to `watch-costs`, except that a new limit begins anew, whatever
/// was sent meanwhile.
pub(crate) fn budget(key: &ItemKey, change: &BudgetChange) -> Write {
    let BudgetChange { before, after } = change;
    let is_new_limit = before.as_ref().is_some_and(|before| before.limit != after.limit);
    let alarms = if is_new_limit { "#alarms = :alarms" } else { "#alarms = if_not_exists(#alarms, :alarms)" };
    let update = Expression::new(format!("SET #limit = :limit, #reserved = :reserved, #spent = :spent, {alarms}"))
        .name("#limit", "limit")
        .name("#reserved", "reserved")
        .name("#spent", "spent")
        .name("#alarms", "alarms_sent")
        .value(":limit", after.limit)
        .value(":reserved", after.reserved)
        .value(":spent", after.spent)
        .value(":alarms", &after.alarms_sent);
    let condition = match before {
        None => Expression::absent(),
        Some(before) => Expression::new("#limit = :old_limit AND #reserved = :old_reserved AND #spent = :old_spent")
            .value(":old_limit", before.limit)
            .value(":old_reserved", before.reserved)
            .value(":old_spent", before.spent),
    };
    Write::update(key, update).when(condition)
}

fn run(before: Option<&RunRecord>, after: &RunRecord) -> Write {
    let condition = match before {
        None => Expression::absent(),
        Some(before) => {
            // a mail that was sent since would be owed again
            let mail = before.stop_mail_due.map_or("attribute_not_exists(stop_mail_due)", |_| "stop_mail_due = :mail");
            let unchanged = Expression::new(format!(
                "#execution = :execution AND #status = :status AND #metered = :metered AND #reserved = :reserved \
                 AND #settled = :settled AND #attempts = :attempts AND #interruptions = :interruptions AND {mail}",
            ))
            .name("#execution", "execution")
            .name("#status", "status")
            .name("#metered", "metered")
            .name("#reserved", "reserved")
            .name("#settled", "settled")
            .name("#attempts", "attempts")
            .name("#interruptions", "interruptions")
            .value(":execution", &before.execution)
            .value(":status", before.status)
            .value(":metered", before.metered)
            .value(":reserved", before.reserved)
            .value(":settled", before.settled)
            .value(":attempts", before.attempts)
            .value(":interruptions", before.interruptions);
            match before.stop_mail_due {
                Some(due) => unchanged.value(":mail", due),
                None => unchanged,
            }
        }
    };
    Write::put(&ItemKey::run(&after.project, &after.run), after).when(condition)
}
