//! The decision page over a whole evaluation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; clippy exempts only the tests themselves"
)]

use tunesmith_contract::{
    evaluation::Sample,
    ids::{DatasetId, DocumentId, ProjectId, RunId},
    money::Usd,
    settings::GateSettings,
};
use tunesmith_evaluation::{
    AnswerLinks, Bootstrap, CostLine, DecisionPage, DocumentLoss, Fact, Measured, decide, decision_page, evaluate,
};

fn losses(shift: f64) -> Vec<DocumentLoss> {
    let loss = |number: u8| DocumentLoss {
        document: DocumentId::of(&[number]),
        nll: 250.0 + f64::from(number % 5) * 20.0 - shift,
        tokens: 100,
        words: 60,
        bytes: 380,
    };
    (0..30).map(loss).collect()
}

#[test]
fn the_page_says_what_a_decision_needs_and_escapes_what_models_say() {
    let (base, tuned, live) = (losses(0.0), losses(60.0), losses(50.0));
    let samples = vec![Sample {
        prompt: "When may I take leave?".into(),
        base: "<img src=x onerror=alert(1)>".into(),
        tuned: "After three months & with notice.".into(),
        reference: Some("After three months.".into()),
    }];
    let (run, old) = (RunId::of(&[b"new"]), RunId::of(&[b"old"]));
    let measured = Measured {
        run: run.clone(),
        dataset: DatasetId::of(&[b"d"]),
        examples: 60,
        base: &base,
        tuned: &tuned,
        live: Some(&live),
        samples,
    };
    let evaluation = evaluate(measured, &Bootstrap::default()).unwrap();
    let gate = decide(&evaluation, &GateSettings::default());
    let project: ProjectId = "handbook".parse().unwrap();
    let costs = [CostLine { label: "spent on training".into(), amount: Usd::from_micros(12_300) }];
    let training = [Fact { label: "Machine".into(), value: "c7i.2xlarge, spot".into() }];
    let links = AnswerLinks {
        approve: "https://x.example/?a=1&b=2".into(),
        reject: "javascript:alert(1)".into(),
        expires: "in seven days".into(),
    };
    let page = DecisionPage {
        project: &project,
        base_model: "tunesmith-mini",
        evaluation: &evaluation,
        gate: &gate,
        costs: &costs,
        training: &training,
        live_run: Some(&old),
        answer: Some(&links),
    };
    let html = decision_page(&page);
    for wanted in [
        run.as_str(),
        old.as_str(),
        "Live model",
        "per byte",
        "$0.0123",
        "c7i.2xlarge",
        "Every check of the gate passed",
        "When may I take leave?",
        "href=\"https://x.example/?a=1&amp;b=2\"",
    ] {
        assert!(html.contains(wanted), "{wanted}");
    }
    for unwanted in ["<img", "javascript:", "<script", "NaN"] {
        assert!(!html.contains(unwanted), "{unwanted}");
    }
    assert_eq!(html, decision_page(&page), "the same input gives the same page");
    if let Ok(path) = std::env::var("DECISION_PAGE") {
        std::fs::write(path, html).unwrap();
    }
}

#[test]
fn a_refused_model_is_shown_as_refused() {
    let (base, tuned) = (losses(0.0), losses(1.0));
    let measured = Measured {
        run: RunId::of(&[b"n"]),
        dataset: DatasetId::of(&[b"d"]),
        examples: 30,
        base: &base,
        tuned: &tuned,
        live: None,
        samples: vec![],
    };
    let evaluation = evaluate(measured, &Bootstrap::default()).unwrap();
    let gate = decide(&evaluation, &GateSettings::default());
    let project: ProjectId = "handbook".parse().unwrap();
    let page = DecisionPage {
        project: &project,
        base_model: "b",
        evaluation: &evaluation,
        gate: &gate,
        costs: &[],
        training: &[],
        live_run: None,
        answer: None,
    };
    let html = decision_page(&page);
    assert!(!gate.passed && html.contains("The gate refuses it: gate.min_improvement_percent."));
    assert!(html.contains("No model of this project is live"));
}
