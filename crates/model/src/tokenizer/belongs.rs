//! Whether a tokenizer belongs to a model. One of another model may give ids that all exist, and training would then teach
//! nothing but noise.

use std::collections::BTreeSet;
use std::path::Path;

use super::Tokenizer;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};

/// By what a tokenizer was recognised as that of another model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// `tokenizer_config.json` names a token that `tokenizer.json` does not have.
    #[error("tokenizer_config.json names {token:?} as {key}, which is not a token")]
    NoSuchToken {
        /// `bos_token` or `eos_token`.
        key: &'static str,
        /// Its spelling.
        token: String,
    },
    /// A token, added ones included, for which the model has no embedding.
    #[error("token {token:?} has id {id}, the model has embeddings for {rows} tokens")]
    BeyondEmbedding {
        /// Its spelling.
        token: String,
        /// Its id.
        id: u32,
        /// `vocab_size` of the model.
        rows: usize,
    },
    /// The model has embeddings for more than twice as many tokens.
    #[error("it has {tokens} tokens, the model embeddings for {rows}")]
    TooFewTokens {
        /// Tokens, added ones included.
        tokens: usize,
        /// `vocab_size` of the model.
        rows: usize,
    },
    /// Another token ends a text.
    #[error("it ends texts with {token:?}, id {id}; config.json and generation_config.json say ids {eos_ids:?}")]
    OtherEnd {
        /// `eos_token`.
        token: String,
        /// Its id.
        id: u32,
        /// `eos_token_id` of both files.
        eos_ids: BTreeSet<u32>,
    },
    /// The model ends texts with an id that no token has.
    #[error("config.json or generation_config.json ends texts with id {id}, which no token has")]
    NoSuchEnd {
        /// Its id.
        id: u32,
    },
}

impl Tokenizer {
    /// [`Tokenizer::load`] for a model with this description: what trains, evaluates and serves loads it so.
    ///
    /// # Errors
    /// Also [`ModelError::WrongTokenizer`] when it is that of another model.
    pub fn load_for(folder: &Path, model: &ModelConfig) -> Result<Self> {
        let tokenizer = Self::load(folder)?;
        tokenizer.check_model(model.vocab_size)?;
        Ok(tokenizer)
    }

    /// Fails with [`ModelError::WrongTokenizer`] when this cannot be the tokenizer of a model with `rows` embeddings.
    ///
    /// Models have embeddings to spare (Phi-3 53, Qwen 2.5 271), since their number is rounded up: half of them unused is another
    /// tokenizer. A padding token needs none: sequences are not padded here.
    pub fn check_model(&self, rows: usize) -> Result<()> {
        match self.foreign(rows) {
            None => Ok(()),
            Some(foreign) => Err(ModelError::WrongTokenizer { path: self.path.clone(), foreign }),
        }
    }

    fn foreign(&self, rows: usize) -> Option<Foreign> {
        for (key, token) in &self.named.specials {
            let unknown = token.as_ref().filter(|token| self.token_id(token).is_none());
            if let Some(token) = unknown {
                return Some(Foreign::NoSuchToken { key, token: token.clone() });
            }
        }
        let vocabulary = self.inner.get_vocab(true);
        let beyond =
            vocabulary.iter().filter(|(token, id)| **id as usize >= rows && Some(*token) != self.named.pad.as_ref());
        if let Some((token, id)) = beyond.min_by_key(|(_, id)| **id) {
            return Some(Foreign::BeyondEmbedding { token: token.clone(), id: *id, rows });
        }
        if 2 * vocabulary.len() < rows {
            return Some(Foreign::TooFewTokens { tokens: vocabulary.len(), rows });
        }
        let eos_ids = &self.named.eos_ids;
        let [_, (_, eos)] = &self.named.specials;
        if let Some((token, id)) = eos.as_ref().and_then(|eos| Some((eos, self.token_id(eos)?)))
            && !eos_ids.is_empty()
            && !eos_ids.contains(&id)
        {
            return Some(Foreign::OtherEnd { token: token.clone(), id, eos_ids: eos_ids.clone() });
        }
        let unknown = eos_ids.iter().find(|id| self.inner.id_to_token(**id).is_none());
        unknown.map(|id| Foreign::NoSuchEnd { id: *id })
    }
}
