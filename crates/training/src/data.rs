//! Examples become token sequences with a mask of what the loss counts.
//!
//! Sequences are never padded: a batch lays them one after the other and attention keeps them apart (see
//! `tunesmith_model::ops::attention`), so sequences of unequal length cost what they hold and nothing more.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tunesmith_model::{Batch, IGNORE, Message, Role, Tokenizer, encode_conversation};

use crate::error::{Result, TrainingError};

/// One example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Example {
    /// Every token counts.
    Text {
        /// Plain text, without special tokens.
        text: String,
    },
    /// The turns of [`Tokenisation::train_on`] count, with their terminators.
    Chat {
        /// The turns.
        messages: Vec<Message>,
    },
}

/// How examples become sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenisation {
    /// Longest sequence in tokens. Longer texts are split, longer conversations refused.
    pub sequence_length: usize,
    /// Whose turns of a conversation count.
    pub train_on: Vec<Role>,
}

impl Tokenisation {
    /// The answers of the assistant count.
    #[must_use]
    pub fn of_length(sequence_length: usize) -> Self {
        Self { sequence_length, train_on: vec![Role::Assistant] }
    }
}

/// Tokens that go through the model as one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether predicting this token counts; the first one never does.
    pub counted: Vec<bool>,
    /// Index of the example that it comes from.
    pub example: usize,
}

impl Sequence {
    /// Tokens that count.
    #[must_use]
    pub fn num_targets(&self) -> usize {
        self.counted.iter().filter(|counted| **counted).count()
    }
}

/// Sequences ready for training or evaluation.
#[derive(Debug, Clone)]
pub struct Dataset {
    sequences: Vec<Sequence>,
    /// Examples given.
    pub num_examples: usize,
    /// Examples left out because no token of theirs counts (conversations without a turn that counts, empty texts); of given
    /// sequences, those.
    pub num_unusable: usize,
}

impl Dataset {
    /// Tokenises. Texts get the tokenizer's start token and the end token and are split into windows of the sequence length
    /// that share one token, so that every token is predicted exactly once. A conversation that does not fit is refused: cut in
    /// two it would teach to answer without the question.
    pub fn build(tokenizer: &Tokenizer, examples: &[Example], how: &Tokenisation) -> Result<Self> {
        let Tokenisation { sequence_length, train_on } = how;
        let mut sequences = Vec::new();
        let (mut num_unusable, mut num_tokens) = (0, 0);
        for (example, content) in examples.iter().enumerate() {
            let before = sequences.len();
            match content {
                Example::Text { text } => {
                    let mut ids = tokenizer.encode(text)?;
                    let has_text = !text.trim().is_empty();
                    if has_text && tokenizer.eos().is_some_and(|eos| ids.last() != Some(&eos)) {
                        ids.extend(tokenizer.eos());
                    }
                    num_tokens += ids.len();
                    if has_text {
                        sequences.extend(windows(&ids, *sequence_length, example));
                    }
                }
                Example::Chat { messages } => {
                    let tokens = encode_conversation(tokenizer, messages, train_on)?;
                    let (length, limit) = (tokens.ids.len(), *sequence_length);
                    num_tokens += length;
                    if length > limit {
                        return Err(TrainingError::SequenceTooLong { example, length, limit });
                    }
                    let mut counted = tokens.counted;
                    if let Some(first) = counted.first_mut() {
                        *first = false;
                    }
                    sequences.push(Sequence { ids: tokens.ids, counted, example });
                }
            }
            if sequences[before..].iter().all(|sequence| sequence.num_targets() == 0) {
                sequences.truncate(before);
                num_unusable += 1;
            }
        }
        let num_examples = examples.len();
        match (sequences.is_empty(), num_tokens) {
            (true, 0) => Err(TrainingError::EmptyDataset { num_examples }),
            (true, _) => Err(TrainingError::AllLabelsMasked { num_examples, num_tokens }),
            _ => Ok(Self { sequences, num_examples, num_unusable }),
        }
    }

    /// From sequences made elsewhere. Those without a token that counts are left out: a step of nothing else would have no loss.
    pub fn from_sequences(mut sequences: Vec<Sequence>) -> Result<Self> {
        let num_examples = sequences.iter().map(|sequence| sequence.example + 1).max().unwrap_or(0);
        let num_tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
        if num_tokens == 0 {
            return Err(TrainingError::EmptyDataset { num_examples });
        }
        let given = sequences.len();
        sequences.iter_mut().filter_map(|sequence| sequence.counted.first_mut()).for_each(|first| *first = false);
        sequences.retain(|sequence| sequence.num_targets() > 0);
        if sequences.is_empty() {
            return Err(TrainingError::AllLabelsMasked { num_examples, num_tokens });
        }
        let num_unusable = given - sequences.len();
        Ok(Self { sequences, num_examples, num_unusable })
    }

