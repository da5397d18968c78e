//! What an S3 event asks for. No I/O.

use serde::Deserialize;
use tunesmith_contract::{
    ErrorName, ObjectKey,
    error_name::Failure,
    keys::{KeyError, Upload},
};

/// Sequencers are padded to this many digits; S3's have 16 to 18.
const SEQUENCER_DIGITS: usize = 32;

/// An EventBridge event of S3, as it lies in the queue. Fields that nobody here reads are left out.
/// Source: Amazon S3 User Guide, "EventBridge event message structure".
#[derive(Debug, Clone, Deserialize)]
struct Event {
    source: String,
    #[serde(rename = "detail-type")]
    detail_type: String,
    detail: Detail,
}

#[derive(Debug, Clone, Deserialize)]
struct Detail {
    bucket: Bucket,
    object: Object,
}

#[derive(Debug, Clone, Deserialize)]
struct Bucket {
    name: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Object {
    key: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(rename = "version-id", default)]
    version_id: Option<String>,
    sequencer: String,
}

/// An object that an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The bucket.
    pub bucket: String,
    /// Project and path.
    pub key: ObjectKey,
    /// Size in bytes; absent for a deletion.
    pub bytes: Option<u64>,
    /// The version that was written, where the bucket keeps versions.
    pub version: Option<String>,
    /// See [`pad_sequencer`].
    pub sequencer: String,
}

/// What to do about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Read a document.
    Read(Subject),
    /// A document was deleted.
    Forget(Subject),
    /// Check `project.toml`.
    CheckSettings(Subject),
    /// Start the pipeline.
    Train(Subject),
    /// Tell the owner that the file lies where nothing looks for it.
    Misplaced {
        /// Why.
        error: KeyError,
    },
    /// Nothing: a folder marker, a hidden file, a deleted marker file.
    Nothing,
}

/// Parses the body of a queue message.
///
/// # Errors
/// `InvalidInput` when it is no S3 event of EventBridge: such a message ends in the dead-letter queue.
pub fn task(body: &str) -> Result<Task, Failure> {
    let invalid =
        |why: String| Failure::new(ErrorName::InvalidInput, format!("the message is no S3 event: {why}; see events/"));
    let event: Event = serde_json::from_str(body).map_err(|error| invalid(error.to_string()))?;
    if event.source != "aws.s3" {
        return Err(invalid(format!("source is {:?}", event.source)));
    }
    let created = match event.detail_type.as_str() {
        "Object Created" => true,
        "Object Deleted" => false,
        other => return Err(invalid(format!("detail-type is {other:?}"))),
    };
    let Object { key, size, version_id, sequencer } = event.detail.object;
    let hexadecimal = !sequencer.is_empty() && sequencer.bytes().all(|b| b.is_ascii_hexdigit());
    if !hexadecimal || sequencer.len() > SEQUENCER_DIGITS {
        return Err(invalid(format!("sequencer is {sequencer:?}")));
    }
    let key = match ObjectKey::from_plain(&key) {
        Ok(key) => key,
        // a folder marker or hidden file at the top is nobody's document
        Err(_) if key.ends_with('/') || key.starts_with('.') || !created => return Ok(Task::Nothing),
        Err(error) => return Ok(Task::Misplaced { error }),
    };
    let upload = key.upload();
    let subject = Subject {
        bucket: event.detail.bucket.name,
        key,
        bytes: size,
        version: version_id,
        sequencer: pad_sequencer(&sequencer),
    };
    Ok(match (upload, created) {
        (Upload::Document, true) => Task::Read(subject),
        (Upload::Document, false) => Task::Forget(subject),
        (Upload::Settings, true) => Task::CheckSettings(subject),
        (Upload::TrainNow, true) => Task::Train(subject),
        (Upload::Settings | Upload::TrainNow, false) | (Upload::Ignored, _) => Task::Nothing,
    })
}

/// Sequencers of one key compare in the order of its events once the shorter is padded **on the right** with zeros, as text,
/// in one case. Source: Amazon S3 User Guide, "Event message structure", `sequencer`.
#[must_use]
pub fn pad_sequencer(sequencer: &str) -> String {
    format!("{:0<SEQUENCER_DIGITS$}", sequencer.to_ascii_uppercase())
}

/// Name of the execution that a `_TRAIN` file starts: the same upload gives the same name, so it starts once.
#[must_use]
pub fn execution_name(subject: &Subject) -> String {
    // 40 + 1 + 32 characters: within the 80 of Step Functions
    format!("{}-{}", subject.key.project, subject.sequencer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_events_compare_greater() {
        assert!(pad_sequencer("0055AED6DCD90281E5") < pad_sequencer("0055AED6DCD90281E6"));
        assert!(pad_sequencer("0055aed6dcd90281e5") < pad_sequencer("0055AED6DCD90281E501"));
        assert!(pad_sequencer("0055AED6DCD9") < pad_sequencer("0055AED6DCD90281E5"));
        assert_eq!(pad_sequencer("00aa").len(), 32);
    }
}
