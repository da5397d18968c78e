//! Bytes to text: UTF-8, UTF-16 with a byte order mark, and legacy encodings when the bytes are clearly text in one.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use tunesmith_contract::documents::QuarantineReason;

/// Fewest letters outside ASCII before a legacy encoding is believed: a few stray bytes can be anything, and a wrong guess
/// would train the model on mojibake. Eight is a short paragraph of French or German.
const MIN_LEGACY_LETTERS: usize = 8;

/// Decodes text. The byte order mark is dropped.
///
/// A legacy encoding (Windows-1252, Windows-1251, Shift_JIS, …) is accepted only if the whole file decodes without error,
/// holds no control characters, and has at least eight letters outside ASCII, most of its characters outside ASCII being letters or quotation
/// marks; a file that is mostly UTF-8 with damaged bytes is refused rather than guessed.
///
/// # Errors
/// [`QuarantineReason::NotText`] with the offset of the first byte that is not UTF-8 (or the first NUL).
pub fn decode(bytes: &[u8]) -> Result<String, QuarantineReason> {
    if let Some((encoding, mark)) = Encoding::for_bom(bytes)
        && (encoding == UTF_16LE || encoding == UTF_16BE)
    {
        return encoding
            .decode_without_bom_handling_and_without_replacement(&bytes[mark..])
            .filter(|text| !binary(text.as_bytes()))
            .map(std::borrow::Cow::into_owned)
            .ok_or(QuarantineReason::NotText { offset: mark as u64 });
    }
    let body = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let skipped = (bytes.len() - body.len()) as u64;
    match std::str::from_utf8(body) {
        Ok(text) if !binary(body) => Ok(text.to_owned()),
        Ok(_) => Err(QuarantineReason::NotText { offset: skipped + first_control(body) as u64 }),
        Err(error) => {
            let offset = skipped + error.valid_up_to() as u64;
            legacy(body).ok_or(QuarantineReason::NotText { offset })
        }
    }
}

/// Whether control bytes say that this is no text: any NUL, or more than one other control byte in a thousand.
fn binary(bytes: &[u8]) -> bool {
    let controls = bytes.iter().filter(|&&b| is_control(b)).count();
    bytes.contains(&0) || controls * 1000 > bytes.len()
}

/// C0 controls that text does not use. Escape and backspace stay out of the count: manual pages and logs carry them.
const fn is_control(byte: u8) -> bool {
    matches!(byte, 0..=7 | 0x0E..=0x1A | 0x1C..=0x1F | 0x7F)
}

fn first_control(bytes: &[u8]) -> usize {
    bytes.iter().position(|&b| b == 0).or_else(|| bytes.iter().position(|&b| is_control(b))).unwrap_or(0)
}

fn legacy(bytes: &[u8]) -> Option<String> {
    if binary(bytes) || mostly_utf8(bytes) {
        return None;
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(bytes, true);
    let encoding = detector.guess(None, Utf8Detection::Deny);
    if encoding == UTF_8 {
        return None;
    }
    let text = encoding.decode_without_bom_handling_and_without_replacement(bytes)?;
    let outside: Vec<char> = text.chars().filter(|c| !c.is_ascii()).collect();
    let letters = outside.iter().filter(|c| c.is_alphabetic()).count();
    let plausible = outside.iter().filter(|c| c.is_alphabetic() || "‘’“”„«»–—…•§°€£©®·¿¡\u{a0}".contains(**c)).count();
    let controls = outside.iter().any(|c| c.is_control());
    (letters >= MIN_LEGACY_LETTERS && !controls && plausible * 10 >= outside.len() * 9).then(|| text.into_owned())
}

/// Whether valid multi-byte sequences outnumber the invalid ones: a damaged UTF-8 file, not a legacy one.
fn mostly_utf8(bytes: &[u8]) -> bool {
    let (mut valid, mut invalid) = (0usize, 0usize);
    for chunk in bytes.utf8_chunks() {
        valid += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
        invalid += usize::from(!chunk.invalid().is_empty());
    }
    valid >= invalid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_marks_are_dropped() {
        assert_eq!(decode(b"\xEF\xBB\xBFgr\xC3\xBC\xC3\x9Fe").unwrap(), "grüße");
        let utf16: Vec<u8> = "\u{feff}grüße 😀".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(decode(&utf16).unwrap(), "grüße 😀");
        let utf16: Vec<u8> = "\u{feff}grüße".encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(decode(&utf16).unwrap(), "grüße");
    }

    #[test]
    fn clearly_legacy_western_text_is_read() {
        let text = "Die Fähre fährt täglich um fünf über den Sund. Für Gäste mit Fahrrädern gibt es größere Plätze auf dem Oberdeck, \
                    und während der Überfahrt können Getränke bestellt werden.";
        let (bytes, _, lossy) = encoding_rs::WINDOWS_1252.encode(text);
        assert!(!lossy);
        assert_eq!(decode(&bytes).unwrap(), text);
    }

    #[test]
    fn a_few_stray_bytes_are_not_guessed() {
        assert_eq!(decode(b"caf\xE9 au lait"), Err(QuarantineReason::NotText { offset: 3 }));
        assert_eq!(
            decode("ä ö ü".bytes().chain([0xFF, b'x']).collect::<Vec<_>>().as_slice()),
            Err(QuarantineReason::NotText { offset: 8 })
        );
    }

    #[test]
    fn binary_data_is_refused_with_its_offset() {
        assert_eq!(decode(b"abc\0def"), Err(QuarantineReason::NotText { offset: 3 }));
        let noise: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert!(matches!(decode(&noise), Err(QuarantineReason::NotText { .. })));
        assert!(matches!(decode(b"\xFF\xFE\x00\xD8"), Err(QuarantineReason::NotText { .. })), "a lone surrogate");
    }
}
