//! The jobs and messages in `events/trainer/` are documentation: right ones are read, wrong ones are refused with what is wrong in them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fs, path::Path};

use serde::de::DeserializeOwned;
use tunesmith_contract::{
    error_name::Failure,
    job::{ExportJob, ServeJob, TrainJob},
};
use tunesmith_trainer::interrupt::Notice;

fn read<T: DeserializeOwned>(text: &str) -> Result<(), String> {
    serde_json::from_str::<T>(text).map(drop).map_err(|error| error.to_string())
}

fn jobs(folder: &str) -> BTreeMap<String, Result<(), String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../events/trainer").join(folder);
    let mut read_jobs = BTreeMap::new();
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let (name, text) = (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap());
        let result = match name.split('-').next().unwrap().trim_end_matches(".json") {
            // an evaluation is of the run that this job trained
            "train" | "evaluate" => read::<TrainJob>(&text),
            "serve" => read::<ServeJob>(&text),
            "export" => read::<ExportJob>(&text),
            // what the trainer tells the state machine, and what the metadata of a spot machine tell the trainer
            "failure" => read::<Failure>(&text),
            "spot" => read::<Notice>(&text),
            other => panic!("{other} is no command"),
        };
        read_jobs.insert(name, result);
    }
    read_jobs
}

#[test]
fn every_example_is_a_job() {
    let jobs = jobs("");
    assert!(jobs.len() >= 9);
    for (name, result) in jobs {
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn every_wrong_example_is_refused_with_its_reason() {
    let reasons = [
        ("evaluate-no-output.json", "missing field `output`"),
        ("export-unknown-format.json", "unknown variant `onnx`"),
        ("failure-unknown-name.json", "unknown variant `OutOfLuck`"),
        ("serve-unknown-key.json", "unknown field `control`"),
        ("spot-notice-no-time.json", "missing field `time`"),
        ("train-bad-run.json", "run- and 12 hexadecimal digits"),
        ("train-no-dataset.json", "missing field `dataset`"),
        ("train-unknown-key.json", "unknown field `learning_rat`"),
    ];
    let jobs = jobs("invalid");
    assert_eq!(jobs.len(), reasons.len(), "a reason for each: {jobs:?}");
    for (name, reason) in reasons {
        let error = jobs[name].as_ref().unwrap_err();
        assert!(error.contains(reason), "{name}: {error}");
    }
}
