//! Telling an owner that a file was refused: once, and not a thousand times in an hour.

use tunesmith_aws::dynamodb::{Conditional, Expression};
use tunesmith_contract::{
    ErrorName, ProjectId, S3Uri, UnixTime,
    documents::{QuarantineRecord, RefusalCount, SourceRecord, SourceStatus},
    error_name::Failure,
    keys::workspace,
    ledger::ItemKey,
};

use crate::{Clients, Settings, mail, send};

/// Files that are mailed one by one in an hour, for each project. What follows is one mail that says so.
pub const SINGLE_MAILS: u64 = 10;

/// The counts of an hour are kept for a day.
const KEEP: i64 = 24 * 3600;

/// How the refusal that is the `count`th of its hour is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mailing {
    /// With a mail of its own.
    Single,
    /// With the one mail that says that more are refused.
    Many,
    /// That mail was sent.
    Silent,
}

/// See [`Mailing`].
#[must_use]
pub const fn mailing(count: u64) -> Mailing {
    match count {
        0..=SINGLE_MAILS => Mailing::Single,
        count if count == SINGLE_MAILS + 1 => Mailing::Many,
        _ => Mailing::Silent,
    }
}

/// Sends the mail that a record still owes, then crosses that out. Only a death in between mails twice.
pub async fn tell(
    project: &ProjectId,
    record: SourceRecord,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<(), Failure> {
    if !record.mail_due || record.status != SourceStatus::Quarantined {
        return Ok(());
    }
    let uri = S3Uri::new(&settings.storage.workspace_bucket, workspace::quarantine(project, &record.document));
    let refused: QuarantineRecord =
        clients.s3.get_json(&uri).await?.ok_or_else(|| {
            Failure::new(ErrorName::NotFound, format!("{uri} is missing; upload {} again", record.path))
        })?;
    match mailing(count(project, clients, now).await?) {
        // the same content under another name has one record: the mail names the file that was uploaded
        Mailing::Single => send(clients, &mail::quarantined(&refused, &record.path)).await?,
        Mailing::Many => send(clients, &mail::many_quarantined(project)).await?,
        Mailing::Silent => tracing::info!(%project, path = record.path, "refused without a mail of its own"),
    }
    let told = Expression::new("SET mail_due = :no").value(":no", false);
    let same = Expression::new("#sequencer = :sequencer")
        .name("#sequencer", "sequencer")
        .value(":sequencer", &record.sequencer);
    let _: Conditional<SourceRecord> =
        clients.table.update(&ItemKey::source(project, &record.path), told, Some(same)).await?;
    Ok(())
}

async fn count(project: &ProjectId, clients: &Clients, now: UnixTime) -> Result<u64, Failure> {
    let one = Expression::new("SET #ttl = :ttl ADD #count :one")
        .name("#ttl", "ttl")
        .name("#count", "count")
        .value(":ttl", now.0 + KEEP)
        .value(":one", 1);
    match clients.table.update::<RefusalCount>(&ItemKey::refusals(project, now), one, None).await? {
        Conditional::Done(counted) => Ok(counted.count),
        Conditional::ConditionFailed => Ok(0), // there is no condition
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_refused_files_are_eleven_mails() {
        let mailed: Vec<Mailing> = (1..=1000).map(mailing).filter(|mailing| *mailing != Mailing::Silent).collect();
        assert_eq!(mailed.len(), 11);
        assert_eq!(mailed.iter().filter(|mailing| **mailing == Mailing::Many).count(), 1);
        assert_eq!(mailed.last(), Some(&Mailing::Many));
    }
}
