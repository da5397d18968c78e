//! Splits of a dataset as the training crate wants them, with what evaluation must know about each example.
//!
//! The same rules hold for all three splits, so that no model is scored on other text than it was trained on:
//! - texts longer than a window are cut by the training crate;
//! - a chat longer than a window is cut between turns into several chats, each with the system turn; what follows its last turn that
//!   counts is cut off;
//! - a chat that still does not fit, in which then nothing counts, or that the model's template refuses, is left out and counted,
//!   never silently.

use tunesmith_contract::{DocumentId, documents, settings::TrainingSettings};
use tunesmith_model::{Message, Role, Tokenizer, encode_conversation};
use tunesmith_training::{Dataset, Example, Tokenisation};

use crate::error::Result;

/// Examples of one split.
#[derive(Debug, Default)]
pub struct Split {
    /// What the training crate gets.
    pub examples: Vec<Example>,
    /// Beside each example: where it came from and how much text is scored.
    pub origins: Vec<Origin>,
    /// Chats left out, with the reason of the first.
    pub left_out: LeftOut,
}

/// Where an example came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its document.
    pub document: DocumentId,
    /// White-space separated words that are scored: of the text, or of the turns that count.
    pub words: u64,
    /// UTF-8 bytes that are scored.
    pub bytes: u64,
}

/// Chats that could not be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// How many.
    pub count: u64,
    /// Why, for the first.
    pub first: String,
}

impl LeftOut {
    /// Logs what was left out of this split.
    pub fn warn(&self, split: &str) {
        if self.count > 0 {
            tracing::warn!(split, chats = self.count, first = self.first, "chats were left out");
        }
    }
}

impl Split {
    /// Prepares the lines of a split.
    #[must_use]
    pub fn prepare(tokenizer: &Tokenizer, lines: &[documents::Example], how: &Tokenisation) -> Self {
        let mut split = Self::default();
        for line in lines {
            match line {
                documents::Example::Text { text, document } => {
                    let origin = origin(document, [text.as_str()]);
                    split.push(Example::Text { text: text.clone() }, origin);
                }
                documents::Example::Chat { messages, document } => match fit(tokenizer, messages, how) {
                    Ok(parts) => {
                        for part in parts {
                            let scored = part.iter().filter(|m| counts(m, how)).map(|m| m.content.as_str());
                            let origin = origin(document, scored);
                            split.push(Example::Chat { messages: part }, origin);
                        }
                    }
                    Err(reason) => {
                        if split.left_out.count == 0 {
                            split.left_out.first = reason;
                        }
                        split.left_out.count += 1;
                    }
                },
            }
        }
        split
    }

    /// Tokenised, ready for training or scoring.
    pub fn dataset(&self, tokenizer: &Tokenizer, how: &Tokenisation) -> Result<Dataset> {
        Ok(Dataset::build(tokenizer, &self.examples, how)?)
    }

    fn push(&mut self, example: Example, origin: Origin) {
        self.examples.push(example);
        self.origins.push(origin);
    }
}

/// A chat's turns as the template names them.
#[must_use]
pub fn turns(messages: &[documents::Message]) -> Vec<Message> {
    messages.iter().map(|message| Message::new(message.role.as_str(), &message.content)).collect()
}

/// How the settings want examples tokenised.
#[must_use]
pub fn tokenisation(settings: &TrainingSettings) -> Tokenisation {
    let role = |role: &documents::Role| match role {
        documents::Role::System => Role::System,
        documents::Role::User => Role::User,
        documents::Role::Assistant => Role::Assistant,
        documents::Role::Tool => Role::Tool,
    };
    Tokenisation {
        sequence_length: settings.sequence_length as usize,
        train_on: settings.train_on.iter().map(role).collect(),
    }
}

/// Whether the loss counts this turn.
fn counts(message: &Message, how: &Tokenisation) -> bool {
    how.train_on.iter().any(|role| role.as_str() == message.role)
}

