//! The whole path on the local cloud: the real binaries, the real state machines, the real template, IAM enforced. One cloud
//! serves all tests; **every function dies twice** in it, at its first start and in the middle of its work, right after its first
//! change somewhere, so each test also shows that a death changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod endpoints;
mod support;
mod uploads;

use serde_json::json;
use support::{Cloud, Death, documents, settings};
use tunesmith_contract::{
    ProjectId, Seconds, UnixTime, Usd,
    deployment::LiveRecord,
    evaluation::Evaluation,
    job::TrainReport,
    ledger::{BudgetItem, ItemKey, Lease, LeaseStatus, RunRecord, RunStatus},
    settings::Market,
};

/// Trains a few steps only: these tests are about the path, not about quality.
const QUICK: &str = "[training]\nmax_steps = 6\ncheckpoint_every = 2\n[data]\nquiet_minutes = 0\nminimum_words = 500\n\
    [gate]\nmin_improvement_percent = -100.0\nmin_test_tokens = 50\n";
/// The functions that change something at a service of the emulator, so that they can be made to die right after it.
const CHANGING: [&str; 12] = [
    "answer-approval",
    "deploy-endpoint",
    "gateway",
    "guard-budget",
    "index-documents",
    "ingest-document",
    "launch-training",
    "plan-training",
    "prepare-dataset",
    "request-approval",
    "sweep-resources",
    "watch-costs",
];
/// These change nothing anywhere: they read, and `verify-endpoint` asks an endpoint. There is no middle of their work.
const READING: [&str; 2] = ["gate-model", "verify-endpoint"];
const BUDGET: &str = "[budget]\nmonthly_limit_usd = 5.0\nmax_run_usd = 0.5\n";

#[test]
fn documents_become_an_approved_endpoint_although_every_function_dies_twice() {
    Cloud::with(async |cloud| {
        let project = cloud.upload("accept", &documents(12), &settings(&[QUICK, BUDGET])).await;
        let run = cloud.train(&project).await;
        let waiting = cloud.reaches(&run, "RequestApproval").await;
        let id = waiting.planned().run;
        let mail = cloud.mail(&format!("{project} - a model waits for your approval")).await;
        assert!(mail.text.contains(id.as_str()) && mail.text.contains("approve-deployment"), "{}", mail.text);
        cloud.decide(&project, "approve").await;
        let done = cloud.ends(&run).await;
        assert_eq!((done.status.as_str(), done.last_state.as_str()), ("SUCCEEDED", "Published"), "{done:?}");

        let evaluation: Evaluation = cloud.workspace(&format!("projects/{project}/runs/{id}/evaluation.json")).await;
        assert!(evaluation.tuned.token.value < evaluation.base.token.value, "{evaluation:?}");
        let verified = &done.results["VerifyEndpoint"];
        assert!(verified["logit_max_abs_diff"].as_f64().unwrap() <= 1e-3, "{verified}");
        let record: RunRecord = cloud.item(&ItemKey::run(&project, &id)).await.unwrap();
        assert_eq!(record.status, RunStatus::Published);
        assert_eq!(record.reserved, record.settled.saturating_add(record.returned), "{record:?}");
        assert!(record.metered > Usd::ZERO && record.metered <= record.reserved, "{record:?}");
        cloud.nothing_runs_for(&id).await;
        cloud.openai_client(&project).await;
        every_function_died_twice(cloud, &project).await;

        // The same documents and settings again: one result, nothing is trained twice.
        let again = cloud.train(&project).await;
        let again = cloud.ends(&again).await;
        assert_eq!(again.last_state, "NothingToDo", "{again:?}");
    });
}

/// The two that only their schedules call get something to do; all others have worked for the pipeline.
async fn every_function_died_twice(cloud: &Cloud, project: &ProjectId) {
    cloud.budget_with("used", 1_000_000, 600_000).await;
    cloud.watch_costs().await;
    let expired = expired_lease("0123456789abcdef0123456789abcdef", project);
    cloud.put_item(&ItemKey::lease(&expired.attempt), &expired).await;
    cloud.look_after().await;

    let mut all = support::functions();
    assert_eq!(cloud.died(Death::AtStart), all, "died at their first start");
    all.retain(|name| !READING.contains(&name.as_str()));
    assert_eq!(all, CHANGING, "a function that changes something, or nothing, is listed above");
    assert_eq!(cloud.died(Death::MidWork), all, "died in the middle of their work");
}

