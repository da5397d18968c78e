//! Lambda function `answer-approval`: a person's answer, by the link or by the state machine `approve-deployment`.
//!
//! Promise: an approval is answered once, by a conditional write; the same answer again is confirmed, another one is refused;
//! opening the link decides nothing. To approve a run by name that was approved before, and that no pipeline works on any more,
//! deploys it again: the way back ([`again`]).

pub mod again;
pub mod page;
pub mod request;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tunesmith_aws::{
    dynamodb::{Conditional, Expression, Table},
    s3::S3,
    sfn::{Answered, StepFunctions},
};
use tunesmith_contract::{
    ErrorName, ProjectId, RunId, S3Uri, UnixTime,
    approval::{ApprovalDecision, ApprovalRecord, Verdict, Via},
    error_name::Failure,
    keys::workspace,
    ledger::{ItemKey, RunRecord},
    tasks::{AnswerApprovalInput, AnsweredApproval},
};

use crate::request::{Link, Request};

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// The decision page.
    pub s3: S3,
    /// Approvals.
    pub table: Table,
    /// The waiting pipeline, and new ones that deploy again.
    pub step_functions: StepFunctions,
}

/// What the function is told by its environment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `WORKSPACE_BUCKET`
    pub workspace_bucket: String,
    /// `TRAINING_PIPELINE_ARN`
    pub training_pipeline_arn: String,
}

/// Answers whoever asks: a function URL response for a browser, an [`AnsweredApproval`] for everybody else.
///
/// # Errors
/// For direct callers: [`ErrorName::ApprovalUnknown`], [`ErrorName::ApprovalAnswered`], [`ErrorName::InvalidInput`], AWS
/// errors. A browser gets them as a page.
pub async fn handle(event: Value, clients: &Clients, settings: &Settings, now: UnixTime) -> Result<Value, Failure> {
    match request::parse(&event)? {
        Request::Direct(input) => {
            let answered = direct(input, clients, settings, now).await?;
            serde_json::to_value(answered).map_err(|e| Failure::new(ErrorName::Internal, e.to_string()))
        }
        Request::Nothing => Ok(html(404, &page::message("Not found", "Open the link of the e-mail again.", ""))),
        Request::Show(link) => Ok(browser(show(&link, clients, &settings.workspace_bucket, now).await)),
        Request::Decide { link, verdict, reason } => {
            let run = link.run.clone();
            let decided = decide_by_link(&link, verdict, reason, clients, now).await;
            Ok(browser(decided.map(|decision| page::decided(&run, &decision))))
        }
    }
}

fn html(status: u16, body: &str) -> Value {
    json!({
        "statusCode": status,
        "headers": {
            "content-type": "text/html; charset=utf-8",
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
            "content-security-policy":
                "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'",
        },
        "body": body,
    })
}

fn browser(result: Result<String, Failure>) -> Value {
    match result {
        Ok(page) => html(200, &page),
        Err(failure) => {
            let status = match failure.name {
                ErrorName::ApprovalUnknown => 404,
                ErrorName::ApprovalAnswered => 409,
                _ => 500,
            };
            tracing::warn!(name = %failure.name, message = failure.message, "the page could not be shown");
            // A browser is told the cause only where it is about the approval; anything else stays in the log.
            let text = if status == 500 { "Please try again in a minute." } else { &failure.message };
            html(status, &page::message("This did not work", text, ""))
        }
    }
}

async fn show(link: &Link, clients: &Clients, bucket: &str, now: UnixTime) -> Result<String, Failure> {
    let record = by_link(link, clients).await?;
    if let Some(decision) = &record.decision {
        // Whoever wrote it may have died before telling the pipeline; telling it twice changes nothing.
        clients.step_functions.send_task_success(&record.task_token, decision).await?;
        return Ok(page::decided(&record.run, decision));
    }
    check_open(&record, now)?;
    let uri = S3Uri::new(bucket, workspace::run(&link.project, &link.run)).join("report.html");
    let report = clients.s3.get_text(&uri).await?.unwrap_or_default();
    Ok(page::decision(&report, &link.project, &link.run, &link.secret))
}

