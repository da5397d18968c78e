//! The inner block of attention: some query rows of one head against the keys that they see.

use std::ops::Range;

use super::{BLOCK, Settings};
use crate::ops::gemm::{Threads, View, ViewMut, Write, gemm};
use crate::ops::{exp, largest, soft_cap, vectorised};

/// One head's columns of a row-major matrix.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub width: usize,
    pub first_column: usize,
    pub first_row: usize,
}

impl<'a> Rows<'a> {
    /// `rows` rows from `skipped` after the first.
    fn view(self, skipped: usize, rows: usize, d: usize) -> View<'a> {
        View::new(&self.data[(self.first_row + skipped) * self.width + self.first_column..], rows, d, self.width)
    }
}

/// Some query rows of one head; `rows` are their positions among the keys.
pub(super) struct Block<'a> {
    pub queries: Rows<'a>,
    pub keys: Rows<'a>,
    pub values: Rows<'a>,
    pub rows: Range<usize>,
    pub settings: Settings,
}

impl Block<'_> {
    /// Writes `O` of the block (rows `out_width` apart) and `L` of each row; `scores` is scratch.
    pub fn attend(&self, scores: &mut Vec<f32>, out: &mut [f32], out_width: usize, log_sums: &mut [f32; BLOCK]) {
        let Settings { heads, scale, soft_cap, .. } = self.settings;
        let first = self.settings.first_seen(self.rows.start);
        let (d, rows, seen) = (heads.size, self.rows.len(), self.rows.end - first);
        scores.resize(rows * seen, 0.0);
        let (queries, keys) = (self.queries.view(0, rows, d), self.keys.view(first, seen, d));
        gemm(ViewMut::new(scores, rows, seen, seen), Write::Replace, scale, queries, keys.t(), Threads::One);
        for ((position, scores), log_sum) in self.rows.clone().zip(scores.chunks_exact_mut(seen)).zip(log_sums) {
            let visible = self.settings.first_seen(position) - first..position - first + 1;
            let row = &mut scores[visible.clone()];
            if let Some(cap) = soft_cap {
                soft_cap::forward(row, cap);
            }
            *log_sum = softmax(row);
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
        }
        let (probabilities, values) = (View::new(scores, rows, seen, seen), self.values.view(first, seen, d));
        gemm(ViewMut::new(out, rows, d, out_width), Write::Replace, 1.0, probabilities, values, Threads::One);
    }
}

vectorised! {
/// In place; returns `log Σ exp`.
pub(in crate::ops) fn softmax(row: &mut [f32]) -> f32 {
    let max = largest(row);
    let mut sums = [0.0f32; 16];
    let mut chunks = row.chunks_exact_mut(16);
    for chunk in &mut chunks {
        for i in 0..16 {
            chunk[i] = exp(chunk[i] - max);
            sums[i] += chunk[i];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for value in chunks.into_remainder() {
        *value = exp(*value - max);
        sum += *value;
    }
    let inverse = 1.0 / sum;
    row.iter_mut().for_each(|value| *value *= inverse);
    max + sum.ln()
}
}

/// A buffer of which parallel tasks write parts that never overlap.
pub(in crate::ops) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    buffer: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a mutable borrow that lives as long as this value; who calls `from` promises disjointness.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(buffer: &'a mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), buffer: std::marker::PhantomData }
    }

    /// Everything from `offset` on.
    ///
    /// # Safety
    /// Elements that the caller reads or writes through the slice are touched by no other task.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn from(&self, offset: usize) -> &mut [f32] {
        let offset = offset.min(self.len);
        // SAFETY: inside the borrowed buffer; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), self.len - offset) }
    }
}
