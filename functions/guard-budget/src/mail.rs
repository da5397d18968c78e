//! The mail about a pipeline that ended without a word of its own. No I/O.

use tunesmith_contract::{
    Usd,
    ledger::{RunRecord, RunStatus},
};

/// Subject and body for the owner of a run whose pipeline was stopped or timed out, and which was settled. `before` is where the
/// pipeline left it; `left` is of this month's budget, if there is one.
#[must_use]
pub fn stopped(settled: &RunRecord, before: RunStatus, left: Option<Usd>) -> (String, String) {
    let left = left.map_or_else(String::new, |left| format!("Left of the budget of this month: {left}\n"));
    let endpoint = match before {
        RunStatus::Trained => {
            "The model is trained and not live; an endpoint made for it is deleted within five minutes. If it was approved, start\n\
             approve-deployment with its run to deploy it after all. The live model, if there is one, stays."
        }
        _ => "Training was not finished; its last checkpoint is kept. The live model, if there is one, stays.",
    };
    (
        format!("Tunesmith: training of {} was stopped", settled.project),
        format!(
            "The pipeline of project {project} ended without finishing: somebody stopped it, it timed out, or its own cleaning up\n\
             failed. Its machines have ended and its money is settled.\n\n\
             Run: {run}\nCharged: {charged}\nGiven back: {returned}\n{left}\n{endpoint}\n\n\
             What to do next: nothing, if you stopped it. To go on, upload an empty file named _TRAIN to the project's folder in\n\
             the documents bucket: finished steps and checkpoints are used again.\nDetails: execution {execution}\n",
            project = settled.project,
            run = settled.run,
            charged = settled.settled,
            returned = settled.returned,
            execution = settled.execution,
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(before: RunStatus) -> (String, String) {
        mail_with(before, Some(Usd::from_micros(24_980_000)))
    }

    fn mail_with(before: RunStatus, left: Option<Usd>) -> (String, String) {
        let settled = RunRecord {
            run: "run-0123456789ab".parse().unwrap(),
            project: "handbook".parse().unwrap(),
            execution: "arn:aws:states:us-east-1:123456789012:execution:p:e".into(),
            status: RunStatus::Failed,
            month: "2026-11".into(),
            quoted: Usd::from_micros(1),
            reserved: Usd::from_micros(90_000),
            metered: Usd::from_micros(20_000),
            settled: Usd::from_micros(20_000),
            returned: Usd::from_micros(70_000),
            attempts: 1,
            interruptions: 0,
            stop_mail_due: Some(before),
            stop_mail_claimed_at: None,
        };
        stopped(&settled, before, left)
    }

    #[test]
    fn the_mail_says_what_it_cost_and_how_to_go_on() {
        let (subject, body) = mail(RunStatus::Reserved);
        assert_eq!(subject, "Tunesmith: training of handbook was stopped");
        for part in [
            "run-0123456789ab",
            "Charged: $0.02",
            "Given back: $0.07\nLeft of the budget of this month: $24.98\n\nTraining was",
            "_TRAIN",
            "execution:p:e",
            "checkpoint",
        ] {
            assert!(body.contains(part), "{part}\n{body}");
        }
    }

    #[test]
    fn nothing_is_said_of_a_month_that_has_no_budget_yet() {
        let body = mail_with(RunStatus::Reserved, None).1;
        assert!(body.contains("Given back: $0.07\n\nTraining was") && !body.contains("Left of"), "{body}");
    }

    #[test]
    fn a_pipeline_that_was_stopped_after_training_says_how_to_deploy_it_after_all() {
        assert!(mail(RunStatus::Trained).1.contains("approve-deployment with its run"));
        assert!(!mail(RunStatus::Reserved).1.contains("approve-deployment"));
    }
}
