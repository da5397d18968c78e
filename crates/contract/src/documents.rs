//! Documents, quarantine, datasets and indexes as they lie in the workspace bucket.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DatasetId, DocumentId, IndexId, ProjectId},
    time::UnixTime,
};

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
    /// Chat examples, one `{"messages": […]}` a line.
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

/// Why a file was refused. Each is told to its owner with [`QuarantineReason::message`] and [`QuarantineReason::remedy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum QuarantineReason {
    /// Zero bytes, or nothing but white space.
    Empty,
    /// Larger than the limit.
    TooLarge {
        /// Size of the file in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Protected by a password.
    Encrypted,
    /// Ends early or is damaged.
    Damaged {
        /// What the reader said.
        detail: String,
    },
    /// The content is not what the name says.
    Mislabelled {
        /// From the extension.
        claimed: String,
        /// From the content.
        found: String,
    },
    /// Expands to far more than its size.
    ZipBomb {
        /// Bytes unpacked when reading stopped.
        unpacked: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Not text in a known encoding.
    NotText {
        /// Offset of the first byte that could not be read.
        offset: u64,
    },
    /// Pages without any text: a scan.
    ImageOnly {
        /// Number of pages looked at.
        pages: u32,
    },
    /// A kind of file that is not read.
    Unsupported {
        /// From the content or the extension.
        found: String,
    },
    /// No line of a `.jsonl` file was usable.
    NoUsableLine {
        /// Number of lines looked at.
        lines: u64,
        /// The first problem.
        first: String,
    },
    /// The reader died on it, each time: it ran out of memory or of time.
    CrashedReader {
        /// How often it was tried.
        tries: u32,
    },
}

impl QuarantineReason {
    /// Short machine name, the same as on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooLarge { .. } => "too_large",
            Self::Encrypted => "encrypted",
            Self::Damaged { .. } => "damaged",
            Self::Mislabelled { .. } => "mislabelled",
            Self::ZipBomb { .. } => "zip_bomb",
            Self::NotText { .. } => "not_text",
            Self::ImageOnly { .. } => "image_only",
            Self::Unsupported { .. } => "unsupported",
            Self::NoUsableLine { .. } => "no_usable_line",
            Self::CrashedReader { .. } => "crashed_reader",
        }
    }

    /// What is wrong, in plain words.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Empty => "the file is empty".into(),
            Self::TooLarge { bytes, limit } => {
                format!("the file has {bytes} bytes, the limit is {limit}")
            }
            Self::Encrypted => "the file is protected by a password".into(),
            Self::Damaged { detail } => format!("the file is damaged or ends early: {detail}"),
            Self::Mislabelled { claimed, found } => {
                format!("the name says {claimed}, the content is {found}")
            }
            Self::ZipBomb { unpacked, limit } => {
                format!("the file expands to more than is safe: stopped after {unpacked} bytes, the limit is {limit}")
            }
            Self::NotText { offset } => {
                format!("byte {offset} is not text in UTF-8 or another known encoding")
            }
            Self::ImageOnly { pages } => {
                format!("none of the {pages} pages holds text: it is a scan")
            }
            Self::Unsupported { found } => format!("{found} files are not read"),
            Self::NoUsableLine { lines, first } => {
                format!("none of {lines} lines is a chat example; the first problem: {first}")
            }
            Self::CrashedReader { tries } => {
                format!("the file crashed the reader: it ran out of memory or of time, {tries} time(s)")
            }
        }
    }

    /// What its owner can do.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Empty => "upload the file again; if it is meant to be empty, delete it",
            Self::TooLarge { .. } => "split the file into parts and upload those",
            Self::Encrypted => "save a copy without a password and upload that",
            Self::Damaged { .. } => "open the file and save it again, or export it anew, then upload it",
            Self::Mislabelled { .. } => "give the file the ending that fits its content, or upload the right file",
            Self::ZipBomb { .. } => "unpack the file yourself and upload only the documents in it",
            Self::NotText { .. } => "save the file as UTF-8 text and upload it again",
            Self::ImageOnly { .. } => "run text recognition (OCR) over the scan and upload the result",
            Self::Unsupported { .. } => "export it as PDF, DOCX, HTML, Markdown or text and upload that",
            Self::NoUsableLine { .. } => {
                "give every line the form {\"messages\": [{\"role\": \"user\", \"content\": …}, {\"role\": \"assistant\", \"content\": …}]}"
            }
            Self::CrashedReader { .. } => "split the file, or export it as Markdown or text, and upload that",
        }
    }
}

/// `projects/{project}/quarantine/{sha256}.json`: why a file was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineRecord {
    /// SHA-256 of the uploaded bytes; of the key and its version when the file was too large to read.
    pub id: DocumentId,
    /// The project.
    pub project: ProjectId,
    /// The file below the project folder.
    pub path: String,
    /// Why.
    #[serde(flatten)]
    pub reason: QuarantineReason,
    /// [`QuarantineReason::message`].
    pub message: String,
    /// [`QuarantineReason::remedy`].
    pub remedy: String,
}

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

/// Table item `REFUSALS#{hour}` of a project: how many refused files were to be mailed in an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalCount {
    /// So many.
    pub count: u64,
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
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
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
