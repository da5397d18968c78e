//! Greedy generation: the same tokens every time.

use tunesmith_model::{Adapter, Decoder, ModelError, Tokenizer};

/// What is generated for.
#[derive(Clone, Copy)]
pub struct Generator<'a> {
    /// The base model.
    pub model: &'a Decoder,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
}

impl Generator<'_> {
    /// The answer to `prompt`, at most `most` tokens long; ends at a terminator or where the model's positions end.
    pub fn greedy(&self, prompt: &[u32], most: usize, adapter_opt: Option<&Adapter>) -> Result<String, ModelError> {
        let room = self.model.config().max_position_embeddings.saturating_sub(prompt.len());
        let mut cache = self.model.new_cache();
        let mut logits = self.model.advance(&mut cache, prompt, adapter_opt)?;
        let mut answer = Vec::new();
        while answer.len() < most.min(room) {
            let Some(next) = most_likely(&logits) else { break };
            if self.tokenizer.terminators().contains(&next) {
                break;
            }
            answer.push(next);
            logits = self.model.advance(&mut cache, &[next], adapter_opt)?;
        }
        self.tokenizer.decode(&answer)
    }
}

/// Of equal logits the one with the lowest id.
fn most_likely(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (id, logit) in logits.iter().enumerate() {
        if best.is_none_or(|(_, most)| *logit > most) {
            best = Some((id, *logit));
        }
    }
    best.and_then(|(id, _)| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!(most_likely(&[0.5, 2.0, 2.0, -1.0]), Some(1));
        assert_eq!(most_likely(&[]), None);
    }
}
