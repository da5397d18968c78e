//! The limit of this month as `project.toml` says it now. A reservation reads it anyway; this takes it over between reservations,
//! so that a raised limit holds for alarms and endpoints although nothing new is trained.

use tunesmith_aws::{dynamodb::Transacted, s3::Fetched};
use tunesmith_budget::{BudgetChange, with_limit};
use tunesmith_contract::{
    ProjectId, ProjectSettings, S3Uri,
    error_name::Failure,
    keys::uploads,
    ledger::{BudgetItem, ItemKey},
};

use crate::{Clients, Settings, transaction};

/// Many times a `project.toml` with every setting.
const MOST_BYTES: u64 = 1 << 20;

/// Writes the limit of the uploaded `project.toml` into the project's budget, if it is another one.
///
/// # Errors
/// AWS errors; may be repeated.
pub(crate) async fn take_over(
    project: &ProjectId,
    month: &str,
    item: &BudgetItem,
    clients: &Clients,
    settings: &Settings,
) -> Result<(), Failure> {
    let uri = S3Uri::new(&settings.storage.documents_bucket, uploads::settings(project));
    // what is no text, or far too large for settings, is a wrong file like any other
    let Fetched::Bytes(bytes) = clients.s3.get(&uri, MOST_BYTES).await? else { return Ok(()) };
    let Some(change) = change(item, std::str::from_utf8(&bytes).ok()) else { return Ok(()) };
    let write = transaction::budget(&ItemKey::budget(project, month), &change);
    match clients.table.transact(vec![write], None).await? {
        Transacted::Done => {
            tracing::info!(%project, before = %item.limit, after = %change.after.limit, "project.toml has another limit");
        }
        // Money was reserved, settled or charged at this moment: the next look decides from what is there then.
        Transacted::ConditionFailed(_) | Transacted::Conflict => {}
    }
    Ok(())
}

/// Nothing, when the file is wrong (whoever uploaded it was mailed) or has no budget: what was there goes on to hold.
fn change(item: &BudgetItem, uploaded: Option<&str>) -> Option<BudgetChange> {
    let limit = ProjectSettings::of_upload(uploaded).ok()?.monthly_limit()?;
    let after = with_limit(item.clone(), limit);
    (limit != item.limit).then(|| BudgetChange { before: Some(item.clone()), after })
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::Usd;

    use super::*;

    #[test]
    fn a_limit_that_was_raised_holds_without_a_reservation_and_its_alarms_go_off_again() {
        let dollars = |dollars: i64| Usd::from_micros(dollars * 1_000_000);
        let item =
            BudgetItem { limit: dollars(10), reserved: dollars(1), spent: dollars(9), alarms_sent: vec![50, 80, 100] };
        let change = |text: &str| super::change(&item, Some(text));
        let raised = change("[budget]\nmonthly_limit_usd = 20.0\n").unwrap();
        assert_eq!(raised.before, Some(item.clone()));
        assert_eq!(raised.after, BudgetItem { limit: dollars(20), alarms_sent: vec![], ..item.clone() });
        let lowered = change("[budget]\nmonthly_limit_usd = 5.0\n").unwrap().after;
        assert_eq!((lowered.limit, lowered.alarms_sent), (dollars(5), vec![50, 80, 100]));
        for left_alone in ["[budget]\nmonthly_limit_usd = 10.0\n", "[budgte]\n", ""] {
            assert_eq!(change(left_alone), None, "{left_alone}");
        }
        assert_eq!(super::change(&item, None), None, "no file");
    }
}
