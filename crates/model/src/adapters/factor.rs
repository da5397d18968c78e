//! A factor on the columns of a module: `y ← f ∘ v`, where rows of `y` lie `row_stride` apart and the module's columns begin each.

use rayon::prelude::*;

use crate::ops::ROWS_PER_TASK;

/// Multiplies in place.
pub(super) fn scale(y: &mut [f32], row_stride: usize, factors: &[f32]) {
    y.par_chunks_mut(row_stride * ROWS_PER_TASK).for_each(|rows| {
        for row in rows.chunks_mut(row_stride) {
            row.iter_mut().zip(factors).for_each(|(y, factor)| *y *= factor);
        }
    });
}

/// Multiplies in place; returns what was there, `[n, factors]` without gaps.
pub(super) fn scale_and_keep(y: &mut [f32], row_stride: usize, factors: &[f32]) -> Vec<f32> {
    let len = factors.len();
    let mut kept = vec![0.0; y.len().div_ceil(row_stride) * len];
    let rows = y.par_chunks_mut(row_stride * ROWS_PER_TASK).zip(kept.par_chunks_mut(len * ROWS_PER_TASK));
    rows.for_each(|(rows, kept)| {
        for (row, kept) in rows.chunks_mut(row_stride).zip(kept.chunks_exact_mut(len)) {
            kept.copy_from_slice(&row[..len]);
            row.iter_mut().zip(factors).for_each(|(y, factor)| *y *= factor);
        }
    });
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_columns_of_the_module_are_touched() {
        // 40 rows of 5, the module has the columns 2 and 3
        let whole: Vec<f32> = (0..200).map(|value| value as f32).collect();
        let mut kept_too = whole.clone();
        let kept = scale_and_keep(&mut kept_too[2..], 5, &[2.0, 3.0]);
        let mut scaled = whole.clone();
        scale(&mut scaled[2..], 5, &[2.0, 3.0]);
        for (index, before) in whole.iter().enumerate() {
            let factor = [1.0, 1.0, 2.0, 3.0, 1.0][index % 5];
            assert_eq!((scaled[index], kept_too[index]), (before * factor, before * factor));
        }
        assert_eq!(kept, whole.chunks(5).flat_map(|row| row[2..4].to_vec()).collect::<Vec<_>>());
    }
}
