//! Text as it should be learned: normalised, without control characters and without lines that repeat through a document.

use std::collections::HashMap;

use tunesmith_contract::documents::{ExtractedDocument, Section};
use unicode_normalization::UnicodeNormalization;

/// A short line that stands in at least this many sections of one document is boilerplate ("Back to top", "Confidential").
const MIN_REPEATS: usize = 5;

/// Longer lines are never boilerplate: repeating a sentence is an author's right.
const MAX_BOILERPLATE_CHARS: usize = 80;

/// Cleans a document: every section with [`clean_text`], repeated short lines removed, empty sections dropped. Idempotent.
#[must_use]
pub fn clean_document(mut document: ExtractedDocument) -> ExtractedDocument {
    for section in &mut document.sections {
        section.text = clean_text(&section.text);
        for heading in &mut section.headings {
            *heading = clean_line(heading);
        }
        section.headings.retain(|heading| !heading.is_empty());
    }
    document.title = clean_line(&document.title);
    remove_boilerplate(&mut document.sections);
    document.sections.retain(|section| !section.text.is_empty());
    for message in document.chats.iter_mut().flatten() {
        message.content = clean_text(&message.content);
    }
    document
}

/// Unicode NFC, ligatures spelled out, soft hyphens, zero-width and control characters removed, one kind of line end,
/// runs of spaces folded behind the indent, at most one empty line, no white space at the ends. No word is lost.
#[must_use]
pub fn clean_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut pending_empty = false;
    for line in text.split(['\n', '\r', '\u{b}', '\u{c}', '\u{85}', '\u{2028}', '\u{2029}']) {
        let indent = line.chars().take_while(|c| matches!(c, ' ' | '\t')).count().min(MAX_INDENT);
        let line = clean_line(line);
        if line.is_empty() {
            pending_empty = !out.is_empty();
            continue;
        }
        if !out.is_empty() {
            out.push_str(if pending_empty { "\n\n" } else { "\n" });
            // The first line of a text has no indent: what it would be relative to is gone.
            out.extend(std::iter::repeat_n(' ', indent));
        }
        pending_empty = false;
        out.push_str(&line);
    }
    out
}

/// Deepest indent kept: enough for nested lists and short code.
const MAX_INDENT: usize = 16;

/// One line: see [`clean_text`].
fn clean_line(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.nfc() {
        match ligature(c) {
            Some(letters) => out.push_str(letters),
            None if invisible(c) => {}
            None if c.is_whitespace() => {
                if !out.is_empty() && !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            None => out.push(c),
        }
    }
    let end = out.trim_end().len();
    out.truncate(end);
    // Removing a zero-width character may bring a letter and its accent together.
    if unicode_normalization::is_nfc(&out) { out } else { out.nfc().collect() }
}

/// The Latin ligatures of the presentation forms (U+FB00–FB06): typography, not spelling.
pub(crate) const fn ligature(c: char) -> Option<&'static str> {
    Some(match c {
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' | 'ﬆ' => "st",
        _ => return None,
    })
}

/// Characters that show nothing. The joiners U+200C and U+200D stay: Persian and emoji need them.
fn invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}' | '\u{2060}' | '\u{feff}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || (c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
        || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}')
}

fn remove_boilerplate(sections: &mut [Section]) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for section in sections.iter() {
        let mut lines: Vec<&str> = section.text.lines().map(str::trim).filter(|l| is_short(l)).collect();
        lines.sort_unstable();
        lines.dedup();
        for line in lines {
            *seen.entry(line).or_default() += 1;
        }
    }
    let enough = MIN_REPEATS.max(sections.len() / 4);
    let repeated: std::collections::HashSet<String> =
        seen.into_iter().filter(|(_, count)| *count >= enough).map(|(line, _)| line.to_owned()).collect();
    if repeated.is_empty() {
        return;
    }
    for section in sections {
        let kept: Vec<&str> =
            section.text.lines().filter(|line| line.is_empty() || !repeated.contains(line.trim())).collect();
        section.text = clean_text(&kept.join("\n"));
    }
}

fn is_short(line: &str) -> bool {
    !line.is_empty() && line.chars().count() <= MAX_BOILERPLATE_CHARS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_is_normalised() {
        let dirty =
            "\u{feff}Die  Fa\u{308}hre\u{a0}ist e\u{fb03}zient\u{ad}.\r\n\r\n\r\n\r\n  - Punkt\u{0}\t eins \r\n";
        assert_eq!(clean_text(dirty), "Die Fähre ist effizient.\n\n  - Punkt eins");
    }

    #[test]
    fn lines_that_repeat_through_a_document_go() {
        let section =
            |n: usize| Section { headings: vec![], page: None, text: format!("Back to top\n\nSection {n} says this.") };
        let mut sections: Vec<Section> = (0..8).map(section).collect();
        remove_boilerplate(&mut sections);
        assert!(sections.iter().zip(0..).all(|(s, n)| s.text == format!("Section {n} says this.")), "{sections:?}");
    }

    proptest! {
        #[test]
        fn no_visible_ascii_is_lost_and_cleaning_twice_changes_nothing(text in "(?s).{0,400}") {
            let cleaned = clean_text(&text);
            let visible = |t: &str| t.chars().filter(char::is_ascii_alphanumeric).count();
            // A ligature adds letters; an accent behind a letter may take it out of ASCII.
            let composed: String = text.nfc().collect();
            prop_assert!(visible(&cleaned) + composed.chars().filter(|c| invisible(*c)).count() >= visible(&composed));
            prop_assert_eq!(clean_text(&cleaned), cleaned.clone());
            prop_assert!(!cleaned.contains("\n\n\n") && !cleaned.chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}
