//! One test per way in which an upload is refused, and hostile bytes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; clippy exempts only the tests themselves"
)]

use std::io::{Cursor, Write};

use lopdf::{Document, Object, Stream, dictionary};
use proptest::prelude::*;
use tunesmith_contract::documents::{DocumentKind, QuarantineReason};
use tunesmith_documents::{Limits, read_document};
use zip::{ZipWriter, write::SimpleFileOptions};

fn refused(path: &str, bytes: &[u8]) -> QuarantineReason {
    read_document(path, bytes, &Limits::default()).expect_err(path)
}

/// A PDF with one page for each content stream, in Helvetica.
fn pdf(pages: &[&str]) -> Vec<u8> {
    let mut document = Document::with_version("1.5");
    let tree = document.new_object_id();
    let font = document.add_object(dictionary! { "Type" => "Font", "Subtype" => "Type1", "BaseFont" => "Helvetica" });
    let resources = document.add_object(dictionary! { "Font" => dictionary! { "F1" => font } });
    let kids: Vec<Object> = pages
        .iter()
        .map(|content| {
            let content = document.add_object(Stream::new(dictionary! {}, content.as_bytes().to_vec()));
            document
                .add_object(
                    dictionary! { "Type" => "Page", "Parent" => tree, "Contents" => content, "Resources" => resources },
                )
                .into()
        })
        .collect();
    let count = kids.len() as i64;
    document.objects.insert(tree, Object::Dictionary(dictionary! { "Type" => "Pages", "Kids" => kids, "Count" => count, "MediaBox" => vec![0.into(), 0.into(), 595.into(), 842.into()] }));
    let catalog = document.add_object(dictionary! { "Type" => "Catalog", "Pages" => tree });
    document.trailer.set("Root", catalog);
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).unwrap();
    bytes
}

