//! Every fixture under `events/` has the shape its reader expects; every one under `invalid/` is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tunesmith_contract::{
    approval::ApprovalDecision,
    deployment::{Deployment, LiveRecord, Verification},
    evaluation::GateDecision,
    job::TrainReport,
    tasks,
};

fn events() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../events")
}

/// Whether the value has this shape, and nothing in it is ignored.
fn is<T: DeserializeOwned + Serialize>(value: &Value) -> Result<(), String> {
    let read: T = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    let written = serde_json::to_value(read).unwrap();
    if keeps(value, &written) { Ok(()) } else { Err(format!("something is ignored: {value} became {written}")) }
}

/// Whether everything in `before` is in `after`, where defaults may have been filled in.
fn keeps(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            before.iter().all(|(key, value)| after.get(key).is_some_and(|after| keeps(value, after)))
        }
        (Value::Array(before), Value::Array(after)) => {
            before.len() == after.len() && before.iter().zip(after).all(|(before, after)| keeps(before, after))
        }
        (Value::Number(before), Value::Number(after)) => before.as_f64() == after.as_f64(),
        _ => before == after,
    }
}

/// Reads a fixture as the function of its folder reads it. Fixtures named `output…` are results, all others are inputs.
fn read(function: &str, is_output: bool, value: &Value) -> Result<(), String> {
    match (function, is_output) {
        ("prepare-dataset", false) => is::<tasks::PrepareDatasetInput>(value),
        ("prepare-dataset", true) => is::<tasks::PreparedDataset>(value),
        ("index-documents", false) => is::<tasks::IndexDocumentsInput>(value),
        ("index-documents", true) => is::<tasks::IndexedDocuments>(value),
        ("plan-training", false) => is::<tasks::PlanTrainingInput>(value),
        ("plan-training", true) => is::<tasks::PlannedTraining>(value),
        ("guard-budget", false) => is::<tasks::GuardBudgetEvent>(value),
        ("guard-budget", true) => is::<tasks::GuardedBudget>(value).or_else(|_| is::<tasks::ReclaimedBudgets>(value)),
        ("launch-training", false) => is::<tasks::LaunchTrainingInput>(value),
        ("launch-training", true) => is::<TrainReport>(value),
        ("gate-model", false) => is::<tasks::GateModelInput>(value),
        ("gate-model", true) => is::<GateDecision>(value),
        ("request-approval", false) => is::<tasks::RequestApprovalInput>(value),
        ("request-approval", true) => is::<ApprovalDecision>(value),
        ("answer-approval", true) => is::<tasks::AnsweredApproval>(value),
        ("answer-approval", false) => {
            answer_approval::request::parse(value).map(drop).map_err(|error| error.to_string())
        }
        ("deploy-endpoint", false) => is::<tasks::DeployEndpointInput>(value),
        ("deploy-endpoint", true) => is::<LiveRecord>(value).or_else(|_| is::<Deployment>(value)),
        ("verify-endpoint", false) => is::<tasks::VerifyEndpointInput>(value),
        ("verify-endpoint", true) => is::<Verification>(value),
        ("sweep-resources", false) => is::<tasks::SweepResourcesInput>(value),
        ("sweep-resources", true) => is::<tasks::SweptResources>(value),
        ("watch-costs", false) => is::<tasks::WatchCostsInput>(value),
        ("watch-costs", true) => is::<tasks::WatchedCosts>(value),
        _ => panic!("no reader for {function}"),
    }
}

const FUNCTIONS: [&str; 12] = [
    "prepare-dataset",
    "index-documents",
    "plan-training",
    "guard-budget",
    "launch-training",
    "gate-model",
    "request-approval",
    "answer-approval",
    "deploy-endpoint",
    "verify-endpoint",
    "sweep-resources",
    "watch-costs",
];

fn fixtures(folder: &Path) -> Vec<(String, Value)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[test]
fn every_fixture_is_read_by_its_function() {
    for function in FUNCTIONS {
        let found = fixtures(&events().join(function));
        assert!(found.iter().any(|(name, _)| name.starts_with("input")), "{function} has no input");
        assert!(found.iter().any(|(name, _)| name.starts_with("output")), "{function} has no output");
        for (name, value) in found {
            if let Err(error) = read(function, name.starts_with("output"), &value) {
                panic!("events/{function}/{name}.json: {error}");
            }
        }
    }
}

#[test]
fn every_invalid_fixture_is_refused() {
    for function in FUNCTIONS {
        let found = fixtures(&events().join(function).join("invalid"));
        assert!(!found.is_empty(), "{function} has no invalid fixture");
        for (name, value) in found {
            assert!(read(function, false, &value).is_err(), "events/{function}/invalid/{name}.json was accepted");
        }
    }
}

/// Reads what a person, an upload or a schedule starts a state machine with: `{state machine}.{case}.json`.
fn start(name: &str, value: &Value) -> Result<(), String> {
    match name.split('.').next().unwrap() {
        "training-pipeline" if name.ends_with(".deploy-again") => is::<tasks::DeployAgainInput>(value),
        "training-pipeline" => is::<tasks::PipelineInput>(value),
        "approve-deployment" => is::<tasks::AnswerApprovalInput>(value),
        other => panic!("no state machine {other}"),
    }
}

#[test]
fn every_start_of_a_state_machine_is_read_and_every_wrong_one_refused() {
    let folder = events().join("state-machines");
    for (machine, right, wrong) in [("training-pipeline", 1, 4), ("approve-deployment", 2, 3)] {
        let of = |folder: &Path| fixtures(folder).into_iter().filter(|(name, _)| name.starts_with(machine)).collect();
        let (starts, invalid): (Vec<_>, Vec<_>) = (of(&folder), of(&folder.join("invalid")));
        assert!(starts.len() >= right && invalid.len() >= wrong, "{machine}: {starts:?} {invalid:?}");
        for (name, value) in starts {
            start(&name, &value).unwrap_or_else(|error| panic!("events/state-machines/{name}.json: {error}"));
        }
        for (name, value) in invalid {
            assert!(start(&name, &value).is_err(), "events/state-machines/invalid/{name}.json was accepted");
        }
    }
}

#[test]
fn every_folder_of_fixtures_belongs_to_a_function_or_is_explained() {
    let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions");
    for entry in fs::read_dir(events()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let known = functions.join(&name).is_dir() || ["state-machines", "trainer"].contains(&name.as_str());
        assert!(path.is_file() || known, "events/{name} belongs to nothing");
    }
}
