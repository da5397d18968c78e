//! Order of the data: every epoch is a permutation fixed by seed and epoch alone, laid out in rows.
//!
//! A row is one sequence or, with packing, as many as fit (see [`crate::packing`]); a step takes rows. The position is three
//! numbers, so it can be stored and a resumed run sees exactly the rows that were to come, however they are split into
//! batches. There is no other random state in training: seed and epoch *are* the state.

use serde::{Deserialize, Serialize};
use tunesmith_model::rng::Rng;

use crate::packing::{Packing, pack};

/// Random streams of one seed: the order of the sequences, and that of packed rows.
const ORDER: u64 = 0x5A3F_0000;
const ROWS: u64 = 0x4077_0000_0000;

/// Where in the data a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Fixes all permutations.
    pub seed: u64,
    /// Passes completed.
    pub epoch: u64,
    /// Rows already used in this pass.
    pub used: usize,
}

/// How sequences become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A sequence is a row.
    Single,
    /// Sequences share rows of this many tokens.
    Packed {
        /// Tokens that fit into a row.
        capacity: usize,
    },
}

/// Hands out rows of sequence indices.
#[derive(Debug, Clone)]
pub struct Sampler {
    position: Position,
    lengths: Vec<usize>,
    layout: Layout,
    rows: Vec<Vec<usize>>,
}

impl Sampler {
    /// From the start; `lengths` are the tokens of each sequence.
    #[must_use]
    pub fn new(lengths: Vec<usize>, layout: Layout, seed: u64) -> Self {
        Self { position: Position { seed, epoch: 0, used: 0 }, rows: Vec::new(), lengths, layout }.laid_out()
    }

    /// The same data from a stored position.
    #[must_use]
    pub fn at(self, position: Position) -> Self {
        Self { position, ..self }.laid_out()
    }

    fn laid_out(self) -> Self {
        Self { rows: rows(&self.lengths, self.layout, self.position), ..self }
    }

    /// The next `count` rows; fewer at the end of an epoch, none only when there is no data.
    pub fn next(&mut self, count: usize) -> Vec<Vec<usize>> {
        if self.position.used >= self.rows.len() {
            self.position = Position { epoch: self.position.epoch + 1, used: 0, ..self.position };
            self.rows = rows(&self.lengths, self.layout, self.position);
        }
        let end = (self.position.used + count).min(self.rows.len());
        let next = self.rows[self.position.used..end].to_vec();
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
        self.position.epoch as f64 + self.position.used as f64 / self.rows.len().max(1) as f64
    }

    /// Rows of an epoch: the same in every one.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// How well the rows are filled; without packing the longest sequence is what a row would be padded to.
    #[must_use]
    pub fn packing(&self) -> Packing {
        let capacity = match self.layout {
            Layout::Single => self.lengths.iter().copied().max().unwrap_or(0),
            Layout::Packed { capacity } => capacity,
        };
        let (num_sequences, num_tokens) = (self.lengths.len(), self.lengths.iter().sum());
        Packing { num_rows: self.rows.len(), num_sequences, num_tokens, capacity }
    }
}

fn rows(lengths: &[usize], layout: Layout, position: Position) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    Rng::new(position.seed, ORDER + position.epoch).shuffle(&mut order);
    match layout {
        Layout::Single => order.into_iter().map(|index| vec![index]).collect(),
        Layout::Packed { capacity } => {
            let shuffled: Vec<usize> = order.iter().map(|index| lengths[*index]).collect();
            let mut rows = pack(&shuffled, capacity);
            rows.iter_mut().flatten().for_each(|place| *place = order[*place]);
            // packing begins with the longest
            Rng::new(position.seed, ROWS + position.epoch).shuffle(&mut rows);
            rows
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 10] = [9, 3, 4, 8, 2, 2, 7, 5, 3, 6];

    fn sampler(layout: Layout) -> Sampler {
        Sampler::new(LENGTHS.to_vec(), layout, 3)
    }

    const PACKED: Layout = Layout::Packed { capacity: 10 };

    #[test]
    fn every_epoch_has_every_sequence_once_in_another_order() {
        for layout in [Layout::Single, PACKED] {
            let mut sampler = sampler(layout);
            let num_rows = sampler.num_rows();
            let mut epoch = || (0..num_rows.div_ceil(4)).flat_map(|_| sampler.next(4)).collect::<Vec<_>>().concat();
            let epochs = [epoch(), epoch()];
            for epoch in &epochs {
                let mut sorted = epoch.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            }
            assert_ne!(epochs[0], epochs[1]);
        }
    }

    #[test]
    fn a_stored_position_continues_in_the_middle_of_an_epoch() {
        for layout in [Layout::Single, PACKED] {
            let mut sampler = sampler(layout);
            for _ in 0..5 {
                sampler.next(3);
            }
            let stored = serde_json::to_string(&sampler.position()).unwrap();
            let mut resumed = self::sampler(layout).at(serde_json::from_str(&stored).unwrap());
            for _ in 0..9 {
                assert_eq!(sampler.next(3), resumed.next(3));
            }
        }
    }

    #[test]
    fn packing_fills_rows_and_keeps_their_number() {
        let mut packed = sampler(PACKED);
        assert_eq!((packed.num_rows(), packed.packing().efficiency()), (5, 49.0 / 50.0));
        assert_eq!(sampler(Layout::Single).packing().efficiency(), 49.0 / 90.0, "what padding would waste");
        for _ in 0..20 {
            for row in packed.next(1) {
                assert!(row.iter().map(|index| LENGTHS[*index]).sum::<usize>() <= 10);
            }
        }
        assert_eq!((packed.position().epoch, packed.num_rows()), (3, 5));
    }
}
