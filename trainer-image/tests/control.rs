//! A machine that is paid for: heartbeats, lease, meter, cap, spot notice, and what the waiting state machine is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    path::PathBuf,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use common::{Fixture, Running, cloud::Cloud, text};
use serde_json::{Value, json};
use tunesmith_contract::job::TrainReport;

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn lease(status: &str) -> Value {
    json!({
        "pk": {"S": "LEASE"}, "sk": {"S": "attempt-1"},
        "attempt": {"S": "attempt-1"}, "project": {"S": "handbook"}, "run": {"S": "run-0123456789ab"},
        "instance_id": {"S": "i-1"}, "instance_type": {"S": "c7i.large"}, "market": {"S": "spot"},
        "price_per_hour": {"N": "3600000"}, "cap": {"N": "5000000"}, "launched_at": {"N": (now() - 100).to_string()},
        "expires_at": {"N": (now() + 1500).to_string()}, "status": {"S": status}, "metered": {"N": "0"},
        "task_token": {"S": "token-1"}
    })
}

/// A job under control: a thousandth of a dollar a second, 100 seconds on the meter already.
fn job(fixture: &Fixture, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut job = fixture.job("run");
    job["control"] = json!({
        "attempt": "attempt-1", "task_token": "token-1", "table": "table", "price_per_hour": 3_600_000, "cap": 5_000_000,
        "max_time": 3600, "launched_at": now() - 100, "heartbeat_every": 1
    });
    change(&mut job);
    fixture.write_job("job.json", &job)
}

fn trainer(fixture: &Fixture, cloud: &Cloud, job: &std::path::Path) -> Command {
    let mut trainer = fixture.trainer("train", job);
    trainer.envs(cloud.variables());
    trainer
}

fn metered(cloud: &Cloud) -> i64 {
    cloud.lease("metered").parse().unwrap()
}

#[test]
fn success_is_reported_after_the_lease_is_closed_with_its_final_meter() {
    let (fixture, cloud) = (Fixture::new(), Cloud::start(lease("active")));
    let output = trainer(&fixture, &cloud, &job(&fixture, |_| {})).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told = cloud.told();
    assert_eq!(told.first().map(String::as_str), Some("heartbeat"), "before anything is fetched");
    let [.., closed, success] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((closed.as_str(), cloud.lease("interrupted").as_str()), ("lease closed", "false"));
    let report: TrainReport = serde_json::from_str(success.strip_prefix("success ").unwrap()).unwrap();
    assert_eq!(report.steps, 18);
    assert!(metered(&cloud) >= 100_000, "counted from the launch: {}", metered(&cloud));
    assert!(!cloud.lease("ended_at").is_empty() && cloud.lease("ttl").parse::<i64>().unwrap() > now() + 80 * 86_400);
    assert_eq!(cloud.state.lock().unwrap().unauthorised, 0, "the metadata service wants a token");
}

#[test]
fn a_spot_notice_ends_the_attempt_checkpointed_reported_and_with_status_0() {
    let (fixture, cloud) = (Fixture::new(), Cloud::start(lease("active")));
    // longer than anybody waits: only the notice ends it
    let job = job(&fixture, |job| job["training"]["epochs"] = json!(100_000));
    let mut running = Running::start(trainer(&fixture, &cloud, &job));
    running.wait_for("checkpoint", Some(2));
    let notice = r#"{"action": "terminate", "time": "2026-11-20T08:22:00Z"}"#;
    cloud.state.lock().unwrap().notice = Some(notice.to_owned());
    assert_eq!(running.end().code(), Some(0), "{}", running.seen);
    let told = cloud.told();
    let [.., closed, failure] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((closed.as_str(), cloud.lease("interrupted").as_str()), ("lease closed", "true"));
    assert!(
        failure.starts_with("failure SpotInterrupted AWS will terminate this spot machine at 2026-11-20T08:22:00Z")
    );
    let step: u64 = failure.split("after step ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(fixture.path(&format!("run/checkpoints/{step}/DONE")).exists(), "{failure}");
    assert!(cloud.told().iter().filter(|told| *told == "heartbeat").count() >= 2);
}

#[test]
fn a_signal_under_control_is_reported_as_an_interruption() {
    let (fixture, cloud) = (Fixture::new(), Cloud::start(lease("active")));
    let job = job(&fixture, |job| job["training"]["epochs"] = json!(100_000));
    let mut running = Running::start(trainer(&fixture, &cloud, &job));
    running.wait_for("checkpoint", Some(2));
    running.signal("TERM");
    assert_eq!(running.end().code(), Some(0), "{}", running.seen);
    let told = cloud.told();
    assert!(
        told.last().unwrap().starts_with("failure SpotInterrupted told to terminate; the state after step "),
        "{told:?}"
    );
}

#[test]
fn money_that_is_nearly_used_up_ends_the_attempt_before_it_is() {
    let (fixture, cloud) = (Fixture::new(), Cloud::start(lease("active")));
    // 108 seconds are affordable, a tenth of them is kept for the checkpoint: no step can be made
    let job = job(&fixture, |job| job["control"]["cap"] = json!(108_000));
    let output = trainer(&fixture, &cloud, &job).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told = cloud.told();
    assert!(told.last().unwrap().starts_with("failure CapReached $0.10"), "{told:?}");
    assert!(
        told.last().unwrap().contains("no step was made in this attempt")
            && told.last().unwrap().contains("max_run_usd")
    );
    assert!(metered(&cloud) <= 108_000, "{}", metered(&cloud));
}

#[test]
fn without_an_active_lease_nothing_runs() {
    for (status, failure) in [("revoked", Some("failure CapReached the machine's lease was revoked")), ("closed", None)]
    {
        let (fixture, cloud) = (Fixture::new(), Cloud::start(lease(status)));
        let output = trainer(&fixture, &cloud, &job(&fixture, |_| {})).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(!fixture.path("run").exists(), "nothing was written");
        let last = cloud.told().pop().unwrap();
        match failure {
            Some(failure) => assert!(last.starts_with(failure), "{last}"),
            None => assert_eq!(last, "heartbeat", "nobody is told"),
        }
        assert_eq!(cloud.lease("status"), "closed");
    }
}

#[test]
fn an_attempt_that_nobody_waits_for_ends_and_closes_its_lease() {
    let (fixture, cloud) = (Fixture::new(), Cloud::start(lease("active")));
    cloud.state.lock().unwrap().task_gone = true;
    let output = trainer(&fixture, &cloud, &job(&fixture, |_| {})).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(cloud.told(), ["lease closed"]);
}

#[test]
fn a_failure_is_reported_by_its_name_with_its_cause() {
    let (fixture, cloud) = (Fixture::new(), Cloud::start(lease("active")));
    let job = job(&fixture, |job| job["base"]["folder"] = json!("/nowhere"));
    let output = trainer(&fixture, &cloud, &job).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = cloud.told();
    let [.., closed, failure] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(closed, "lease closed");
    assert!(
        failure.starts_with("failure UnknownBaseModel base model tunesmith-mini (/nowhere): config.json"),
        "{failure}"
    );
}