async fn by_link(link: &Link, clients: &Clients) -> Result<ApprovalRecord, Failure> {
    let record: Option<ApprovalRecord> = clients.table.get(&ItemKey::approval(&link.project, &link.run)).await?;
    let hash = hex::encode(Sha256::digest(link.secret.as_bytes()));
    record.filter(|r| r.secret_hash == hash).ok_or_else(|| {
        Failure::new(
            ErrorName::ApprovalUnknown,
            format!("This link does not fit a waiting approval. {}", ErrorName::ApprovalUnknown.remedy()),
        )
    })
}

/// Only a question that nobody answered lapses.
fn check_open(record: &ApprovalRecord, now: UnixTime) -> Result<(), Failure> {
    if now < record.expires_at || record.decision.is_some() {
        return Ok(());
    }
    Err(Failure::new(
        ErrorName::ApprovalAnswered,
        format!("The question about {} lapsed after 7 days, which counts as a rejection.", record.run),
    ))
}

async fn decide_by_link(
    link: &Link,
    verdict: Verdict,
    reason: String,
    clients: &Clients,
    now: UnixTime,
) -> Result<ApprovalDecision, Failure> {
    let record = by_link(link, clients).await?;
    answer(record, ApprovalDecision { verdict, via: Via::Link, by: "link".into(), reason, at: now }, clients).await
}

