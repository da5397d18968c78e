//! Which tokens of a rendered conversation the loss counts: the turns of the roles that are trained on, terminators included.
//!
//! - A turn of the assistant counts from after its header, which generation starts from, up to *and including* the token that
//!   ends it. A model whose terminator is left out of the loss never learns to stop (Axolotl #3754).
//! - A turn of another role counts from where the template begins to write its content to where it ends, and when a terminator
//!   follows (white space aside) up to and including that. Its header never counts.
//!
//! A token counts when any character of it does: `apply_chat_template(return_assistant_tokens_mask=True)` of `transformers`
//! maps `{% generation %}` blocks to tokens the same way, and gives the same mask for templates that mark these parts, but for
//! one thing: where a block ends with a character of several tokens, it counts only the first of them.

use std::ops::Range;

use super::{ChatTemplate, GenerationPrompt, Message, Role};
use crate::error::{ModelError, Result};
use crate::tokenizer::{Encoded, SpecialTokens, Tokenizer};

/// A tokenised conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskedTokens {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether the loss counts this token *as a prediction*; same length.
    pub counted: Vec<bool>,
}

/// Tokens of a whole conversation; counted are the turns of the roles in `train_on`.
///
/// When the last turn counts and does not end with a terminator (some templates leave it out), the tokenizer's end-of-text
/// token is appended and counted. Fails with [`ModelError::TurnNotLocated`] when the template writes a turn that counts in a
/// way that cannot be found again in the text.
pub fn encode_conversation(tokenizer: &Tokenizer, messages: &[Message], train_on: &[Role]) -> Result<MaskedTokens> {
    let conversation = Conversation { template: tokenizer.chat_template()?, messages };
    let text = conversation.template.render(messages, GenerationPrompt::Leave)?;
    let Encoded { mut ids, offsets } = tokenizer.encode_with_offsets(&text, SpecialTokens::Leave)?;
    let ends = |id: u32| tokenizer.terminators().contains(&id);
    let mut turns = Vec::new();
    for (turn, message) in messages.iter().enumerate() {
        turns.push(match train_on.iter().find(|role| role.as_str() == message.role) {
            None => continue,
            Some(Role::Assistant) => conversation.answer(turn, &text)?,
            Some(_) => {
                let content = conversation.content(turn, &text)?;
                let next = content.end + text[content.end..].len() - text[content.end..].trim_start().len();
                let terminator = ids.iter().zip(&offsets).find(|(id, (start, _))| *start == next && ends(**id));
                content.start..terminator.map_or(content.end, |(_, (_, end))| *end)
            }
        });
    }
    let mut turn_of: Vec<Option<usize>> = Vec::with_capacity(ids.len());
    for (start, end) in offsets {
        turn_of.push(match end > start {
            true => turns.iter().position(|turn| start < turn.end && end > turn.start),
            // white space can have an empty range (`trim_offsets`): it belongs to what came before it
            false => turn_of.last().copied().flatten(),
        });
    }
    let mut counted: Vec<bool> = turn_of.iter().map(Option::is_some).collect();
    // nothing is generated after a terminator, so what the template writes after it (usually a line break) does not count
    let mut start = 0;
    for run in turn_of.chunk_by(|a, b| a == b) {
        let end = start + run.len();
        if let Some(last) = (start..end).rev().find(|index| ends(ids[*index])) {
            counted[last + 1..end].fill(false);
        }
        start = end;
    }
    let ends_open = counted.last() == Some(&true) && ids.last().is_some_and(|id| !ends(*id));
    if let (true, Some(eos)) = (ends_open, tokenizer.eos()) {
        ids.push(eos);
        counted.push(true);
    }
    Ok(MaskedTokens { ids, counted })
}

struct Conversation<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Message],
}

impl Conversation<'_> {
    /// An answer starts where the conversation before it plus the generation prompt ends, and ends where the conversation
    /// including it ends.
    fn answer(&self, turn: usize, text: &str) -> Result<Range<usize>> {
        let prompt = self.template.render(&self.messages[..turn], GenerationPrompt::Add)?;
        let complete = self.template.render(&self.messages[..=turn], GenerationPrompt::Leave)?;
        let end = common_prefix(&complete, text);
        // a template may close the last turn differently, but never earlier than the answer itself
        if end < complete.trim_end().len() || !complete.starts_with(&prompt) {
            return Err(ModelError::TurnNotLocated { turn });
        }
        Ok(prompt.len()..end)
    }

    /// Content lies where a character in its place would lie, so it does not matter what the template does to it (strip it,
    /// write it as JSON) or which turn's frame it stands in (Llama 2 puts instructions into the first turn of the user).
    fn content(&self, turn: usize, text: &str) -> Result<Range<usize>> {
        // of private use: templates neither look for these nor take them for white space
        let is_new = |c: &char| !self.messages.iter().any(|message| message.content.contains(*c));
        let stand_in = ('\u{E000}'..='\u{F8FF}').find(is_new).unwrap_or('\u{E000}');
        let mut messages = self.messages.to_vec();
        messages[turn].content = stand_in.to_string();
        let rendered = self.template.render(&messages, GenerationPrompt::Leave)?;
        let frame: Vec<&str> = rendered.split(stand_in).collect();
        match frame[..] {
            [before, after] if text.starts_with(before) && text[before.len()..].ends_with(after) => {
                Ok(before.len()..text.len() - after.len())
            }
            _ => Err(ModelError::TurnNotLocated { turn }),
        }
    }
}

fn common_prefix(a: &str, b: &str) -> usize {
    let bytes = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    (0..=bytes).rev().find(|at| a.is_char_boundary(*at)).unwrap_or(0)
}
