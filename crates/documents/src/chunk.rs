//! Pieces of text: chunks for retrieval, passages for training. Both end at the borders of paragraphs, else sentences.

use tunesmith_contract::documents::{Chunk, ExtractedDocument};

/// How retrieval chunks are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlan {
    /// Most words of a chunk. 180 words are about 250 word pieces: all-MiniLM-L6-v2 reads 256.
    pub words: usize,
    /// Words of the chunk before that are repeated, at the most, in whole sentences: an answer may stand at a cut.
    pub overlap: usize,
}

impl Default for ChunkPlan {
    fn default() -> Self {
        Self { words: 180, overlap: 30 }
    }
}

/// A piece that is not cut further, with what parts it from the piece before.
#[derive(Debug, Clone, Copy)]
struct Unit<'a> {
    text: &'a str,
    joint: &'static str,
    words: usize,
}

/// Retrieval chunks of documents, in the order given. A chunk lies inside one section; short neighbouring sections under the
/// same headings share one. Every word of every section is in at least one chunk, and no chunk exceeds `plan.words`.
#[must_use]
pub fn chunk_documents(documents: &[ExtractedDocument], plan: &ChunkPlan) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for document in documents {
        let begin = chunks.len();
        for section in &document.sections {
            let units = units(&section.text, plan.words);
            for text in pack(&units, plan.words, plan.overlap) {
                if let Some(last) = chunks[begin..].last_mut()
                    && last.headings == section.headings
                    && count_words(&last.text) + count_words(&text) <= plan.words
                {
                    last.text.push_str("\n\n");
                    last.text.push_str(&text);
                    continue;
                }
                chunks.push(Chunk {
                    document: document.id.clone(),
                    path: document.path.clone(),
                    headings: section.headings.clone(),
                    page: section.page,
                    text,
                });
            }
        }
    }
    chunks
}

/// Training passages of a document: its whole text in order, each section under its last heading, cut into passages of at
/// most `words` words of text. Headings come on top and are not repeated when a section is cut.
#[must_use]
pub fn passages(document: &ExtractedDocument, words: usize) -> Vec<String> {
    let mut passages: Vec<String> = Vec::new();
    let mut open = String::new();
    let mut last_headings: Option<&[String]> = None;
    for section in &document.sections {
        let heading = section.headings.last().filter(|_| last_headings != Some(&section.headings)).map(String::as_str);
        last_headings = Some(&section.headings);
        let mut heading = heading.unwrap_or_default();
        for text in pack(&units(&section.text, words), words, 0) {
            if !open.is_empty() && count_words(&open) + count_words(heading) + count_words(&text) > words {
                passages.push(std::mem::take(&mut open));
            }
            for part in [std::mem::take(&mut heading), &text] {
                if !part.is_empty() {
                    if !open.is_empty() {
                        open.push_str("\n\n");
                    }
                    open.push_str(part);
                }
            }
        }
    }
    if !open.is_empty() {
        passages.push(open);
    }
    passages
}

