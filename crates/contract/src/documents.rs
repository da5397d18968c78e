//! Documents, datasets and indexes as they lie in the workspace bucket; [`QuarantineReason`] for what was refused, and
//! [`SourceRecord`] for what became of each upload.

mod quarantine;
mod source;

use serde::{Deserialize, Serialize};

use crate::ids::{DatasetId, DocumentId, IndexId, ProjectId};

pub use quarantine::{QuarantineReason, QuarantineRecord};
pub use source::{ReadingRecord, RefusalCount, SourceRecord, SourceStatus};

/// What a document's bytes turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentKind {
    /// Plain text.
    Text,
    /// Markdown.
    Markdown,
    /// HTML.
    Html,
    /// PDF.
    Pdf,
    /// Office Open XML text document.
    Docx,
    /// Chat examples, one [`Conversation`] a line.
    Jsonl,
}

/// One section of a document, in reading order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Headings from the document's title down to this section; may be empty.
    pub headings: Vec<String>,
    /// First page of the section, counted from 1, where the format has pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// The text: paragraphs separated by one empty line.
    pub text: String,
}

/// `projects/{project}/documents/{sha256}.json`: a document's text with its provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractedDocument {
    /// SHA-256 of the uploaded bytes.
    pub id: DocumentId,
    /// The file as its owner named it, below the project folder: what answers show as the source.
    pub path: String,
    /// What it is.
    pub kind: DocumentKind,
    /// Its title: the first heading, else the file name.
    pub title: String,
    /// Size of the uploaded bytes.
    pub bytes: u64,
    /// Sections in reading order. Empty for chat examples.
    pub sections: Vec<Section>,
    /// Chat examples (only in [`DocumentKind::Jsonl`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chats: Vec<Vec<Message>>,
    /// Lines that were left out, with reasons (only in [`DocumentKind::Jsonl`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped_lines: Vec<SkippedLine>,
}

/// A line of an uploaded `.jsonl` file that could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedLine {
    /// Counted from 1.
    pub line: u64,
    /// Why.
    pub reason: String,
}

/// Who speaks in a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// What a tool gave back.
    Tool,
}

impl Role {
    /// The name on the wire, which is also that of chat templates.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    // the schema is that of uploads, whose reader refuses a turn in which nothing is said
    #[cfg_attr(test, schemars(extend("pattern" = "\\S")))]
    pub content: String,
}

/// One line of a `.jsonl` file among the documents, `{"messages": [{"role": …, "content": …}, …]}`: a conversation to learn from.
/// Further keys (ids, tags) are ignored, since exports carry them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Conversation {
    /// What is said in turns, first by the user and last by the assistant, who is learnt from. A tool may answer the assistant; one
    /// system message may stand before all.
    #[cfg_attr(test, schemars(extend("minItems" = 2)))]
    pub messages: Vec<Message>,
}

/// One line of `train|validation|test.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Example {
    /// Running text: every token is trained on.
    Text {
        /// The text.
        text: String,
        /// Where it came from.
        document: DocumentId,
    },
    /// A chat: only assistant turns and their terminators are trained on.
    Chat {
        /// The turns.
        messages: Vec<Message>,
        /// Where it came from.
        document: DocumentId,
    },
}

impl Example {
    /// The document it came from.
    #[must_use]
    pub const fn document(&self) -> &DocumentId {
        match self {
            Self::Text { document, .. } | Self::Chat { document, .. } => document,
        }
    }
}

/// Size of one split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SplitSize {
    /// Number of documents.
    pub documents: u64,
    /// Number of examples.
    pub examples: u64,
    /// Number of white-space separated words.
    pub words: u64,
    /// Number of UTF-8 bytes.
    pub bytes: u64,
}

/// `projects/{project}/datasets/{dataset}/manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetManifest {
    /// The dataset: hash of the three splits.
    pub dataset: DatasetId,
    /// The project.
    pub project: ProjectId,
    /// Training split.
    pub train: SplitSize,
    /// Validation split.
    pub validation: SplitSize,
    /// Test split: never trained on.
    pub test: SplitSize,
    /// Documents used, sorted by id.
    pub documents: Vec<DocumentId>,
    /// Documents left out because another says the same, with the one that was kept.
    pub duplicates: Vec<Duplicate>,
    /// Number of quarantined files at the time.
    pub quarantined: u64,
    /// Uploads that were left out because they had not been read when the dataset was made.
    #[serde(default, skip_serializing_if = "UnreadUploads::is_empty")]
    pub unread: UnreadUploads,
}

/// Uploads that a dataset was made without, because they were not read in time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnreadUploads {
    /// How many.
    pub count: u64,
    /// Paths of the first few, below the project folder.
    pub first: Vec<String>,
}

impl UnreadUploads {
    /// How many are named.
    const NAMED: usize = 5;

    /// These paths.
    #[must_use]
    pub fn new(paths: &[String]) -> Self {
        Self { count: paths.len() as u64, first: paths.iter().take(Self::NAMED).cloned().collect() }
    }

    /// Whether nothing was left out.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// A document left out as a (near) duplicate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duplicate {
    /// The one left out.
    pub document: DocumentId,
    /// The one kept.
    pub kept: DocumentId,
    /// Estimated Jaccard similarity of their word 5-grams, in per cent.
    pub similarity_percent: u8,
}

/// One retrievable piece of text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The document.
    pub document: DocumentId,
    /// The file below the project folder.
    pub path: String,
    /// Headings above it.
    pub headings: Vec<String>,
    /// First page, counted from 1, where the format has pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// The text.
    pub text: String,
}

/// `projects/{project}/indexes/{index}/manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexManifest {
    /// The index.
    pub index: IndexId,
    /// The dataset it was made beside.
    pub dataset: DatasetId,
    /// The embedding model's folder under `models/`.
    pub embedder: String,
    /// Length of each vector.
    pub dimensions: u32,
    /// Number of chunks.
    pub chunks: u64,
}
