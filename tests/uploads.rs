//! Uploads on the local cloud of the pipeline tests: order, repetition, refusal.

use tunesmith_contract::{
    UnixTime,
    documents::{ReadingRecord, RefusalCount, SourceRecord, SourceStatus},
    ledger::ItemKey,
};

use crate::{
    QUICK,
    support::{Cloud, documents, settings},
};

/// The sequencers of the fixtures for an upload and a deletion.
const SEQUENCER: &str = "0062E99A88DC407460";
const LATER: &str = "0062E99A88DC407470";

#[test]
fn the_newest_upload_wins_in_whatever_order_and_training_starts_when_uploads_have_ended() {
    Cloud::with(async |cloud| {
        // the only test in which training starts by itself: one minute after the last upload
        let quiet = settings(&[&QUICK.replace("quiet_minutes = 0", "quiet_minutes = 1").replace("500", "500000")]);
        let project = cloud.upload("order", &documents(1), &quiet).await;
        let path = documents(1)[0].0.clone();
        let first = cloud.source(&project, &path).await.unwrap();
        let key = format!("{project}/{path}");
        let event = |fixture: &'static str, sequencer: &'static str| {
            let key = key.clone();
            async move {
                let replace =
                    [("handbook/people/holidays.md", key.as_str()), (SEQUENCER, sequencer), (LATER, sequencer)];
                cloud.s3_event(fixture, &replace).await
            }
        };
        // a deletion that happened before this upload arrives late, twice
        for _ in 0..2 {
            event("deleted.json", "0000000000000001").await;
            assert_eq!(cloud.source(&project, &path).await.unwrap(), first);
        }
        // a deletion of an old version says nothing while the object is there
        event("deleted.json", "FFFFFFFFFFFFFFF9").await;
        assert_eq!(cloud.source(&project, &path).await.unwrap().status, SourceStatus::Extracted);
        // a new upload counts, and the old one's event, delivered again, does not bring the old text back
        cloud.put_document(&project, &path, "# Piers\n\nThe new pier opens in May.\n").await;
        let new = cloud.source_with_other_text(&project, &path, &first.document).await;
        event("created.json", "0000000000000002").await;
        assert_eq!(cloud.source(&project, &path).await.unwrap(), new);
        let run = cloud.starts_by_itself(&project).await;
        assert_eq!(cloud.ends(&run).await.error, "NotEnoughText", "one document");
    });
}

#[test]
fn a_file_that_kills_the_reader_is_refused_and_told_once() {
    Cloud::with(async |cloud| {
        let project = cloud.budget_with("crash", 0, 0).await; // a name; nothing is trained
        let event = async |path: &str, receives: &'static str| {
            let (key, count) = (format!("{project}/{path}"), format!("\"ApproximateReceiveCount\": \"{receives}\""));
            let replace =
                [("handbook/people/holidays.md", key.as_str()), ("\"ApproximateReceiveCount\": \"1\"", count.as_str())];
            cloud.s3_event("created.json", &replace).await
        };
        // the first receivers died on it, as one that is out of memory does: nothing but what they wrote before
        let begun = ReadingRecord { sequencer: format!("{SEQUENCER:0<32}"), tries: 4, ttl: cloud.now().0 + 3600 };
        cloud.put_item(&ItemKey::reading(&project, "bomb.pdf"), &begun).await;
        event("bomb.pdf", "5").await;
        let refused = cloud.source(&project, "bomb.pdf").await.unwrap();
        assert_eq!((refused.status, refused.mail_due), (SourceStatus::Quarantined, false));
        let subject = format!("{project}: bomb.pdf was refused");
        let mail = cloud.mail(&subject).await;
        assert!(mail.text.contains("the file crashed the reader 4 time(s)"), "{}", mail.text);
        event("bomb.pdf", "1").await;

        // an older event leaves the mark of whoever reads a later upload
        let (key, later) = (ItemKey::reading(&project, "later.pdf"), format!("{LATER:0<32}"));
        let reading = ReadingRecord { sequencer: later, tries: 1, ttl: begun.ttl };
        cloud.put_item(&key, &reading).await;
        event("later.pdf", "1").await;
        assert_eq!(cloud.item::<ReadingRecord>(&key).await, Some(reading));

        // a mail that is owed is sent by whoever receives the event again
        cloud.put_item(&ItemKey::source(&project, "bomb.pdf"), &SourceRecord { mail_due: true, ..refused }).await;
        event("bomb.pdf", "2").await;
        cloud.mailed_times(&subject, 2).await;

        // the eleventh of an hour says that there are many, the next ones nothing
        for hour in [cloud.now(), UnixTime(cloud.now().0 + 3600)] {
            let told = RefusalCount { count: 10, many_told: false, ttl: hour.0 + 3600 };
            cloud.put_item(&ItemKey::refusals(&project, hour), &told).await;
        }
        for path in ["eleventh.pdf", "twelfth.pdf"] {
            cloud.put_item(&ItemKey::reading(&project, path), &begun).await;
            event(path, "5").await;
            assert!(!cloud.source(&project, path).await.unwrap().mail_due);
        }
        cloud.mail(&format!("{project}: many files are refused")).await;
        assert_eq!(cloud.mails_about(&format!("{project}: many files")), 1);
        assert_eq!(cloud.mails_about(&subject), 2, "mailed once, and once when it was owed; not when delivered again");
        assert_eq!(cloud.mails_about("eleventh.pdf") + cloud.mails_about("twelfth.pdf"), 0);
    });
}
