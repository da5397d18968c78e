//! Chat examples from a document's own structure: somebody asks about a heading, the answer is what stands below it.

use tunesmith_contract::documents::{ExtractedDocument, Message, Role, Section};

use crate::{
    chunk::{count_words, sentences},
    dedupe::mix,
};

/// Fewest words of an answer: below, a section is a stub or a caption.
const MIN_ANSWER_WORDS: usize = 8;

/// Different questions about one section.
const PHRASINGS: usize = 2;

/// Headings that name a part of the page and not a subject.
const NO_SUBJECT: [&str; 14] = [
    "contents",
    "table of contents",
    "index",
    "references",
    "bibliography",
    "see also",
    "abstract",
    "introduction",
    "notes",
    "appendix",
    "footnotes",
    "copyright",
    "license",
    "changelog",
];

/// Questions about a subject. `{}` is the heading, `[]` the document's title.
const ABOUT: [&str; 6] = [
    "What do the documents say about {}?",
    "What should I know about {}?",
    "Tell me about {}.",
    "Please explain: {}.",
    "What does \"[]\" say about {}?",
    "I have a question about {}. What are the rules?",
];

/// Questions where the heading is one already.
const ASKED: [&str; 3] = ["{}", "I have a question about \"[]\": {}", "Can you help me? {}"];

/// Questions and answers about every section with a heading, in document order, answers of at most `words` words in whole
/// sentences. Which phrasings are chosen depends only on the document, the section and `seed`.
#[must_use]
pub fn questions(document: &ExtractedDocument, words: usize, seed: u64) -> Vec<Vec<Message>> {
    let id = document.id.as_str().bytes().take(16).fold(seed, |hash, b| mix(hash ^ u64::from(b)));
    let mut chats = Vec::new();
    for (index, section) in document.sections.iter().enumerate() {
        let Some(heading) = subject(section) else { continue };
        let answer = shortened(&section.text, words);
        if count_words(&answer) < MIN_ANSWER_WORDS {
            continue;
        }
        let phrasings: &[&str] = if heading.ends_with('?') { &ASKED } else { &ABOUT };
        let first = mix(id ^ index as u64) as usize;
        for offset in 0..PHRASINGS {
            let phrasing = phrasings[first.wrapping_add(offset) % phrasings.len()];
            let question = phrasing.replace("[]", &document.title).replace("{}", heading);
            chats.push(vec![
                Message { role: Role::User, content: question },
                Message { role: Role::Assistant, content: answer.clone() },
            ]);
        }
    }
    chats
}

/// The heading, without numbering, when it names something one can ask about.
fn subject(section: &Section) -> Option<&str> {
    let heading = section.headings.last()?.trim();
    let plain = heading.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | ')' | ' '));
    let letters = plain.chars().filter(|c| c.is_alphabetic()).count();
    let known = NO_SUBJECT.contains(&plain.to_lowercase().as_str());
    (letters >= 3 && !known && count_words(plain) <= 20).then_some(plain)
}

/// The beginning of a text, in whole paragraphs, then whole sentences, up to `words` words.
fn shortened(text: &str, words: usize) -> String {
    let mut out = String::new();
    let mut count = 0;
    for paragraph in text.split("\n\n") {
        for (index, line) in paragraph.lines().enumerate() {
            for (part, sentence) in sentences(line).into_iter().enumerate() {
                let more = count_words(sentence);
                if count + more > words {
                    return out;
                }
                if !out.is_empty() {
                    out.push_str(match (index, part) {
                        (0, 0) => "\n\n",
                        (_, 0) => "\n",
                        _ => " ",
                    });
                }
                out.push_str(sentence);
                count += more;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{documents::DocumentKind, ids::DocumentId};

    use super::*;

    fn document(sections: &[(&str, &str)]) -> ExtractedDocument {
        let section = |(heading, text): &(&str, &str)| Section {
            headings: vec!["Guide".into(), (*heading).into()],
            page: None,
            text: (*text).into(),
        };
        ExtractedDocument {
            id: DocumentId::of(b"q"),
            path: "q.md".into(),
            kind: DocumentKind::Markdown,
            title: "Guide".into(),
            bytes: 1,
            sections: sections.iter().map(section).collect(),
            chats: vec![],
            skipped_lines: vec![],
        }
    }

    #[test]
    fn headings_become_questions_and_sections_answers() {
        let document = document(&[
            ("3.1 Leave", "You have twenty-five days each year.\n\nAsk your manager early. Then wait."),
            ("How do I book?", "Call the freight desk at least one day before departure."),
            ("Contents", "One two three four five six seven eight nine ten."),
            ("Stub", "Too short."),
        ]);
        let chats = questions(&document, 11, 1);
        assert_eq!(chats.len(), 4);
        assert!(
            chats[..2].iter().all(|c| c[0].content.contains("Leave") && !c[0].content.contains("3.1")),
            "{chats:?}"
        );
        assert_eq!(chats[0][1].content, "You have twenty-five days each year.\n\nAsk your manager early.");
        assert!(chats[2..].iter().all(|c| c[0].content.contains("How do I book?")));
        assert_ne!(chats[0][0], chats[1][0]);
        assert_eq!(questions(&document, 11, 1), chats);
    }
}
