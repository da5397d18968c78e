//! `target/demo/summary.json`.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};
use tunesmith_contract::{DatasetId, ProjectId, RunId, Usd, evaluation::GateDecision};

use crate::LocalError;

/// What a demo did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// The project.
    pub project: ProjectId,
    /// The run; none when no plan was made.
    pub run: Option<RunId>,
    /// What became of the files.
    pub documents: Documents,
    /// The dataset.
    pub dataset: Option<DatasetId>,
    /// Perplexity on the test split, before and after.
    pub perplexity: Option<BeforeAndAfter>,
    /// The gate's decision.
    pub gate: Option<GateDecision>,
    /// How the approval was answered.
    pub approval: Option<Answered>,
    /// The endpoint.
    pub endpoint: Option<Endpoint>,
    /// Questions with answers.
    pub answers: Vec<Answer>,
    /// Money.
    pub dollars: Dollars,
    /// What the meter charged, by step; a step that is not in it is not metered.
    #[serde(default)]
    pub dollars_by_step: BTreeMap<String, f64>,
    /// Wall time of each step.
    pub seconds: BTreeMap<String, f64>,
    /// Copies of what the run has made, by name: decision page, dataset report, adapter, …
    #[serde(default)]
    pub artefacts: BTreeMap<String, String>,
    /// Why the demo did not get to its end.
    #[serde(default)]
    pub error: Option<String>,
    /// What was running when the demo ended: nothing, unless it was asked to leave it up.
    pub left_running: Vec<String>,
}

/// What became of the files.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Documents {
    /// Number of files whose text was taken over.
    pub ingested: u64,
    /// Files that were refused.
    pub quarantined: Vec<Quarantined>,
}

/// A refused file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Quarantined {
    /// Path below the project.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// Perplexities.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BeforeAndAfter {
    /// Of the base model.
    pub base: Units,
    /// Of the tuned model.
    pub tuned: Units,
}

/// Perplexity in three units.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Units {
    /// Per token.
    pub token: f64,
    /// Per word.
    pub word: f64,
    /// Per byte.
    pub byte: f64,
}

/// How the approval was answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answered {
    /// `link`, `console` or `cli`.
    pub via: String,
}

/// The endpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// SageMaker's word.
    pub status: String,
    /// Largest difference between its logits and the trainer's.
    pub logit_max_abs_diff: f64,
}

/// A question with its answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked.
    pub question: String,
    /// The tuned model's answer.
    pub answer: String,
    /// Where it can be read.
    pub sources: Vec<String>,
    /// The base model's answer.
    pub base_answer: String,
}

/// Money of the run, in dollars.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Dollars {
    /// Expected at the start.
    pub quoted: f64,
    /// Set aside at the start.
    pub reserved: f64,
    /// What the machines' meter says.
    pub metered: f64,
    /// Charged to the budget.
    pub settled: f64,
    /// Given back to the budget.
    pub returned: f64,
}

impl Dollars {
    /// From the run's record.
    #[must_use]
    pub fn of(quoted: Usd, reserved: Usd, metered: Usd, settled: Usd, returned: Usd) -> Self {
        Self {
            quoted: quoted.dollars(),
            reserved: reserved.dollars(),
            metered: metered.dollars(),
            settled: settled.dollars(),
            returned: returned.dollars(),
        }
    }
}

impl Summary {
    /// An empty summary.
    #[must_use]
    pub fn new(project: &ProjectId) -> Self {
        Self {
            project: project.clone(),
            run: None,
            documents: Documents::default(),
            dataset: None,
            perplexity: None,
            gate: None,
            approval: None,
            endpoint: None,
            answers: Vec::new(),
            dollars: Dollars::default(),
            dollars_by_step: BTreeMap::new(),
            seconds: BTreeMap::new(),
            artefacts: BTreeMap::new(),
            error: None,
            left_running: Vec::new(),
        }
    }

    /// Removes what an earlier demo has left in `folder`.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(folder: &Path) -> Result<(), LocalError> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(LocalError::io("remove", folder)(error)),
            _ => Ok(()),
        }
    }

    /// Writes `summary.json` into `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), LocalError> {
        fs::create_dir_all(folder).map_err(LocalError::io("make", folder))?;
        let path = folder.join("summary.json");
        let text = serde_json::to_string_pretty(self).map_err(|e| LocalError::bad_answer("summary", e.to_string()))?;
        fs::write(&path, text + "\n").map_err(LocalError::io("write", &path))
    }
}
