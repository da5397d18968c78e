//! The whole path on the local cloud: the real binaries, the real state machines, the real template, IAM enforced. One cloud
//! serves all tests; **every function crashes at its first start** in it, so each test also shows that a crash changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use serde_json::json;
use support::{Cloud, documents, settings};
use tunesmith_contract::{
    evaluation::Evaluation,
    job::TrainReport,
    ledger::{BudgetItem, ItemKey, LeaseStatus, RunRecord, RunStatus},
};

/// Trains a few steps only: these tests are about the path, not about quality.
const QUICK: &str = "[training]\nmax_steps = 6\ncheckpoint_every = 2\n[data]\nquiet_minutes = 0\nminimum_words = 500\n\
    [gate]\nmin_improvement_percent = -100.0\nmin_test_tokens = 50\n";
const BUDGET: &str = "[budget]\nmonthly_limit_usd = 5.0\nmax_run_usd = 0.5\n";

#[test]
fn documents_become_an_approved_endpoint_although_every_function_crashes_once() {
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
        assert!(record.metered > tunesmith_contract::Usd::ZERO && record.metered <= record.reserved, "{record:?}");
        cloud.nothing_runs_for(&id).await;
        cloud.openai_client(&project).await;
        assert!(cloud.crashed().len() >= 11, "functions that crashed once: {:?}", cloud.crashed());

        // The same documents and settings again: one result, nothing is trained twice.
        let again = cloud.train(&project).await;
        let again = cloud.ends(&again).await;
        assert_eq!(again.last_state, "NothingToDo", "{again:?}");
    });
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
        let project = cloud.upload("interrupted", &documents(8), &settings(&[&long, BUDGET])).await;
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
        let leases = cloud.leases(&id).await;
        assert!(leases.len() == 2 && leases.iter().all(|l| l.status == LeaseStatus::Closed), "{leases:?}");
        let metered: tunesmith_contract::Usd = leases.iter().map(|l| l.metered).sum();
        assert_eq!(record.settled, metered, "the meter of both machines is charged");
        cloud.mail(&format!("{project} - a model waits")).await; // the state is entered before the question is written
        cloud.decide(&project, "reject").await;
        cloud.ends(&run).await;
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

        // Looking again changes nothing and mails nobody.
        cloud.look_after().await;
        assert_eq!(cloud.item::<RunRecord>(&ItemKey::run(&project, &id)).await.unwrap(), record);
        assert_eq!(cloud.mails_about(&subject), 1);
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
        let executions: Vec<String> = runs.iter().map(|run| format!("arn:aws:states:::execution:x:{run}")).collect();
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
            let mail = cloud.mail(&subject).await;
            assert!(mail.text.contains("$0.85 of $1.00"), "{}", mail.text);
            assert_eq!(cloud.mails_about(&subject), 1, "{subject}");
        }
        assert_eq!(cloud.mails_about(&format!("100 % of this month's budget of {project}")), 0);
    });
}
