//! PDF text with its layout: `lopdf` loads the objects, everything after that is bounded work of our own.
//!
//! Pages become fragments ([`content`]), fragments become lines in reading order ([`lines`]), lines become paragraphs and
//! headings ([`paragraphs`]). Reading order follows geometry, not the order of drawing.

mod content;
mod font;
mod lexer;
mod lines;
mod paragraphs;
mod widths;

use lopdf::{DecompressError, Document, Error, LoadOptions};
use tunesmith_contract::documents::QuarantineReason as Reason;

use super::Extracted;
use crate::limits::Limits;

/// Reads a PDF. One that opens with the empty password (only printing or copying is restricted) is read like any other.
///
/// Without a text layer: `ImageOnly`. With a password: `Encrypted`. A stream that expands beyond its limit: `ZipBomb`.
pub fn extract(bytes: &[u8], limits: &Limits) -> Result<Extracted, Reason> {
    let expanded = usize::try_from(limits.expanded_bytes).unwrap_or(usize::MAX);
    let document =
        Document::load_mem_with_options(bytes, LoadOptions::with_max_decompressed_size(expanded)).map_err(damaged)?;
    if document.is_encrypted() {
        return Err(Reason::Encrypted);
    }
    let pages: Vec<_> = document.page_iter().take(limits.pdf_pages + 1).collect();
    if pages.is_empty() {
        return Err(Reason::Damaged { detail: "no page can be found".into() });
    }
    if pages.len() > limits.pdf_pages {
        return Err(Reason::Damaged { detail: format!("more than {} pages; split the file", limits.pdf_pages) });
    }
    let mut interpreter = content::Interpreter::new(&document, limits);
    let mut read = Vec::with_capacity(pages.len());
    for page in &pages {
        read.push(lines::segments_of(interpreter.page(*page)?));
    }
    if read.iter().flatten().all(|line| !line.text.chars().any(char::is_alphanumeric)) {
        if truncated(bytes) {
            return Err(Reason::Damaged { detail: "the file ends before its end mark, and no text is left".into() });
        }
        return Err(Reason::ImageOnly { pages: pages.len() as u32 });
    }
    lines::remove_running_titles(&mut read);
    let read: Vec<_> = read.into_iter().map(lines::in_reading_order).collect();
    let (sections, heading) = paragraphs::sections(&read, limits)?;
    Ok(Extracted { title: heading.or_else(|| info_title(&document)), sections, ..Extracted::default() })
}

/// Without `%%EOF` near its end a file is cut off (ISO 32000-1, 7.5.5); readers look in the last 1,024 bytes.
fn truncated(bytes: &[u8]) -> bool {
    let tail = &bytes[bytes.len().saturating_sub(1024)..];
    !tail.windows(5).any(|w| w == b"%%EOF")
}

fn damaged(error: Error) -> Reason {
    match error {
        Error::InvalidPassword | Error::Decryption(_) | Error::UnsupportedSecurityHandler(_) => Reason::Encrypted,
        Error::Decompress(DecompressError::MemoryLimitExceeded { limit }) => {
            Reason::ZipBomb { unpacked: limit as u64, limit: limit as u64 }
        }
        other => Reason::Damaged { detail: other.to_string().chars().take(200).collect() },
    }
}

/// The title in the document information, unless it is a file name that the generator left there.
fn info_title(document: &Document) -> Option<String> {
    let info = document.trailer.get_deref(b"Info", document).and_then(lopdf::Object::as_dict).ok()?;
    let title = lopdf::decode_text_string(info.get_deref(b"Title", document).ok()?).ok()?;
    let title = crate::outline::one_line(&title);
    let is_name = [".doc", ".docx", ".tex", ".dvi", ".indd", ".pdf"].iter().any(|e| title.to_lowercase().ends_with(e));
    (!title.is_empty() && title != "untitled" && !is_name).then_some(title)
}
