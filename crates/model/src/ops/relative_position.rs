//! Bias of attention scores by relative position (T5, Raffel et al. 2020): a learned value for each head and bucket of distances.
//!
//! The bias of query `i` and key `j` is `B[bucket(j − i), head]`. An encoder has half of its buckets for keys up to the query and
//! half for those after it; a decoder, which looks back, has all for keys up to the query. Of `n` buckets for one direction the
//! first `e = n / 2` hold one distance each, the others the larger ones on a logarithmic scale:
//! `e + ⌊ln(distance / e) / ln(max / e) · (n − e)⌋`, at most `n − 1`. Single precision throughout, as PyTorch rounds.
//! Shapes: `B` `[buckets, H]`. Nothing depends on a longest length; `B` is frozen.

use candle_core::Tensor;

use super::host;
use crate::error::Result;

/// Which way attention looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Encoder.
    Both,
    /// Decoder.
    Back,
}

/// How distances fall into buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    /// Number of buckets, at least 4.
    pub count: usize,
    /// All larger distances share the last bucket; more than half of the buckets for one direction.
    pub max_distance: usize,
    /// Which way attention looks.
    pub direction: Direction,
}

impl Buckets {
    /// The bucket of a key that stands `relative` places after the query.
    #[must_use]
    pub fn bucket(self, relative: i64) -> usize {
        let distance = relative.unsigned_abs() as usize;
        let (count, first, distance) = match self.direction {
            Direction::Both => (self.count / 2, if relative > 0 { self.count / 2 } else { 0 }, distance),
            Direction::Back => (self.count, 0, if relative > 0 { 0 } else { distance }),
        };
        let exact = count / 2;
        if distance < exact {
            return first + distance;
        }
        let share = (distance as f32 / exact as f32).ln() / ((self.max_distance as f64 / exact as f64).ln() as f32);
        let wide = exact + (share * (count - exact) as f32) as usize;
        first + wide.min(count - 1)
    }
}

/// The bias of every distance that occurs.
#[derive(Debug)]
pub struct RelativeBias {
    /// For each head from the key that is furthest before its query to the one furthest after.
    by_head: Vec<Vec<f32>>,
    queries: usize,
}

impl RelativeBias {
    /// For positions below `queries` and `keys`; `table` is `B`.
    pub fn new(table: &Tensor, buckets: Buckets, queries: usize, keys: usize) -> Result<Self> {
        let (_, heads) = table.dims2()?;
        let values = host(table)?;
        let rows: Vec<usize> =
            (1 - queries as i64..keys as i64).map(|relative| buckets.bucket(relative) * heads).collect();
        let by_head = (0..heads).map(|head| rows.iter().map(|row| values[row + head]).collect()).collect();
        Ok(Self { by_head, queries })
    }

    /// The bias of the first `keys` keys for the query at `position`.
    pub(super) fn row(&self, head: usize, position: usize, keys: usize) -> &[f32] {
        let start = self.queries - 1 - position;
        &self.by_head[head][start..start + keys]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;

    #[test]
    fn near_distances_have_a_bucket_each_and_far_ones_share() {
        let both = Buckets { count: 32, max_distance: 128, direction: Direction::Both };
        assert_eq!([0, -1, -7, -8, -15, -127, -5000].map(|r| both.bucket(r)), [0, 1, 7, 8, 9, 15, 15]);
        assert_eq!([1, 7, 8, 5000].map(|r| both.bucket(r)), [17, 23, 24, 31]);
        let back = Buckets { direction: Direction::Back, ..both };
        assert_eq!([5, 0, -15, -16, -5000].map(|r| back.bucket(r)), [0, 0, 15, 16, 31]);
    }

    #[test]
    fn a_row_is_the_bias_of_its_query() {
        let buckets = Buckets { count: 8, max_distance: 20, direction: Direction::Both };
        let table = random(1, &[8, 3], 1.0);
        let values = table.to_vec2::<f32>().unwrap();
        let bias = RelativeBias::new(&table, buckets, 5, 9).unwrap();
        for (head, position) in [(0, 0), (2, 3), (1, 4)] {
            let row = bias.row(head, position, 9);
            for (key, value) in row.iter().enumerate() {
                assert_eq!(*value, values[buckets.bucket(key as i64 - position as i64)][head]);
            }
        }
    }
}