/// Number of white-space separated words.
#[must_use]
pub fn count_words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Joins units into texts of at most `words` words. A new text begins with the last units of the one before, up to
/// `overlap` words.
fn pack(units: &[Unit<'_>], words: usize, overlap: usize) -> Vec<String> {
    let mut texts = Vec::new();
    let mut begin = 0;
    while begin < units.len() {
        let mut end = begin;
        let mut count = 0;
        while end < units.len() && (end == begin || count + units[end].words <= words) {
            count += units[end].words;
            end += 1;
        }
        texts.push(join(&units[begin..end]));
        if end == units.len() {
            break;
        }
        // Repeat whole units, but leave room for at least the next one: every text brings something new.
        let room = overlap.min(words.saturating_sub(units[end].words));
        let mut repeated = 0;
        let mut next = end;
        while next > begin + 1 && repeated + units[next - 1].words <= room {
            next -= 1;
            repeated += units[next].words;
        }
        begin = next;
    }
    texts
}

fn join(units: &[Unit<'_>]) -> String {
    let mut text = String::new();
    for (index, unit) in units.iter().enumerate() {
        if index > 0 {
            text.push_str(unit.joint);
        }
        text.push_str(unit.text);
    }
    text
}

/// Paragraphs; longer ones as lines, then sentences, then runs of words: each at most `words` words.
fn units(text: &str, words: usize) -> Vec<Unit<'_>> {
    let mut units = Vec::new();
    for paragraph in text.split("\n\n").filter(|p| !p.trim().is_empty()) {
        let mut joint = "\n\n";
        let count = count_words(paragraph);
        if count <= words {
            units.push(Unit { text: paragraph, joint, words: count });
            continue;
        }
        for line in paragraph.lines().filter(|l| !l.trim().is_empty()) {
            for sentence in sentences(line) {
                for (text, count) in runs(sentence, words) {
                    units.push(Unit { text, joint, words: count });
                    joint = " ";
                }
            }
            joint = "\n";
        }
    }
    units
}

/// Sentences of a line: cut behind `.`, `!`, `?` (and closing quotes or brackets) before white space and no small letter.
#[must_use]
pub(crate) fn sentences(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut begin = 0;
    let mut ended = false;
    for (at, c) in line.char_indices() {
        if ended && c.is_whitespace() {
            let rest = line[at..].trim_start();
            let word = line[begin..at].split_whitespace().next_back().unwrap_or_default();
            if !rest.is_empty() && !rest.starts_with(char::is_lowercase) && !is_abbreviation(word) {
                found.push(&line[begin..at]);
                begin = line.len() - rest.len();
            }
            ended = false;
        } else if matches!(c, '.' | '!' | '?' | '。' | '！' | '？') {
            ended = true;
        } else if !matches!(c, '"' | '\'' | ')' | ']' | '”' | '’' | '»') {
            ended = false;
        }
    }
    if begin < line.len() {
        found.push(&line[begin..]);
    }
    found
}

/// Words whose full stop ends no sentence: titles and initials.
fn is_abbreviation(word: &str) -> bool {
    let stem = word.trim_end_matches('.').trim_start_matches(['(', '[', '"', '“']);
    matches!(
        stem,
        "Mr" | "Mrs"
            | "Ms"
            | "Dr"
            | "Prof"
            | "St"
            | "No"
            | "Nr"
            | "e.g"
            | "i.e"
            | "z.B"
            | "d.h"
            | "cf"
            | "vs"
            | "Fig"
            | "ext"
            | "approx"
            | "ca"
    ) || (stem.chars().count() == 1 && stem.chars().all(char::is_uppercase))
}

/// A sentence in runs of at most `words` words.
fn runs(sentence: &str, words: usize) -> Vec<(&str, usize)> {
    let words = words.max(1);
    let mut runs = Vec::new();
    let (mut begin, mut end, mut count) = (None, 0, 0);
    for word in sentence.split_whitespace() {
        let at = word.as_ptr() as usize - sentence.as_ptr() as usize;
        if count == words
            && let Some(from) = begin.take()
        {
            runs.push((&sentence[from..end], count));
            count = 0;
        }
        // The indent of a line belongs to its first run.
        begin = begin.or(Some(if runs.is_empty() { 0 } else { at }));
        end = at + word.len();
        count += 1;
    }
    if let Some(from) = begin {
        runs.push((&sentence[from..end], count));
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tunesmith_contract::{
        documents::{DocumentKind, Section},
        ids::DocumentId,
    };

    use super::*;

    fn document(sections: &[(&str, &str)]) -> ExtractedDocument {
        let sections = sections.iter().map(|(heading, text)| Section {
            headings: vec![(*heading).into()],
            page: Some(1),
            text: (*text).into(),
        });
        ExtractedDocument {
            id: DocumentId::of(b"x"),
            path: "x.md".into(),
            kind: DocumentKind::Markdown,
            title: "x".into(),
            bytes: 1,
            sections: sections.collect(),
            chats: vec![],
            skipped_lines: vec![],
        }
    }

    #[test]
    fn chunks_overlap_by_whole_sentences() {
        let text = "One two three four. Five six seven eight. Nine ten eleven twelve. Thirteen fourteen.";
        let chunks = chunk_documents(&[document(&[("H", text)])], &ChunkPlan { words: 9, overlap: 4 });
        let texts: Vec<&str> = chunks.iter().map(|c| c.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "One two three four. Five six seven eight.",
                "Five six seven eight. Nine ten eleven twelve.",
                "Nine ten eleven twelve. Thirteen fourteen."
            ]
        );
        assert!(chunks.iter().all(|c| c.headings == ["H"] && c.page == Some(1)));
    }

    #[test]
    fn sentences_end_where_people_end_them() {
        let line = "Ask Dr. Vasell (ext. 540). She knows! \"Really?\" she said. It is 3.5 knots. Mrs A. Pell agreed.";
        assert_eq!(
            sentences(line),
            [
                "Ask Dr. Vasell (ext. 540).",
                "She knows!",
                "\"Really?\" she said.",
                "It is 3.5 knots.",
                "Mrs A. Pell agreed."
            ]
        );
    }

    #[test]
    fn a_passage_begins_with_its_heading() {
        let document =
            document(&[("Leave", "You have 25 days."), ("Leave", "Ask early."), ("Sick", "Call us at once, please.")]);
        assert_eq!(
            passages(&document, 8),
            ["Leave\n\nYou have 25 days.\n\nAsk early.", "Sick\n\nCall us at once, please."]
        );
    }

    proptest! {
        #[test]
        fn no_word_is_lost_and_no_piece_is_too_long(
            paragraphs in prop::collection::vec("([a-zA-Z]{1,6}[.!]?[ \n]){1,60}", 1..8), words in 1usize..40, overlap in 0usize..20
        ) {
            let text = crate::clean::clean_text(&paragraphs.join("\n\n"));
            let document = document(&[("H", &text)]);
            let expected: Vec<&str> = text.split_whitespace().collect();
            let chunks = chunk_documents(std::slice::from_ref(&document), &ChunkPlan { words, overlap: 0 });
            prop_assert_eq!(chunks.iter().flat_map(|c| c.text.split_whitespace()).collect::<Vec<_>>(), expected.clone());
            let chunks = chunk_documents(std::slice::from_ref(&document), &ChunkPlan { words, overlap });
            prop_assert!(chunks.iter().all(|c| count_words(&c.text) <= words));
            let passages = passages(&document, words);
            let got: Vec<&str> = passages.iter().flat_map(|p| p.split_whitespace()).collect();
            prop_assert_eq!(&got[1..], &expected[..]);
            prop_assert!(passages.iter().all(|p| count_words(p) <= words + 1));
        }
    }
}
