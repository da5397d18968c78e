//! `cargo demo`: documents in, approved endpoint out, on one machine. Each step is one file of this folder.

mod approval;
mod artefacts;
mod documents;
mod gateway;
mod pipeline;
mod questions;
mod report;
mod summary;

use std::{collections::BTreeMap, path::PathBuf};

use tunesmith_contract::{ProjectId, keys::uploads};

use crate::{
    LocalError,
    daemon::Daemon,
    deploy, models,
    paths::Paths,
    stage::Stages,
    state::State,
    venv::{self, Contents},
};

pub use approval::decide;
pub use gateway::{how_to_ask, make_key};
pub use summary::Summary;

/// What a person asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of documents; none means the sample.
    pub documents: Option<PathBuf>,
    /// Project name; none means: made from the folder's name.
    pub project: Option<String>,
    /// Approve without asking.
    pub approve: bool,
    /// Leave the local cloud up.
    pub keep: bool,
}

/// A checkout has one local cloud: another would take the results of the one that is up.
fn refuse_a_second(paths: &Paths) -> Result<(), LocalError> {
    match State::read(&paths.local_cloud()) {
        Ok(state) => Err(LocalError::AlreadyUp { pid: state.pid }),
        Err(_) => Ok(()),
    }
}

/// Starts a local cloud with everything deployed and the models in place.
///
/// # Errors
/// When a tool is missing, something cannot be built, or a stack is not created.
pub async fn bring_up(paths: &Paths, stages: &Stages) -> Result<Daemon, LocalError> {
    refuse_a_second(paths)?;
    let stage = stages.begin("tools", None);
    let python = venv::ensure(paths, Contents::Emulator, &|text| stage.note(text)).await?;
    let embedder = models::embedder(paths, &python, &|text| stage.note(text)).await?;
    stage.done("emulator and embedding model are there");
    let built = deploy::build(paths, stages).await?;
    let stage = stages.begin("local cloud", None);
    let mut daemon = Daemon::start(paths, &python).await?;
    stage.done(&format!("emulator {}, machine room {}", daemon.state.emulator, daemon.state.machine_room));
    let outputs = deploy::deploy(paths, &daemon.state, &built, stages).await?;
    daemon.state.outputs = outputs;
    daemon.state.write(&paths.local_cloud())?;
    let topics =
        [daemon.state.output("NotificationsTopicArn")?.to_owned(), daemon.state.output("AlarmsTopicArn")?.to_owned()];
    crate::mailbox::subscribe(&daemon.state.aws(), &topics).await?;
    let stage = stages.begin("models", None);
    models::upload_all(&daemon.state.aws(), paths, daemon.state.output("WorkspaceBucket")?, &embedder).await?;
    stage.done("base model tunesmith-mini and embedder all-minilm-l6-v2 in the workspace bucket");
    Ok(daemon)
}

/// The whole demo. The summary is written to `target/demo/summary.json` as well, also when a step fails; that of an earlier demo is
/// removed at the start.
///
/// # Errors
/// When a step fails or no model is published; what was started is stopped first.
pub async fn run(paths: &Paths, options: &Options, stages: &Stages) -> Result<Summary, LocalError> {
    let source = Source::of(paths, options)?;
    refuse_a_second(paths)?;
    Summary::clear(&paths.demo())?;
    let mut summary = Summary::new(&source.project);
    let mut daemon = match bring_up(paths, stages).await {
        Ok(daemon) => daemon,
        Err(error) => {
            summary.seconds = stages.seconds();
            summary.error = Some(error.to_string());
            summary.write(&paths.demo())?;
            return Err(error);
        }
    };
    daemon.state.project = Some(source.project.to_string());
    daemon.state.write(&paths.local_cloud())?;
    let result = walk(paths, options, &source, &daemon.state, stages, &mut summary).await;
    let machines = report::running_machines(&daemon.state).await;
    crate::operate::save_function_logs(&daemon.state, &paths.local_cloud().join("logs/functions")).await;
    let mut left = Vec::new();
    if options.keep && matches!(result, Ok(()) | Err(LocalError::NotPublished { .. })) {
        report::say_how_to_go_on(&daemon.state, &source.project, stages).await;
        left.extend(machines);
        left.push(format!("local cloud (process {}): kept, as asked", daemon.state.pid));
        daemon.keep().await?;
    } else {
        let stage = stages.begin("stop", None);
        left.extend(machines.iter().map(|machine| format!("{machine}: ended by the demo, not by itself")));
        left.extend(daemon.stop().await);
        let killed = crate::guard::no_guards_left(std::time::Duration::from_secs(5)).await;
        left.extend(killed.iter().map(|pid| format!("process {pid}: killed by the demo")));
        stage.done(if left.is_empty() { "nothing is left running" } else { "some things had to be ended" });
    }
    summary.left_running = left;
    summary.seconds = stages.seconds();
    summary.error = result.as_ref().err().map(ToString::to_string);
    summary.write(&paths.demo())?;
    report::print(&summary, paths, stages);
    result.map(|()| summary)
}

