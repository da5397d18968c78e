//! One local cloud for all pipeline tests, and what they do with it.

mod faults;
mod look;
mod watchers;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

pub use faults::Death;
use faults::Faults;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::Mutex};
use tunesmith_contract::{
    ProjectId, ProjectSettings, RunId, Seconds, UnixTime, Usd,
    documents::SourceRecord,
    ledger::ItemKey,
    plan::{Plan, Quote},
    tasks::PlannedTraining,
};
use tunesmith_local::{
    client::{Aws, Http},
    daemon::Daemon,
    demo, deploy, mailbox, models,
    paths::Paths,
    stage::Stages,
    state::State,
    venv::{self, Contents},
};

/// Longest wait for one step of the path on a busy machine.
const LIMIT: Duration = Duration::from_secs(420);
const LOOK: Duration = Duration::from_millis(250);

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap());
static CLOUD: LazyLock<Mutex<Option<Cloud>>> = LazyLock::new(Mutex::default);
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The cloud. It ends with the test process: the daemon's lifeline is held here.
pub struct Cloud {
    paths: Paths,
    daemon: Daemon,
    faults: Faults,
}

/// An execution as its history tells it.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Step Functions' word.
    pub status: String,
    /// Error of a failed execution.
    pub error: String,
    /// The state entered last.
    pub last_state: String,
    /// Result of each task, by state.
    pub results: BTreeMap<String, Value>,
}

impl Progress {
    /// The plan's summary.
    pub fn planned(&self) -> PlannedTraining {
        serde_json::from_value(self.results.get("PlanTraining").unwrap_or_else(|| panic!("no plan: {self:?}")).clone())
            .unwrap()
    }
}

/// The first documents of the sample, in the order of their names.
pub fn documents(count: usize) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sample");
    let mut files: Vec<_> =
        models::files(&folder).unwrap().into_iter().filter(|(_, name)| name.ends_with(".md")).collect();
    files.sort_by(|a, b| a.1.cmp(&b.1));
    files.into_iter().take(count).map(|(path, name)| (name, fs::read(path).unwrap())).collect()
}

/// A `project.toml` of these parts.
pub fn settings(parts: &[&str]) -> String {
    parts.concat()
}

/// The folders of `functions/`, sorted.
pub fn functions() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

impl Cloud {
    /// Runs a test against the cloud, one test at a time: the machine has few cores.
    pub fn with(test: impl AsyncFnOnce(&Cloud)) {
        RUNTIME.block_on(async {
            let mut cloud = CLOUD.lock().await;
            if cloud.is_none() {
                *cloud = Some(Self::start_up().await);
            }
            test(cloud.as_ref().unwrap()).await;
        });
    }

    async fn start_up() -> Self {
        let (paths, stages) = (Paths::of_this_checkout(), Stages::default());
        let python = venv::ensure(&paths, Contents::Emulator, &|text| eprintln!("{text}")).await.unwrap();
        let embedder = models::embedder(&paths, &python, &|text| eprintln!("{text}")).await.unwrap();
        let mut built = deploy::build(&paths, &stages).await.unwrap();
        let mut daemon = Daemon::start(&paths, &python).await.unwrap();
        let faults = Faults::new(paths.target.join("pipeline-test"), daemon.state.aws().endpoint);
        for (name, binary) in &mut built.functions {
            *binary = faults.wrap(name, binary).await;
        }
        daemon.state.outputs = deploy::deploy(&paths, &daemon.state, &built, &stages).await.unwrap();
        daemon.state.write(&paths.local_cloud()).unwrap();
        let topics =
            ["NotificationsTopicArn", "AlarmsTopicArn"].map(|name| daemon.state.output(name).unwrap().to_owned());
        mailbox::subscribe(&daemon.state.aws(), &topics).await.unwrap();
        let bucket = daemon.state.output("WorkspaceBucket").unwrap();
        models::upload_all(&daemon.state.aws(), &paths, bucket, &embedder).await.unwrap();
        Self { paths, daemon, faults }
    }