/// A lease that never got a machine and that nobody has closed.
fn expired_lease(attempt: &str, project: &ProjectId) -> Lease {
    Lease {
        attempt: attempt.to_owned(),
        project: project.clone(),
        run: "run-ffffffffffff".parse().unwrap(),
        execution: String::new(),
        instance_id: None,
        instance_type: "c7i.large".to_owned(),
        market: Market::Spot,
        price_per_hour: Usd::ZERO,
        cap: Usd::ZERO,
        launched_at: UnixTime(0),
        expires_at: UnixTime(0),
        status: LeaseStatus::Active,
        interrupted: false,
        metered: Usd::ZERO,
        ended_at: None,
        task_token: "nobody waits".to_owned(),
        stop_mail_due: None,
        ttl: None,
    }
}

#[test]
fn a_rejected_model_changes_nothing_and_the_reservation_is_given_back() {
    Cloud::with(async |cloud| {
        let project = cloud.upload("reject", &documents(8), &settings(&[QUICK, BUDGET])).await;
        let run = cloud.train(&project).await;
        let id = cloud.reaches(&run, "RequestApproval").await.planned().run;
        // By the link of the mail: opening it (as mail scanners do) decides nothing, the button does.
        let mail = cloud.mail(&format!("{project} - a model waits")).await;
        let query = mail.text.split_whitespace().find_map(|word| word.split_once("/?")).unwrap().1.to_owned();
        let (status, page) = cloud.answer_page("GET", &query, "").await;
        assert!(status == 200 && page.contains("Approve and deploy") && page.contains("perplexity"), "{status} {page}");
        let (status, _) = cloud.answer_page("GET", &query.replace("secret=", "secret=0"), "").await;
        assert_eq!(status, 404, "a guessed secret");
        assert_eq!(cloud.progress(&run).await.last_state, "RequestApproval");
        let (status, page) = cloud.answer_page("POST", "", &format!("{query}&verdict=reject&reason=too+slow")).await;
        assert!(status == 200 && page.contains("Rejected"), "{status} {page}");
        let done = cloud.ends(&run).await;
        assert_eq!(done.last_state, "Rejected", "{done:?}");
        assert_eq!(done.results["RequestApproval"]["via"], "link", "{done:?}");
        let (status, _) = cloud.answer_page("POST", "", &format!("{query}&verdict=approve")).await;
        assert_eq!(status, 409, "an approval is answered once");
        assert!(cloud.item::<serde_json::Value>(&ItemKey::live(&project)).await.is_none());
        let record: RunRecord = cloud.item(&ItemKey::run(&project, &id)).await.unwrap();
        assert_eq!(record.status, RunStatus::Rejected);
        let budget: BudgetItem = cloud.item(&ItemKey::budget(&project, &record.month)).await.unwrap();
        assert_eq!((budget.reserved.micros(), budget.spent), (0, record.settled), "{budget:?}");
    });
}

#[test]
fn requests_a_minute_hold_for_requests_at_the_same_time() {
    Cloud::with(async |cloud| {
        let project = cloud.budget_with("limits", 0, 0).await;
        let live = LiveRecord {
            run: "run-0123456789ab".parse().unwrap(),
            endpoint: "tunesmith-nothing-there".into(),
            replaces: Some("run-ba9876543210".parse().unwrap()),
            index: "ix-0123456789abcdef".parse().unwrap(),
            since: UnixTime(0),
            retrieved_passages: 0,
            requests_per_minute: 5,
            tokens_per_day: 1_000_000,
        };
        cloud.put_item(&ItemKey::live(&project), &live).await;
        // the gateway dies first, at its start and with its first count
        cloud.ask(&project).await;
        let (key, answers) = cloud.ask_at_once(&project, 16).await;
        let passed = answers.iter().filter(|status| **status != 429).count();
        let usage = cloud.usage(&key).await;
        let counted: u64 = usage.iter().map(|window| window.requests).sum();
        // one minute, or two when the clock struck in between
        assert!(usage.iter().all(|window| window.requests <= 5) && passed as u64 == counted, "{answers:?} {usage:?}");
        assert!((5..=10).contains(&passed), "{answers:?}");
    });
}

#[test]
fn the_gate_refuses_a_model_that_is_not_better_and_nobody_is_asked() {
    Cloud::with(async |cloud| {
        let strict = QUICK.replace("-100.0", "99.0");
        let project = cloud.upload("gate", &documents(8), &settings(&[&strict, BUDGET])).await;
        let run = cloud.train(&project).await;
        let done = cloud.ends(&run).await;
        assert_eq!((done.status.as_str(), done.last_state.as_str()), ("SUCCEEDED", "GateRefused"), "{done:?}");
        assert!(!done.results.contains_key("RequestApproval"));
        let record: RunRecord = cloud.item(&ItemKey::run(&project, &done.planned().run)).await.unwrap();
        assert_eq!(record.status, RunStatus::GateRefused);
        cloud.nothing_runs_for(&done.planned().run).await;
    });
}

