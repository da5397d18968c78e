//! What a font's codes mean and how wide they are (ISO 32000-1, 9.5–9.10): enough for text, nothing for drawing.

use std::collections::HashMap;

use lopdf::{Dictionary, Document, Object};

use super::{
    lexer::{Lexer, Token},
    widths::standard_width,
};

/// Largest ToUnicode table that is unpacked. The largest real ones (CJK, 65,536 codes) have about 1 MB.
const MAX_CMAP_BYTES: usize = 8_000_000;

/// Most codes kept of a ToUnicode table: there are 65,536 two-byte codes, and one-byte ones beside them.
const MAX_CMAP_CODES: usize = 70_000;

/// A font, ready to decode strings.
pub struct Font {
    /// Bytes of one code: 1 for simple fonts, 2 for composite ones.
    code_bytes: usize,
    unicode: HashMap<u32, String>,
    /// One-byte codes by the font's encoding, where `unicode` says nothing.
    encoding: Vec<String>,
    /// Width of each code, in thousandths of the font size.
    widths: HashMap<u32, f64>,
    default_width: f64,
    name: String,
    /// Whether the name says bold.
    pub bold: bool,
}

/// One decoded code.
pub struct Glyph {
    /// What it says; empty when unknown.
    pub text: String,
    /// In units of the font size.
    pub width: f64,
    /// Whether this is the one-byte code 32, to which word spacing applies (9.3.3).
    pub is_space: bool,
}

impl Font {
    /// Reads a font dictionary. Missing or damaged parts fall back to the standard encoding and guessed widths.
    pub fn read(document: &Document, font: &Dictionary) -> Self {
        let composite = font.get(b"Subtype").and_then(Object::as_name).is_ok_and(|s| s == b"Type0");
        let to_unicode = font.get_deref(b"ToUnicode", document).and_then(Object::as_stream);
        let cmap = to_unicode
            .and_then(|s| s.decompressed_content_with_limit(MAX_CMAP_BYTES).or_else(|_| s.get_plain_content()));
        let unicode = cmap.map(|c| parse_to_unicode(&c)).unwrap_or_default();
        let name = font.get(b"BaseFont").and_then(Object::as_name).unwrap_or_default();
        let mut read = Self {
            code_bytes: if composite { 2 } else { 1 },
            unicode,
            encoding: Vec::new(),
            widths: HashMap::new(),
            default_width: 500.0,
            name: String::from_utf8_lossy(name).into_owned(),
            bold: is_bold(name),
        };
        if composite {
            read.composite_widths(document, font);
        } else {
            read.encoding = simple_encoding(document, font, name);
            read.simple_widths(document, font);
        }
        read
    }

