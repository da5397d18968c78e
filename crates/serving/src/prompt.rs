//! Puts retrieved passages before a question.
//!
//! The form is the one the embedded base model was trained on (`trainer-image/base-model/dialogues.py`), which larger models
//! follow as well: a system message with an instruction, then `Sources:` and one numbered line for each passage.

use std::collections::HashSet;

use tunesmith_contract::documents::{Message, Role};

/// Used when the conversation has no system message of its own.
const INSTRUCTION: &str = "Answer the question from the sources. If they do not say, say so.";

/// A line shorter than this says too little to be worth its tokens.
const MIN_LINE: usize = 60;

/// A passage to answer from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excerpt<'a> {
    /// Headings above it, the nearest last.
    pub headings: &'a [String],
    /// The passage.
    pub text: &'a str,
}

/// The conversation with the passages in its first system message, in at most about `max_chars` characters, and the number
/// of passages that found room (the first ones: passages come best first).
///
/// Passages share the room; one that is too long is cut to the run of its sentences that has most words of the last
/// question. No room, or no passage: the conversation as it is.
#[must_use]
pub fn with_sources(messages: &[Message], excerpts: &[Excerpt<'_>], max_chars: usize) -> (Vec<Message>, usize) {
    let question = messages.iter().rev().find(|m| m.role == Role::User).map_or("", |m| m.content.as_str());
    let asked = words(question);
    // fewer passages rather than shreds of many
    let count = excerpts.len().min(max_chars / MIN_LINE);
    if count == 0 {
        return (messages.to_vec(), 0);
    }
    let mut listing = String::from("Sources:");
    let mut left = max_chars;
    for (i, excerpt) in excerpts.iter().take(count).enumerate() {
        let line = line(excerpt, &asked, left / (count - i));
        left = left.saturating_sub(line.chars().count());
        listing.push_str(&format!("\n[{}] {line}", i + 1));
    }
    let mut with = messages.to_vec();
    match with.iter_mut().find(|message| message.role == Role::System) {
        Some(system) => system.content = format!("{}\n\n{listing}", system.content.trim_end()),
        None => {
            with.insert(0, Message { role: Role::System, content: format!("{INSTRUCTION}\n\n{listing}") });
        }
    }
    (with, count)
}

/// `heading: text` on one line of at most `limit` characters.
fn line(excerpt: &Excerpt<'_>, asked: &HashSet<String>, limit: usize) -> String {
    let text = excerpt.text.split_whitespace().collect::<Vec<_>>().join(" ");
    let heading = excerpt.headings.last().map(|heading| format!("{heading}: ")).unwrap_or_default();
    let heading = if heading.chars().count() * 2 <= limit { heading } else { String::new() };
    let room = limit - heading.chars().count();
    let text = if text.chars().count() <= room { text } else { best_run(&text, asked, room) };
    format!("{heading}{text}")
}

/// The run of whole sentences within `limit` characters that holds most different asked words; the earliest of equals.
fn best_run(text: &str, asked: &HashSet<String>, limit: usize) -> String {
    let sentences: Vec<&str> = text.split_inclusive(['.', '!', '?', ';']).collect();
    let lengths: Vec<usize> = sentences.iter().map(|sentence| sentence.chars().count()).collect();
    let mut best: (usize, String) = (0, cut(text, limit));
    for start in 0..sentences.len() {
        let mut used = 0;
        let fitting = lengths[start..].iter().take_while(|&&length| {
            used += length;
            used <= limit
        });
        let run = sentences[start..start + fitting.count()].concat();
        let found = words(&run).intersection(asked).count();
        if found > best.0 {
            best = (found, run.trim().to_owned());
        }
    }
    best.1
}

/// The beginning of `text`, ending after a word, in at most `limit` characters, the ellipsis included.
fn cut(text: &str, limit: usize) -> String {
    let end = text.char_indices().nth(limit.saturating_sub(1)).map_or(text.len(), |(at, _)| at);
    let head = &text[..end];
    format!("{}…", head.rfind(' ').map_or(head, |at| &head[..at]))
}

/// Words of more than two letters, lower-cased and without a plural s: enough to tell what a sentence is about.
fn words(text: &str) -> HashSet<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| word.chars().count() > 2)
        .map(|word| {
            let lower = word.to_lowercase();
            lower.strip_suffix('s').map(str::to_owned).unwrap_or(lower)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> Message {
        Message { role: Role::User, content: text.into() }
    }

    #[test]
    fn passages_stand_numbered_before_the_question() {
        let headings = ["Handbook".to_owned(), "Leave".to_owned()];
        let excerpts = [
            Excerpt { headings: &headings, text: "28 days\n\n of leave." },
            Excerpt { headings: &[], text: "Book it early." },
        ];
        let (messages, used) = with_sources(&[user("How many days?")], &excerpts, 2000);
        assert_eq!(used, 2);
        assert_eq!(
            messages[0].content,
            "Answer the question from the sources. If they do not say, say so.\n\nSources:\n[1] Leave: 28 days of leave.\n\
             [2] Book it early."
        );
        assert_eq!(messages[1], user("How many days?"));
    }

    #[test]
    fn an_own_system_message_stays_first() {
        let system = Message { role: Role::System, content: "Speak like a pirate. ".into() };
        let (messages, _) = with_sources(&[system, user("x")], &[Excerpt { headings: &[], text: "Rum is free." }], 500);
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0].content, "Speak like a pirate.\n\nSources:\n[1] Rum is free.");
    }

    #[test]
    fn a_long_passage_keeps_the_sentences_that_were_asked_for() {
        let filler = "Nothing of interest is said in this sentence at all. ".repeat(20);
        let text = format!("{filler}Hotels cost at most 140 euros. {filler}");
        let excerpt = Excerpt { headings: &[], text: &text };
        let (messages, _) = with_sources(&[user("What may a hotel cost?")], &[excerpt], 200);
        assert!(messages[0].content.contains("140 euros"), "{}", messages[0].content);
        assert!(messages[0].content.chars().count() < 200 + 100);
    }

    #[test]
    fn room_is_kept_to_in_characters_not_bytes() {
        let text = "ä".repeat(500);
        let excerpts = [Excerpt { headings: &[], text: &text }; 3];
        for max in [0, 59, 60, 130, 400, 1400] {
            let (messages, used) = with_sources(&[user("x")], &excerpts, max);
            let added: usize = messages.iter().map(|m| m.content.chars().count()).sum();
            assert!(added <= 1 + max + INSTRUCTION.len() + 11 + 5 * used, "{max}: {added}");
            assert_eq!(used, (max / MIN_LINE).min(3));
        }
        assert_eq!(with_sources(&[user("x")], &[], 999).0, [user("x")]);
    }
}
