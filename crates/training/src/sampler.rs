//! Order of the data: every epoch is a permutation fixed by seed and epoch alone.
//!
//! The position is three numbers, so it can be stored and a resumed run sees exactly the sequences that were to come. There is
//! no other random state in training: seed and epoch *are* the state.

use serde::{Deserialize, Serialize};
use tunesmith_model::rng::Rng;

/// Where in the data a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Fixes all permutations.
    pub seed: u64,
    /// Passes completed.
    pub epoch: u64,
    /// Sequences already used in this pass.
    pub used: usize,
}

/// Hands out indices of sequences.
#[derive(Debug, Clone)]
pub struct Sampler {
    position: Position,
    order: Vec<usize>,
}

impl Sampler {
    /// From the start.
    #[must_use]
    pub fn new(num_sequences: usize, seed: u64) -> Self {
        Self::at(num_sequences, Position { seed, epoch: 0, used: 0 })
    }

    /// From a stored position.
    #[must_use]
    pub fn at(num_sequences: usize, position: Position) -> Self {
        Self { position, order: permutation(num_sequences, position) }
    }

    /// The next `count` sequences; fewer at the end of an epoch, none only when there is no data.
    pub fn next(&mut self, count: usize) -> Vec<usize> {
        if self.position.used >= self.order.len() {
            self.position = Position { epoch: self.position.epoch + 1, used: 0, ..self.position };
            self.order = permutation(self.order.len(), self.position);
        }
        let end = (self.position.used + count).min(self.order.len());
        let next = self.order[self.position.used..end].to_vec();
        self.position.used = end;
        next
    }

    /// To be stored.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Passes over the data, with the begun one as a fraction.
    #[must_use]
    pub fn epochs(&self) -> f64 {
        self.position.epoch as f64 + self.position.used as f64 / self.order.len().max(1) as f64
    }
}

fn permutation(num_sequences: usize, position: Position) -> Vec<usize> {
    let mut order: Vec<usize> = (0..num_sequences).collect();
    Rng::new(position.seed, 0x5A3F_0000 + position.epoch).shuffle(&mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_sequence_once_in_another_order() {
        let mut sampler = Sampler::new(10, 3);
        let epochs: Vec<Vec<usize>> = (0..2).map(|_| (0..3).flat_map(|_| sampler.next(4)).collect()).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(epochs[0], epochs[1]);
    }

    #[test]
    fn a_stored_position_continues_in_the_middle_of_an_epoch() {
        let mut sampler = Sampler::new(10, 3);
        for _ in 0..5 {
            sampler.next(3);
        }
        let stored = serde_json::to_string(&sampler.position()).unwrap();
        let mut resumed = Sampler::at(10, serde_json::from_str(&stored).unwrap());
        for _ in 0..9 {
            assert_eq!(sampler.next(3), resumed.next(3));
        }
    }
}
