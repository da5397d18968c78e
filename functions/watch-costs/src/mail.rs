//! The e-mails about money. No I/O.

use tunesmith_contract::{
    Usd,
    ledger::{BudgetItem, EndpointMeter, Lease},
};

/// Subject and body of the alarm at a threshold.
#[must_use]
pub fn alarm(whose: &str, percent: u8, budget: &BudgetItem, used: Usd) -> (String, String) {
    let left = budget.limit.saturating_sub(used).max(Usd::ZERO);
    let next = if percent >= 100 {
        "Nothing new is started this month. Endpoints billed by the hour are deleted; serverless ones stay."
    } else {
        "Nothing is stopped yet. A run that would not fit into what is left is not started."
    };
    (
        format!("Tunesmith: {percent} % of this month's budget of {whose} is used"),
        format!(
            "Used so far   {used} of {limit} ({left} left)\nReserved      {reserved} for runs that are not finished\n\n{next}\n\n\
             What you can do: raise budget.monthly_limit_usd in project.toml and upload it, which holds within five minutes; or\n\
             stop the running training in the Step Functions console (Stop execution): its machine ends within minutes, and what\n\
             it did not use of its reservation is given back within a quarter of an hour.\n\
             Figures are from Tunesmith's own meter, by the second; AWS's bill follows 8 to 12 hours later.\n",
            limit = budget.limit,
            reserved = budget.reserved,
        ),
    )
}

/// Subject and body when a machine is stopped at its cap.
#[must_use]
pub fn machine_stopped(lease: &Lease, metered: Usd) -> (String, String) {
    (
        format!("Tunesmith: {} is stopped at its cost cap", lease.run),
        format!(
            "Training {run} of {project} has cost {metered} of the {cap} reserved for it and would pass that before the next \
             look. It is told to save a checkpoint and stop.\n\nTo let it finish, raise budget.max_run_usd in project.toml and \
             upload <project>/_TRAIN again: it resumes from the checkpoint.\n",
            run = lease.run,
            project = lease.project,
            cap = lease.cap,
        ),
    )
}

/// Subject and body when an endpoint is deleted because the month is used up.
#[must_use]
pub fn endpoint_stopped(endpoint: &EndpointMeter) -> (String, String) {
    (
        format!("Tunesmith: endpoint {} was deleted, the budget is used up", endpoint.name),
        format!(
            "The endpoint of {project} costs {price} an hour for each of {instances} instance(s). With what is spent and what \
             is reserved for running training, it would have passed the month's limit (of the project or of the account) \
             within ten minutes. Its model and data are kept.\n\nTo bring it back, raise budget.monthly_limit_usd in project.toml, upload \
             it, and upload <project>/_TRAIN: the finished training is used again. Or set serving.mode = \"serverless\".\n",
            project = endpoint.project,
            price = endpoint.price_per_hour,
            instances = endpoint.instances,
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_says_how_much_is_used_left_and_reserved_and_what_to_do() {
        let budget = BudgetItem {
            limit: Usd::from_micros(10_000_000),
            reserved: Usd::from_micros(1_000_000),
            spent: Usd::ZERO,
            alarms_sent: Vec::new(),
        };
        let (subject, body) = alarm("handbook", 80, &budget, Usd::from_micros(8_250_000));
        assert_eq!(subject, "Tunesmith: 80 % of this month's budget of handbook is used");
        for part in ["$8.25 of $10.00 ($1.75 left)", "$1.00 for runs", "monthly_limit_usd"] {
            assert!(body.contains(part), "{part}\n{body}");
        }
    }
}
