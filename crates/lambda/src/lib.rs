//! What every Lambda function needs beside its work: settings from the environment, JSON logs, typed failures, metrics,
//! batches of queue messages, failures of a part that stop nothing else.
//!
//! A function's `main.rs` calls [`run`] and nothing else; everything else here is used by its library.
//!
//! ```ignore
//! #[tokio::main]
//! async fn main() -> Result<(), RunError> {
//!     tunesmith_lambda::run(
//!         async |environment: &Environment| {
//!             let config = tunesmith_aws::config().await;
//!             let clients = Clients { table: Table::new(&config, environment.text("TABLE")?) };
//!             Ok(clients)
//!         },
//!         async |clients, input| handle(input, clients, now()).await,
//!     )
//!     .await
//! }
//! ```

mod batch;
mod clock;
mod environment;
mod metric;
mod problems;
mod run;
mod storage;

pub use batch::{BatchAnswer, SqsAttributes, SqsBatch, SqsMessage, each_message};
pub use clock::now;
pub use environment::{Environment, SettingError};
pub use metric::{Metric, Unit, metric_line, publish_metrics};
pub use problems::Problems;
pub use run::{RunError, run};
pub use storage::Storage;