fn docx(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in parts {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

const BODY: &str = "<w:document xmlns:w=\"w\"><w:body>\
    <w:p><w:pPr><w:pStyle w:val=\"Kop1\"/></w:pPr><w:r><w:t>Crew &amp; guests</w:t></w:r></w:p>\
    <w:p><w:r><w:t xml:space=\"preserve\">Be </w:t></w:r><w:del><w:r><w:t>not </w:t></w:r></w:del><w:r><w:t>on time&#33;</w:t></w:r></w:p>\
    <w:p><w:pPr><w:numPr><w:ilvl w:val=\"0\"/><w:numId w:val=\"1\"/></w:numPr></w:pPr><w:r><w:t>one</w:t></w:r></w:p>\
    <w:p><w:pPr><w:numPr><w:ilvl w:val=\"1\"/><w:numId w:val=\"1\"/></w:numPr></w:pPr><w:r><w:t>two</w:t></w:r></w:p>\
    <w:tbl><w:tr><w:tc><w:p><w:r><w:t>Day</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>Time</w:t></w:r></w:p></w:tc></w:tr></w:tbl>\
    </w:body></w:document>";

const STYLES: &str =
    "<w:styles xmlns:w=\"w\"><w:style w:styleId=\"Kop1\"><w:name w:val=\"heading 1\"/></w:style></w:styles>";

#[test]
fn a_docx_is_read_with_its_headings_lists_and_tables() {
    let bytes = docx(&[("word/document.xml", BODY.as_bytes()), ("word/styles.xml", STYLES.as_bytes())]);
    let document = read_document("a.docx", &bytes, &Limits::default()).unwrap();
    assert_eq!(document.title, "Crew & guests");
    assert_eq!(document.sections[0].headings, ["Crew & guests"]);
    assert_eq!(document.sections[0].text, "Be on time!\n\n- one\n  - two\n\nDay | Time");
}

#[test]
fn a_pdf_is_read_with_its_pages() {
    let bytes = pdf(&[
        "BT /F1 24 Tf 50 700 Td (Crew rules) Tj /F1 12 Tf 0 -40 Td (Be on) Tj 34.70 0 Td (time.) Tj ET",
        "BT /F1 12 Tf 50 700 Td (Second page.) Tj ET",
    ]);
    let document = read_document("a.pdf", &bytes, &Limits::default()).unwrap();
    assert_eq!((document.kind, document.title.as_str()), (DocumentKind::Pdf, "Crew rules"));
    let got: Vec<_> = document.sections.iter().map(|s| (s.page, s.text.as_str())).collect();
    assert_eq!(got, [(Some(1), "Be on time."), (Some(2), "Second page.")]);
}

#[test]
fn empty() {
    assert_eq!(refused("a.txt", b""), QuarantineReason::Empty);
    assert_eq!(refused("a.md", b"\n \t\n"), QuarantineReason::Empty);
    assert_eq!(refused("a.html", b"<html><body><script>x()</script></body></html>"), QuarantineReason::Empty);
}

#[test]
fn too_large() {
    let limits = Limits { object_bytes: 10, ..Limits::default() };
    assert_eq!(read_document("a.txt", &[b'a'; 11], &limits), Err(QuarantineReason::TooLarge { bytes: 11, limit: 10 }));
    let limits = Limits { text_bytes: 10, ..Limits::default() };
    assert!(matches!(
        read_document("a.md", b"# Title\n\nSome more text", &limits),
        Err(QuarantineReason::TooLarge { .. })
    ));
}

#[test]
fn mislabelled() {
    assert_eq!(
        refused("a.pdf", b"\x89PNG\r\n\x1a\n0000"),
        QuarantineReason::Mislabelled { claimed: "PDF".into(), found: "PNG image".into() }
    );
    let zip = docx(&[("readme.txt", b"hello")]);
    assert_eq!(
        refused("a.docx", &zip),
        QuarantineReason::Mislabelled { claimed: "DOCX".into(), found: "ZIP archive".into() }
    );
    assert_eq!(refused("a.zip", &zip), QuarantineReason::Unsupported { found: "ZIP archive".into() });
}

#[test]
fn truncated() {
    let whole = pdf(&["BT /F1 12 Tf 50 700 Td (Words) Tj ET"]);
    assert!(matches!(refused("a.pdf", &whole[..60]), QuarantineReason::Damaged { .. }));
    let whole = docx(&[("word/document.xml", BODY.as_bytes())]);
    assert!(matches!(refused("a.docx", &whole[..whole.len() / 2]), QuarantineReason::Damaged { .. }));
}

#[test]
fn encrypted() {
    let mut ole = b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1".to_vec();
    ole.extend("EncryptedPackage".encode_utf16().flat_map(u16::to_le_bytes));
    assert_eq!(refused("a.docx", &ole), QuarantineReason::Encrypted);

    let mut document = Document::load_mem(&pdf(&["BT /F1 12 Tf 50 700 Td (Secret) Tj ET"])).unwrap();
    document
        .trailer
        .set("ID", vec![Object::string_literal("0123456789abcdef"), Object::string_literal("0123456789abcdef")]);
    let version = lopdf::EncryptionVersion::V2 {
        document: &document,
        owner_password: "o",
        user_password: "u",
        key_length: 128,
        permissions: lopdf::Permissions::all(),
    };
    let state = lopdf::EncryptionState::try_from(version).unwrap();
    document.encrypt(&state).unwrap();
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).unwrap();
    assert_eq!(refused("a.pdf", &bytes), QuarantineReason::Encrypted);
}

#[test]
fn zip_bomb() {
    let zeros = vec![b' '; 5_000_000];
    let bytes = docx(&[("word/document.xml", &zeros)]);
    assert!(bytes.len() < 20_000);
    let QuarantineReason::ZipBomb { unpacked, .. } = refused("a.docx", &bytes) else { panic!("no bomb") };
    assert!(unpacked < 5_000_000, "stopped early: {unpacked}");
    let limits = Limits { expanded_bytes: 2_000_000, ..Limits::default() };
    let other = docx(&[("payload.bin", &zeros)]);
    assert!(matches!(read_document("a.docx", &other, &limits), Err(QuarantineReason::ZipBomb { .. })));
}

#[test]
fn a_pdf_whose_page_expands_without_end() {
    let mut document = Document::load_mem(&pdf(&["x"])).unwrap();
    for object in document.objects.values_mut() {
        if let Object::Stream(stream) = object {
            stream.set_plain_content(vec![b' '; 4_000_000]);
            stream.compress().unwrap();
        }
    }
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).unwrap();
    let limits = Limits { pdf_page_bytes: 1_000_000, ..Limits::default() };
    assert!(matches!(read_document("a.pdf", &bytes, &limits), Err(QuarantineReason::ZipBomb { .. })));
}

