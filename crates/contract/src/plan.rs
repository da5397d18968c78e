//! The plan of a run: `runs/{run}/plan.json`. What will be done, on which machines, for how much.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{BaseModel, DatasetId, IndexId, ProjectId, RunId},
    money::Usd,
    settings::{Market, ProjectSettings},
    time::Seconds,
};

/// A machine that may be used, best first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineChoice {
    /// EC2 instance type.
    pub instance_type: String,
    /// Availability zone the spot price is of; `None` for on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Spot or on demand.
    pub market: Market,
    /// Price for one hour.
    pub price_per_hour: Usd,
    /// Predicted time of the whole run on it, start of the machine included.
    pub predicted: Seconds,
    /// Whether its GPU computes: then the trainer's image with CUDA's libraries is started there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_gpu: bool,
}

/// What a run will cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// Predicted cost on the best machine.
    pub expected: Usd,
    /// What is reserved: the run is stopped, checkpointed, before it costs more.
    pub upper_bound: Usd,
}

/// `runs/{run}/plan.json`. The run id is a hash of project, dataset, base model and training settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The run.
    pub run: RunId,
    /// The project.
    pub project: ProjectId,
    /// What it trains on.
    pub dataset: DatasetId,
    /// What answers are looked up in.
    pub index: IndexId,
    /// What it starts from.
    pub base: BaseModel,
    /// Parameters of the base model.
    pub parameters: u64,
    /// Optimizer steps.
    pub steps: u32,
    /// Tokens that will be trained on, estimated.
    pub tokens: u64,
    /// Machines, best first; on-demand ones after spot ones.
    pub machines: Vec<MachineChoice>,
    /// The price.
    pub quote: Quote,
    /// Longest time on machines, over all attempts.
    pub max_time: Seconds,
    /// The settings at the time: later edits of `project.toml` change later runs only.
    pub settings: ProjectSettings,
}
