//! A small evaluation: questions over hand-made passages. Hybrid search must find what either list alone misses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use tunesmith_contract::{DatasetId, DocumentId, documents::Chunk};
use tunesmith_retrieval::{SearchIndex, build_index, chunk_text};

/// (name, heading, text); written for this test.
const PASSAGES: &[(&str, &str, &str)] = &[
    ("leave", "Annual leave", "Everyone has 28 days of paid leave a year. Book it in the portal two weeks ahead."),
    ("sick", "When you are ill", "Call your lead before nine. From the fourth day a doctor's note is needed."),
    ("hotel", "Travel costs", "A room may cost 140 euros a night. Anything above that needs approval by your manager."),
    (
        "train",
        "Getting there",
        "Go by rail where it takes less than six hours; second class. Flights only beyond that.",
    ),
    ("laptop", "Equipment", "You choose a notebook when you join and get a new one every four years."),
    (
        "password",
        "Sign-in rules",
        "Use the manager vault and a hardware key. Never share credentials, not with support either.",
    ),
    ("e4711", "Error codes", "E4711: the pump lost pressure. Close valve B, then restart the controller."),
    ("e4712", "Error codes", "E4712: the pump is too hot. Let it cool for an hour before a restart."),
    ("form17", "Forms", "Form TR-17 is for relocation allowances; form TR-18 for tuition."),
    ("backup", "Backups", "Databases are copied every night and kept for 35 days in another region."),
    ("visitor", "Guests", "Outsiders sign in at reception, wear a badge and are accompanied at all times."),
    ("kitchen", "Kitchen", "Coffee and fruit are free. Whoever empties the machine fills it again."),
    ("parental", "A new child", "Mothers and fathers may stay home for twelve months; six of them at full salary."),
    ("notice", "Leaving us", "Either side may end the contract with three months' warning to the end of a quarter."),
    ("remote", "Working from home", "Up to three days a week. Tell your team in the calendar which ones."),
    ("fire", "Alarm", "Leave by the nearest stairs, never the lift, and gather in the car park."),
    ("invoice", "Invoices", "Suppliers send bills to accounts@example.com; they are paid within 30 days."),
    ("training", "Learning", "Each person has 1,200 euros and five days a year for courses and conferences."),
];

/// (question, name of the passage that answers it)
const QUESTIONS: &[(&str, &str)] = &[
    ("How many vacation days do I get?", "leave"),
    ("I have a fever and cannot come in, what must I do?", "sick"),
    ("What is the limit for accommodation on business trips?", "hotel"),
    ("May I fly to a meeting in the next city?", "train"),
    ("When will my computer be replaced?", "laptop"),
    ("Can I give my login to the help desk?", "password"),
    ("E4711", "e4711"),
    ("what does code E4712 mean", "e4712"),
    ("TR-17", "form17"),
    ("How long can we restore old data?", "backup"),
    ("A customer comes to our office: what happens at the door?", "visitor"),
    ("How long is paternity leave?", "parental"),
    ("I want to resign, how long do I have to stay?", "notice"),
    ("Is home office allowed?", "remote"),
    ("Where is the assembly point in an emergency?", "fire"),
    ("Who pays for a conference ticket?", "training"),
];

fn index() -> SearchIndex {
    let chunks: Vec<Chunk> = PASSAGES
        .iter()
        .map(|(name, heading, text)| Chunk {
            document: DocumentId::of(name.as_bytes()),
            path: format!("{name}.md"),
            headings: vec![(*heading).into()],
            page: None,
            text: (*text).into(),
        })
        .collect();
    let vectors = common::embedder().embed(&chunks.iter().map(chunk_text).collect::<Vec<_>>()).unwrap();
    SearchIndex::open(build_index(DatasetId::of(&[]), &chunks, &vectors).unwrap().files).unwrap()
}

#[test]
fn hybrid_search_finds_the_answer_among_the_first_three() {
    let index = index();
    let mut missed = Vec::new();
    let (mut first_dense, mut first_keyword) = (0, 0);
    for (question, answer) in QUESTIONS {
        let vector = common::embedder().embed(&[question]).unwrap();
        let hits = index.search(question, vector.row(0), PASSAGES.len()).unwrap();
        let path = format!("{answer}.md");
        let place = hits.iter().position(|hit| hit.chunk.path == path).unwrap();
        first_dense += usize::from(hits[place].dense_rank <= 3);
        first_keyword += usize::from(hits[place].keyword_rank.is_some_and(|rank| rank <= 3));
        if place >= 3 {
            missed.push((*question, place + 1, hits[place].dense_rank, hits[place].keyword_rank));
        }
    }
    println!(
        "recall@3 of {}: vectors {first_dense}, keywords {first_keyword}, missed by both fused: {missed:?}",
        QUESTIONS.len()
    );
    assert!(missed.is_empty(), "{missed:?}");
    assert!(QUESTIONS.len() - missed.len() > first_keyword, "vectors must add to keywords");
}

/// Two hundred part numbers that mean the same to an embedding model: only keywords tell them apart.
#[test]
fn a_part_number_is_found_among_its_likes() {
    let chunks: Vec<Chunk> = (0..200)
        .map(|i| Chunk {
            document: DocumentId::of(&[i]),
            path: format!("{i}.md"),
            headings: vec!["Spare parts".into()],
            page: None,
            text: format!("Part QX-{:04} fits the pump of series {}.", 1000 + u32::from(i) * 37, i % 7),
        })
        .collect();
    let vectors = common::embedder().embed(&chunks.iter().map(chunk_text).collect::<Vec<_>>()).unwrap();
    let index = SearchIndex::open(build_index(DatasetId::of(&[]), &chunks, &vectors).unwrap().files).unwrap();
    let mut beyond_vectors = 0;
    for i in (3..200).step_by(20) {
        let question = format!("part QX-{:04} of the pump", 1000 + i * 37);
        let vector = common::embedder().embed(&[&question]).unwrap();
        let hits = index.search(&question, vector.row(0), 3).unwrap();
        assert_eq!(hits[0].chunk.path, format!("{i}.md"), "{question}");
        beyond_vectors += usize::from(hits[0].dense_rank > 3);
    }
    assert!(beyond_vectors >= 1, "keywords must add to vectors");
}

#[test]
fn passages_of_other_documents_come_before_repetitions() {
    let passage = |document: &str, text: &str| Chunk {
        document: DocumentId::of(document.as_bytes()),
        path: format!("{document}.md"),
        headings: vec![],
        page: None,
        text: text.into(),
    };
    let chunks = [passage("a", "annual leave"), passage("a", "annual leave"), passage("b", "annual leave")];
    let vectors = common::embedder().embed(&chunks.iter().map(chunk_text).collect::<Vec<_>>()).unwrap();
    let index = SearchIndex::open(build_index(DatasetId::of(&[]), &chunks, &vectors).unwrap().files).unwrap();
    let question = common::embedder().embed(&["annual leave"]).unwrap();
    let hits = index.search("annual leave", question.row(0), 2).unwrap();
    let paths: Vec<&str> = hits.iter().map(|hit| hit.chunk.path.as_str()).collect();
    assert_eq!(paths, ["a.md", "b.md"]);
}
