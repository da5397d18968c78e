//! The whole path over generated documents: files to dataset, chunks and report.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; clippy exempts only the tests themselves"
)]

use tunesmith_contract::{
    documents::{DatasetManifest, Example, ExtractedDocument, QuarantineReason, UnreadUploads},
    ids::{DocumentId, ProjectId},
};
use tunesmith_documents::{
    ChunkPlan, DatasetError, DatasetPlan, DatasetReport, Limits, build_dataset, chunk_documents, dataset_report,
    quarantine_record, read_document, read_jsonl_zst,
};

const PLAN: DatasetPlan = DatasetPlan {
    minimum_words: 500,
    validation_fraction: 0.1,
    test_fraction: 0.1,
    questions_from_headings: true,
    passage_words: 150,
    seed: 7,
};

/// A handbook page whose words no other page has.
fn page(number: usize) -> ExtractedDocument {
    let mut text = format!("# Page {number}\n\n");
    for section in 0..4 {
        text.push_str(&format!("## Subject {number} of {section}\n\n"));
        for sentence in 0..12 {
            text.push_str(&format!(
                "Rule {sentence} for crew p{number}s{section}n{sentence} is <b>kept</b> at berth {number}{sentence}. "
            ));
        }
        text.push_str("\n\n");
    }
    read_document(&format!("pages/{number}.md"), text.as_bytes(), &Limits::default()).unwrap()
}

#[test]
fn no_document_stands_on_both_sides_of_the_test() {
    let dataset = build_dataset((0..30).map(page).collect(), &PLAN).unwrap();
    let documents =
        |examples: &[Example]| examples.iter().map(|e| e.document().clone()).collect::<std::collections::BTreeSet<_>>();
    let (train, validation, test) =
        (documents(&dataset.train), documents(&dataset.validation), documents(&dataset.test));
    assert_eq!((train.len(), validation.len(), test.len()), (24, 3, 3));
    assert!(train.is_disjoint(&test) && train.is_disjoint(&validation) && validation.is_disjoint(&test));
    assert!(
        dataset.test.iter().any(|e| matches!(e, Example::Chat { .. }))
            && dataset.test.iter().any(|e| matches!(e, Example::Text { .. }))
    );
}

#[test]
fn the_same_documents_give_the_same_bytes_in_any_order() {
    let files = build_dataset((0..12).map(page).collect(), &PLAN).unwrap().files().unwrap();
    let again = build_dataset((0..12).rev().chain([3, 3]).map(page).collect(), &PLAN).unwrap().files().unwrap();
    assert_eq!(files, again);
    let other = build_dataset((0..13).map(page).collect(), &PLAN).unwrap().files().unwrap();
    assert_ne!(files.id, other.id);
    let train: Vec<Example> = read_jsonl_zst(&files.train, 10_000_000).unwrap();
    assert_eq!(train, build_dataset((0..12).map(page).collect(), &PLAN).unwrap().train);
}

#[test]
fn too_little_text_is_said_with_the_counts() {
    let few = read_document("a.txt", b"Only these five words here", &Limits::default()).unwrap();
    let error = build_dataset(vec![few.clone(), few], &PLAN).unwrap_err();
    assert!(matches!(error, DatasetError::NotEnoughText { words: 5, needed: 500, documents: 1 }), "{error}");
    assert!(matches!(build_dataset(vec![], &PLAN), Err(DatasetError::NotEnoughText { words: 0, .. })));
}

#[test]
fn one_long_document_is_enough() {
    let text: String = (0..60)
        .map(|n| {
            format!("Paragraph {n} says that the pilot number {n} boards at mark {n} when the light is green.\n\n")
        })
        .collect();
    let document = read_document("one.txt", text.as_bytes(), &Limits::default()).unwrap();
    let dataset = build_dataset(vec![document], &PLAN).unwrap();
    assert!(dataset.split_by_section);
    let wall = "word ".repeat(900);
    let wall = read_document("wall.txt", wall.as_bytes(), &Limits::default()).unwrap();
    assert!(matches!(build_dataset(vec![wall], &PLAN), Err(DatasetError::CannotSplit { documents: 1 })));
}

#[test]
fn uploaded_chats_are_examples() {
    let line = |n: usize| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"Question {n}?\"}},{{\"role\":\"assistant\",\"content\":\"Answer number {n}.\"}}]}}\n"
        )
    };
    let chats =
        read_document("faq.jsonl", (0..20).map(line).collect::<String>().as_bytes(), &Limits::default()).unwrap();
    let dataset = build_dataset((0..9).map(page).chain([chats.clone()]).collect(), &PLAN).unwrap();
    let all = dataset.train.iter().chain(&dataset.validation).chain(&dataset.test);
    assert_eq!(all.filter(|e| *e.document() == chats.id).count(), 20);
}

#[test]
fn chunks_keep_their_headings() {
    let chunks = chunk_documents(&[page(1)], &ChunkPlan::default());
    assert!(chunks.len() >= 4);
    assert!(
        chunks
            .iter()
            .all(|c| c.headings[0] == "Page 1" && c.headings[1].starts_with("Subject 1") && c.path == "pages/1.md")
    );
}

#[test]
fn the_report_escapes_what_documents_say() {
    let mut documents: Vec<ExtractedDocument> = (0..5).map(page).collect();
    documents[0].title = "<script>alert(1)</script>".into();
    let dataset = build_dataset(documents, &PLAN).unwrap();
    let project: ProjectId = "handbook".parse().unwrap();
    let manifest = DatasetManifest {
        unread: UnreadUploads::new(&["<i>.md".to_owned(), "b.md".to_owned()]),
        ..dataset.manifest(&dataset.files().unwrap().id, &project, 1)
    };
    assert_eq!(manifest.train.documents + manifest.validation.documents + manifest.test.documents, 5);
    let record = quarantine_record(DocumentId::of(b"x"), project, "a<b>.pdf", QuarantineReason::ImageOnly { pages: 3 });
    let html = dataset_report(&DatasetReport { manifest: &manifest, dataset: &dataset, quarantine: &[record] });
    assert!(!html.contains("<script>") && html.contains("&lt;script&gt;"));
    assert!(html.contains("a&lt;b&gt;.pdf") && html.contains("none of the 3 pages holds text"));
    assert!(html.contains("2 uploaded file(s) had not been read") && html.contains("&lt;i&gt;.md</code>, <code>b.md"));
    assert!(!html.contains("http://") && !html.contains("https://"), "self-contained");
}
