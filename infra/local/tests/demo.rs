//! `cargo demo -- --approve` to its end: what its summary promises.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, path::Path, process::Command};

use tunesmith_local::{demo::Summary, paths::Paths};

/// Money as whole micro-dollars, for sums that must be exact.
fn micros(dollars: f64) -> i64 {
    (dollars * 1e6).round() as i64
}

#[test]
fn the_demo_ends_with_an_approved_endpoint_and_nothing_left_running() {
    let folder = Paths::of_this_checkout().target.join("demo-test");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_local-cloud"))
        .args(["demo", "--approve"])
        .env("TUNESMITH_LOCAL_STATE", folder.join("state"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = fs::read(folder.join("demo/summary.json")).unwrap();
    let summary: Summary = serde_json::from_slice(&text).unwrap();

    // every file of the sample was read or refused, each refusal with its reason
    let sample = Paths::of_this_checkout().root.join("docs/sample");
    let files = tunesmith_local::models::files(&sample).unwrap();
    let documents = files.iter().filter(|(_, name)| name != "project.toml").count() as u64;
    assert_eq!(summary.documents.ingested + summary.documents.quarantined.len() as u64, documents);
    let broken: Vec<&str> = summary.documents.quarantined.iter().map(|q| q.file.as_str()).collect();
    assert!(broken.len() >= 5 && broken.iter().all(|file| file.starts_with("broken/")), "{broken:?}");
    assert!(summary.documents.quarantined.iter().all(|refused| refused.reason.len() > 10));

    // trained: at least 10 % better on the test split than the base, so the gate let it pass
    let perplexity = summary.perplexity.unwrap();
    assert!(perplexity.tuned.token <= 0.9 * perplexity.base.token, "{perplexity:?}");
    assert!(perplexity.tuned.byte < perplexity.base.byte && perplexity.tuned.word < perplexity.base.word);
    assert!(summary.gate.unwrap().passed);
    assert_eq!(summary.approval.unwrap().via, "console");

    // served: the endpoint computes what the trainer computed, and answers with sources
    let endpoint = summary.endpoint.unwrap();
    assert_eq!(endpoint.status, "InService");
    assert!(endpoint.logit_max_abs_diff <= 1e-3, "{endpoint:?}");
    assert_eq!(summary.answers.len(), 3);
    for answer in &summary.answers {
        assert!(!answer.answer.is_empty() && !answer.base_answer.is_empty(), "{answer:?}");
        assert!(!answer.sources.is_empty(), "{answer:?}");
    }
    assert!(summary.answers[0].sources.iter().any(|source| source.contains("leave")), "{:?}", summary.answers[0]);

    // paid: what was reserved was charged or returned
    let dollars = summary.dollars;
    assert!(dollars.quoted > 0.0 && dollars.settled > 0.0, "{dollars:?}");
    assert_eq!(micros(dollars.reserved), micros(dollars.settled) + micros(dollars.returned));
    assert_eq!(micros(dollars.metered), micros(dollars.settled));

    // left: copies of what was made, and nothing that runs
    assert_eq!(summary.left_running, Vec::<String>::new());
    assert_eq!(summary.error, None);
    for name in ["decision page", "dataset report", "evaluation", "adapter", "index"] {
        let path = summary.artefacts.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", summary.artefacts));
        assert!(Path::new(path).exists(), "{path}");
    }
    assert!(said.contains("nothing is left running"), "{said}");
}