    /// Decodes one string operand.
    pub fn decode(&self, bytes: &[u8]) -> impl Iterator<Item = Glyph> + '_ {
        let codes: Vec<u32> =
            bytes.chunks(self.code_bytes).map(|c| c.iter().fold(0, |code, b| code << 8 | u32::from(*b))).collect();
        codes.into_iter().map(|code| {
            let text =
                self.unicode.get(&code).or_else(|| self.encoding.get(code as usize)).cloned().unwrap_or_default();
            let width = self.widths.get(&code).copied().unwrap_or_else(|| self.guess_width(&text)) / 1000.0;
            Glyph { is_space: self.code_bytes == 1 && code == 32, text, width }
        })
    }

    /// The 14 standard fonts may come without widths (9.6.2.2); text positions need only be right within a space.
    fn guess_width(&self, text: &str) -> f64 {
        if !self.widths.is_empty() || self.code_bytes == 2 {
            return self.default_width;
        }
        text.chars().map(|c| standard_width(&self.name, c)).sum()
    }

    fn simple_widths(&mut self, document: &Document, font: &Dictionary) {
        let first = font.get_deref(b"FirstChar", document).and_then(Object::as_i64).unwrap_or(0).clamp(0, 255) as u32;
        // Type 3 fonts measure in their own glyph space (9.6.5).
        let scale =
            font.get_deref(b"FontMatrix", document).and_then(Object::as_array).ok().and_then(|m| number(m.first()?));
        let scale = scale.map_or(1.0, |s| s * 1000.0);
        if let Ok(widths) = font.get_deref(b"Widths", document).and_then(Object::as_array) {
            let numbers = widths.iter().take(256).map(|w| document.dereference(w).ok().and_then(|(_, w)| number(w)));
            self.widths.extend((first..).zip(numbers).filter_map(|(code, w)| Some((code, w? * scale))));
        }
        if let Ok(descriptor) = font.get_deref(b"FontDescriptor", document).and_then(Object::as_dict)
            && let Some(missing) = descriptor.get(b"MissingWidth").ok().and_then(number)
        {
            self.default_width = missing;
        }
    }

    /// `W` mixes `c [w1 w2 …]` and `first last w` (9.7.4.3).
    fn composite_widths(&mut self, document: &Document, font: &Dictionary) {
        self.default_width = 1000.0;
        let descendants = font.get_deref(b"DescendantFonts", document).and_then(Object::as_array);
        let descendant =
            descendants.ok().and_then(|d| document.dereference(d.first()?).ok()).and_then(|(_, d)| d.as_dict().ok());
        let Some(descendant) = descendant else { return };
        if let Some(width) = descendant.get(b"DW").ok().and_then(number) {
            self.default_width = width;
        }
        let Ok(entries) = descendant.get_deref(b"W", document).and_then(Object::as_array) else { return };
        let resolved: Vec<&Object> =
            entries.iter().filter_map(|e| document.dereference(e).ok().map(|(_, e)| e)).collect();
        let mut rest = resolved.as_slice();
        while let [first, second, tail @ ..] = rest {
            let Some(first) = number(first).map(|n| n as u32) else { break };
            if let Object::Array(list) = second {
                self.widths.extend((first..).zip(list.iter().take(65_536).filter_map(number)));
                rest = tail;
            } else if let ([width, tail @ ..], Some(last)) = (tail, number(second)) {
                let width = number(width).unwrap_or(self.default_width);
                self.widths.extend((first..=(last as u32).min(first.saturating_add(65_535))).map(|code| (code, width)));
                rest = tail;
            } else {
                break;
            }
            if self.widths.len() > MAX_CMAP_CODES {
                break;
            }
        }
    }
}

fn number(object: &Object) -> Option<f64> {
    match object {
        Object::Integer(n) => Some(*n as f64),
        Object::Real(n) => Some(f64::from(*n)),
        _ => None,
    }
}

fn is_bold(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_lowercase();
    // "cmbx", "sfbx": the bold faces of TeX's own fonts.
    ["bold", "black", "heavy", "semibold", "cmbx", "sfbx", "-demi", "lmb"].iter().any(|mark| name.contains(mark))
}

/// Text of each one-byte code: the base encoding, then `Differences` by glyph name.
fn simple_encoding(document: &Document, font: &Dictionary, name: &[u8]) -> Vec<String> {
    let entry = font.get_deref(b"Encoding", document).ok();
    let dictionary = entry.and_then(|e| e.as_dict().ok());
    let base = entry
        .and_then(|e| e.as_name().ok())
        .or_else(|| dictionary?.get(b"BaseEncoding").and_then(Object::as_name).ok());
    let mut codes = base_encoding(document, base);
    if base.is_none() && is_tex(name) {
        for (code, text) in TEX_LIGATURES {
            codes[code] = text.to_owned();
        }
    }
    let differences =
        dictionary.and_then(|d| d.get_deref(b"Differences", document).ok()).and_then(|d| d.as_array().ok());
    let mut code = 0usize;
    for item in differences.into_iter().flatten().take(1024) {
        match item {
            Object::Integer(n) => code = (*n).clamp(0, 255) as usize,
            Object::Name(glyph) => {
                if let (Some(slot), Some(text)) = (codes.get_mut(code), glyph_text(document, glyph)) {
                    *slot = text;
                }
                code += 1;
            }
            _ => {}
        }
    }
    codes
}