    /// All sequences, in the order of the examples.
    #[must_use]
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Number of sequences.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is none; never true for a built dataset.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Tokens of all sequences.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.ids.len()).sum()
    }

    /// Tokens of each sequence.
    #[must_use]
    pub fn lengths(&self) -> Vec<usize> {
        self.sequences.iter().map(|sequence| sequence.ids.len()).collect()
    }

    /// The examples that these sequences come from, each once, ascending.
    #[must_use]
    pub fn examples(&self, indices: &[usize]) -> Vec<usize> {
        let examples: BTreeSet<usize> =
            indices.iter().filter_map(|index| self.sequences.get(*index)).map(|sequence| sequence.example).collect();
        examples.into_iter().collect()
    }

    /// SHA-256 over all tokens and masks, hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for sequence in &self.sequences {
            hash.update((sequence.ids.len() as u64).to_le_bytes());
            for (id, counted) in sequence.ids.iter().zip(&sequence.counted) {
                hash.update(id.to_le_bytes());
                hash.update([u8::from(*counted)]);
            }
        }
        hex::encode(hash.finalize())
    }

    /// These sequences as one batch: row `i` predicts token `i + 1` of its sequence where that token counts.
    pub fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let (mut ids, mut targets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for sequence in indices.iter().filter_map(|index| self.sequences.get(*index)) {
            let next = sequence.ids.iter().zip(&sequence.counted).skip(1);
            targets.extend(next.map(|(id, counted)| if *counted { *id } else { IGNORE }));
            targets.push(IGNORE);
            ids.extend_from_slice(&sequence.ids);
            lengths.push(sequence.ids.len());
        }
        Ok(Batch::new(ids, targets, lengths)?)
    }
}

fn windows(ids: &[u32], length: usize, example: usize) -> Vec<Sequence> {
    let step = length.saturating_sub(1).max(1);
    let starts = (0..ids.len().saturating_sub(1)).step_by(step);
    let window = |start: usize| {
        let ids = ids[start..(start + step + 1).min(ids.len())].to_vec();
        let counted = (0..ids.len()).map(|index| index > 0).collect();
        Sequence { ids, counted, example }
    };
    starts.map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_every_token_once() {
        for (count, length) in [(10, 4), (9, 4), (4, 4), (5, 4), (2, 4)] {
            let ids: Vec<u32> = (0..count).collect();
            let windows = windows(&ids, length, 0);
            let predicted: Vec<u32> = windows.iter().flat_map(|w| w.ids[1..].to_vec()).collect();
            assert_eq!(predicted, ids[1..], "{count} tokens in windows of {length}");
            assert!(windows.iter().all(|w| w.ids.len() <= length && w.ids.len() >= 2));
        }
        assert!(windows(&[7], 4, 0).is_empty());
    }

    #[test]
    fn targets_are_the_next_token_and_never_cross_sequences() {
        let sequence =
            |ids: &[u32], counted: &[bool]| Sequence { ids: ids.to_vec(), counted: counted.to_vec(), example: 0 };
        let data = vec![sequence(&[1, 2, 3], &[false, false, true]), sequence(&[4, 5], &[false, true])];
        let batch = Dataset::from_sequences(data).unwrap().batch(&[1, 0]).unwrap();
        assert_eq!(batch.ids(), [4, 5, 1, 2, 3]);
        assert_eq!(batch.targets(), [5, IGNORE, IGNORE, 3, IGNORE]);
        assert_eq!(batch.lengths(), [2, 3]);
    }

    #[test]
    fn all_labels_masked_is_an_error_and_not_a_loss_of_zero() {
        let masked = Sequence { ids: vec![1, 2], counted: vec![false, false], example: 0 };
        let error = Dataset::from_sequences(vec![masked]).unwrap_err();
        assert!(matches!(error, TrainingError::AllLabelsMasked { num_examples: 1, num_tokens: 2 }));
        assert!(matches!(Dataset::from_sequences(vec![]), Err(TrainingError::EmptyDataset { num_examples: 0 })));
    }

    #[test]
    fn a_sequence_without_a_token_that_counts_is_left_out() {
        let sequence = |counted: bool| Sequence { ids: vec![1, 2], counted: vec![true, counted], example: 0 };
        let data = Dataset::from_sequences(vec![sequence(false), sequence(true)]).unwrap();
        assert_eq!((data.len(), data.num_unusable), (1, 1));
        assert_eq!(data.sequences()[0].num_targets(), 1, "the first token is never predicted");
    }
}
