//! A matrix of vectors, row by row.

/// Vectors of equal length in one block of memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    dimensions: usize,
    numbers: Vec<f32>,
}

impl Vectors {
    /// Takes `numbers` as rows of `dimensions`; `None` when they do not divide evenly or `dimensions` is 0.
    #[must_use]
    pub fn new(dimensions: usize, numbers: Vec<f32>) -> Option<Self> {
        (dimensions > 0 && numbers.len().is_multiple_of(dimensions)).then_some(Self { dimensions, numbers })
    }

    pub(crate) fn from_rows(dimensions: usize, rows: &[Vec<f32>]) -> Self {
        Self { dimensions, numbers: rows.concat() }
    }

    /// Length of each vector.
    #[must_use]
    pub const fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Number of vectors.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.numbers.len() / self.dimensions
    }

    /// Vector `i`.
    ///
    /// # Panics
    /// When there is no row `i`, like indexing a slice.
    #[must_use]
    pub fn row(&self, i: usize) -> &[f32] {
        &self.numbers[i * self.dimensions..(i + 1) * self.dimensions]
    }

    /// All vectors in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.numbers.chunks_exact(self.dimensions)
    }

    /// All numbers, row by row.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.numbers
    }
}

/// Inner product in eight independent sums, which the compiler turns into vector instructions; a single running sum it
/// may not reorder. The order of additions is fixed, so the result is the same on every machine.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_blocks.zip(b_blocks) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_counts_the_tail() {
        for n in [0, 1, 7, 8, 9, 384] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let expected: f64 = a.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert_eq!(f64::from(dot(&a, &a)), expected, "{n}");
        }
    }

    #[test]
    fn uneven_rows_are_refused() {
        assert!(Vectors::new(3, vec![0.0; 7]).is_none());
        assert!(Vectors::new(0, vec![]).is_none());
        assert_eq!(Vectors::new(3, vec![0.0; 6]).unwrap().rows(), 2);
    }
}
