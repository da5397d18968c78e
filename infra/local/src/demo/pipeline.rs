//! Following an execution of `training-pipeline` by its history.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tunesmith_contract::{ProjectId, job::MetricLine, keys::workspace, tasks::PlannedTraining};

use super::{approval::Approval, stage_of};
use crate::{
    LocalError,
    client::Aws,
    stage::{Stage, Stages},
    state::State,
};

const START_LIMIT: Duration = Duration::from_secs(90);

/// An execution and what is known of it.
#[derive(Debug)]
pub struct Follower {
    aws: Aws,
    workspace: String,
    project: ProjectId,
    /// Its ARN.
    pub execution: String,
    seen: usize,
    current: String,
    entered: Option<f64>,
    /// Result of each task, by state.
    pub results: BTreeMap<String, Value>,
    status: String,
    failure: String,
}

impl Follower {
    /// The execution that `_TRAIN` started.
    ///
    /// # Errors
    /// When none starts in time.
    pub async fn find(state: &State, project: &ProjectId) -> Result<Self, LocalError> {
        let (aws, machine) = (state.aws(), state.output("TrainingPipelineArn")?.to_owned());
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let answer = aws.json("AWSStepFunctions.ListExecutions", &json!({"stateMachineArn": machine})).await?;
            let executions = answer["executions"].as_array().cloned().unwrap_or_default();
            let prefix = format!("{project}-");
            let ours = executions.iter().filter(|e| e["name"].as_str().is_some_and(|name| name.starts_with(&prefix)));
            let newest = ours.max_by(|a, b| {
                let at = |e: &Value| e["startDate"].as_f64().unwrap_or_default();
                at(a).total_cmp(&at(b))
            });
            if let Some(arn) = newest.and_then(|e| e["executionArn"].as_str()) {
                return Ok(Self {
                    aws,
                    workspace: state.output("WorkspaceBucket")?.to_owned(),
                    project: project.clone(),
                    execution: arn.to_owned(),
                    seen: 0,
                    current: String::new(),
                    entered: None,
                    results: BTreeMap::new(),
                    status: "RUNNING".to_owned(),
                    failure: String::new(),
                });
            }
            if Instant::now() > deadline {
                return Err(LocalError::TooLate {
                    what: "the start of training-pipeline after _TRAIN".into(),
                    seconds: START_LIMIT.as_secs(),
                    remedy: "see `cargo local-cloud logs ingest-document` and `cargo local-cloud mailbox`".into(),
                });
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Shows stages until the execution ends; answers the approval on the way.
    ///
    /// # Errors
    /// When the emulator does not answer, or the person's input cannot be read.
    pub async fn follow(&mut self, stages: &Stages, approval: &mut Approval<'_>) -> Result<(), LocalError> {
        let mut stage: Option<(Stage, String)> = None;
        loop {
            for event in self.new_events().await? {
                self.look(&event, &mut stage, stages);
            }
            match (self.current.as_str(), &stage) {
                ("TrainModel", Some((stage, _))) => self.show_training(stage).await?,
                ("RequestApproval", Some((stage, _))) => {
                    approval.answer(&self.project, &self.results, stage, stages).await?
                }
                _ => {}
            }
            let input = json!({"executionArn": self.execution});
            let answer = self.aws.json("AWSStepFunctions.DescribeExecution", &input).await?;
            let status = answer["status"].as_str().unwrap_or_default().to_owned();
            if status != "RUNNING" {
                for event in self.new_events().await? {
                    self.look(&event, &mut stage, stages);
                }
                if let Some((stage, _)) = stage {
                    stage.done(&status.to_lowercase());
                }
                self.status = status;
                let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
                self.failure = format!("{}: {}", text("error"), text("cause"));
                return Ok(());
            }
            sleep(Duration::from_millis(400)).await;
        }
    }

    async fn new_events(&mut self) -> Result<Vec<Value>, LocalError> {
        let (mut events, mut token) = (Vec::new(), Value::Null);
        loop {
            let mut input = json!({"executionArn": self.execution, "maxResults": 1000});
            if token.is_string() {
                input["nextToken"] = token;
            }
            let answer = self.aws.json("AWSStepFunctions.GetExecutionHistory", &input).await?;
            events.extend(answer["events"].as_array().cloned().unwrap_or_default());
            token = answer["nextToken"].clone();
            if !token.is_string() {
                break;
            }
        }
        let new = events.split_off(self.seen.min(events.len()));
        self.seen += new.len();
        Ok(new)
    }

    fn look(&mut self, event: &Value, stage: &mut Option<(Stage, String)>, stages: &Stages) {
        let kind = event["type"].as_str().unwrap_or_default();
        if kind.ends_with("StateEntered") {
            let name = event["stateEnteredEventDetails"]["name"].as_str().unwrap_or_default().to_owned();
            if let Some(title) = stage_of(&name) {
                if let Some((old, state)) = stage.take() {
                    old.done(&self.result_line(&state));
                }
                *stage = Some((stages.begin(title, None), name.clone()));
                self.entered = event["timestamp"].as_f64();
            }
            self.current = name;
        } else if kind.ends_with("StateExited") {
            let name = event["stateExitedEventDetails"]["name"].as_str().unwrap_or_default();
            if stage.as_ref().is_some_and(|(_, state)| state == name)
                && let Some((done, state)) = stage.take()
            {
                // The history's own clock: several states may have ended between two looks.
                let seconds = event["timestamp"].as_f64().zip(self.entered).map(|(end, start)| end - start);
                done.done_after(seconds, &self.result_line(&state));
            }
        } else if kind == "TaskSucceeded" {
            let output = event["taskSucceededEventDetails"]["output"].as_str().unwrap_or_default();
            let output: Value = serde_json::from_str(output).unwrap_or(Value::Null);
            let result = if output.get("Payload").is_some() { output["Payload"].clone() } else { output };
            self.results.insert(self.current.clone(), result);
        } else if kind == "TaskFailed" {
            let details = &event["taskFailedEventDetails"];
            let (error, cause) =
                (details["error"].as_str().unwrap_or_default(), details["cause"].as_str().unwrap_or_default());
            let inner: Value = serde_json::from_str(cause).unwrap_or(Value::Null);
            let cause = inner["errorMessage"].as_str().unwrap_or(cause);
            match error {
                "EndpointNotReady" => stages.say(&format!("{:<22} waiting: {cause}", "")),
                _ => stages.say(&format!("{:<22} {} failed: {error}: {cause}", "", self.current)),
            }
        }
    }

    /// One line about the task that has just ended.
    fn result_line(&self, state: &str) -> String {
        let Some(result) = self.results.get(state) else { return "done".to_owned() };
        let number = |path: &str| result.pointer(path).map(Value::to_string).unwrap_or_default();
        let text = |path: &str| result.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let dollars = |path: &str| {
            let micros = result.pointer(path).and_then(Value::as_i64).unwrap_or_default();
            tunesmith_contract::Usd::from_micros(micros).to_string()
        };
        match state {
            "PrepareDataset" => format!(
                "{} from {} documents: {} words to train on, {} words to test on",
                text("/dataset"),
                number("/documents"),
                number("/train/words"),
                number("/test/words")
            ),
            "IndexDocuments" => format!("{} with {} passages", text("/index"), number("/chunks")),
            "PlanTraining" => format!(
                "{} on {}: {} expected, {} at most",
                text("/run"),
                text("/instance_type"),
                dollars("/quote/expected"),
                dollars("/quote/upper_bound")
            ),
            "ReserveBudget" => format!("{} {}", text("/outcome"), dollars("/reserved")),
            "TrainModel" => {
                let loss = result["final_loss"].as_f64().unwrap_or_default();
                format!("{} steps, last loss {loss:.3}", number("/steps"))
            }
            "GateModel" => if result["passed"] == true { "passed" } else { "refused" }.to_owned(),
            "RequestApproval" => format!("{} via {}", text("/verdict"), text("/via")),
            "VerifyEndpoint" => {
                format!(
                    "{} {}, largest logit difference {}",
                    text("/endpoint"),
                    text("/status"),
                    number("/logit_max_abs_diff")
                )
            }
            _ => "done".to_owned(),
        }
    }

    async fn show_training(&self, stage: &Stage) -> Result<(), LocalError> {
        let Some(run) = self.run() else { return Ok(()) };
        let key = format!("{}metrics.jsonl", workspace::run(&self.project, &run));
        let Some(bytes) = self.aws.get_object(&self.workspace, &key).await? else {
            stage.note("a machine starts; nothing of its first steps yet");
            return Ok(());
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let last = text.lines().rev().find_map(|line| serde_json::from_str::<MetricLine>(line).ok());
        if let Some(line) = last {
            stage.tick(&format!(
                "step {}/{} loss {:.3} {:.0} tokens/s",
                line.step, line.steps, line.loss, line.tokens_per_second
            ));
        }
        Ok(())
    }

    /// The run, once it is planned.
    #[must_use]
    pub fn run(&self) -> Option<tunesmith_contract::RunId> {
        let planned = self.results.get("PlanTraining")?.clone();
        serde_json::from_value::<PlannedTraining>(planned).ok().map(|planned| planned.run)
    }

    /// The state it ended in.
    #[must_use]
    pub fn last_state(&self) -> &str {
        &self.current
    }

    /// An error when the execution failed.
    ///
    /// # Errors
    /// [`LocalError::Pipeline`].
    pub fn fail_if_failed(&self) -> Result<(), LocalError> {
        if self.status == "SUCCEEDED" {
            Ok(())
        } else {
            Err(LocalError::Pipeline { status: self.status.clone(), cause: self.failure.clone() })
        }
    }
}
