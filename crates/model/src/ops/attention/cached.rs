//! Attention of new rows over cached keys and values, which are read where they lie: there is often one new row only, and laying out
//! the keys for it would cost more than reading them.

use std::ops::Range;

use rayon::prelude::*;

use super::Settings;
use crate::ops::gemm::{Threads, View, ViewMut, Write, gemm};
use crate::ops::shared::Shared;
use crate::ops::{exp, largest, soft_cap, vectorised};

/// New rows handled at once.
const BLOCK: usize = 64;

/// Attention of `m` new rows over everything cached: `queries` is `[m, H·d]`, `keys` and `values` hold `past + m` rows of
/// `K·d`; query row `i` stands at position `past + i`. Returns `[m, H·d]`.
pub fn forward_cached(queries: &[f32], keys: &[f32], values: &[f32], past: usize, settings: Settings) -> Vec<f32> {
    let heads = settings.heads;
    let (q_width, kv_width) = (heads.query * heads.size, heads.key_value * heads.size);
    let m = queries.len() / q_width;
    let mut out = vec![0.0; queries.len()];
    let out_ptr = Shared::new(&mut out);
    (0..heads.query).into_par_iter().for_each_init(Vec::new, |scores, head| {
        let column = head / heads.group() * heads.size;
        for from in (0..m).step_by(BLOCK) {
            let to = (from + BLOCK).min(m);
            let block = Block {
                queries: Rows { data: queries, width: q_width, first_column: head * heads.size, first_row: from },
                keys: Rows { data: keys, width: kv_width, first_column: column, first_row: 0 },
                values: Rows { data: values, width: kv_width, first_column: column, first_row: 0 },
                rows: past + from..past + to,
                settings,
            };
            // SAFETY: this task alone writes the columns of its head.
            let out = unsafe { out_ptr.from(from * q_width + head * heads.size) };
            block.attend(scores, out, q_width);
        }
    });
    out
}

/// One head's columns of a row-major matrix.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    width: usize,
    first_column: usize,
    first_row: usize,
}

impl<'a> Rows<'a> {
    /// `rows` rows from `skipped` after the first.
    fn view(self, skipped: usize, rows: usize, d: usize) -> View<'a> {
        View::new(&self.data[(self.first_row + skipped) * self.width + self.first_column..], rows, d, self.width)
    }
}

/// Some query rows of one head; `rows` are their positions among the keys.
struct Block<'a> {
    queries: Rows<'a>,
    keys: Rows<'a>,
    values: Rows<'a>,
    rows: Range<usize>,
    settings: Settings,
}

impl Block<'_> {
    /// Writes `O` of the block (rows `out_width` apart); `scores` is scratch.
    fn attend(&self, scores: &mut Vec<f32>, out: &mut [f32], out_width: usize) {
        let Settings { heads, scale, soft_cap, .. } = self.settings;
        let first = self.settings.first_seen(self.rows.start);
        let (d, rows, seen) = (heads.size, self.rows.len(), self.rows.end - first);
        scores.resize(rows * seen, 0.0);
        let (queries, keys) = (self.queries.view(0, rows, d), self.keys.view(first, seen, d));
        gemm(ViewMut::new(scores, rows, seen, seen), Write::Replace, scale, queries, keys.t(), Threads::One);
        for (position, scores) in self.rows.clone().zip(scores.chunks_exact_mut(seen)) {
            let visible = self.settings.first_seen(position) - first..position - first + 1;
            let row = &mut scores[visible.clone()];
            if let Some(cap) = soft_cap {
                soft_cap::forward(row, cap);
            }
            softmax(row);
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
