//! `reference-logits.json`: logits that the endpoint must reproduce. What was trained and what is served must be the same.

use tunesmith_contract::job::ReferenceLogits;
use tunesmith_model::{Adapter, Message, ModelError, encode_prompt};

use crate::base::Base;

/// Where it lies below the run's folder.
pub const REFERENCE: &str = "reference-logits.json";
/// Any text does: the same tokens go to the endpoint.
const PROMPT: &str = "What do these documents say, in one sentence?";

/// Logits after a fixed prompt, written as the model's chat template writes a question, computed as serving does: the whole
/// prompt at once into an empty cache.
pub fn logits(base: &Base, adapter: &Adapter) -> Result<ReferenceLogits, ModelError> {
    let tokens = match encode_prompt(&base.tokenizer, &[Message::new("user", PROMPT)]) {
        Ok(tokens) => tokens,
        Err(ModelError::NoChatTemplate | ModelError::ChatTemplate { .. }) => base.tokenizer.encode(PROMPT)?,
        Err(error) => return Err(error),
    };
    let logits = base.model.advance(&mut base.model.new_cache(), &tokens, Some(adapter))?;
    Ok(ReferenceLogits { tokens, logits })
}
