//! The way back: a run that was approved before is deployed again. Nothing is trained, nobody is asked a second time.

use sha2::{Digest, Sha256};
use tunesmith_contract::{
    ErrorName,
    approval::{ApprovalDecision, ApprovalRecord, Verdict},
    error_name::Failure,
    ledger::{RunRecord, RunStatus},
    tasks::DeployAgainInput,
};

use crate::{Clients, Settings};

/// The earlier approval, when the person who asks wants that run deployed again; `None` when this is an answer (or the same
/// answer once more) to a pipeline that is at work on the run.
///
/// # Errors
/// [`ErrorName::ApprovalAnswered`] when the run is being trained anew (its pipeline will ask), or was since and is refused.
pub fn wanted(
    record: &ApprovalRecord,
    asked: &ApprovalDecision,
    run: Option<&RunRecord>,
) -> Result<Option<ApprovalDecision>, Failure> {
    let Some(earlier) = &record.decision else { return Ok(None) };
    // A second try of the execution that gave the answer.
    let is_repeated = earlier.by == asked.by && asked.by.starts_with("arn:");
    if earlier.verdict != Verdict::Approve || asked.verdict != Verdict::Approve || is_repeated {
        return Ok(None);
    }
    match run.map(|run| run.status) {
        Some(RunStatus::Published | RunStatus::Failed) => Ok(Some(earlier.clone())),
        Some(RunStatus::Reserved) => Err(Failure::new(
            ErrorName::ApprovalAnswered,
            format!("{} is being trained again: its pipeline will ask for an approval of its own", record.run),
        )),
        Some(status @ (RunStatus::GateRefused | RunStatus::Rejected)) => {
            let refused = if status == RunStatus::GateRefused { "its gate refused it" } else { "it was rejected" };
            Err(Failure::new(
                ErrorName::ApprovalAnswered,
                format!(
                    "{} was approved before, and since then {refused}: change the documents or [gate] in project.toml and \
                     upload _TRAIN for a new decision",
                    record.run
                ),
            ))
        }
        Some(RunStatus::Trained) | None => Ok(None),
    }
}

/// Starts the deploying half of the pipeline; the name of the execution. The same request again is the same execution.
pub(crate) async fn deploy(
    record: &ApprovalRecord,
    asked: &ApprovalDecision,
    clients: &Clients,
    settings: &Settings,
) -> Result<String, Failure> {
    let name = name(record, asked);
    let input = DeployAgainInput { project: record.project.clone(), run: record.run.clone() };
    let started = clients.step_functions.start_execution(&settings.training_pipeline_arn, &name, &input).await?;
    tracing::info!(run = %record.run, project = %record.project, by = asked.by, execution = name, ?started,
        "deployed again");
    Ok(name)
}

/// An execution of `approve-deployment` that is tried again asks for the same; people, who have no such name, ask once a second.
fn name(record: &ApprovalRecord, asked: &ApprovalDecision) -> String {
    let moment = if asked.by.starts_with("arn:") { 0 } else { asked.at.0 };
    let digest = hex::encode(Sha256::digest(format!("{}\n{moment}", asked.by)));
    format!("again-{}-{}", record.run, &digest[..12])
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{UnixTime, Usd, approval::Via, settings::ServingSettings};

    use super::*;

    fn decision(verdict: Verdict, by: &str) -> ApprovalDecision {
        ApprovalDecision { verdict, via: Via::Console, by: by.into(), reason: String::new(), at: UnixTime(5) }
    }

    fn record(verdict: Verdict) -> ApprovalRecord {
        ApprovalRecord {
            project: "handbook".parse().unwrap(),
            run: "run-0123456789ab".parse().unwrap(),
            task_token: "token".into(),
            secret_hash: String::new(),
            asked_at: UnixTime(0),
            expires_at: UnixTime(100),
            serving: ServingSettings::default(),
            decision: Some(decision(verdict, "arn:first")),
        }
    }

    fn run(status: RunStatus) -> RunRecord {
        RunRecord {
            run: "run-0123456789ab".parse().unwrap(),
            project: "handbook".parse().unwrap(),
            execution: "arn:e1".into(),
            status,
            month: "2026-11".into(),
            quoted: Usd::ZERO,
            reserved: Usd::ZERO,
            metered: Usd::ZERO,
            settled: Usd::ZERO,
            returned: Usd::ZERO,
            attempts: 1,
            interruptions: 0,
            stop_mail_due: None,
            stop_mail_claimed_at: None,
        }
    }

    #[test]
    fn a_run_that_was_approved_and_that_no_pipeline_works_on_is_deployed_again() {
        let approved = record(Verdict::Approve);
        let asked = decision(Verdict::Approve, "arn:second");
        for (status, expected) in [
            (RunStatus::Published, Ok(true)),
            (RunStatus::Failed, Ok(true)),
            (RunStatus::Trained, Ok(false)),
            (RunStatus::Reserved, Err(ErrorName::ApprovalAnswered)),
            (RunStatus::GateRefused, Err(ErrorName::ApprovalAnswered)),
            (RunStatus::Rejected, Err(ErrorName::ApprovalAnswered)),
        ] {
            let found = wanted(&approved, &asked, Some(&run(status))).map(|w| w.is_some()).map_err(|f| f.name);
            assert_eq!(found, expected, "{status:?}");
        }
    }

    #[test]
    fn nothing_is_deployed_again_by_a_repetition_a_rejection_or_without_an_approval() {
        let published = run(RunStatus::Published);
        for (earlier, asked) in [
            (Verdict::Approve, decision(Verdict::Approve, "arn:first")),
            (Verdict::Approve, decision(Verdict::Reject, "arn:second")),
            (Verdict::Reject, decision(Verdict::Approve, "arn:second")),
        ] {
            assert_eq!(wanted(&record(earlier), &asked, Some(&published)), Ok(None), "{earlier:?} {asked:?}");
        }
    }

    #[test]
    fn the_same_request_again_is_the_same_execution() {
        let (approved, asked) = (record(Verdict::Approve), decision(Verdict::Approve, "arn:second"));
        let later = ApprovalDecision { at: UnixTime(60), ..asked.clone() };
        assert_eq!(name(&approved, &asked), name(&approved, &later));
        assert_ne!(name(&approved, &asked), name(&approved, &decision(Verdict::Approve, "arn:third")));
        let by_hand = decision(Verdict::Approve, "Ada");
        assert_ne!(
            name(&approved, &by_hand),
            name(&approved, &ApprovalDecision { at: UnixTime(60), ..by_hand.clone() })
        );
        assert!(name(&approved, &asked).len() <= 80, "the longest name of an execution");
    }
}
