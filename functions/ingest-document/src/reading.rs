//! Files that kill the reader. A process that is killed (out of memory, out of time) tells nobody: so what is about to be read is
//! written down before, and crossed out when the reader has ended. Whoever receives the event again sees what was not crossed
//! out, and the last one that may receive it refuses the file instead of letting it become a nameless dead letter.

use tunesmith_aws::dynamodb::{Conditional, Expression};
use tunesmith_contract::{
    ObjectKey, Seconds, UnixTime,
    documents::{QuarantineReason, ReadingRecord},
    error_name::Failure,
    ledger::ItemKey,
};

use crate::{Clients, Outcome, event::Subject};

/// Kept as long as the queue keeps its messages, so that no try is forgotten. Source: `cdk/lib/constructs/upload-events.ts`
/// (SQS's default of four days).
const KEEP: Seconds = Seconds(4 * 24 * 3600);

/// What was written down before, seen by one that receives the event of `sequencer`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    /// Read, and write this down before.
    Read(ReadingRecord),
    /// Every reader so far died on it, and nobody will try again.
    Refuse { tries: u32 },
}

fn decide(before: Option<ReadingRecord>, sequencer: &str, is_last: bool, now: UnixTime) -> Decision {
    let died = before.filter(|before| before.sequencer == sequencer).map_or(0, |before| before.tries);
    if is_last && died > 0 {
        return Decision::Refuse { tries: died };
    }
    Decision::Read(ReadingRecord { sequencer: sequencer.to_owned(), tries: died + 1, ttl: now.after(KEEP).0 })
}

/// Reads the upload; refuses it unread when this is the last try and earlier ones died on it. An older event than that of a reader
/// at work is nothing to read, and leaves its mark alone.
pub async fn extract(subject: &Subject, is_last: bool, clients: &Clients, now: UnixTime) -> Result<Outcome, Failure> {
    let ObjectKey { project, path } = &subject.key;
    let key = ItemKey::reading(project, path);
    match decide(clients.table.get(&key).await?, &subject.sequencer, is_last, now) {
        // not crossed out: whoever does this again, because it was cut off, must see it
        Decision::Refuse { tries } => Ok(crate::unread(subject, QuarantineReason::CrashedReader { tries })),
        Decision::Read(record) => {
            let newest = Expression::new("attribute_not_exists(pk) OR #sequencer <= :sequencer")
                .name("#sequencer", "sequencer")
                .value(":sequencer", &subject.sequencer);
            if clients.table.put_if(&key, &record, newest).await? == Conditional::ConditionFailed {
                tracing::info!(%project, path, "a later upload of this name is being read");
                return Ok(Outcome::Gone);
            }
            let outcome = crate::extract(subject, clients).await;
            // a failure, too, is an end; what a reader of another upload of this name has begun is not ours to cross out
            let own = Expression::new("#sequencer = :sequencer")
                .name("#sequencer", "sequencer")
                .value(":sequencer", &subject.sequencer);
            let _: Conditional<()> = clients.table.delete_if(&key, own).await?;
            outcome
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(sequencer: &str, tries: u32) -> ReadingRecord {
        ReadingRecord { sequencer: sequencer.into(), tries, ttl: 345_600 }
    }

    #[test]
    fn what_killed_every_reader_is_refused_at_the_last_try_and_nothing_else_is() {
        let decide = |before, is_last| decide(before, "02", is_last, UnixTime(0));
        assert_eq!(decide(None, false), Decision::Read(begun("02", 1)));
        assert_eq!(decide(Some(begun("02", 1)), false), Decision::Read(begun("02", 2)));
        assert_eq!(decide(Some(begun("02", 4)), true), Decision::Refuse { tries: 4 });
        assert_eq!(decide(None, true), Decision::Read(begun("02", 1)), "earlier tries failed, and did not die");
        assert_eq!(decide(Some(begun("01", 4)), true), Decision::Read(begun("02", 1)), "another upload of this name");
    }
}
