//! Files that cannot be used: why, in words for their owners.

use serde::{Deserialize, Serialize};

use crate::ids::{DocumentId, ProjectId};

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
    /// The reader died on it, each time: of a defect of its own, or because memory or time ran out.
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
                format!(
                    "the file crashed the reader {tries} time(s): a defect of the reader, or too little memory or time"
                )
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
