//! S3 keys: decoding them once, and the layout of the two buckets.

use std::{fmt, str::FromStr};

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use crate::ids::{BaseModel, DatasetId, DocumentId, IdError, IndexId, ProjectId, RunId};

/// Why a key or an S3 address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key's bytes are not UTF-8 after decoding.
    #[error("key {0:?} is not UTF-8 after decoding; rename the file")]
    NotUtf8(String),
    /// The key lies outside every project folder.
    #[error("key {0:?} is not inside a project folder; upload to <project>/<file>")]
    NoProject(String),
    /// The first part of the key is no project id.
    #[error("key {key:?}: {source}")]
    BadProject {
        /// The whole key.
        key: String,
        /// What is wrong with its first part.
        source: IdError,
    },
    /// Not of the form `s3://bucket/key`.
    #[error("{0:?} is not an address of the form s3://bucket/key")]
    BadUri(String),
}

/// A decoded object key in the documents bucket: `{project}/{path}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The project it belongs to.
    pub project: ProjectId,
    /// The rest of the key: the file as the person named it.
    pub path: String,
}

/// What an upload is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upload {
    /// A document to read.
    Document,
    /// `project.toml`: the project's settings.
    Settings,
    /// `_TRAIN`: start now.
    TrainNow,
    /// A folder marker or a hidden file: nothing to do.
    Ignored,
}

impl ObjectKey {
    /// Parses a key as S3 **event notifications to SQS, SNS and Lambda** carry it: form-encoded, `+` for a space and `%XX`.
    ///
    /// # Errors
    /// [`KeyError`] when the bytes are not UTF-8 or the key is outside a project folder.
    pub fn from_notification(encoded: &str) -> Result<Self, KeyError> {
        let spaced = encoded.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().map_err(|_| KeyError::NotUtf8(encoded.to_owned()))?;
        Self::from_plain(&decoded)
    }

    /// Parses a key as **EventBridge "Object Created" events**, listings and the S3 API carry it: as it is.
    /// Source: Amazon S3 User Guide, "EventBridge event message structure": the object key is not URL-encoded there.
    ///
    /// # Errors
    /// [`KeyError`] when the key is outside a project folder.
    pub fn from_plain(key: &str) -> Result<Self, KeyError> {
        let (project, path) = key.split_once('/').ok_or_else(|| KeyError::NoProject(key.to_owned()))?;
        let project = project.parse().map_err(|source| KeyError::BadProject { key: key.to_owned(), source })?;
        Ok(Self { project, path: path.to_owned() })
    }

    /// What this upload is for.
    #[must_use]
    pub fn upload(&self) -> Upload {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        match self.path.as_str() {
            "project.toml" => Upload::Settings,
            "_TRAIN" => Upload::TrainNow,
            _ if name.is_empty() || name.starts_with('.') => Upload::Ignored,
            _ => Upload::Document,
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.path)
    }
}

/// An address `s3://bucket/key`. The key may be a prefix that ends in `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct S3Uri {
    /// The bucket's name.
    pub bucket: String,
    /// The key, without a leading slash.
    pub key: String,
}

impl S3Uri {
    /// An address from its two parts.
    pub fn new(bucket: impl Into<String>, key: impl Into<String>) -> Self {
        Self { bucket: bucket.into(), key: key.into() }
    }

    /// The address of `name` below this prefix.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        Self { bucket: self.bucket.clone(), key: format!("{}/{name}", self.key.trim_end_matches('/')) }
    }
}

impl FromStr for S3Uri {
    type Err = KeyError;
    fn from_str(value: &str) -> Result<Self, KeyError> {
        let bad = || KeyError::BadUri(value.to_owned());
        let (bucket, key) = value.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
        if bucket.is_empty() { Err(bad()) } else { Ok(Self::new(bucket, key)) }
    }
}

impl TryFrom<String> for S3Uri {
    type Error = KeyError;
    fn try_from(value: String) -> Result<Self, KeyError> {
        value.parse()
    }
}

