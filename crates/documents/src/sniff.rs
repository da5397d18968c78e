//! What a file really is: by content, then compared with what its name says.

use tunesmith_contract::documents::{DocumentKind, QuarantineReason};

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Pdf,
    /// A ZIP archive; `None`: not one of the known kinds.
    Zip(Option<&'static str>),
    /// Microsoft's compound file: Word 97–2003, or an encrypted Office file.
    Ole {
        encrypted: bool,
    },
    Html,
    Text,
    /// Known and not read.
    Other(&'static str),
}

/// Signatures of formats that are not read. Sources: the formats' specifications, as collected in `file(1)`'s magic.
const SIGNATURES: [(&[u8], &str); 25] = [
    (b"\x89PNG\r\n\x1a\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF87a", "GIF image"),
    (b"GIF89a", "GIF image"),
    (b"II*\0", "TIFF image"),
    (b"MM\0*", "TIFF image"),
    (b"BM", "BMP image"),
    (b"\x1f\x8b", "gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"Rar!\x1a\x07", "RAR archive"),
    (b"\xfd7zXZ\0", "xz archive"),
    (b"\x28\xb5\x2f\xfd", "zstd archive"),
    (b"BZh", "bzip2 archive"),
    (b"!<arch>\n", "ar archive"),
    (b"\x7fELF", "ELF program"),
    (b"MZ", "Windows program"),
    (b"{\\rtf", "RTF"),
    (b"%!PS", "PostScript"),
    (b"SQLite format 3\0", "SQLite database"),
    (b"ID3", "MP3 audio"),
    (b"OggS", "Ogg audio or video"),
    (b"fLaC", "FLAC audio"),
    (b"\0\0\x01\0", "icon"),
    (b"wOFF", "web font"),
    (b"wOF2", "web font"),
];

/// Endings of text files that are data or programs, not prose: training on them is rarely meant.
const NOT_PROSE: [&str; 40] = [
    "csv", "tsv", "json", "xml", "xsd", "xsl", "yaml", "yml", "toml", "ini", "cfg", "conf", "css", "scss", "js", "mjs",
    "ts", "py", "rs", "c", "h", "cc", "cpp", "hpp", "java", "go", "rb", "pl", "php", "sh", "bat", "ps1", "sql", "svg",
    "ics", "vcf", "map", "lock", "log", "diff",
];

/// Recognises a file by its content and compares that with its name's ending.
///
/// A name without a known ending is believed to be what the content is. HTML inside a Markdown file is Markdown.
///
/// # Errors
/// `Empty`, `Mislabelled`, `Unsupported`, `Encrypted` (an Office file in an encrypted container), or `NotText`.
pub fn sniff(path: &str, bytes: &[u8]) -> Result<DocumentKind, QuarantineReason> {
    use QuarantineReason as R;
    if bytes.iter().all(|b| b.is_ascii_whitespace() || *b == 0) {
        return Err(R::Empty);
    }
    let ending = ending(path);
    let claimed = claimed(&ending);
    let mislabelled =
        |claimed: DocumentKind, found: &str| R::Mislabelled { claimed: label(claimed).into(), found: found.into() };
    let binary = |kind: DocumentKind| match claimed {
        Some(claim) if claim != kind => Err(mislabelled(claim, label(kind))),
        _ => Ok(kind),
    };
    let refused = |found: &str| match claimed {
        Some(claim) => Err(mislabelled(claim, found)),
        None => Err(R::Unsupported { found: found.into() }),
    };
    match content(bytes) {
        Content::Pdf => binary(DocumentKind::Pdf),
        Content::Zip(Some("DOCX")) => binary(DocumentKind::Docx),
        // A damaged or hostile DOCX: its reader says precisely what is wrong.
        Content::Zip(None) if claimed == Some(DocumentKind::Docx) => Ok(DocumentKind::Docx),
        Content::Zip(found) => refused(found.unwrap_or("ZIP archive")),
        Content::Ole { encrypted: true } => Err(R::Encrypted),
        Content::Ole { encrypted: false } => refused("Word, Excel or PowerPoint 97–2003"),
        Content::Other(found) => refused(found),
        text => match claimed {
            Some(claim @ (DocumentKind::Pdf | DocumentKind::Docx)) => {
                let found = match crate::encoding::decode(bytes) {
                    Err(_) => "unknown binary data",
                    Ok(_) if text == Content::Html => "HTML",
                    Ok(_) => "text",
                };
                Err(mislabelled(claim, found))
            }
            Some(DocumentKind::Text) if text == Content::Html => Err(mislabelled(DocumentKind::Text, "HTML")),
            Some(claim) => Ok(claim),
            None if NOT_PROSE.contains(&ending.as_str()) => Err(R::Unsupported { found: ending.to_uppercase() }),
            None if text == Content::Html => Ok(DocumentKind::Html),
            None => Ok(DocumentKind::Text),
        },
    }
}

/// The kind a name's ending claims.
fn claimed(ending: &str) -> Option<DocumentKind> {
    Some(match ending {
        "txt" | "text" | "rst" | "adoc" | "asc" => DocumentKind::Text,
        "md" | "markdown" | "mdown" | "mkd" => DocumentKind::Markdown,
        "html" | "htm" | "xhtml" => DocumentKind::Html,
        "pdf" => DocumentKind::Pdf,
        "docx" => DocumentKind::Docx,
        "jsonl" | "ndjson" => DocumentKind::Jsonl,
        _ => return None,
    })
}

fn ending(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.').map(|(_, ending)| ending.to_lowercase()).unwrap_or_default()
}

/// What people call this kind.
#[must_use]
pub const fn label(kind: DocumentKind) -> &'static str {
    match kind {
        DocumentKind::Text => "text",
        DocumentKind::Markdown => "Markdown",
        DocumentKind::Html => "HTML",
        DocumentKind::Pdf => "PDF",
        DocumentKind::Docx => "DOCX",
        DocumentKind::Jsonl => "JSON lines",
    }
}

fn content(bytes: &[u8]) -> Content {
    // Readers accept the header anywhere in the first 1,024 bytes (PDF Reference 1.7, appendix H.3, note 13).
    if contains(&bytes[..bytes.len().min(1024)], b"%PDF-") && !bytes.starts_with(b"PK") {
        return Content::Pdf;
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return Content::Zip(archive_kind(bytes));
    }
    if bytes.starts_with(b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1") {
        // Directory names are UTF-16LE ([MS-CFB] 2.6.1); an encrypted Office file has a stream of this name ([MS-OFFCRYPTO] 2.3.2).
        let name: Vec<u8> = "EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes).collect();
        return Content::Ole { encrypted: contains(bytes, &name) };
    }
    if bytes.len() > 12 && bytes.starts_with(b"RIFF") {
        return Content::Other(if &bytes[8..12] == b"WEBP" { "WebP image" } else { "RIFF audio or video" });
    }
    if bytes.len() > 12 && &bytes[4..8] == b"ftyp" {
        return Content::Other("MP4 video or HEIC image");
    }
    for (signature, name) in SIGNATURES {
        // Two-letter signatures are also words: believe them only in files that are no text.
        if bytes.starts_with(signature) && (signature.len() > 3 || crate::encoding::decode(bytes).is_err()) {
            return Content::Other(name);
        }
    }
    if is_html(bytes) { Content::Html } else { Content::Text }
}

/// The kind of a ZIP archive from its entries' names, read where they stand: nothing is unpacked.
fn archive_kind(bytes: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 6] = [
        (b"word/document.xml", "DOCX"),
        (b"xl/workbook.xml", "XLSX spreadsheet"),
        (b"ppt/presentation.xml", "PPTX presentation"),
        (b"mimetypeapplication/vnd.oasis.opendocument", "OpenDocument file"),
        (b"mimetypeapplication/epub+zip", "EPUB book"),
        (b"META-INF/MANIFEST.MF", "Java archive"),
    ];
    KINDS.iter().find(|(name, _)| contains(bytes, name)).map(|(_, kind)| *kind)
}

