//! Closing a lease. The trainer, `sweep-resources` and the next attempt's `launch-training` may do so at the same moment: the first
//! one's final meter stands.

use tunesmith_contract::ledger::{ItemKey, Lease, LeaseStatus};

use super::{Conditional, Expression, Table};
use crate::AwsError;

impl Table {
    /// Writes that the lease has ended, how, and its final meter, unless somebody closed it before. `closed` is made by
    /// [`Lease::closed_at`]. Everything else of the lease stays as it is in the table: it may have changed since it was read.
    pub async fn close_lease(&self, closed: &Lease) -> Result<Conditional<Lease>, AwsError> {
        let update = Expression::new(
            "SET #status = :closed, interrupted = :interrupted, ended_at = :ended, metered = :metered, #ttl = :ttl",
        )
        .name("#status", "status")
        .name("#ttl", "ttl")
        .value(":closed", LeaseStatus::Closed)
        .value(":interrupted", closed.interrupted)
        .value(":ended", closed.ended_at)
        .value(":metered", closed.metered)
        .value(":ttl", closed.ttl);
        let open = Expression::new("attribute_exists(pk) AND #status <> :closed");
        self.update(&ItemKey::lease(&closed.attempt), update, Some(open)).await
    }
}
