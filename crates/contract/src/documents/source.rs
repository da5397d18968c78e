//! What became of each upload, and how many were refused: items of the table.

use serde::{Deserialize, Serialize};

use crate::{ids::DocumentId, time::UnixTime};

/// Table item `SOURCE#{path}` of a project: which content a path has now. The newest event wins, by S3's sequencer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The file below the project folder.
    pub path: String,
    /// Its content.
    pub document: DocumentId,
    /// S3's sequencer of the event, right-padded with zeros to equal length (as S3 says to compare them): later events compare greater.
    pub sequencer: String,
    /// What became of it.
    pub status: SourceStatus,
    /// When it was read.
    pub at: UnixTime,
    /// Whether its owner has still to be told that it was refused. Whoever receives the event again tells.
    #[serde(default)]
    pub mail_due: bool,
}

/// Table item `READING#{path}` of a project: a reader has begun on an upload. It goes when the reader ends, however it ends; one
/// that stays tells the next receiver of the event that the reader died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadingRecord {
    /// Of the event, as in [`SourceRecord::sequencer`].
    pub sequencer: String,
    /// How often a reader has begun on this very upload and not ended, this time included.
    pub tries: u32,
    /// When DynamoDB may delete the item.
    pub ttl: i64,
}

/// Table item `REFUSALS#{hour}` of a project: how often a mail about a refused file was begun in an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalCount {
    /// So often; a try that died counts too.
    pub count: u64,
    /// Whether the one mail was sent that says that many are refused.
    #[serde(default)]
    pub many_told: bool,
    /// When DynamoDB may delete the item.
    pub ttl: i64,
}

/// What became of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceStatus {
    /// Its text lies under `documents/`.
    Extracted,
    /// Its record lies under `quarantine/`.
    Quarantined,
    /// The object was deleted.
    Deleted,
}