#[test]
fn an_interrupted_machine_is_replaced_and_training_resumes_from_its_checkpoint() {
    Cloud::with(async |cloud| {
        let long = QUICK.replace("max_steps = 6", "max_steps = 60\nepochs = 50");
        let once = "[machines]\ninterruptions_before_on_demand = 1\n";
        let project = cloud.upload("interrupted", &documents(8), &settings(&[&long, BUDGET, once])).await;
        let run = cloud.train(&project).await;
        let id = cloud.reaches(&run, "TrainModel").await.planned().run;
        cloud.first_checkpoint(&project, &id).await;
        cloud.state().command("interrupt", &json!({"notice_seconds": 60})).await.unwrap();
        let waiting = cloud.reaches(&run, "RequestApproval").await;
        let report: TrainReport = serde_json::from_value(waiting.results["TrainModel"].clone()).unwrap();
        assert!(report.resumed_from.is_some_and(|step| step >= 2), "{report:?}");
        assert_eq!(report.steps, 60);
        let record: RunRecord = cloud.item(&ItemKey::run(&project, &id)).await.unwrap();
        assert_eq!((record.attempts, record.interruptions), (2, 1), "{record:?}");
        let mut leases = cloud.leases(&id).await;
        assert!(leases.len() == 2 && leases.iter().all(|l| l.status == LeaseStatus::Closed), "{leases:?}");
        leases.sort_by_key(|lease| lease.launched_at);
        let markets: Vec<Market> = leases.iter().map(|lease| lease.market).collect();
        assert_eq!(markets, [Market::Spot, Market::OnDemand], "one interruption was enough: {leases:?}");
        let metered: Usd = leases.iter().map(|l| l.metered).sum();
        assert_eq!(record.settled, metered, "the meter of both machines is charged");
        cloud.mail(&format!("{project} - a model waits")).await; // the state is entered before the question is written
        cloud.decide(&project, "reject").await;
        cloud.ends(&run).await;
    });
}

#[test]
fn silence_is_a_rejection() {
    Cloud::with(async |cloud| {
        let project = cloud.upload("silence", &documents(8), &settings(&[QUICK, BUDGET])).await;
        // seven days are 20 seconds for this execution
        let before = cloud.pipeline_definition().await;
        let week = "\"TimeoutSeconds\": 604800";
        assert_eq!(before.matches(week).count(), 1, "only the approval waits for a week");
        cloud.set_pipeline_definition(&before.replace(week, "\"TimeoutSeconds\": 20")).await;
        let run = cloud.train(&project).await;
        let done = cloud.ends(&run).await;
        cloud.set_pipeline_definition(&before).await;

        assert_eq!((done.status.as_str(), done.last_state.as_str()), ("SUCCEEDED", "Rejected"), "{done:?}");
        assert!(
            !done.results.contains_key("RequestApproval") && !done.results.contains_key("DeployEndpoint"),
            "{done:?}"
        );
        assert!(cloud.mails_about(&format!("{project} - a model waits")) >= 1, "it was asked");
        let record: RunRecord = cloud.item(&ItemKey::run(&project, &done.planned().run)).await.unwrap();
        assert_eq!(record.status, RunStatus::Rejected);
        assert!(cloud.item::<serde_json::Value>(&ItemKey::live(&project)).await.is_none());
        cloud.nothing_runs_for(&record.run).await;
    });
}

