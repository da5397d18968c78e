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

/// How a refusal is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mailing {
    /// With a mail of its own.
    Single,
    /// With the mail that says that more are refused.
    Many,
    /// That mail was sent.
    Silent,
}

/// See [`Mailing`]. `hour` counts this refusal too.
#[must_use]
pub const fn mailing(hour: &RefusalCount) -> Mailing {
    match hour.count {
        0..=SINGLE_MAILS => Mailing::Single,
        _ if hour.many_told => Mailing::Silent,
        _ => Mailing::Many,
    }
}

/// Sends the mail that a record still owes, then crosses that out. A death in between mails twice, and counts twice. That many
/// files are refused is mailed by each of those that are told before the first one of them has written down that it did so: one
/// after the other that is one mail, at the same moment a few.
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
    match mailing(&count(project, clients, now).await?) {
        // the same content under another name has one record: the mail names the file that was uploaded
        Mailing::Single => send(clients, &mail::quarantined(&refused, &record.path)).await?,
        Mailing::Many => {
            send(clients, &mail::many_quarantined(project)).await?;
            let told = Expression::new("SET many_told = :yes").value(":yes", true);
            let key = ItemKey::refusals(project, now);
            let _: Conditional<RefusalCount> = clients.table.update(&key, told, Some(Expression::present())).await?;
        }
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

/// Counts one refusal more; the hour with it.
async fn count(project: &ProjectId, clients: &Clients, now: UnixTime) -> Result<RefusalCount, Failure> {
    let ttl = now.0 + KEEP;
    let one = Expression::new("SET #ttl = :ttl ADD #count :one")
        .name("#ttl", "ttl")
        .name("#count", "count")
        .value(":ttl", ttl)
        .value(":one", 1);
    match clients.table.update::<RefusalCount>(&ItemKey::refusals(project, now), one, None).await? {
        Conditional::Done(hour) => Ok(hour),
        Conditional::ConditionFailed => Ok(RefusalCount { count: 0, many_told: false, ttl }), // there is no condition
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How so many refusals of one hour are told, one after the other. Those with these numbers die before they have mailed, and are
    /// done again.
    fn told(refusals: u64, deaths: &[u64]) -> Vec<Mailing> {
        let mut hour = RefusalCount { count: 0, many_told: false, ttl: 0 };
        let mut mailed = Vec::new();
        for _ in 0..refusals + deaths.len() as u64 {
            hour.count += 1;
            let mailing = mailing(&hour);
            if !deaths.contains(&hour.count) && mailing != Mailing::Silent {
                hour.many_told = mailing == Mailing::Many;
                mailed.push(mailing);
            }
        }
        mailed
    }

    #[test]
    fn a_thousand_refused_files_are_eleven_mails() {
        let mailed = told(1000, &[]);
        assert_eq!(mailed.len(), 11);
        assert_eq!(mailed.iter().filter(|mailing| **mailing == Mailing::Many).count(), 1);
        assert_eq!(mailed.last(), Some(&Mailing::Many));
    }

    #[test]
    fn that_many_files_are_refused_is_mailed_although_the_eleventh_died() {
        for deaths in [&[11][..], &[11, 12, 13], &[3, 11, 500]] {
            let many = told(1000, deaths).into_iter().filter(|mailing| *mailing == Mailing::Many).count();
            assert_eq!(many, 1, "{deaths:?}");
        }
    }
}