fn is_html(bytes: &[u8]) -> bool {
    let Ok(head) = crate::encoding::decode(&bytes[..floor_boundary(bytes, 4096)]) else { return false };
    let mut rest = head.trim_start();
    loop {
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.split_once("-->").map_or("", |(_, after)| after).trim_start();
        } else if let Some(declaration) = rest.strip_prefix("<?xml") {
            rest = declaration.split_once("?>").map_or("", |(_, after)| after).trim_start();
        } else {
            break;
        }
    }
    let lower: String = rest.chars().take(20).flat_map(char::to_lowercase).collect();
    ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| lower.starts_with(tag))
}

/// The largest cut at or below `at` that does not split a UTF-8 character.
fn floor_boundary(bytes: &[u8], at: usize) -> usize {
    if bytes.len() <= at {
        return bytes.len();
    }
    (at.saturating_sub(3)..=at).rev().find(|&i| bytes[i] & 0xC0 != 0x80).unwrap_or(at)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some((&first, _)) = needle.split_first() else { return true };
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|&b| b == first) {
        if haystack[from + at..].starts_with(needle) {
            return true;
        }
        from += at + 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mislabelled(claimed: &str, found: &str) -> Result<DocumentKind, QuarantineReason> {
        Err(QuarantineReason::Mislabelled { claimed: claimed.into(), found: found.into() })
    }

    #[test]
    fn a_picture_called_pdf_is_mislabelled() {
        assert_eq!(sniff("scan.pdf", b"\x89PNG\r\n\x1a\n...."), mislabelled("PDF", "PNG image"));
        assert_eq!(sniff("notes.PDF", b"just some notes"), mislabelled("PDF", "text"));
        assert_eq!(sniff("page.docx", b"<!DOCTYPE html><html>"), mislabelled("DOCX", "HTML"));
        assert_eq!(sniff("page.txt", b"<!-- x -->\n<HTML>"), mislabelled("text", "HTML"));
        assert_eq!(sniff("sheet.docx", b"PK\x03\x04 xl/workbook.xml"), mislabelled("DOCX", "XLSX spreadsheet"));
        assert_eq!(sniff("a.md", b"%PDF-1.7"), mislabelled("Markdown", "PDF"));
    }

    #[test]
    fn content_decides_when_the_name_says_nothing() {
        assert_eq!(sniff("docs/README", b"Hello there"), Ok(DocumentKind::Text));
        assert_eq!(sniff("README.Debian", b"Hello there"), Ok(DocumentKind::Text));
        assert_eq!(sniff("index", b"<?xml version=\"1.0\"?>\n<!DOCTYPE html PUBLIC"), Ok(DocumentKind::Html));
        assert_eq!(sniff("manual.bin", b"\n%PDF-1.4"), Ok(DocumentKind::Pdf));
        assert_eq!(sniff("MZ.txt", b"MZ is the beginning of this text"), Ok(DocumentKind::Text));
    }

    #[test]
    fn what_is_not_read_is_named() {
        assert_eq!(
            sniff("a.zip", b"PK\x03\x04...."),
            Err(QuarantineReason::Unsupported { found: "ZIP archive".into() })
        );
        assert_eq!(sniff("a.csv", b"a,b\n1,2"), Err(QuarantineReason::Unsupported { found: "CSV".into() }));
        assert_eq!(
            sniff("a.gz", b"\x1f\x8b\x08\0\0\0"),
            Err(QuarantineReason::Unsupported { found: "gzip archive".into() })
        );
    }

    #[test]
    fn an_encrypted_office_file_is_told_from_an_old_one() {
        let mut ole = b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1".to_vec();
        assert!(matches!(sniff("a.docx", &ole), Err(QuarantineReason::Mislabelled { .. })));
        ole.extend("EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes));
        assert_eq!(sniff("a.docx", &ole), Err(QuarantineReason::Encrypted));
    }

    #[test]
    fn white_space_is_empty() {
        assert_eq!(sniff("a.txt", b" \n\t\r\n"), Err(QuarantineReason::Empty));
        assert_eq!(sniff("a.pdf", b""), Err(QuarantineReason::Empty));
    }
}