/// The chat in as few parts as fit; each begins with the system turn, if there is one, and holds whole exchanges, and in each
/// something counts.
fn fit(
    tokenizer: &Tokenizer,
    messages: &[documents::Message],
    how: &Tokenisation,
) -> Result<Vec<Vec<Message>>, String> {
    let (messages, limit) = (turns(messages), how.sequence_length);
    let tokens = |part: &[Message]| {
        encode_conversation(tokenizer, part, &how.train_on).map(|t| t.ids.len()).map_err(|e| e.to_string())
    };
    let whole = tokens(&messages)?;
    if whole <= limit {
        return Ok(vec![messages]);
    }
    let learns = |part: &[Message]| part.iter().any(|message| counts(message, how));
    let (system, rest) = messages.split_at(usize::from(messages.first().is_some_and(|m| m.role == "system")));
    // one exchange: everything up to and including an answer. One in which nothing counts is context of those after it.
    let exchanges: Vec<&[Message]> = rest.split_inclusive(|message| message.role == "assistant").collect();
    let used = exchanges.iter().rposition(|exchange| learns(exchange)).map_or(0, |last| last + 1);
    let (mut parts, mut current): (Vec<Vec<Message>>, _) = (Vec::new(), system.to_vec());
    for exchange in exchanges[..used].iter().copied() {
        let longer = [current.as_slice(), exchange].concat();
        if tokens(&longer)? <= limit {
            current = longer;
            continue;
        }
        let alone = [system, exchange].concat();
        let length = tokens(&alone)?;
        if length > limit && learns(exchange) {
            return Err(format!("one exchange has {length} tokens, training.sequence_length is {limit}"));
        }
        let next = if length > limit { system.to_vec() } else { alone };
        parts.push(std::mem::replace(&mut current, next));
    }
    parts.push(current);
    parts.retain(|part| learns(part));
    // the system turn alone was not measured yet
    for part in parts.iter().filter(|part| part.len() == system.len()) {
        let length = tokens(part)?;
        if length > limit {
            return Err(format!("the system turn has {length} tokens, training.sequence_length is {limit}"));
        }
    }
    if parts.is_empty() {
        return Err(format!("it has {whole} tokens and no turn of a role that training.train_on names"));
    }
    Ok(parts)
}

