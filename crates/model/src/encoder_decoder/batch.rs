//! Pairs of texts that go through an encoder-decoder together, without padding.

use crate::error::{ModelError, Result};
use crate::ops::attention::Segments;
use crate::ops::cross_entropy::IGNORE;

/// Sources, and the texts to be made of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairBatch {
    pub(super) sources: Vec<u32>,
    pub(super) source_segments: Segments,
    /// The targets shifted right: row `i` predicts `targets[i]`.
    pub(super) inputs: Vec<u32>,
    pub(super) targets: Vec<u32>,
    pub(super) target_segments: Segments,
}

impl PairBatch {
    /// From pairs of source and target; [`IGNORE`] in a target does not count. `start` is what the decoder's input begins with,
    /// and stands for an ignored token in it, as in `transformers` (T5 begins with its padding token).
    pub fn new(pairs: &[(Vec<u32>, Vec<u32>)], start: u32) -> Result<Self> {
        if pairs.is_empty() || pairs.iter().any(|(source, target)| source.is_empty() || target.is_empty()) {
            return Err(ModelError::EmptyBatch);
        }
        let shifted = |target: &Vec<u32>| {
            let before = target[..target.len() - 1].iter().map(|id| if *id == IGNORE { start } else { *id });
            std::iter::once(start).chain(before).collect::<Vec<_>>()
        };
        let lengths =
            |of: fn(&(Vec<u32>, Vec<u32>)) -> usize| Segments::from_lengths(&pairs.iter().map(of).collect::<Vec<_>>());
        Ok(Self {
            sources: pairs.iter().flat_map(|(source, _)| source.clone()).collect(),
            source_segments: lengths(|(source, _)| source.len()),
            inputs: pairs.iter().flat_map(|(_, target)| shifted(target)).collect(),
            targets: pairs.iter().flat_map(|(_, target)| target.clone()).collect(),
            target_segments: lengths(|(_, target)| target.len()),
        })
    }

    /// Rows that have a target.
    #[must_use]
    pub fn num_targets(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORE).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_the_targets_shifted_right_in_each_pair() {
        let batch = PairBatch::new(&[(vec![5], vec![7, IGNORE, 9]), (vec![6, 6], vec![8])], 0).unwrap();
        assert_eq!((batch.inputs.as_slice(), batch.num_targets()), (&[0, 7, 0, 0][..], 3));
        assert!(matches!(PairBatch::new(&[(vec![1], vec![])], 0), Err(ModelError::EmptyBatch)));
        assert!(matches!(PairBatch::new(&[], 0), Err(ModelError::EmptyBatch)));
    }
}
