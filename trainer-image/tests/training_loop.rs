//! How a run ends early, goes on elsewhere, and is watched.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Fixture, Running, text};
use serde_json::{Value, json};
use tunesmith_contract::job::{MetricLine, TrainReport};

fn lines(fixture: &Fixture, run: &str) -> Vec<MetricLine> {
    let metrics = std::fs::read_to_string(fixture.path(run).join("metrics.jsonl")).unwrap();
    metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn report(fixture: &Fixture, job: &Value) -> TrainReport {
    let done = fixture.trainer("train", &fixture.write_job("job.json", job)).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn early_stopping_ends_the_run_and_the_best_adapter_is_exported() {
    let fixture = Fixture::new();
    let mut job = fixture.job("run");
    job["training"]["evaluate_every"] = json!(2);
    job["training"]["early_stopping_patience"] = json!(2);
    // nothing improves by ten nats: two evaluations after the first the run ends
    job["training"]["early_stopping_min_delta"] = json!(10.0);
    assert_eq!(report(&fixture, &job).steps, 6);
    let seen = lines(&fixture, "run");
    let validated: Vec<(u32, f64)> = seen.iter().filter_map(|line| Some((line.step, line.validation_loss?))).collect();
    assert_eq!(validated.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4, 6]);
    let best = validated.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    let files = fixture.files("run");
    let state: Value = serde_json::from_slice(&files["checkpoints/6/run.json"]).unwrap();
    assert_eq!((&state["stopped_early"], &state["best"]["step"]), (&json!(true), &json!(best)));
    assert_eq!(
        files["adapter/adapter_model.safetensors"], files["checkpoints/6/best/adapter_model.safetensors"],
        "the adapter that validates best is handed out"
    );
    // a run that was stopped early is not taken up again
    let again = report(&fixture, &job);
    assert_eq!((again.steps, again.resumed_from), (6, Some(6)));
    assert_eq!(fixture.files("run")["adapter/adapter_model.safetensors"], files["adapter/adapter_model.safetensors"]);
}

#[test]
fn a_run_goes_on_with_another_split_of_its_steps_and_not_with_other_steps() {
    let fixture = Fixture::new();
    let mut job = fixture.job("run");
    (job["training"]["batch_size"], job["training"]["accumulation"]) = (json!(2), json!(3));
    let mut running = Running::start(fixture.trainer("train", &fixture.write_job("small.json", &job)));
    running.wait_for("checkpoint", Some(4));
    running.signal("TERM");
    assert_eq!(running.end().code(), Some(143), "{}", running.seen);
    (job["training"]["batch_size"], job["training"]["accumulation"]) = (json!(6), json!(2));
    let other = fixture.trainer("train", &fixture.write_job("other.json", &job)).output().unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("batch_size 2 instead of 6"), "{}", text(&other.stderr));
    (job["training"]["batch_size"], job["training"]["accumulation"]) = (json!(6), json!(1));
    let report = report(&fixture, &job);
    assert!(report.steps == 18 && report.resumed_from.is_some_and(|step| step >= 4), "{report:?}");
}

#[test]
fn every_schedule_and_optimizer_can_be_asked_for_and_tensorboard_shows_the_run() {
    let fixture = Fixture::new();
    let mut job = fixture.job("run");
    (job["training"]["schedule"], job["training"]["optimizer"]) = (json!("wsd"), json!("adamw-8bit"));
    (job["training"]["rank"], job["training"]["decay_ratio"]) = (json!(32), json!(0.5));
    report(&fixture, &job);
    let rates: Vec<f64> = lines(&fixture, "run").iter().map(|line| line.learning_rate).collect();
    assert_eq!(rates[1..9], [0.005; 8], "stable for half of the run");
    assert!(rates[9..].windows(2).all(|pair| pair[1] <= pair[0]) && rates[17] < 0.001, "{rates:?}");
    let files = fixture.files("run");
    let events = &files["tensorboard/events.out.tfevents.tunesmith"];
    assert!(events.windows(13).any(|bytes| bytes == b"brain.Event:2") && events.windows(9).any(|b| b == b"eval/loss"));
    let full = fixture.train("full");
    assert!(full.status.success());
    let size = |name: &str| fixture.files(name)["checkpoints/18/optimizer.safetensors"].len();
    assert!(size("run") < 3 * size("full"), "eight times the values in less than three times the bytes");
}

#[test]
fn a_diverged_run_names_documents_and_the_last_good_checkpoint() {
    let fixture = Fixture::new();
    let mut job = fixture.job("run");
    // the rate rises to where nothing is finite
    job["training"]["warmup_ratio"] = json!(0.5);
    (job["training"]["learning_rate"], job["training"]["clip_norm"]) = (json!(1e36), json!(1e36));
    let done = fixture.trainer("train", &fixture.write_job("job.json", &job)).output().unwrap();
    let log = text(&done.stderr);
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!((done.status.code(), &last["name"]), (Some(1), &json!("TrainingDiverged")), "{log}");
    let message = last["message"].as_str().unwrap();
    assert!(
        message.contains("at step ") && message.contains("from documents ") && message.contains("checkpoint"),
        "{message}"
    );
}

/// Every file that the process writes may have 100 KiB at the most: the adapter's has more.
#[cfg(target_os = "linux")]
#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_nothing_half_written() {
    let fixture = Fixture::new();
    let job = fixture.write_job("job.json", &fixture.job("run"));
    let trainer = env!("CARGO_BIN_EXE_tunesmith-trainer");
    let script = format!("trap '' XFSZ; ulimit -f 100; exec {trainer} train --job {}", job.display());
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", &script]).env("TUNESMITH_CACHE", fixture.path("cache")).env("TMPDIR", fixture.folder.path());
    let done = shell.output().unwrap();
    let log = text(&done.stderr);
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!((done.status.code(), &last["name"]), (Some(1), &json!("TrainingFailed")), "{log}");
    assert!(!fixture.path("run").exists() || fixture.files("run").is_empty(), "{:?}", fixture.files("run").keys());
    let left = std::fs::read_dir(fixture.folder.path()).unwrap().map(|item| item.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("tunesmith-")).collect();
    assert!(left.is_empty(), "the folder for copies is gone: {left:?}");
}
