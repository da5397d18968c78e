//! The decision: shown from the mailbox, answered by the person on the terminal, by the link, or through the state machine
//! `approve-deployment`.

use std::{collections::BTreeMap, io::IsTerminal, path::PathBuf};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tunesmith_contract::ProjectId;

use crate::{
    LocalError,
    mailbox::{self, Mail},
    paths::Paths,
    stage::{Stage, Stages},
    state::State,
};

/// Shows the mail once, and answers once.
#[derive(Debug)]
pub struct Approval<'a> {
    state: &'a State,
    folder: PathBuf,
    approve: bool,
    shown: bool,
    answered: bool,
    typed: Option<oneshot::Receiver<String>>,
}

impl<'a> Approval<'a> {
    /// Nothing has been asked yet.
    #[must_use]
    pub fn new(state: &'a State, paths: &Paths, approve: bool) -> Self {
        let folder = paths.local_cloud().join("mailbox");
        Self { state, folder, approve, shown: false, answered: false, typed: None }
    }

    /// One look: shows the mail when it has come, answers when there is an answer.
    ///
    /// # Errors
    /// When `approve-deployment` cannot be started.
    pub async fn answer(
        &mut self,
        project: &ProjectId,
        results: &BTreeMap<String, Value>,
        stage: &Stage,
        stages: &Stages,
    ) -> Result<(), LocalError> {
        if self.answered {
            return Ok(());
        }
        let run = results.get("PlanTraining").and_then(|plan| plan["run"].as_str()).unwrap_or_default().to_owned();
        if !self.shown {
            let Some(mail) = question(&self.folder, &run) else {
                stage.note("waiting for the mail");
                return Ok(());
            };
            stages.say(&frame(&mail));
            self.shown = true;
            if !self.approve {
                if std::io::stdin().is_terminal() {
                    stages.say("Type `approve` or `reject` (a reason may follow), or use one of the ways in the mail.");
                    self.typed = Some(read_line());
                } else {
                    stages.say(
                        "Waiting: open the link, or run `cargo local-cloud approve` or `cargo local-cloud reject`.",
                    );
                }
            }
        }
        let line = match &mut self.typed {
            Some(receiver) => receiver.try_recv().ok(),
            None => None,
        };
        let decision = if self.approve {
            Some(("approve".to_owned(), "cargo demo --approve".to_owned()))
        } else {
            line.map(parse)
        };
        match decision {
            Some((verdict, reason)) if verdict == "approve" || verdict == "reject" => {
                decide(self.state, project, Some(&run), &verdict, &reason).await?;
                self.answered = true;
                stage.note(&format!("answered through approve-deployment: {verdict}"));
            }
            Some(_) => {
                stages.say("Please begin with `approve` or `reject`.");
                self.typed = Some(read_line());
            }
            None => stage.tick("waiting for the decision"),
        }
        Ok(())
    }
}

/// The mail that asks about this run: it names the run and is no notice about something else.
fn question(folder: &std::path::Path, run: &str) -> Option<Mail> {
    let mails = mailbox::list(folder, None);
    mails.into_iter().rev().find(|mail| mail.text.contains(run) && mail.text.contains("approve-deployment"))
}

fn frame(mail: &Mail) -> String {
    let body: String = mail.text.lines().map(|line| format!("  | {line}\n")).collect();
    format!("\n  Mail {}\n{body}", mail.path.display())
}

fn parse(line: String) -> (String, String) {
    let line = line.trim().to_owned();
    let (verdict, reason) = line.split_once(' ').unwrap_or((line.as_str(), ""));
    (verdict.to_lowercase(), reason.trim().to_owned())
}

/// Reads one line of standard input in a thread of its own: it cannot be interrupted, and dies with the process.
fn read_line() -> oneshot::Receiver<String> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).is_ok() {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Answers an approval as a person in the console does: by starting `approve-deployment`, and waits for its end.
///
/// # Errors
/// When it cannot be started, or its execution fails; the message is the function's.
pub async fn decide(
    state: &State,
    project: &ProjectId,
    run: Option<&str>,
    verdict: &str,
    reason: &str,
) -> Result<(), LocalError> {
    let mut input = json!({"project": project.as_str(), "verdict": verdict, "reason": reason});
    if let Some(run) = run.filter(|run| !run.is_empty()) {
        input["run"] = json!(run);
    }
    let aws = state.aws();
    let start = json!({"stateMachineArn": state.output("ApproveDeploymentArn")?, "input": input.to_string()});
    let started = aws.json("AWSStepFunctions.StartExecution", &start).await?;
    let execution = json!({"executionArn": started["executionArn"]});
    loop {
        let answer = aws.json("AWSStepFunctions.DescribeExecution", &execution).await?;
        match answer["status"].as_str().unwrap_or_default() {
            "RUNNING" => tokio::time::sleep(std::time::Duration::from_millis(150)).await,
            "SUCCEEDED" => return Ok(()),
            status => {
                let text = |key: &str| answer[key].as_str().unwrap_or_default();
                return Err(LocalError::Pipeline {
                    status: format!("approve-deployment {status}"),
                    cause: format!("{}: {}", text("error"), text("cause")),
                });
            }
        }
    }
}
