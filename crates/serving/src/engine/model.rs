//! The model that is served: base, adapter, tokenizer.

use std::path::Path;

use tunesmith_model::{Adapter, Decoder, KvCache, Message, ModelError, Tokenizer, encode_prompt, peft};

use super::Prompt;
use crate::openai::Weights;

/// A base model with or without an adapter. Both are answered for from one copy of the weights.
pub struct ServedModel {
    name: String,
    model: Decoder,
    tokenizer: Tokenizer,
    adapter_opt: Option<Adapter>,
}

impl ServedModel {
    /// Loads a base model in Hugging Face layout and an adapter in `peft`'s. A base that was quantised when the adapter was trained
    /// on it is quantised again: the same model answers that was evaluated.
    ///
    /// # Errors
    /// [`ModelError`] naming the file that is missing, damaged or does not belong to the base model.
    pub fn load(name: &str, base: &Path, adapter: Option<&Path>) -> Result<Self, ModelError> {
        let quantization = adapter.map(peft::base_quantization).transpose()?.unwrap_or_default();
        let model = Decoder::load_quantised(base, quantization)?;
        let tokenizer = Tokenizer::load_for(base, model.config())?;
        let adapter_opt = adapter.map(|folder| peft::load_onto(folder, &model)).transpose()?;
        Ok(Self { name: name.into(), model, tokenizer, adapter_opt })
    }

    /// The model's name in the API.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tokens that a prompt and its answer may have together.
    #[must_use]
    pub fn context(&self) -> usize {
        self.model.config().max_position_embeddings
    }

    /// The tokenizer.
    #[must_use]
    pub const fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens after which the model is to go on.
    ///
    /// # Errors
    /// [`ModelError`] when there is no chat template, or it refuses the conversation.
    pub fn encode(&self, prompt: Prompt<'_>) -> Result<Vec<u32>, ModelError> {
        match prompt {
            Prompt::Text(text) => self.tokenizer.encode(text),
            Prompt::Chat(messages) => {
                let turns: Vec<Message> = messages.iter().map(|m| Message::new(m.role.as_str(), &m.content)).collect();
                encode_prompt(&self.tokenizer, &turns)
            }
        }
    }

    /// An empty cache for one conversation.
    #[must_use]
    pub fn new_cache(&self) -> KvCache {
        self.model.new_cache()
    }

    /// Reads `ids` into the cache; logits after the last of them.
    ///
    /// # Errors
    /// [`ModelError`] for tokens outside the vocabulary, or more than the context holds.
    pub fn advance(&self, cache: &mut KvCache, ids: &[u32], weights: Weights) -> Result<Vec<f32>, ModelError> {
        let adapter = match weights {
            Weights::Tuned => self.adapter_opt.as_ref(),
            Weights::Base => None,
        };
        self.model.advance(cache, ids, adapter)
    }
}
