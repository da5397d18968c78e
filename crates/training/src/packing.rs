//! Multipack: sequences of unequal length share a row of at most `capacity` tokens.
//!
//! Best-fit decreasing: the longest sequence first, each into the fullest row that still has room for it. At most
//! `11/9 · optimum + 4` rows (Johnson et al. 1974); the default of TRL (`packing_strategy="bfd"`), and the kind that
//! Axolotl's multipack belongs to. Rows are laid one after the other without padding, positions restart and attention ends
//! with every sequence (`tunesmith_model::Batch`), so a packed row computes what its sequences compute alone.
//!
//! The number of rows depends on the lengths alone, not on the order of equally long sequences: every epoch packs a new
//! shuffle into the same number of rows, so the number of steps is known before the first one.

use std::collections::BTreeMap;

/// The rows, each a list of positions in `lengths`. A sequence longer than `capacity` gets a row of its own.
#[must_use]
pub fn pack(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..lengths.len()).collect();
    // stable: sequences of one length stay in the order given, which is the epoch's shuffle
    longest_first.sort_by_key(|index| std::cmp::Reverse(lengths[*index]));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // rows by the room that is left in them
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for index in longest_first {
        let length = lengths[index];
        let fullest = open.range(length..).next().map(|(room, _)| *room);
        let (row, room) = match fullest.and_then(|room| Some((open.get_mut(&room)?.pop()?, room))) {
            Some((row, room)) => {
                if open.get(&room).is_some_and(Vec::is_empty) {
                    open.remove(&room);
                }
                (row, room)
            }
            None => {
                rows.push(Vec::new());
                (rows.len() - 1, capacity.max(length))
            }
        };
        rows[row].push(index);
        if room > length {
            open.entry(room - length).or_default().push(row);
        }
    }
    rows
}

/// What packing achieved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Packing {
    /// Rows of an epoch.
    pub num_rows: usize,
    /// Sequences of an epoch.
    pub num_sequences: usize,
    /// Tokens of an epoch.
    pub num_tokens: usize,
    /// Tokens that fit into a row.
    pub capacity: usize,
}

impl Packing {
    /// Tokens over room: 1 is perfect.
    #[must_use]
    pub fn efficiency(&self) -> f64 {
        self.num_tokens as f64 / (self.num_rows * self.capacity).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_model::rng::Rng;

    use super::*;

    #[test]
    fn every_sequence_is_in_one_row_and_no_row_is_too_full() {
        let mut rng = Rng::new(3, 0);
        let lengths: Vec<usize> = (0..500).map(|_| 2 + rng.below(99)).collect();
        let rows = pack(&lengths, 100);
        let mut all = rows.concat();
        all.sort_unstable();
        assert_eq!(all, (0..500).collect::<Vec<_>>());
        let filled = |row: &Vec<usize>| row.iter().map(|index| lengths[*index]).sum::<usize>();
        assert!(rows.iter().all(|row| filled(row) <= 100));
        let num_tokens = lengths.iter().sum();
        let packing = Packing { num_rows: rows.len(), num_sequences: 500, num_tokens, capacity: 100 };
        assert!(packing.efficiency() > 0.97, "{}", packing.efficiency());
    }

    #[test]
    fn the_number_of_rows_does_not_depend_on_the_order() {
        let mut rng = Rng::new(4, 0);
        let mut lengths: Vec<usize> = (0..200).map(|_| 1 + rng.below(60)).collect();
        let wanted = pack(&lengths, 64).len();
        for _ in 0..20 {
            rng.shuffle(&mut lengths);
            assert_eq!(pack(&lengths, 64).len(), wanted);
        }
    }

    #[test]
    fn the_fullest_row_with_room_is_chosen() {
        assert_eq!(pack(&[4, 6, 5], 10), [vec![1, 0], vec![2]]);
        assert_eq!(pack(&[12, 3], 10), [vec![0], vec![1]], "too long for a row: alone");
        assert!(pack(&[], 10).is_empty());
    }

    #[test]
    fn ten_thousand_sequences_are_packed_at_once() {
        let mut rng = Rng::new(5, 0);
        let lengths: Vec<usize> = (0..10_000).map(|_| 1 + rng.below(2048)).collect();
        assert!(pack(&lengths, 2048).len() >= lengths.iter().sum::<usize>() / 2048);
    }
}