/// Codes of TeX's own text encoding that differ from the standard one: old `dvips` files name no encoding. Source: The
/// TeXbook, appendix F, figure 1.
const TEX_LIGATURES: [(usize, &str); 9] =
    [(11, "ff"), (12, "fi"), (13, "fl"), (14, "ffi"), (15, "ffl"), (34, "”"), (92, "“"), (123, "–"), (124, "—")];

fn is_tex(name: &[u8]) -> bool {
    let plain = name.rsplit(|b| *b == b'+').next().unwrap_or(name);
    [b"CMR".as_slice(), b"CMBX", b"CMTI", b"CMSL", b"CMSS", b"CMCSC"].iter().any(|prefix| plain.starts_with(prefix))
}

fn base_encoding(document: &Document, name: Option<&[u8]>) -> Vec<String> {
    let mut probe = Dictionary::new();
    probe.set("Type", Object::Name(b"Font".to_vec()));
    // lopdf keeps its tables behind font dictionaries, so one is made that says only the encoding.
    probe.set("Encoding", Object::Name(name.unwrap_or(b"StandardEncoding").to_vec()));
    let encoding = probe.get_font_encoding_with_limit(document, MAX_CMAP_BYTES);
    (0..=255u8)
        .map(|code| {
            let mut text = String::new();
            let known = encoding.as_ref().is_ok_and(|e| e.write_to_string(&[code], &mut text).is_ok());
            if known && !text.is_empty() { text } else { char::from(code).to_string() }
        })
        .map(|text| if text.chars().all(|c| c.is_control() && c != '\t') { String::new() } else { text })
        .collect()
}

/// The text of a glyph name: Adobe's list, `uniXXXX`, `uXXXXX`, parts joined by `_`, suffixes behind `.` ignored
/// (Adobe Glyph List Specification, section 2).
fn glyph_text(document: &Document, name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let name = name.split('.').next().unwrap_or(name);
    let mut text = String::new();
    for part in name.split('_') {
        let hex = part.strip_prefix("uni").filter(|h| h.len() >= 4).map(|h| &h[..4.min(h.len())]);
        let hex = hex.or_else(|| part.strip_prefix('u').filter(|h| (4..=6).contains(&h.len())));
        match hex.and_then(|h| u32::from_str_radix(h, 16).ok()).and_then(char::from_u32) {
            Some(c) => text.push(c),
            None => text.push_str(&listed_glyph(document, part)?),
        }
    }
    (!text.is_empty()).then_some(text)
}

fn listed_glyph(document: &Document, name: &str) -> Option<String> {
    let extra = match name {
        "ff" => "ff",
        "ffi" => "ffi",
        "ffl" => "ffl",
        "nbspace" => "\u{a0}",
        "sfthyphen" => "\u{ad}",
        _ => "",
    };
    if !extra.is_empty() {
        return Some(extra.to_owned());
    }
    let mut encoding = Dictionary::new();
    encoding.set("Differences", Object::Array(vec![Object::Integer(1), Object::Name(name.as_bytes().to_vec())]));
    let mut probe = Dictionary::new();
    probe.set("Type", Object::Name(b"Font".to_vec()));
    probe.set("Encoding", Object::Dictionary(encoding));
    // An unknown name makes lopdf fall back to the standard encoding, in which code 1 says nothing.
    let text = probe.get_font_encoding_with_limit(document, MAX_CMAP_BYTES).ok()?.bytes_to_string(&[1]).ok()?;
    (!text.is_empty() && text != "\u{1}").then_some(text)
}

