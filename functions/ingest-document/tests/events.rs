//! The fixtures in `events/ingest-document` are what this function gets and gives.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::path::Path;

use ingest_document::event::{Subject, Task, execution_name, task};
use tunesmith_contract::{ErrorName, keys::KeyError};
use tunesmith_lambda::{BatchAnswer, SqsBatch};

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/ingest-document").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn tasks(name: &str) -> Vec<Task> {
    let batch: SqsBatch = serde_json::from_str(&fixture(name)).unwrap();
    batch.records.iter().map(|message| task(&message.body).unwrap()).collect()
}

fn read(task: &Task) -> &Subject {
    match task {
        Task::Read(subject) => subject,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_upload_is_read() {
    let tasks = tasks("created.json");
    let subject = read(&tasks[0]);
    assert_eq!(subject.key.to_string(), "handbook/people/holidays.md");
    assert_eq!(subject.bytes, Some(5120));
    assert_eq!(subject.bucket, "tunesmith-documents-123456789012");
}

#[test]
fn names_are_taken_as_they_are() {
    let found: Vec<_> = tasks("created-hostile-names.json").iter().map(|task| read(task).key.path.clone()).collect();
    assert_eq!(
        found,
        ["Fahrgäste + Hunde.md", "100% bio+fair%20trade.html", "レポート/四半期.pdf", "../../etc/passwd"]
    );
}

#[test]
fn a_large_file_is_known_to_be_large_before_it_is_read() {
    let tasks = tasks("created-multipart-200mb.json");
    let bytes = read(&tasks[0]).bytes.unwrap();
    assert!(tunesmith_documents::Limits::default().check_size(bytes).is_err());
}

#[test]
fn deletions_settings_and_train_are_told_apart() {
    assert!(matches!(&tasks("deleted.json")[0], Task::Forget(subject) if subject.bytes.is_none()));
    assert!(matches!(&tasks("delete-marker.json")[0], Task::Forget(_)));
    assert!(matches!(&tasks("settings.json")[0], Task::CheckSettings(_)));
    let train = tasks("train.json");
    let Task::Train(subject) = &train[0] else { panic!("{train:?}") };
    let name = execution_name(subject);
    assert_eq!(name, "handbook-0062E99A88DC40748000000000000000");
    assert!(name.len() <= 80);
    assert!(tasks("nothing-to-do.json").iter().all(|task| *task == Task::Nothing));
}

#[test]
fn order_is_by_sequencer_not_by_arrival() {
    let tasks = tasks("duplicate-and-out-of-order.json");
    let sequencers: Vec<_> = tasks.iter().map(|task| read(task).sequencer.as_str()).collect();
    assert_eq!(sequencers[0], sequencers[1]);
    assert!(sequencers[2] < sequencers[0]);
}

#[test]
fn files_outside_a_project_are_told_about() {
    let found = tasks("misplaced.json");
    assert!(matches!(&found[0], Task::Misplaced { error: KeyError::NoProject(_) }));
    assert!(matches!(&found[1], Task::Misplaced { error: KeyError::BadProject { .. } }));
}

#[test]
fn what_is_no_s3_event_of_eventbridge_is_invalid_input() {
    let batch: SqsBatch = serde_json::from_str(&fixture("invalid/bodies.json")).unwrap();
    assert_eq!(batch.records.len(), 7);
    for message in &batch.records {
        let failure = task(&message.body).unwrap_err();
        assert_eq!(failure.name, ErrorName::InvalidInput, "{}", message.body);
        assert!(failure.message.contains("events/"), "{}", failure.message);
    }
    assert!(serde_json::from_str::<SqsBatch>(&fixture("invalid/no-records.json")).is_err());
}

#[test]
fn the_answer_names_what_failed() {
    let text = fixture("output-partial.json");
    let answer: BatchAnswer = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_value(answer).unwrap(), serde_json::from_str::<serde_json::Value>(&text).unwrap());
}
