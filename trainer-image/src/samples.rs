//! A few answers of base and tuned model side by side, for the person who approves.

use tunesmith_contract::{
    documents::{self, Example, Role},
    evaluation::Sample,
};
use tunesmith_model::{Adapter, ModelError, encode_prompt};

use crate::{examples::turns, generate::Generator};

/// Enough to judge by, few enough to read.
const SAMPLES: usize = 4;
/// Longest answer in tokens.
const ANSWER: usize = 96;
/// Words of a text that are given, where the test split has no chats.
const OPENING: usize = 24;

/// A question of the test split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    shown: String,
    given: Given,
    reference: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Given {
    Chat(Vec<documents::Message>),
    Text(String),
}

/// Questions from as many documents as possible, in the order of the split: chats; the openings of texts when there is none.
#[must_use]
pub fn choose(lines: &[Example]) -> Vec<Question> {
    let chats: Vec<_> = lines.iter().filter_map(|line| Some((line.document(), chat_question(line)?))).collect();
    let texts = || lines.iter().filter_map(|line| Some((line.document(), text_question(line)?))).collect();
    let all = if chats.is_empty() { texts() } else { chats };
    let (mut first, mut rest, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    for (document, question) in all {
        if seen.contains(&document) {
            rest.push(question);
        } else {
            seen.push(document);
            first.push(question);
        }
    }
    first.into_iter().chain(rest).take(SAMPLES).collect()
}

/// Asks both models. A question that the model's template refuses or that is too long for it is left out.
pub fn ask(generator: Generator<'_>, question: &Question, tuned: &Adapter) -> Result<Option<Sample>, ModelError> {
    let prompt = match &question.given {
        Given::Chat(messages) => encode_prompt(generator.tokenizer, &turns(messages)),
        Given::Text(text) => generator.tokenizer.encode(text),
    };
    let prompt = match prompt {
        Ok(prompt) if prompt.len() < generator.model.config().max_position_embeddings => prompt,
        Ok(_) | Err(ModelError::ChatTemplate { .. } | ModelError::NoChatTemplate) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(Sample {
        prompt: question.shown.clone(),
        base: generator.greedy(&prompt, ANSWER, None)?.trim().to_owned(),
        tuned: generator.greedy(&prompt, ANSWER, Some(tuned))?.trim().to_owned(),
        reference: Some(question.reference.clone()),
    }))
}

fn chat_question(line: &Example) -> Option<Question> {
    let Example::Chat { messages, .. } = line else { return None };
    let answer = messages.iter().position(|message| message.role == Role::Assistant)?;
    let given = messages[..answer].to_vec();
    let asked = given.iter().rfind(|message| message.role == Role::User)?;
    Some(Question {
        shown: asked.content.clone(),
        reference: messages[answer].content.clone(),
        given: Given::Chat(given),
    })
}

fn text_question(line: &Example) -> Option<Question> {
    let Example::Text { text, .. } = line else { return None };
    let words: Vec<&str> = text.split_whitespace().collect();
    // shorter ones leave nothing to compare with
    (words.len() >= 2 * OPENING).then(|| {
        let (opening, rest) = words.split_at(OPENING);
        let rest = &rest[..rest.len().min(ANSWER)];
        let opening = opening.join(" ");
        Question { shown: opening.clone(), given: Given::Text(opening), reference: rest.join(" ") }
    })
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{DocumentId, documents::Message};

    use super::*;

    fn chat(document: u8, question: &str) -> Example {
        let turn = |role, content: &str| Message { role, content: content.into() };
        Example::Chat {
            messages: vec![turn(Role::User, question), turn(Role::Assistant, "because")],
            document: DocumentId::of(&[document]),
        }
    }

    #[test]
    fn questions_come_from_many_documents_and_carry_their_reference() {
        let lines = [chat(1, "a"), chat(1, "b"), chat(1, "c"), chat(2, "d"), chat(3, "e")];
        let chosen = choose(&lines);
        let shown: Vec<_> = chosen.iter().map(|q| q.shown.as_str()).collect();
        assert_eq!(shown, ["a", "d", "e", "b"]);
        assert!(chosen.iter().all(|q| q.reference == "because"));
    }

    #[test]
    fn texts_are_continued_where_there_is_no_chat() {
        let text = (0..60).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ");
        let lines = [Example::Text { text, document: DocumentId::of(b"x") }];
        let chosen = choose(&lines);
        assert!(chosen[0].shown.ends_with("w23") && chosen[0].reference.starts_with("w24 "), "{chosen:?}");
        assert_eq!(choose(&[Example::Text { text: "short".into(), document: DocumentId::of(b"x") }]), []);
    }
}
