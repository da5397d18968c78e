//! Mails about what was stopped. Whoever stops something writes with it that the mail is owed, and when another look may send it:
//! one that dies or fails in between leaves it to a later one. Only a death between mailing and crossing out mails twice.

use serde_json::Value;
use tunesmith_aws::dynamodb::{Conditional, Expression};
use tunesmith_contract::{
    UnixTime,
    error_name::Failure,
    ledger::{EndpointMeter, ItemKey, Lease},
};
use tunesmith_lambda::Problems;

use crate::{CLAIM, Clients, mail, meter};

/// A machine or an endpoint that was stopped, with the mail about it.
#[derive(Debug, Clone)]
pub struct Stopped {
    key: ItemKey,
    due: Option<UnixTime>,
    subject: String,
    body: String,
}

impl Stopped {
    /// A training machine.
    pub fn machine(lease: &Lease, now: UnixTime) -> Self {
        let (subject, body) = mail::machine_stopped(lease, lease.metered_at(now));
        Self { key: ItemKey::lease(&lease.attempt), due: lease.stop_mail_due, subject, body }
    }

    /// An endpoint that is billed by the hour.
    pub fn endpoint(endpoint: &EndpointMeter) -> Self {
        let (subject, body) = mail::endpoint_stopped(endpoint);
        Self { key: ItemKey::endpoint(&endpoint.name), due: endpoint.stop_mail_due, subject, body }
    }

    /// Mails it, then crosses out that the mail is owed.
    pub async fn mail(&self, clients: &Clients) -> Result<(), Failure> {
        clients.alarms.publish(&self.subject, &self.body).await?;
        let sent = Expression::new("REMOVE stop_mail_due");
        let _: Conditional<Value> = clients.table.update(&self.key, sent, Some(Expression::present())).await?;
        Ok(())
    }

    /// Mails what an earlier look has stopped and could not mail, unless another look does so at this moment.
    async fn mail_again(&self, clients: &Clients, now: UnixTime) -> Result<(), Failure> {
        let claim = Expression::new("SET stop_mail_due = :due").value(":due", now.after(CLAIM));
        let unclaimed = Expression::new("stop_mail_due = :seen").value(":seen", self.due);
        match clients.table.update::<Value>(&self.key, claim, Some(unclaimed)).await? {
            Conditional::Done(_) => self.mail(clients).await,
            Conditional::ConditionFailed => Ok(()),
        }
    }
}

/// Mails what earlier looks owe.
pub async fn mail_owed(
    clients: &Clients,
    leases: &[Lease],
    endpoints: &[EndpointMeter],
    now: UnixTime,
    problems: &mut Problems,
) {
    for lease in leases.iter().filter(|lease| meter::owes_mail(lease.stop_mail_due, now)) {
        problems.keep(&lease.attempt, Stopped::machine(lease, now).mail_again(clients, now).await);
    }
    for endpoint in endpoints.iter().filter(|endpoint| meter::owes_mail(endpoint.stop_mail_due, now)) {
        problems.keep(&endpoint.name, Stopped::endpoint(endpoint).mail_again(clients, now).await);
    }
}