    /// The functions that have died this way.
    pub fn died(&self, death: Death) -> Vec<String> {
        self.faults.happened(death)
    }

    pub fn state(&self) -> &State {
        &self.daemon.state
    }

    fn aws(&self) -> Aws {
        self.daemon.state.aws()
    }

    fn output(&self, name: &str) -> &str {
        self.daemon.state.output(name).unwrap()
    }

    /// Uploads documents and settings to a new project and waits until each was read.
    pub async fn upload(&self, name: &str, files: &[(String, Vec<u8>)], settings: &str) -> ProjectId {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let project: ProjectId = format!("{name}-{number}").parse().unwrap();
        let (aws, bucket) = (self.aws(), self.output("DocumentsBucket"));
        aws.put_object(bucket, &format!("{project}/project.toml"), settings.to_owned()).await.unwrap();
        for (path, bytes) in files {
            aws.put_object(bucket, &format!("{project}/{path}"), bytes.clone()).await.unwrap();
        }
        let table = self.output("Table");
        until(&format!("{project}: {} files are read", files.len()), async || {
            let items = aws.query_items(table, &ItemKey::project(&project), "SOURCE#").await.unwrap();
            let read = items.into_iter().filter(|i| serde_json::from_value::<SourceRecord>(i.clone()).is_ok()).count();
            (read >= files.len()).then_some(())
        })
        .await;
        project
    }

    /// Starts training as a person does, by uploading `_TRAIN`; returns the execution.
    pub async fn train(&self, project: &ProjectId) -> String {
        let before = self.executions(project).await;
        let key = format!("{project}/_TRAIN");
        self.aws().put_object(self.output("DocumentsBucket"), &key, "").await.unwrap();
        until(&format!("{project}: _TRAIN starts the pipeline"), async || {
            self.executions(project).await.into_iter().find(|arn| !before.contains(arn))
        })
        .await
    }

    /// Waits for an execution that a schedule has started for this project: its name says nothing, its input does.
    pub async fn starts_by_itself(&self, project: &ProjectId) -> String {
        let input = json!({"stateMachineArn": self.output("TrainingPipelineArn")});
        until(&format!("training of {project} starts by itself"), async || {
            let answer = self.aws().json("AWSStepFunctions.ListExecutions", &input).await.unwrap();
            for execution in answer["executions"].as_array().into_iter().flatten() {
                let arn = &execution["executionArn"];
                let about =
                    self.aws().json("AWSStepFunctions.DescribeExecution", &json!({"executionArn": arn})).await.unwrap();
                if about["input"].as_str().is_some_and(|input| input.contains(project.as_str())) {
                    return arn.as_str().map(str::to_owned);
                }
            }
            None
        })
        .await
    }

    async fn executions(&self, project: &ProjectId) -> Vec<String> {
        let input = json!({"stateMachineArn": self.output("TrainingPipelineArn")});
        let answer = self.aws().json("AWSStepFunctions.ListExecutions", &input).await.unwrap();
        let ours = |e: &&Value| e["name"].as_str().is_some_and(|name| name.starts_with(&format!("{project}-")));
        let list = answer["executions"].as_array().cloned().unwrap_or_default();
        list.iter().filter(ours).filter_map(|e| e["executionArn"].as_str().map(str::to_owned)).collect()
    }

    /// Starts the pipeline by hand.
    pub async fn start(&self, project: &ProjectId, name: &str) -> String {
        let input = json!({
            "stateMachineArn": self.output("TrainingPipelineArn"),
            "name": name,
            "input": json!({"project": project}).to_string(),
        });
        let answer = self.aws().json("AWSStepFunctions.StartExecution", &input).await.unwrap();
        answer["executionArn"].as_str().unwrap().to_owned()
    }

