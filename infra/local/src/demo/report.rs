//! Gathering the summary from the workspace and the table, and printing it.

use serde_json::Value;
use tunesmith_contract::{
    ProjectId,
    approval::ApprovalDecision,
    deployment::Verification,
    evaluation::{Evaluation, GateDecision, Perplexity},
    keys::workspace,
    ledger::{ItemKey, RunRecord},
    tasks::PreparedDataset,
};

use super::{
    gateway::{how_to_ask, make_key},
    pipeline::Follower,
    summary::{Answered, BeforeAndAfter, Dollars, Endpoint, Summary, Units},
};
use crate::{LocalError, paths::Paths, stage::Stages, state::State};

/// Fills in what the pipeline has left behind.
///
/// # Errors
/// When the workspace or the table cannot be read.
pub async fn collect(
    state: &State,
    project: &ProjectId,
    follower: &Follower,
    summary: &mut Summary,
) -> Result<(), LocalError> {
    let result = |name: &str| follower.results.get(name).cloned();
    summary.dataset = parse::<PreparedDataset>(result("PrepareDataset")).map(|prepared| prepared.dataset);
    summary.gate = parse::<GateDecision>(result("GateModel"));
    summary.endpoint = parse::<Verification>(result("VerifyEndpoint")).map(|found| Endpoint {
        name: found.endpoint,
        status: found.status,
        logit_max_abs_diff: found.logit_max_abs_diff,
    });
    summary.approval = parse::<ApprovalDecision>(result("RequestApproval"))
        .and_then(|decision| serde_json::to_value(decision.via).ok()?.as_str().map(str::to_owned))
        .map(|via| Answered { via });
    summary.run = follower.run();
    let Some(run) = &summary.run else { return Ok(()) };
    let (aws, bucket) = (state.aws(), state.output("WorkspaceBucket")?);
    let key = format!("{}evaluation.json", workspace::run(project, run));
    if let Some(evaluation) = aws.get_json::<Evaluation>(bucket, &key).await? {
        summary.perplexity = Some(BeforeAndAfter { base: units(&evaluation.base), tuned: units(&evaluation.tuned) });
    }
    let key = ItemKey::run(project, run);
    let record = aws.get_item(state.output("Table")?, &key.pk, &key.sk).await?;
    if let Some(record) = parse::<RunRecord>(record) {
        summary.dollars_by_step = [("train and evaluate".to_owned(), record.settled.dollars())].into();
        summary.dollars = Dollars::of(record.quoted, record.reserved, record.metered, record.settled, record.returned);
    }
    Ok(())
}

fn parse<T: serde::de::DeserializeOwned>(value: Option<Value>) -> Option<T> {
    serde_json::from_value(value?).map_err(|error| tracing::warn!(%error, "a result could not be read")).ok()
}

fn units(perplexity: &Perplexity) -> Units {
    Units { token: perplexity.token.value, word: perplexity.word.value, byte: perplexity.byte.value }
}

/// Machines that still run, for the list of what was left.
pub async fn running_machines(state: &State) -> Vec<String> {
    let Ok(status) = state.command("status", &Value::Null).await else { return Vec::new() };
    let machines = status["instances"].as_array().cloned().unwrap_or_default();
    let running =
        machines.iter().filter(|machine| !matches!(machine["status"].as_str(), Some("terminated" | "stopped")));
    running
        .map(|machine| {
            format!(
                "instance {} ({})",
                machine["id"].as_str().unwrap_or_default(),
                machine["status"].as_str().unwrap_or_default()
            )
        })
        .collect()
}

/// What a person can do with a local cloud that was left up.
pub async fn say_how_to_go_on(state: &State, project: &ProjectId, stages: &Stages) {
    let ask = match make_key(state, project).await {
        Ok(key) => how_to_ask(state, project, &key),
        Err(error) => Err(error),
    };
    let ask = ask.unwrap_or_else(|error| format!("cargo local-cloud key   ({error})"));
    stages.say(&format!(
        "\nThe local cloud stays up.\n  ask      {ask}\n  look     cargo local-cloud status | mailbox | logs\n  end it   cargo local-cloud down"
    ));
}

/// The table of steps: wall time, and dollars where they are metered.
fn steps(summary: &Summary, order: &[(String, f64)]) -> Vec<String> {
    let line = |name: &str, seconds: f64, dollars: Option<&f64>| {
        let dollars = dollars.map_or_else(String::new, |dollars| format!("{dollars:>12.6}"));
        format!("{name:<22} {seconds:>8.1} {dollars}").trim_end().to_owned()
    };
    let mut lines = vec![format!("{:<22} {:>8} {:>12}", "step", "seconds", "dollars")];
    lines.extend(order.iter().map(|(name, seconds)| line(name, *seconds, summary.dollars_by_step.get(name))));
    let seconds = order.iter().map(|(_, seconds)| seconds).sum();
    lines.push(line("together", seconds, Some(&summary.dollars_by_step.values().sum())));
    lines.push("(functions, storage and requests are not metered; docs/cost.md says what they come to)".to_owned());
    lines
}

/// Prints the summary for people.
pub fn print(summary: &Summary, paths: &Paths, stages: &Stages) {
    let mut lines = vec![String::new()];
    let mut row = |name: &str, value: String| lines.push(format!("{name:<22} {value}"));
    row("project", summary.project.to_string());
    row(
        "documents",
        format!("{} read, {} quarantined", summary.documents.ingested, summary.documents.quarantined.len()),
    );
    if let Some(run) = &summary.run {
        row("run", format!("s3 workspace projects/{}/runs/{run}/", summary.project));
    }
    if let Some(p) = &summary.perplexity {
        for (unit, base, tuned) in [
            ("token", p.base.token, p.tuned.token),
            ("word", p.base.word, p.tuned.word),
            ("byte", p.base.byte, p.tuned.byte),
        ] {
            row(
                &format!("perplexity per {unit}"),
                format!("{base:.3} before, {tuned:.3} after ({:+.1} %)", 100.0 * (tuned / base - 1.0)),
            );
        }
    }
    if let Some(gate) = &summary.gate {
        row("gate", if gate.passed { "passed".into() } else { "refused".into() });
    }
    if let Some(endpoint) = &summary.endpoint {
        row(
            "endpoint",
            format!("{} {}, logits within {:.1e}", endpoint.name, endpoint.status, endpoint.logit_max_abs_diff),
        );
    }
    let d = &summary.dollars;
    row(
        "dollars",
        format!(
            "quoted {:.6}, reserved {:.6}, metered {:.6}, settled {:.6}, returned {:.6}",
            d.quoted, d.reserved, d.metered, d.settled, d.returned
        ),
    );
    row(
        "left running",
        if summary.left_running.is_empty() { "nothing".into() } else { summary.left_running.join("; ") },
    );
    for (name, path) in &summary.artefacts {
        row(name, path.clone());
    }
    row("mails", paths.local_cloud().join("mailbox").display().to_string());
    row("summary", paths.demo().join("summary.json").display().to_string());
    lines.push(String::new());
    lines.extend(steps(summary, &stages.in_order()));
    stages.say(&lines.join("\n"));
}
