//! The machine room with boto3 as its client: machines run their user data with a role and a metadata service, endpoints
//! answer, or say why they failed, IAM refuses; and when the daemon is killed without warning, no process and no port is left.

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;
use support::{Cloud, python};
use tunesmith_local::paths::Paths;

#[tokio::test(flavor = "multi_thread")]
async fn boto3_finds_machines_endpoints_quotas_and_iam() {
    let python = python().await;
    let mut cloud = Cloud::start("boto3", &python);
    let mut script = Command::new(&python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine_room.py"))
        .args([cloud.text("emulator"), cloud.text("machine_room"), cloud.state["root"]["secret"].as_str().unwrap()])
        .arg(&cloud.folder)
        .arg(Paths::of_this_checkout().root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = script.stdin.take().unwrap();
    let state = cloud.as_state();
    let mut last = String::new();
    for line in BufReader::new(script.stdout.take().unwrap()).lines() {
        last = line.unwrap();
        if let Some(machine) = last.strip_prefix("INTERRUPT ") {
            let wrong = state.command("interrupt", &json!({"instance": "i-0"})).await;
            assert!(wrong.unwrap_err().to_string().contains("i-0"));
            state.command("interrupt", &json!({"instance": machine, "notice_seconds": 5})).await.unwrap();
            answers.write_all(b"done\n").unwrap();
        }
    }
    assert!(script.wait().unwrap().success() && last == "OK", "last line {last:?}; logs in {}", cloud.folder.display());
    drop(cloud.daemon.stdin.take());
    cloud.daemon.wait().unwrap();
    assert_eq!(cloud.processes(), Vec::<String>::new());
    assert!(cloud.ports_are_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_a_daemon_that_is_killed() {
    let python = python().await;
    let mut cloud = Cloud::start("killed", &python);
    assert!(cloud.processes().len() >= 3, "daemon, guard and emulator: {:?}", cloud.processes());
    cloud.daemon.kill().unwrap();
    cloud.daemon.wait().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !(cloud.processes().is_empty() && cloud.ports_are_closed()) {
        assert!(std::time::Instant::now() < deadline, "left: {:?}", cloud.processes());
        tokio::task::yield_now().await;
    }
}
