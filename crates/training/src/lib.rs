//! Training of adapters over a frozen base: sampler, optimizer, schedule, step, checkpoint, resume, export.
//!
//! Start at [`Trainer`]: it makes one optimizer step per call and leaves clock, progress and decisions to the caller.

pub mod adamw;
pub mod blockwise;
pub mod checkpoint;
pub mod clip;
pub mod config;
pub mod data;
pub mod disk;
pub mod divergence;
pub mod early_stopping;
pub mod error;
pub mod evaluate;
pub mod fidelity;
pub mod loraplus;
pub mod memory;
pub mod metrics;
pub mod moved;
pub mod packing;
pub mod sampler;
pub mod schedule;
pub mod step;
mod tensor_file;
pub mod tensorboard;
pub mod trainer;

pub use adamw::Optimizer;
pub use config::TrainingConfig;
pub use data::{Dataset, Example, Sequence, Tokenisation};
pub use early_stopping::{EarlyStopping, Patience};
pub use error::TrainingError;
pub use evaluate::{ExampleLoss, evaluate};
pub use memory::{Memory, RecomputeSetting};
pub use metrics::MetricsLine;
pub use packing::Packing;
pub use schedule::Decay;
pub use trainer::{StepReport, Trainer};
