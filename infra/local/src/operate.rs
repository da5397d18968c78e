//! Commands on a running local cloud: status, decisions, interruption, mails, logs, down.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tunesmith_contract::ProjectId;

use crate::{LocalError, demo, mailbox, paths::Paths, state::State};

/// Prints what is there.
///
/// # Errors
/// When no local cloud is up.
pub async fn status(paths: &Paths) -> Result<(), LocalError> {
    let state = State::read(&paths.local_cloud())?;
    println!("emulator      {}", state.emulator);
    println!("machine room  {}", state.machine_room);
    for (name, value) in &state.outputs {
        if !name.starts_with("ExportsOutput") {
            println!("{name:<24} {}", state.local_url(value));
        }
    }
    let status = state.command("status", &Value::Null).await?;
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    for machine in status["instances"].as_array().into_iter().flatten() {
        let fields = ["id", "instance_type", "market", "status", "launched", "log"].map(|key| text(machine, key));
        println!("instance  {}", fields.join("  "));
    }
    for endpoint in status["endpoints"].as_array().into_iter().flatten() {
        let fields =
            ["EndpointName", "EndpointStatus", "EndpointConfigName", "FailureReason"].map(|key| text(endpoint, key));
        println!("endpoint  {}", fields.join("  "));
    }
    if let Ok(machine) = state.output("TrainingPipelineArn") {
        let input = json!({"stateMachineArn": machine});
        let answer = state.aws().json("AWSStepFunctions.ListExecutions", &input).await?;
        for execution in answer["executions"].as_array().into_iter().flatten() {
            println!("execution {}  {}", text(execution, "name"), text(execution, "status"));
        }
    }
    Ok(())
}

/// Makes an API key and prints a command that asks the project's model with it.
///
/// # Errors
/// When no local cloud is up, no model of the project is live, or the table refuses the key.
pub async fn key(paths: &Paths, project: Option<&str>) -> Result<(), LocalError> {
    let state = State::read(&paths.local_cloud())?;
    let project = named(project, &state)?;
    println!("{}", demo::how_to_ask(&state, &project, &demo::make_key(&state, &project).await?)?);
    Ok(())
}

fn named(project: Option<&str>, state: &State) -> Result<ProjectId, LocalError> {
    let name = project
        .or(state.project.as_deref())
        .ok_or_else(|| LocalError::Usage("name the project with --project".into()))?;
    name.parse().map_err(|e| LocalError::Usage(format!("{e}")))
}

/// Answers a waiting approval through `approve-deployment`.
///
/// # Errors
/// When none waits, or no local cloud is up.
pub async fn decide(
    paths: &Paths,
    project: Option<&str>,
    run: Option<&str>,
    verdict: &str,
    reason: &str,
) -> Result<(), LocalError> {
    let state = State::read(&paths.local_cloud())?;
    let project = named(project, &state)?;
    demo::decide(&state, &project, run, verdict, reason).await?;
    println!("{verdict}: told training-pipeline of {project}");
    Ok(())
}

/// Takes a spot machine back.
///
/// # Errors
/// When none runs.
pub async fn interrupt(paths: &Paths, instance: Option<&str>, notice_seconds: Option<u64>) -> Result<(), LocalError> {
    let state = State::read(&paths.local_cloud())?;
    let mut input = json!({});
    if let Some(instance) = instance {
        input["instance"] = json!(instance);
    }
    if let Some(seconds) = notice_seconds {
        input["notice_seconds"] = json!(seconds);
    }
    let answer = state.command("interrupt", &input).await?;
    println!(
        "{} has its notice and will be ended at {}",
        answer["instance"].as_str().unwrap_or_default(),
        answer["ends_at"].as_str().unwrap_or_default()
    );
    Ok(())
}

/// Prints the mails.
///
/// # Errors
/// When there is no mailbox.
pub fn print_mails(paths: &Paths) -> Result<(), LocalError> {
    let folder = paths.local_cloud().join("mailbox");
    let mails = mailbox::list(&folder, None);
    for mail in &mails {
        println!("===== {}\n{}", mail.path.display(), mail.text);
    }
    println!("{} mails in {}", mails.len(), folder.display());
    Ok(())
}

/// Prints logs: of a function, of a machine or an endpoint, or of the local cloud itself.
///
/// # Errors
/// When there are none of that name.
pub async fn logs(paths: &Paths, of: Option<&str>) -> Result<(), LocalError> {
    let folder = paths.local_cloud();
    let Some(name) = of else {
        for file in ["logs/local-cloud.log", "logs/emulator.log"] {
            print_file(&folder.join(file))?;
        }
        return Ok(());
    };
    let machine = folder.join("instances").join(name).join("log");
    if machine.exists() {
        return print_file(&machine);
    }
    let endpoint = folder.join("endpoints").join(name);
    if endpoint.is_dir() {
        for (path, _) in crate::models::files(&endpoint)?.into_iter().filter(|(path, _)| path.ends_with("log")) {
            print_file(&path)?;
        }
        return Ok(());
    }
    function_logs(&State::read(&folder)?, name).await
}

fn print_file(path: &Path) -> Result<(), LocalError> {
    let bytes = std::fs::read(path).map_err(LocalError::io("read", path))?;
    println!("===== {}\n{}", path.display(), String::from_utf8_lossy(&bytes));
    Ok(())
}

async fn function_logs(state: &State, name: &str) -> Result<(), LocalError> {
    let functions = state.aws().functions().await?;
    let known = functions.iter().map(|(function, ..)| function.as_str());
    let Some(function) = known.clone().find(|function| *function == name || function.ends_with(name)) else {
        let all: Vec<&str> = known.collect();
        return Err(LocalError::Usage(format!(
            "no machine, endpoint or function {name}; functions: {}",
            all.join(", ")
        )));
    };
    print!("{}", function_log(state, function).await?);
    Ok(())
}

/// Everything a function has logged.
async fn function_log(state: &State, function: &str) -> Result<String, LocalError> {
    let mut text = String::new();
    let mut input = json!({"logGroupName": format!("/aws/lambda/{function}")});
    loop {
        let answer = state.aws().json("Logs_20140328.FilterLogEvents", &input).await?;
        for event in answer["events"].as_array().into_iter().flatten() {
            text.push_str(event["message"].as_str().unwrap_or_default().trim_end());
            text.push('\n');
        }
        match answer["nextToken"].as_str() {
            Some(token) if !token.is_empty() => input["nextToken"] = json!(token),
            _ => return Ok(text),
        }
    }
}

/// Keeps the logs of every function as files: the emulator forgets them when it ends.
pub async fn save_function_logs(state: &State, folder: &Path) {
    let Ok(functions) = state.aws().functions().await else { return };
    if std::fs::create_dir_all(folder).is_err() {
        return;
    }
    for (name, ..) in functions {
        if let Ok(text) = function_log(state, &name).await
            && !text.is_empty()
        {
            let _ = std::fs::write(folder.join(format!("{name}.log")), text);
        }
    }
}

/// Ends a running local cloud and waits until its processes are gone.
///
/// # Errors
/// When it does not end in time.
pub async fn down(paths: &Paths) -> Result<(), LocalError> {
    let state = State::read(&paths.local_cloud())?;
    state.command("shutdown", &json!({})).await?;
    let process = format!("/proc/{}/exe", state.pid);
    for _ in 0..300 {
        if !Path::new(&process).exists() {
            println!("the local cloud is down");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let remedy = format!("look at process {}", state.pid);
    Err(LocalError::TooLate { what: "the end of the local cloud".into(), seconds: 30, remedy })
}
