//! One upload to text with provenance, or the reason why not.

mod chat;
mod docx;
mod html;
mod markdown;
mod pdf;
mod text;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tunesmith_contract::{
    documents::{DocumentKind, ExtractedDocument, Message, QuarantineReason, QuarantineRecord, Section, SkippedLine},
    ids::{DocumentId, ProjectId},
};

use crate::{encoding::decode, limits::Limits, sniff::sniff};

/// What an extractor returns.
#[derive(Default)]
struct Extracted {
    title: Option<String>,
    sections: Vec<Section>,
    chats: Vec<Vec<Message>>,
    skipped_lines: Vec<SkippedLine>,
}

/// Reads one upload. `path` is the file below the project folder, as its owner named it.
///
/// Sizes, page counts, expansion and the work inside our own code are bounded by `limits`. Third-party parsers run behind
/// `catch_unwind`: a panic becomes `Damaged`. Not bounded here: the time `lopdf` takes to load a PDF's objects and the
/// time `html5ever` takes to build a tree, other than through the size of the input; the caller's own timeout is the last line.
///
/// # Errors
/// [`QuarantineReason`], with the figures of this file.
pub fn read_document(path: &str, bytes: &[u8], limits: &Limits) -> Result<ExtractedDocument, QuarantineReason> {
    limits.check_size(bytes.len() as u64)?;
    let kind = sniff(path, bytes)?;
    // The closure only reads; what it leaves behind on a panic is dropped, so nothing broken can be seen.
    let extracted = catch_unwind(AssertUnwindSafe(|| extract(kind, bytes, limits)))
        .unwrap_or_else(|panic| Err(QuarantineReason::Damaged { detail: panic_text(panic.as_ref()) }))?;
    if extracted.chats.is_empty() && extracted.sections.iter().all(|s| s.text.trim().is_empty()) {
        return Err(QuarantineReason::Empty);
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    let title = extracted.title.filter(|t| !t.trim().is_empty()).unwrap_or_else(|| name.to_owned());
    Ok(ExtractedDocument {
        id: DocumentId::of(bytes),
        path: path.to_owned(),
        kind,
        title: title.chars().take(MAX_TITLE_CHARS).collect(),
        bytes: bytes.len() as u64,
        sections: extracted.sections,
        chats: extracted.chats,
        skipped_lines: extracted.skipped_lines,
    })
}

/// A title is shown in lists and mails; some generators put whole paragraphs there.
const MAX_TITLE_CHARS: usize = 200;

/// The record that lies in the workspace bucket for a refused file.
#[must_use]
pub fn quarantine_record(id: DocumentId, project: ProjectId, path: &str, reason: QuarantineReason) -> QuarantineRecord {
    let (message, remedy) = (reason.message(), reason.remedy().to_owned());
    QuarantineRecord { id, project, path: path.to_owned(), reason, message, remedy }
}

fn extract(kind: DocumentKind, bytes: &[u8], limits: &Limits) -> Result<Extracted, QuarantineReason> {
    let text = || {
        limits.check_text(bytes.len() as u64)?;
        decode(bytes)
    };
    match kind {
        DocumentKind::Text => text::extract(&text()?, limits),
        DocumentKind::Markdown => markdown::extract(&text()?, limits),
        DocumentKind::Html => {
            limits.check_text(bytes.len() as u64)?;
            html::extract(bytes, limits)
        }
        DocumentKind::Pdf => pdf::extract(bytes, limits),
        DocumentKind::Docx => docx::extract(bytes, limits),
        DocumentKind::Jsonl => chat::extract(&text()?),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let said: String = said.unwrap_or("no detail").chars().take(120).collect();
    format!("its reader gave up: {said}")
}