async fn direct(
    input: AnswerApprovalInput,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<AnsweredApproval, Failure> {
    let by_name = input.run.is_some();
    let record = match &input.run {
        Some(run) => clients
            .table
            .get(&ItemKey::approval(&input.project, run))
            .await?
            .ok_or_else(|| unknown(&input.project, Some(run), &[]))?,
        None => only_waiting(&input, clients, now).await?,
    };
    let via = if input.by.starts_with("arn:") { Via::Console } else { Via::Cli };
    let decision = ApprovalDecision { verdict: input.verdict, via, by: input.by, reason: input.reason, at: now };
    if by_name && record.decision.is_some() {
        let run: Option<RunRecord> = clients.table.get(&ItemKey::run(&record.project, &record.run)).await?;
        if let Some(approved) = again::wanted(&record, &decision, run.as_ref())? {
            let name = again::deploy(&record, &decision, clients, settings).await?;
            return Ok(AnsweredApproval { decision: approved, deployed_again_by: Some(name) });
        }
    }
    let decision = answer(record, decision, clients).await?;
    Ok(AnsweredApproval { decision, deployed_again_by: None })
}

fn unknown(project: &ProjectId, run: Option<&RunId>, waiting: &[String]) -> Failure {
    let what = run.map_or_else(|| "exactly one run".to_owned(), ToString::to_string);
    let list = if waiting.is_empty() { "none".to_owned() } else { waiting.join(" ") };
    Failure::new(
        ErrorName::ApprovalUnknown,
        format!("{project}: wanted {what} that waits for approval; waiting: {list}"),
    )
}

/// The approval that is meant when no run is named: the only one that waits, or the one that this same execution has answered
/// already, when its first try died before the pipeline was told.
async fn only_waiting(
    input: &AnswerApprovalInput,
    clients: &Clients,
    now: UnixTime,
) -> Result<ApprovalRecord, Failure> {
    let records: Vec<ApprovalRecord> = clients.table.query(&ItemKey::project(&input.project), "APPROVAL#").await?;
    choose(records, input, now)
}

fn choose(records: Vec<ApprovalRecord>, input: &AnswerApprovalInput, now: UnixTime) -> Result<ApprovalRecord, Failure> {
    // only an execution's name is its own: two people may have the same
    let is_own = |record: &ApprovalRecord| {
        input.by.starts_with("arn:") && record.decision.as_ref().is_some_and(|decision| decision.by == input.by)
    };
    if let Some(own) = records.iter().find(|record| is_own(record)) {
        return Ok(own.clone());
    }
    let mut waiting: Vec<_> = records.into_iter().filter(|r| r.decision.is_none() && now < r.expires_at).collect();
    match (waiting.len(), waiting.pop()) {
        (1, Some(record)) => Ok(record),
        (_, last) => {
            let names: Vec<_> = waiting.iter().chain(&last).map(|r| r.run.to_string()).collect();
            Err(unknown(&input.project, None, &names))
        }
    }
}

/// Writes the answer once and tells the pipeline. A repetition of the same answer tells the pipeline again: the first call may
/// have died between the two.
async fn answer(
    record: ApprovalRecord,
    decision: ApprovalDecision,
    clients: &Clients,
) -> Result<ApprovalDecision, Failure> {
    check_open(&record, decision.at)?;
    let update =
        Expression::new("SET #decision = :decision").name("#decision", "decision").value(":decision", &decision);
    let unanswered = Expression::new("#token = :token AND attribute_not_exists(#decision)")
        .name("#token", "task_token")
        .value(":token", &record.task_token);
    let key = ItemKey::approval(&record.project, &record.run);
    let (decision, is_new) = match clients.table.update::<ApprovalRecord>(&key, update, Some(unanswered)).await? {
        Conditional::Done(_) => (decision, true),
        Conditional::ConditionFailed => {
            let now: Option<ApprovalRecord> = clients.table.get(&key).await?;
            match now.and_then(|r| r.decision) {
                Some(earlier) if earlier.verdict == decision.verdict => (earlier, false),
                earlier => {
                    let word =
                        earlier.map_or_else(|| "asked anew".to_owned(), |e| format!("answered with {:?}", e.verdict));
                    return Err(Failure::new(
                        ErrorName::ApprovalAnswered,
                        format!("{} was {word} before. {}", record.run, ErrorName::ApprovalAnswered.remedy()),
                    ));
                }
            }
        }
    };
    let told = clients.step_functions.send_task_success(&record.task_token, &decision).await?;
    let is_told = matches!(told, Answered::Delivered);
    tracing::info!(run = %record.run, project = %record.project, verdict = ?decision.verdict, via = ?decision.via,
        is_told, is_new, "answered");
    if is_new && !is_told {
        return Err(Failure::new(
            ErrorName::ApprovalAnswered,
            format!(
                "The pipeline of {} no longer waits: it was stopped or timed out. Start it again to decide anew.",
                record.run
            ),
        ));
    }
    Ok(decision)
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{error_name::ErrorName, settings::ServingSettings};

    use super::*;

    fn record(run: &str, answered_by: Option<&str>) -> ApprovalRecord {
        let decision = answered_by.map(|by| ApprovalDecision {
            verdict: Verdict::Approve,
            via: Via::Console,
            by: by.into(),
            reason: String::new(),
            at: UnixTime(5),
        });
        ApprovalRecord {
            project: "handbook".parse().unwrap(),
            run: run.parse().unwrap(),
            task_token: "token".into(),
            secret_hash: String::new(),
            asked_at: UnixTime(0),
            expires_at: UnixTime(100),
            serving: ServingSettings::default(),
            decision,
        }
    }

    #[test]
    fn only_a_question_that_nobody_answered_lapses() {
        let (asked, answered) = (record("run-000000000001", None), record("run-000000000001", Some("Ada")));
        assert!(check_open(&asked, UnixTime(99)).is_ok());
        let lapsed = check_open(&asked, UnixTime(100)).unwrap_err();
        assert!(lapsed.message.contains("counts as a rejection"), "{}", lapsed.message);
        assert!(check_open(&answered, UnixTime(100)).is_ok(), "it was approved, and nothing else may be said of it");
    }

    fn chosen(records: &[ApprovalRecord], by: &str) -> Result<String, ErrorName> {
        let input = AnswerApprovalInput {
            project: "handbook".parse().unwrap(),
            run: None,
            verdict: Verdict::Approve,
            by: by.into(),
            reason: String::new(),
        };
        choose(records.to_vec(), &input, UnixTime(10)).map(|r| r.run.to_string()).map_err(|failure| failure.name)
    }

    #[test]
    fn an_execution_that_is_tried_again_means_the_approval_it_has_answered() {
        let (first, second) = (record("run-000000000001", Some("arn:a")), record("run-000000000002", None));
        let both = [first.clone(), second];
        assert_eq!(chosen(&both, "arn:a"), Ok("run-000000000001".into()));
        assert_eq!(chosen(&both, "arn:b"), Ok("run-000000000002".into()));
        assert_eq!(chosen(&[first], "arn:b"), Err(ErrorName::ApprovalUnknown));
        let by_name = [record("run-000000000001", Some("Ada"))];
        assert_eq!(chosen(&by_name, "Ada"), Err(ErrorName::ApprovalUnknown));
    }
}