    pub async fn progress(&self, execution: &str) -> Progress {
        let aws = self.aws();
        let (mut progress, mut token) = (Progress::default(), Value::Null);
        let about = aws.json("AWSStepFunctions.DescribeExecution", &json!({"executionArn": execution})).await.unwrap();
        loop {
            let mut input = json!({"executionArn": execution, "maxResults": 1000});
            if token.is_string() {
                input["nextToken"] = token;
            }
            let answer = aws.json("AWSStepFunctions.GetExecutionHistory", &input).await.unwrap();
            for event in answer["events"].as_array().into_iter().flatten() {
                let kind = event["type"].as_str().unwrap_or_default();
                if kind.ends_with("StateEntered") {
                    progress.last_state = event["stateEnteredEventDetails"]["name"].as_str().unwrap().to_owned();
                } else if kind == "TaskSucceeded" {
                    let text = event["taskSucceededEventDetails"]["output"].as_str().unwrap_or_default();
                    let output: Value = serde_json::from_str(text).unwrap_or(Value::Null);
                    let result = output.get("Payload").unwrap_or(&output).clone();
                    progress.results.insert(progress.last_state.clone(), result);
                }
            }
            token = answer["nextToken"].clone();
            if !token.is_string() {
                break;
            }
        }
        progress.status = about["status"].as_str().unwrap_or_default().to_owned();
        progress.error = about["error"].as_str().unwrap_or_default().to_owned();
        progress
    }

    /// Waits until the execution is in this state. Fails at once when it ends elsewhere.
    pub async fn reaches(&self, execution: &str, state: &str) -> Progress {
        self.one_reaches(&[execution], state).await
    }

    /// Waits until one of the executions is in this state. Fails when all have ended elsewhere.
    pub async fn one_reaches(&self, executions: &[&str], state: &str) -> Progress {
        until(&format!("{executions:?} reaches {state}"), async || {
            let mut ended = Vec::new();
            for execution in executions {
                let progress = self.progress(execution).await;
                if progress.last_state == state {
                    return Some(progress);
                }
                if progress.status != "RUNNING" {
                    ended.push(progress);
                }
            }
            assert!(ended.len() < executions.len(), "ended before {state}: {ended:?}");
            None
        })
        .await
    }

    /// Waits until the execution has ended.
    pub async fn ends(&self, execution: &str) -> Progress {
        until(&format!("{execution} ends"), async || {
            let progress = self.progress(execution).await;
            (progress.status != "RUNNING").then_some(progress)
        })
        .await
    }