#[test]
fn a_form_that_draws_itself_ends() {
    let mut document = Document::load_mem(&pdf(&["/X Do /X Do BT /F1 12 Tf 50 700 Td (Words) Tj ET"])).unwrap();
    let form = document.new_object_id();
    let resources = dictionary! { "XObject" => dictionary! { "X" => form } };
    let stream = Stream::new(
        dictionary! { "Subtype" => "Form", "Resources" => resources.clone() },
        b"/X Do /X Do /X Do /X Do".to_vec(),
    );
    document.objects.insert(form, Object::Stream(stream));
    for object in document.objects.values_mut() {
        if let Ok(dictionary) = object.as_dict_mut()
            && dictionary.has(b"Font")
        {
            dictionary.set("XObject", dictionary! { "X" => form });
        }
    }
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).unwrap();
    assert_eq!(read_document("a.pdf", &bytes, &Limits::default()).unwrap().sections[0].text, "Words");
}

#[test]
fn not_text() {
    assert_eq!(refused("a.txt", b"caf\xE9 noir"), QuarantineReason::NotText { offset: 3 });
}

#[test]
fn image_only() {
    assert_eq!(refused("a.pdf", &pdf(&["0 0 100 100 re f", "q Q"])), QuarantineReason::ImageOnly { pages: 2 });
}

#[test]
fn unsupported() {
    assert_eq!(refused("a.mp3", b"ID3\x04\0\0\0"), QuarantineReason::Unsupported { found: "MP3 audio".into() });
}

#[test]
fn no_usable_line() {
    assert!(matches!(refused("a.jsonl", b"{\"text\": \"x\"}\n"), QuarantineReason::NoUsableLine { lines: 1, .. }));
}

#[test]
fn every_refusal_says_what_to_do() {
    for (path, bytes) in [("a.txt", &b""[..]), ("a.pdf", b"x"), ("a.zip", b"PK\x03\x04"), ("a.txt", b"\xE9")] {
        let reason = refused(path, bytes);
        assert!(reason.message().len() > 10 && reason.remedy().len() > 10, "{reason:?}");
    }
}

const NAMES: [&str; 7] = ["a.txt", "a.md", "a.html", "a.pdf", "a.docx", "a.jsonl", "a"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), name in 0usize..7) {
        let _ = read_document(NAMES[name], &bytes, &Limits::default());
    }

    #[test]
    fn random_content_streams_never_panic(content in "[ -~\n]{0,400}") {
        let words = ["BT /F1 9 Tf 1 0 0 1 9 9 Tm ", &content, " [(a) -300 (b)] TJ ET"].concat();
        let result = read_document("a.pdf", &pdf(&[&words]), &Limits::default());
        if let Err(QuarantineReason::Damaged { detail }) = &result {
            prop_assert!(!detail.contains("gave up"), "{}", detail);
        }
    }

    #[test]
    fn damaged_files_never_panic(at in 0usize..2000, byte in any::<u8>(), cut in 0usize..2000, which in 0usize..2) {
        let (name, mut bytes) = if which == 0 {
            ("a.pdf", pdf(&["BT /F1 12 Tf 50 700 Td (Words that are here) Tj ET"]))
        } else {
            ("a.docx", docx(&[("word/document.xml", BODY.as_bytes()), ("word/styles.xml", STYLES.as_bytes())]))
        };
        let len = bytes.len();
        bytes[at % len] = byte;
        bytes.truncate(len - cut % (len / 4));
        let result = read_document(name, &bytes, &Limits::default());
        if let Err(QuarantineReason::Damaged { detail }) = &result {
            prop_assert!(!detail.contains("gave up"), "{}", detail);
        }
    }

    #[test]
    fn marked_up_text_never_panics(text in "[#*|`<>/a-zA-Z0-9&;=\" \n\\-]{0,500}", name in 1usize..3) {
        let _ = read_document(NAMES[name], text.as_bytes(), &Limits::default());
    }
}