fn origin<'a>(document: &DocumentId, texts: impl IntoIterator<Item = &'a str>) -> Origin {
    let (mut words, mut bytes) = (0, 0);
    for text in texts {
        words += text.split_whitespace().count() as u64;
        bytes += text.len() as u64;
    }
    Origin { document: document.clone(), words, bytes }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tunesmith_contract::documents::{Message as Turn, Role};

    use super::*;

    const ASSISTANT: [super::Role; 1] = [super::Role::Assistant];

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("base-model")).unwrap()
    }

    fn turn(role: Role, content: &str) -> Turn {
        Turn { role, content: content.into() }
    }

    #[test]
    fn a_long_chat_is_cut_between_turns_and_keeps_the_system_turn() {
        let (tokenizer, document) = (tokenizer(), DocumentId::of(b"x"));
        let mut messages = vec![turn(Role::System, "Answer shortly.")];
        for number in 0..6 {
            messages.push(turn(Role::User, &format!("What is the rule number {number} of the handbook?")));
            messages.push(turn(Role::Assistant, &format!("The rule number {number} says that doors are closed.")));
        }
        let whole = encode_conversation(&tokenizer, &turns(&messages), &ASSISTANT).unwrap().ids.len();
        let chat = documents::Example::Chat { messages, document };
        let split = Split::prepare(&tokenizer, std::slice::from_ref(&chat), &Tokenisation::of_length(whole / 2));
        assert!(split.examples.len() >= 2 && split.left_out.count == 0, "{:?}", split.examples.len());
        let mut answers = 0;
        for example in &split.examples {
            let Example::Chat { messages } = example else { panic!("a chat stays a chat") };
            assert_eq!((messages[0].role.as_str(), messages[1].role.as_str()), ("system", "user"));
            answers += messages.iter().filter(|m| m.role == "assistant").count();
            assert!(encode_conversation(&tokenizer, messages, &ASSISTANT).unwrap().ids.len() <= whole / 2);
        }
        assert_eq!(answers, 6, "every answer is trained on once");
        assert!(split.dataset(&tokenizer, &Tokenisation::of_length(whole / 2)).is_ok());

        let split = Split::prepare(&tokenizer, &[chat], &Tokenisation::of_length(12));
        assert_eq!((split.examples.len(), split.left_out.count), (0, 1));
        assert!(split.left_out.first.contains("sequence_length is 12"), "{}", split.left_out.first);
    }

    /// The embedded tokenizer with a template that takes any role.
    fn of_any_role() -> Tokenizer {
        let (base, folder) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("base-model"), tempfile::tempdir().unwrap());
        std::fs::copy(base.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        let template = "{% for m in messages %}<|user|>{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}\
            {% if add_generation_prompt %}<|user|>assistant: {% endif %}";
        let settings = serde_json::json!({"eos_token": "<|end|>", "chat_template": template});
        std::fs::write(folder.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
        Tokenizer::load(folder.path()).unwrap()
    }

    /// The chats of the split, each as its roles and contents.
    fn chats(split: &Split) -> Vec<Vec<(String, String)>> {
        let turns =
            |messages: &[Message]| messages.iter().map(|m| (m.role.clone(), m.content.clone())).collect::<Vec<_>>();
        let chat = |example: &Example| match example {
            Example::Chat { messages } => turns(messages),
            Example::Text { text } => panic!("{text}"),
        };
        split.examples.iter().map(chat).collect()
    }

    fn pairs(messages: &[Turn]) -> Vec<(String, String)> {
        messages.iter().map(|m| (m.role.as_str().to_owned(), m.content.clone())).collect()
    }

    #[test]
    fn exchanges_in_which_nothing_counts_stay_as_context_of_those_after_them() {
        let (tokenizer, document) = (of_any_role(), DocumentId::of(b"x"));
        let messages = [
            turn(Role::User, "When does the ferry leave?"),
            turn(Role::Assistant, "I look at the timetable."),
            turn(Role::Tool, "Ferry 7:45, pier 3."),
            turn(Role::Assistant, "At 7:45."),
            turn(Role::User, "And is that early?"),
            turn(Role::Assistant, "It is."),
            turn(Role::User, "When does the next one leave?"),
            turn(Role::Assistant, "I look again."),
            turn(Role::Tool, "Ferry 9:15, pier 1."),
            turn(Role::Assistant, "At 9:15."),
            turn(Role::User, "Thank you."),
            turn(Role::Assistant, "You are welcome."),
        ];
        let train_on = vec![super::Role::Tool];
        let length = |part: &[Turn]| encode_conversation(&tokenizer, &turns(part), &train_on).unwrap().ids.len();
        let prepared = |sequence_length| {
            let chat = documents::Example::Chat { messages: messages.to_vec(), document: document.clone() };
            let how = Tokenisation { sequence_length, train_on: train_on.clone() };
            Split::prepare(&tokenizer, &[chat], &how)
        };
        // without what follows the last answer of the tool it fits: the second exchange is not cut out of the middle
        let split = prepared(length(&messages[..10]));
        assert_eq!(chats(&split), [pairs(&messages[..10])]);
        // in two parts: the first ends where the next exchange would not fit, and nothing is dropped between them
        let split = prepared(length(&messages[..8]));
        assert_eq!(chats(&split), [pairs(&messages[..8]), pairs(&messages[8..10])]);
        assert_eq!(split.origins.iter().map(|origin| origin.words).collect::<Vec<_>>(), [4, 4]);
        assert_eq!(split.left_out.count, 0);
    }

    #[test]
    fn a_long_chat_of_which_only_the_system_turn_counts_is_that_turn_and_one_in_which_nothing_counts_is_left_out() {
        let (tokenizer, document) = (tokenizer(), DocumentId::of(b"x"));
        let mut messages = vec![turn(Role::System, "Answer shortly.")];
        for number in 0..4 {
            messages.push(turn(Role::User, &format!("What is the rule number {number} of the handbook?")));
            messages.push(turn(Role::Assistant, &format!("The rule number {number} says that doors are closed.")));
        }
        let prepared = |train_on: super::Role| {
            let chat = documents::Example::Chat { messages: messages.clone(), document: document.clone() };
            let how = Tokenisation { sequence_length: 40, train_on: vec![train_on] };
            Split::prepare(&tokenizer, &[chat], &how)
        };
        let split = prepared(super::Role::System);
        assert_eq!((chats(&split), split.left_out.count), (vec![pairs(&messages[..1])], 0));
        assert_eq!(split.origins[0].words, 2);
        let split = prepared(super::Role::Tool);
        assert_eq!((split.examples.len(), split.left_out.count), (0, 1));
        assert!(
            split.left_out.first.contains("no turn of a role that training.train_on names"),
            "{:?}",
            split.left_out
        );
    }

    #[test]
    fn words_and_bytes_are_those_that_are_scored() {
        let (tokenizer, document) = (tokenizer(), DocumentId::of(b"x"));
        let lines = [
            documents::Example::Text { text: "Grüße an  alle\n".into(), document: document.clone() },
            documents::Example::Chat {
                messages: vec![turn(Role::User, "How many words?"), turn(Role::Assistant, "two words")],
                document: document.clone(),
            },
        ];
        let split = Split::prepare(&tokenizer, &lines, &Tokenisation::of_length(64));
        let counts: Vec<_> = split.origins.iter().map(|o| (o.words, o.bytes)).collect();
        assert_eq!(counts, [(3, 17), (2, 9)]);

        let settings = TrainingSettings { train_on: vec![Role::User, Role::Assistant], ..TrainingSettings::default() };
        let split = Split::prepare(&tokenizer, &lines[1..], &tokenisation(&settings));
        assert_eq!((split.origins[0].words, split.origins[0].bytes), (5, 24), "of both turns");
    }
}