impl From<S3Uri> for String {
    fn from(uri: S3Uri) -> Self {
        uri.to_string()
    }
}

impl fmt::Display for S3Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

/// Keys in the documents bucket.
pub mod uploads {
    use super::ProjectId;

    /// The project's settings.
    #[must_use]
    pub fn settings(project: &ProjectId) -> String {
        format!("{project}/project.toml")
    }

    /// Uploading this starts the pipeline at once.
    #[must_use]
    pub fn train_now(project: &ProjectId) -> String {
        format!("{project}/_TRAIN")
    }
}

/// Keys in the workspace bucket (DESIGN §5).
pub mod workspace {
    use super::{BaseModel, DatasetId, DocumentId, IndexId, ProjectId, RunId};

    /// Extracted text of one document: [`crate::documents::ExtractedDocument`].
    #[must_use]
    pub fn document(project: &ProjectId, id: &DocumentId) -> String {
        format!("projects/{project}/documents/{id}.json")
    }

    /// Why one file was refused: [`crate::documents::QuarantineRecord`].
    #[must_use]
    pub fn quarantine(project: &ProjectId, id: &DocumentId) -> String {
        format!("projects/{project}/quarantine/{id}.json")
    }

    /// Folder of a dataset, ending in `/`: `train|validation|test.jsonl.zst`, `manifest.json`, `report.html`.
    #[must_use]
    pub fn dataset(project: &ProjectId, id: &DatasetId) -> String {
        format!("projects/{project}/datasets/{id}/")
    }

    /// Folder of a retrieval index, ending in `/`.
    #[must_use]
    pub fn index(project: &ProjectId, id: &IndexId) -> String {
        format!("projects/{project}/indexes/{id}/")
    }

    /// Folder of a run, ending in `/`: `plan.json attempts/{attempt}.json metrics.jsonl tensorboard/ checkpoints/{step}/
    /// adapter/ evaluation.json reference-logits.json report.html serve.json deployment.json`.
    #[must_use]
    pub fn run(project: &ProjectId, id: &RunId) -> String {
        format!("projects/{project}/runs/{id}/")
    }

    /// Folder of a base model in Hugging Face layout, ending in `/`.
    #[must_use]
    pub fn model(base: &BaseModel) -> String {
        format!("models/{}/", base.folder())
    }

    /// Folder of the embedding model, ending in `/`.
    pub const EMBEDDER: &str = "models/all-minilm-l6-v2/";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_decoded_once_and_only_where_it_is_encoded() {
        let key = ObjectKey::from_notification("handbook/Fahrg%C3%A4ste+%2B+Hunde.md").unwrap();
        assert_eq!(key.path, "Fahrgäste + Hunde.md");
        let plain = ObjectKey::from_plain("handbook/100%25 +x.md").unwrap();
        assert_eq!(plain.path, "100%25 +x.md");
    }

    #[test]
    fn uploads_are_told_apart() {
        for (key, upload) in [
            ("p/project.toml", Upload::Settings),
            ("p/_TRAIN", Upload::TrainNow),
            ("p/a/project.toml", Upload::Document),
            ("p/a/", Upload::Ignored),
            ("p/.DS_Store", Upload::Ignored),
            ("p/a.pdf", Upload::Document),
        ] {
            assert_eq!(ObjectKey::from_plain(key).unwrap().upload(), upload, "{key}");
        }
        assert!(matches!(ObjectKey::from_plain("loose.txt"), Err(KeyError::NoProject(_))));
        assert!(matches!(ObjectKey::from_plain("Bad Name/x"), Err(KeyError::BadProject { .. })));
    }

    #[test]
    fn s3_addresses_round_trip() {
        let uri: S3Uri = "s3://bucket/a/b/".parse().unwrap();
        assert_eq!(uri.join("c.json").to_string(), "s3://bucket/a/b/c.json");
        for bad in ["http://x/y", "s3://", "s3:///k", "s3://bucket"] {
            assert!(bad.parse::<S3Uri>().is_err(), "{bad}");
        }
    }
}
