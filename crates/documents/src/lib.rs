//! Bytes to text, clean, deduplicate, chunk, dataset.
//!
//! Pure: no clock, no environment, no network, no unseeded randomness. The same bytes give the same result, to the byte.
//! Everything that reads uploads is bounded by [`Limits`] and answers hostile input with a
//! [`QuarantineReason`](tunesmith_contract::documents::QuarantineReason), never with a panic.

pub mod chunk;
pub mod clean;
pub mod dataset;
pub mod dedupe;
pub mod encoding;
pub mod extract;
pub mod jsonl;
pub mod limits;
mod outline;
pub mod questions;
pub mod report;
pub mod sniff;
pub mod split;

pub use chunk::{ChunkPlan, chunk_documents, passages};
pub use clean::clean_document;
pub use dataset::{Dataset, DatasetError, DatasetFiles, DatasetPlan, build_dataset};
pub use extract::{quarantine_record, read_document};
pub use jsonl::{read_jsonl_zst, write_jsonl_zst};
pub use limits::Limits;
pub use report::{DatasetReport, dataset_report};