    /// Plans of this many runs that may cost so many dollars each, for a project with this monthly limit.
    pub async fn planned_runs(&self, name: &str, limit: f64, count: u8, dollars: f64) -> (ProjectId, Vec<RunId>) {
        let project: ProjectId = format!("{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed)).parse().unwrap();
        let settings = format!("[budget]\nmonthly_limit_usd = {limit:?}\n");
        let key = format!("{project}/project.toml");
        self.aws().put_object(self.output("DocumentsBucket"), &key, settings).await.unwrap();
        let mut runs = Vec::new();
        for number in 0..count {
            let run = RunId::of(&[project.as_str().as_bytes(), &[number]]);
            let plan = Plan {
                run: run.clone(),
                project: project.clone(),
                dataset: "ds-0123456789abcdef".parse().unwrap(),
                index: "ix-0123456789abcdef".parse().unwrap(),
                base: "tunesmith-mini".parse().unwrap(),
                parameters: 1,
                steps: 1,
                tokens: 1,
                machines: Vec::new(),
                quote: Quote { expected: Usd::from_micros(1), upper_bound: Usd::from_dollars(dollars).unwrap() },
                max_time: Seconds(3600),
                settings: ProjectSettings::default(),
            };
            let key = format!("projects/{project}/runs/{run}/plan.json");
            let body = serde_json::to_vec(&plan).unwrap();
            self.aws().put_object(self.output("WorkspaceBucket"), &key, body).await.unwrap();
            runs.push(run);
        }
        (project, runs)
    }

    /// Asks `guard-budget` for a reservation; tried again while the function is throttled, as the state machine does.
    pub async fn reserve(&self, project: &ProjectId, run: &RunId, execution: &str) -> Value {
        let input = json!({"action": "reserve", "project": project, "run": run, "execution": execution});
        self.answer("guard-budget", &input).await
    }

    /// Invokes a function until it is neither throttled nor crashes: its answer, or the failure that it named itself.
    pub async fn answer(&self, function: &str, input: &Value) -> Value {
        until(&format!("{function} answers {input}"), async || {
            let answer = self.aws().invoke(&format!("tunesmith-{function}"), input).await.ok()?;
            let crashed = answer["errorType"].as_str().is_some_and(|name| name.starts_with("Runtime."));
            (!crashed).then_some(answer)
        })
        .await
    }

    /// Asks the decision page's function as a browser does.
    pub async fn answer_page(&self, method: &str, query: &str, form: &str) -> (u16, String) {
        let url = format!("{}?{query}", self.state().local_url(self.output("AnswerUrl")));
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let method: http::Method = method.parse().unwrap();
        until(&format!("{method} of the decision page"), async || {
            let (status, body) = Http::default().fetch(method.clone(), &url, &headers, form.to_owned()).await.unwrap();
            // a function that crashes at its start, or is throttled, is asked again
            (status < 500 && status != 429).then(|| (status, String::from_utf8_lossy(&body).into_owned()))
        })
        .await
    }

    /// A budget of this month with so many micro-dollars to spend and spent.
    pub async fn budget_with(&self, name: &str, limit: i64, spent: i64) -> ProjectId {
        let project: ProjectId = format!("{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed)).parse().unwrap();
        let item = json!({"limit": limit, "reserved": 0, "spent": spent});
        self.put_item(&ItemKey::budget(&project, &self.this_month()), &item).await;
        project
    }

    pub fn now(&self) -> UnixTime {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        UnixTime(i64::try_from(since.as_secs()).unwrap())
    }

    /// What `training-pipeline` does now.
    pub async fn pipeline_definition(&self) -> String {
        let input = json!({"stateMachineArn": self.output("TrainingPipelineArn")});
        let about = self.aws().json("AWSStepFunctions.DescribeStateMachine", &input).await.unwrap();
        about["definition"].as_str().unwrap().to_owned()
    }

    /// Lets `training-pipeline` do something else from its next start on.
    pub async fn set_pipeline_definition(&self, definition: &str) {
        let input = json!({"stateMachineArn": self.output("TrainingPipelineArn"), "definition": definition});
        self.aws().json("AWSStepFunctions.UpdateStateMachine", &input).await.unwrap();
    }

    /// Stops an execution as a person in the console does.
    pub async fn stop(&self, execution: &str) {
        let input = json!({"executionArn": execution, "cause": "pipeline test"});
        self.aws().json("AWSStepFunctions.StopExecution", &input).await.unwrap();
    }

    /// The month that is charged now.
    pub fn this_month(&self) -> String {
        self.now().month()
    }

    /// Runs the official `openai` Python client against the gateway.
    pub async fn openai_client(&self, project: &ProjectId) {
        let python =
            venv::ensure(&self.paths, Contents::EmulatorAndTestClients, &|text| eprintln!("{text}")).await.unwrap();
        let key = demo::make_key(self.state(), project).await.unwrap();
        let url = format!("{}v1", self.state().local_url(self.output("GatewayUrl")));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("openai_client.py");
        let arguments = [script.to_string_lossy().into_owned(), url, key, project.to_string()];
        eprintln!("{}", venv::run(&python, &arguments, "see the assertion above").await.unwrap());
    }

    /// Asks once; a gateway that dies is asked again. The HTTP status.
    pub async fn ask(&self, project: &ProjectId) -> u16 {
        until("the gateway answers", async || {
            let (_, answers) = self.ask_at_once(project, 1).await;
            answers.into_iter().find(|status| *status != 502)
        })
        .await
    }

    /// Sends so many questions at once with a new key of this project; the HTTP status of each.
    pub async fn ask_at_once(&self, project: &ProjectId, count: usize) -> (String, Vec<u16>) {
        let key = demo::make_key(self.state(), project).await.unwrap();
        let url = format!("{}v1/chat/completions", self.state().local_url(self.output("GatewayUrl")));
        let body = json!({"model": project, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1});
        let (http, bearer) = (Http::default(), format!("Bearer {key}"));
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let asked = (0..count).map(|_| http.fetch(http::Method::POST, &url, &headers, body.to_string()));
        let answers = futures::future::join_all(asked).await;
        (key, answers.into_iter().map(|answer| answer.unwrap().0).collect())
    }

    /// Writes an item of the table.
    pub async fn put_item(&self, key: &ItemKey, item: &impl serde::Serialize) {
        let item = serde_json::to_value(item).unwrap();
        self.aws().put_item(self.output("Table"), &key.pk, &key.sk, &item).await.unwrap();
    }

    /// Deletes an item of the table.
    pub async fn delete_item(&self, key: &ItemKey) {
        let key = json!({"pk": {"S": key.pk}, "sk": {"S": key.sk}});
        let input = json!({"TableName": self.output("Table"), "Key": key});
        self.aws().json("DynamoDB_20120810.DeleteItem", &input).await.unwrap();
    }

    /// Hands `ingest-document` an S3 event, a fixture with other words in it; a start that dies is tried again.
    pub async fn s3_event(&self, fixture: &str, replace: &[(&str, &str)]) -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../events/ingest-document").join(fixture);
        let bucket = ("tunesmith-documents-123456789012", self.output("DocumentsBucket"));
        let mut text = fs::read_to_string(path).unwrap();
        for (from, to) in replace.iter().chain([&bucket]) {
            text = text.replace(from, to);
        }
        let event: Value = serde_json::from_str(&text).unwrap();
        until("ingest-document answers", async || {
            let answer = self.aws().invoke("tunesmith-ingest-document", &event).await.ok()?;
            answer.get("errorType").is_none().then_some(answer)
        })
        .await
    }

    /// Puts an object into the workspace bucket.
    pub async fn put_workspace(&self, key: &str, value: &Value) {
        self.aws().put_object(self.output("WorkspaceBucket"), key, value.to_string()).await.unwrap();
    }

    /// Puts an upload, as a person does.
    pub async fn put_document(&self, project: &ProjectId, path: &str, body: &str) {
        let key = format!("{project}/{path}");
        self.aws().put_object(self.output("DocumentsBucket"), &key, body.to_owned()).await.unwrap();
    }

    /// Decides as a person in the console does.
    pub async fn decide(&self, project: &ProjectId, verdict: &str) {
        demo::decide(self.state(), project, None, verdict, "pipeline test").await.unwrap();
    }

    /// Approves a run by name that was approved before; the execution that deploys it again.
    pub async fn deploy_again(&self, project: &ProjectId, run: &RunId) -> String {
        let prefix = format!("again-{run}");
        let prefix: ProjectId = prefix.parse().unwrap();
        let before = self.executions(&prefix).await;
        demo::decide(self.state(), project, Some(run.as_str()), "approve", "pipeline test").await.unwrap();
        until(&format!("{run} is deployed again"), async || {
            self.executions(&prefix).await.into_iter().find(|arn| !before.contains(arn))
        })
        .await
    }

    /// Changes the simulated account.
    pub fn room_settings(&self, settings: &Value) {
        fs::write(self.paths.local_cloud().join("settings.json"), settings.to_string()).unwrap();
    }
}

/// Looks again and again until there is a value, at most [`LIMIT`].
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = tokio::time::Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "waited {} s in vain: {what}", LIMIT.as_secs());
        tokio::time::sleep(LOOK).await;
    }
}
