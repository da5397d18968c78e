//! What every Lambda function needs beside its work: settings from the environment, JSON logs, typed failures, metrics,
//! batches of queue messages.
//!
//! A function's `main.rs` is `tunesmith_lambda::run(Service::from_environment, Service::handle)`: everything else here is used
//! by its library.

mod batch;
mod clock;
mod environment;
mod metric;
mod run;
mod storage;

pub use batch::{BatchAnswer, SqsAttributes, SqsBatch, SqsMessage, each_message};
pub use clock::now;
pub use environment::{Environment, SettingError};
pub use metric::{Metric, Unit, metric_line, publish_metrics};
pub use run::{RunError, run};
pub use storage::Storage;
