//! Wire types every part agrees on: ids, S3 keys, money, manifests, settings, error names.
//!
//! Pure data: serde only, no clock, no environment, no network. What crosses a process border (S3 object, queue message,
//! state input, table item, e-mail) has its type here and nowhere else.

pub mod approval;
pub mod deployment;
pub mod documents;
pub mod error_name;
pub mod evaluation;
#[cfg(test)]
mod generated;
pub mod ids;
pub mod job;
pub mod keys;
pub mod ledger;
pub mod money;
pub mod plan;
pub mod settings;
pub mod tasks;
pub mod time;

pub use error_name::ErrorName;
pub use ids::{BaseModel, DatasetId, DocumentId, IndexId, ProjectId, RunId};
pub use keys::{ObjectKey, S3Uri};
pub use money::Usd;
pub use settings::ProjectSettings;
pub use time::{Seconds, UnixTime};