/// Where the documents come from and which project they become.
#[derive(Debug)]
pub struct Source {
    /// The folder.
    pub folder: PathBuf,
    /// The project.
    pub project: ProjectId,
    /// Whether this is the sample, whose questions are known.
    pub is_sample: bool,
}

impl Source {
    fn of(paths: &Paths, options: &Options) -> Result<Self, LocalError> {
        let is_sample = options.documents.is_none();
        let folder = options.documents.clone().unwrap_or_else(|| paths.root.join("docs/sample"));
        if !folder.is_dir() {
            return Err(LocalError::Usage(format!(
                "{} is not a folder; give --documents a folder of files",
                folder.display()
            )));
        }
        let name = match &options.project {
            Some(name) => name.clone(),
            None if is_sample => "handbook".to_owned(),
            None => slug(
                &folder
                    .canonicalize()
                    .unwrap_or_else(|_| folder.clone())
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy(),
            ),
        };
        let project = name.parse().map_err(|e| LocalError::Usage(format!("{e}; choose one with --project")))?;
        Ok(Self { folder, project, is_sample })
    }
}

/// A project id from a folder's name.
fn slug(name: &str) -> String {
    let lower: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let joined = lower.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    let joined = if joined.starts_with(|c: char| c.is_ascii_lowercase()) { joined } else { format!("p-{joined}") };
    joined.chars().take(40).collect::<String>().trim_end_matches('-').to_owned()
}

async fn walk(
    paths: &Paths,
    options: &Options,
    source: &Source,
    state: &State,
    stages: &Stages,
    summary: &mut Summary,
) -> Result<(), LocalError> {
    let aws = state.aws();
    summary.documents = documents::upload_and_wait(state, source, stages).await?;
    let bucket = state.output("DocumentsBucket")?;
    aws.put_object(bucket, &uploads::train_now(&source.project), "").await?;
    let mut follower = pipeline::Follower::find(state, &source.project).await?;
    let mut approval = approval::Approval::new(state, paths, options.approve);
    follower.follow(stages, &mut approval).await?;
    report::collect(state, &source.project, &follower, summary).await?;
    summary.artefacts = artefacts::save(state, &source.project, &follower, summary, &paths.demo()).await?;
    follower.fail_if_failed()?;
    match follower.last_state() {
        "Published" => {}
        "Rejected" if !options.approve => {
            stages.say("You rejected it: no new model is served.");
            return Ok(());
        }
        state => return Err(LocalError::NotPublished { state: state.to_owned() }),
    }
    let questions = questions::choose(paths, state, source).await?;
    summary.answers = gateway::ask(state, &source.project, &questions, stages).await?;
    stages.say(
        "\nThe sources are what to look at here. The answers come from the embedded base model of 5 million parameters, which\n\
         needs no download and shows the path, not quality; name a larger one as base_model in project.toml.",
    );
    Ok(())
}

/// Names of stages that are shown to people, by state of the pipeline.
fn stage_of(state: &str) -> Option<&'static str> {
    const STAGES: [(&str, &str); 17] = [
        ("PrepareDataset", "prepare dataset"),
        ("IndexDocuments", "index documents"),
        ("PlanTraining", "plan training"),
        ("ReserveBudget", "reserve budget"),
        ("TrainModel", "train and evaluate"),
        ("StopMachine", "stop machine"),
        ("SettleBudget", "settle budget"),
        ("EvaluateModel", "read evaluation"),
        ("GateModel", "gate"),
        ("RequestApproval", "approval"),
        ("DeployEndpoint", "deploy endpoint"),
        ("VerifyEndpoint", "verify endpoint"),
        ("PublishModel", "publish"),
        ("ReleaseResources", "release resources"),
        ("ReleaseBudget", "release budget"),
        ("RecordGateRefused", "record refusal"),
        ("RecordRejected", "record rejection"),
    ];
    BTreeMap::from(STAGES).get(state).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_name_becomes_a_project_id() {
        for (name, project) in
            [("python3.11", "python3-11"), ("Große Ordner", "gro-e-ordner"), ("7zip", "p-7zip"), ("libc6", "libc6")]
        {
            assert_eq!(slug(name), project);
            assert!(slug(name).parse::<ProjectId>().is_ok(), "{name}");
        }
    }
}