/// Reads `bfchar` and `bfrange` of a ToUnicode table (9.10.3).
fn parse_to_unicode(bytes: &[u8]) -> HashMap<u32, String> {
    let mut map = HashMap::new();
    let mut strings: Vec<Vec<u8>> = Vec::new();
    let mut array: Option<Vec<Vec<u8>>> = None;
    for token in Lexer::new(bytes) {
        if map.len() > MAX_CMAP_CODES {
            break;
        }
        match token {
            Token::String(s) => match array.as_mut() {
                Some(array) => array.push(s),
                None => strings.push(s),
            },
            Token::ArrayOpen => array = Some(Vec::new()),
            Token::ArrayClose => {
                if let (Some(targets), [.., low, _high]) = (array.take(), strings.as_slice()) {
                    let low = code(low);
                    map.extend((low..).zip(targets.iter().take(65_536).map(|t| utf16(t))));
                    strings.truncate(strings.len() - 2);
                }
            }
            Token::Word(b"endbfchar") => {
                map.extend(strings.chunks_exact(2).map(|pair| (code(&pair[0]), utf16(&pair[1]))));
                strings.clear();
            }
            Token::Word(b"endbfrange") => {
                for triple in strings.chunks_exact(3) {
                    let (low, high) = (code(&triple[0]), code(&triple[1]));
                    for (offset, code) in (low..=high.min(low.saturating_add(65_535))).enumerate() {
                        map.insert(code, utf16(&advanced(&triple[2], offset)));
                    }
                }
                strings.clear();
            }
            Token::Word(b"begincodespacerange" | b"beginbfchar" | b"beginbfrange" | b"endcodespacerange") => {
                strings.clear()
            }
            _ => {}
        }
    }
    map
}

fn code(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |code, b| code << 8 | u32::from(*b))
}

/// The target of a range, `offset` codes further: its last two bytes count up.
fn advanced(target: &[u8], offset: usize) -> Vec<u8> {
    let mut target = target.to_vec();
    if let [.., high, low] = target.as_mut_slice() {
        let next = u16::from_be_bytes([*high, *low]).wrapping_add(offset as u16);
        [*high, *low] = next.to_be_bytes();
    }
    target
}

fn utf16(bytes: &[u8]) -> String {
    let units: Vec<u16> = match bytes {
        [single] => vec![u16::from(*single)],
        _ => bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect(),
    };
    char::decode_utf16(units).filter_map(Result::ok).filter(|c| *c != '\0').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_unicode_tables_are_read() {
        let map = parse_to_unicode(
            b"1 begincodespacerange <0000> <FFFF> endcodespacerange 2 beginbfchar <0003> <0020> <0010> <00660069> endbfchar \
              2 beginbfrange <0041> <0043> <0061> <0050> <0051> [<0070> <D83DDE00>] endbfrange",
        );
        let get = |code| map.get(&code).map(String::as_str);
        assert_eq!(
            (get(3), get(0x10), get(0x42), get(0x50), get(0x51)),
            (Some(" "), Some("fi"), Some("b"), Some("p"), Some("😀"))
        );
        assert_eq!(parse_to_unicode(b"1 beginbfrange <0000> <FFFFFFFF> <0041> endbfrange").len(), 65_536);
    }

    #[test]
    fn glyph_names_become_text() {
        let document = Document::new();
        for (name, text) in [
            ("A", Some("A")),
            ("eacute", Some("é")),
            ("uni20AC", Some("€")),
            ("f_i.alt", Some("fi")),
            ("ffi", Some("ffi")),
            ("g123", None),
        ] {
            assert_eq!(glyph_text(&document, name.as_bytes()).as_deref(), text, "{name}");
        }
    }

    #[test]
    fn a_font_without_anything_reads_ascii() {
        let font = Font::read(&Document::new(), &Dictionary::new());
        let text: String = font.decode(b"Hello, world").map(|g| g.text).collect();
        assert_eq!(text, "Hello, world");
    }
}
