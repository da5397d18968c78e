//! Which documents a dataset is made of. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use tunesmith_aws::s3::Listed;
use tunesmith_contract::{
    DocumentId, ObjectKey,
    documents::{SourceRecord, SourceStatus},
    keys::Upload,
};

/// Ids in a fixed order, each once: two paths with the same content are one document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chosen {
    /// To read.
    pub documents: Vec<DocumentId>,
    /// To report.
    pub quarantined: Vec<DocumentId>,
}

/// What the sources say.
#[must_use]
pub fn choose(sources: &[SourceRecord]) -> Chosen {
    let of = |status| {
        let ids: BTreeSet<_> = sources.iter().filter(|s| s.status == status).map(|s| s.document.clone()).collect();
        ids.into_iter().collect()
    };
    Chosen { documents: of(SourceStatus::Extracted), quarantined: of(SourceStatus::Quarantined) }
}

/// Paths of uploads that `ingest-document` has not read yet: unknown ones, and those written after they were read.
#[must_use]
pub fn pending(uploads: &[Listed], sources: &[SourceRecord]) -> Vec<String> {
    let known: BTreeMap<&str, &SourceRecord> = sources.iter().map(|source| (source.path.as_str(), source)).collect();
    let is_pending = |path: &str, upload: &Listed| match known.get(path) {
        None => true,
        Some(source) if source.status == SourceStatus::Deleted => true,
        Some(source) => upload.modified.is_some_and(|modified| source.at < modified),
    };
    uploads
        .iter()
        .filter_map(|upload| {
            let key = ObjectKey::from_plain(&upload.uri.key).ok()?;
            (key.upload() == Upload::Document && is_pending(&key.path, upload)).then_some(key.path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{S3Uri, UnixTime};

    use super::*;

    fn source(path: &str, content: &str, status: SourceStatus) -> SourceRecord {
        SourceRecord {
            path: path.into(),
            document: DocumentId::of(content.as_bytes()),
            sequencer: "0".into(),
            status,
            at: UnixTime(100),
            mail_due: false,
        }
    }

    fn upload(path: &str, modified: i64) -> Listed {
        Listed { uri: S3Uri::new("b", format!("handbook/{path}")), bytes: 1, modified: Some(UnixTime(modified)) }
    }

    #[test]
    fn the_same_content_under_two_names_is_one_document() {
        let sources = [
            source("a.md", "same", SourceStatus::Extracted),
            source("b.md", "same", SourceStatus::Extracted),
            source("c.md", "gone", SourceStatus::Deleted),
            source("d.pdf", "bad", SourceStatus::Quarantined),
        ];
        let chosen = choose(&sources);
        assert_eq!(chosen.documents, [DocumentId::of(b"same")]);
        assert_eq!(chosen.quarantined, [DocumentId::of(b"bad")]);
        let mut reversed = sources.to_vec();
        reversed.reverse();
        assert_eq!(choose(&reversed), chosen);
    }

    #[test]
    fn uploads_that_were_not_read_yet_are_waited_for() {
        let sources = [source("a.md", "1", SourceStatus::Extracted), source("b.md", "2", SourceStatus::Quarantined)];
        let uploads = [
            upload("a.md", 100),
            upload("b.md", 101),
            upload("Fahrgäste + Hunde.md", 90),
            upload("project.toml", 500),
            upload("_TRAIN", 500),
            upload("folder/", 500),
        ];
        assert_eq!(pending(&uploads, &sources), ["b.md", "Fahrgäste + Hunde.md"]);
        assert!(pending(&uploads[..1], &sources).is_empty());
    }
}
