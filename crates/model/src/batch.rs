//! Tokens that go through the model together: sequences one after the other, without padding.

use crate::error::{ModelError, Result};
use crate::ops::attention::Segments;
use crate::ops::cross_entropy::IGNORE;

/// `n` tokens of one or more sequences, and for each the token to predict from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<u32>,
    targets: Vec<u32>,
    lengths: Vec<usize>,
}

impl Batch {
    /// `targets[i]` is what row `i` should predict (already shifted: the next token), or [`IGNORE`]; `lengths` add up to the
    /// number of ids.
    pub fn new(ids: Vec<u32>, targets: Vec<u32>, lengths: Vec<usize>) -> Result<Self> {
        if ids.is_empty() {
            return Err(ModelError::EmptyBatch);
        }
        let total = lengths.iter().sum();
        if ids.len() != targets.len() || ids.len() != total {
            return Err(ModelError::BadBatch { ids: ids.len(), targets: targets.len(), lengths: total });
        }
        Ok(Self { ids, targets, lengths })
    }

    /// Token ids of all sequences.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What each row predicts.
    #[must_use]
    pub fn targets(&self) -> &[u32] {
        &self.targets
    }

    /// Length of each sequence.
    #[must_use]
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Rows that have a target.
    #[must_use]
    pub fn num_targets(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORE).count()
    }

    pub(crate) fn segments(&self) -> Segments {
        Segments::from_lengths(&self.lengths)
    }
}