#[test]
fn a_stopped_pipeline_keeps_neither_its_machine_nor_its_money() {
    Cloud::with(async |cloud| {
        let long = QUICK.replace("max_steps = 6", "max_steps = 200\nepochs = 200");
        let project = cloud.upload("stopped", &documents(8), &settings(&[&long, BUDGET])).await;
        let run = cloud.train(&project).await;
        let id = cloud.reaches(&run, "TrainModel").await.planned().run;
        cloud.first_checkpoint(&project, &id).await;
        cloud.stop(&run).await;
        cloud.look_after_until(&project, &id, RunStatus::Failed).await;

        let record: RunRecord = cloud.item(&ItemKey::run(&project, &id)).await.unwrap();
        assert!(record.metered > tunesmith_contract::Usd::ZERO, "{record:?}");
        assert_eq!(record.settled, record.metered, "{record:?}");
        assert_eq!(record.reserved, record.settled.saturating_add(record.returned), "{record:?}");
        let budget: BudgetItem = cloud.item(&ItemKey::budget(&project, &record.month)).await.unwrap();
        assert_eq!((budget.reserved.micros(), budget.spent), (0, record.settled), "{budget:?}");
        let leases = cloud.leases(&id).await;
        assert!(leases.len() == 1 && leases.iter().all(|l| l.status == LeaseStatus::Closed), "{leases:?}");
        cloud.nothing_runs_for(&id).await;
        let subject = format!("training of {project} was stopped");
        let mail = cloud.mail(&subject).await;
        assert!(mail.text.contains(id.as_str()) && mail.text.contains("Given back: $"), "{}", mail.text);

        // Looking again changes nothing and mails nobody; a mail that is still owed is sent once, by whichever look is first, and
        // although one has died while it sent it.
        let mailed = RunRecord { stop_mail_due: None, stop_mail_claimed_at: None, ..record };
        let owed = |claimed| RunRecord {
            stop_mail_due: Some(RunStatus::Reserved),
            stop_mail_claimed_at: claimed,
            ..mailed.clone()
        };
        let key = ItemKey::run(&project, &id);
        for (owed, mails) in [(None, 1), (Some(owed(None)), 2), (Some(owed(Some(cloud.now().before(Seconds(60))))), 3)]
        {
            if let Some(owed) = owed {
                cloud.put_item(&key, &owed).await;
            }
            futures::future::join_all([cloud.look_after(), cloud.look_after(), cloud.look_after()]).await;
            cloud.mailed_times(&subject, mails).await;
            cloud.look_after().await;
            assert_eq!(cloud.item::<RunRecord>(&key).await.unwrap(), mailed);
            assert_eq!(cloud.mails_about(&subject), mails);
        }
        // A look that has just begun to send it is left alone by others, for as long as it may live: 30 s.
        let sending = owed(Some(cloud.now()));
        cloud.put_item(&key, &sending).await;
        cloud.answer("guard-budget", &json!({"action": "reclaim"})).await;
        let left: RunRecord = cloud.item(&key).await.unwrap();
        let is_over = sending.stop_mail_claimed_at.is_some_and(|claimed| cloud.now() >= claimed.after(Seconds(30)));
        assert!(left == sending || is_over, "{left:?}");
        cloud.put_item(&key, &mailed).await;
        assert_eq!(cloud.progress(&run).await.status, "ABORTED");
    });
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_launched() {
    Cloud::with(async |cloud| {
        let cases = [
            ("no-budget", documents(8), settings(&[QUICK]), "BudgetMissing"),
            ("small-budget", documents(8), settings(&[QUICK, "[budget]\nmonthly_limit_usd = 0.0\n"]), "BudgetExceeded"),
            ("too-little", documents(3), settings(&[&QUICK.replace("500", "500000"), BUDGET]), "NotEnoughText"),
            (
                "unknown-base",
                documents(8),
                settings(&["base_model = \"no-such-model\"\n", QUICK, BUDGET]),
                "UnknownBaseModel",
            ),
            ("wrong-settings", documents(8), settings(&[QUICK, BUDGET, "[traning]\nrank = 4\n"]), "SettingsInvalid"),
        ];
        let mut started = Vec::new();
        for (name, files, settings, error) in &cases {
            let project = cloud.upload(name, files, settings).await;
            started.push((cloud.train(&project).await, project, *error));
        }
        for (run, project, error) in started {
            let done = cloud.ends(&run).await;
            assert_eq!((done.status.as_str(), done.error.as_str()), ("FAILED", error), "{project}: {done:?}");
            assert!(!done.results.contains_key("TrainModel"));
            let mail = cloud.mail_about(&project, error).await;
            assert!(mail.text.len() > 80, "{}", mail.text);
        }
    });
}

#[test]
fn a_quota_of_zero_is_refused_before_anything_is_launched() {
    Cloud::with(async |cloud| {
        cloud.room_settings(&json!({"default_quota": 0.0}));
        let project = cloud.upload("no-quota", &documents(8), &settings(&[QUICK, BUDGET])).await;
        let run = cloud.train(&project).await;
        let done = cloud.ends(&run).await;
        cloud.room_settings(&json!({}));
        assert_eq!(done.error, "QuotaExceeded", "{done:?}");
        assert!(!done.results.contains_key("TrainModel"));
    });
}

#[test]
fn two_pipelines_of_one_project_at_once_give_one_result() {
    Cloud::with(async |cloud| {
        let project = cloud.upload("twice", &documents(8), &settings(&[QUICK, BUDGET])).await;
        let (first, second) = (cloud.start(&project, "twice-a").await, cloud.start(&project, "twice-b").await);
        let waiting = cloud.one_reaches(&[&first, &second], "RequestApproval").await;
        let id = waiting.planned().run;
        cloud.mail(&format!("{project} - a model waits")).await;
        cloud.decide(&project, "reject").await;
        let ends = [cloud.ends(&first).await, cloud.ends(&second).await];
        let mut states: Vec<_> = ends.iter().map(|end| end.last_state.as_str()).collect();
        states.sort_unstable();
        assert_eq!(states, ["NothingToDo", "Rejected"], "{ends:?}");
        assert_eq!(cloud.leases(&id).await.len(), 1, "one machine");
    });
}

#[test]
fn eight_reservations_at_once_never_exceed_the_budget() {
    Cloud::with(async |cloud| {
        // Eight runs that may cost $1 each, $3.50 to spend.
        let (project, runs) = cloud.planned_runs("crowd", 3.5, 8, 1.0).await;
        // of pipelines that Step Functions does not know, which whoever looks after everything leaves alone
        let executions: Vec<String> = runs
            .iter()
            .map(|run| format!("arn:aws:states:us-east-1:123456789012:execution:tunesmith-training-pipeline:{run}"))
            .collect();
        let asked = runs.iter().zip(&executions).map(|(run, execution)| cloud.reserve(&project, run, execution));
        let answers = futures::future::join_all(asked).await;
        let reserved = answers.iter().filter(|a| a["outcome"] == "reserved").count();
        let refused = answers.iter().filter(|a| a["errorType"] == "BudgetExceeded").count();
        assert_eq!((reserved, refused), (3, 5), "{answers:?}");
        let month = cloud.this_month();
        let budget: BudgetItem = cloud.item(&ItemKey::budget(&project, &month)).await.unwrap();
        assert_eq!(budget.reserved.micros(), 3_000_000, "{budget:?}");

        // The same execution again: the same reservation, no second one.
        let index = answers.iter().position(|a| a["outcome"] == "reserved").unwrap();
        let again = cloud.reserve(&project, &runs[index], &executions[index]).await;
        assert_eq!(again["outcome"], "reserved", "{again}");
        let budget: BudgetItem = cloud.item(&ItemKey::budget(&project, &month)).await.unwrap();
        assert_eq!(budget.reserved.micros(), 3_000_000, "{budget:?}");
    });
}

#[test]
fn cost_alarms_are_mailed_once_each() {
    Cloud::with(async |cloud| {
        let project = cloud.budget_with("alarm", 1_000_000, 850_000).await;
        let looks = [cloud.watch_costs(), cloud.watch_costs(), cloud.watch_costs()];
        futures::future::join_all(looks).await;
        for percent in [50, 80] {
            let subject = format!("{percent} % of this month's budget of {project}");
            // a look that died after claiming the alarm leaves it to one two minutes later
            let mail = cloud.looked_for(&subject).await;
            assert!(mail.text.contains("$0.85 of $1.00"), "{}", mail.text);
            assert_eq!(cloud.mails_about(&subject), 1, "{subject}");
        }
        assert_eq!(cloud.mails_about(&format!("100 % of this month's budget of {project}")), 0);

        // A limit that is raised holds without a reservation, and lets alarms that it has not reached go off again.
        cloud.put_document(&project, "project.toml", "[budget]\nmonthly_limit_usd = 1.5\n").await;
        cloud.look_after().await;
        let budget: BudgetItem = cloud.item(&ItemKey::budget(&project, &cloud.this_month())).await.unwrap();
        assert_eq!((budget.limit.micros(), budget.alarms_sent), (1_500_000, vec![50]));
    });
}

#[test]
fn what_cannot_be_read_keeps_no_alarm_from_being_mailed() {
    Cloud::with(async |cloud| {
        let project = cloud.budget_with("isolated", 1_000_000, 600_000).await;
        let broken = ItemKey::endpoint("tunesmith-broken");
        cloud.put_item(&broken, &json!({"name": 5})).await;
        let (told, mail) = cloud.failing_looks_mail(&format!("50 % of this month's budget of {project}")).await;
        cloud.delete_item(&broken).await;
        assert!(
            told.contains("endpoints: ") && told.contains("everything that does not wait for them was done"),
            "{told}"
        );
        assert!(mail.text.contains("$0.60 of $1.00"), "{}", mail.text);
    });
}
