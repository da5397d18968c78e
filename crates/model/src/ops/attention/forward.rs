//! Forward pass of attention; formulas in the module above.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::tile::{self, ALIGNED, COLUMNS, Causal, Packed, ROWS};
use super::{CHUNK, Segments, Settings, Task, tasks};
use crate::error::Result;
use crate::ops::shared::Shared;
use crate::ops::{exp, host, largest, soft_cap, tensor, vectorised};

/// `O` and `L`.
pub fn forward(qkv: &Tensor, segments: &Segments, settings: Settings) -> Result<(Tensor, Vec<f32>)> {
    let (n, width) = qkv.dims2()?;
    let heads = settings.heads;
    let (d, out_width) = (heads.size, heads.query * heads.size);
    let values = host(qkv)?;
    let mut out = vec![0.0; n * out_width];
    let mut log_sums = vec![0.0; n * heads.query];
    let (out_ptr, log_ptr) = (Shared::new(&mut out), Shared::new(&mut log_sums));
    tasks(segments, heads).into_par_iter().for_each_init(
        || Block::new(d),
        |block, Task { start, end, heads: of_task }| {
            let (k_column, v_column) = settings.key_value_columns(of_task.start);
            let keys = Packed::new(&values[start * width + k_column..], end - start, d, width).panels(d);
            let vals = Packed::new(&values[start * width + v_column..], end - start, d, width);
            for head in of_task {
                for from in (0..end - start).step_by(ALIGNED) {
                    let rows = ALIGNED.min(end - start - from);
                    block.queries.fill(&values[(start + from) * width + head * d..], rows, d, width);
                    block.attend(&keys, &vals, from, rows, settings);
                    for row in 0..rows {
                        let inverse = 1.0 / block.sum[row];
                        // SAFETY: this task alone writes the columns of its heads in the rows of its sequence.
                        let out = unsafe { out_ptr.from((start + from + row) * out_width + head * d) };
                        for (to, value) in out[..d].iter_mut().zip(&block.out[row * vals.width..]) {
                            *to = value * inverse;
                        }
                        // SAFETY: as above, one value per row and head.
                        let log = unsafe { &mut log_ptr.from((start + from + row) * heads.query + head)[0] };
                        *log = block.max[row] + block.sum[row].ln();
                    }
                }
            }
        },
    );
    Ok((tensor(out, (n, out_width))?, log_sums))
}

/// Some queries of a head and what they have gathered so far: scores are exponentiated against the largest of their row yet, and
/// what was gathered before is scaled when a larger one comes (Milakov and Gimelshein 2018).
struct Block {
    queries: Packed,
    scores: Vec<f32>,
    out: Vec<f32>,
    max: [f32; ALIGNED],
    sum: [f32; ALIGNED],
}

impl Block {
    fn new(d: usize) -> Self {
        let queries = Packed::new(&[], 0, d, 1);
        Self { queries, scores: vec![0.0; ALIGNED * CHUNK], out: Vec::new(), max: [0.0; ALIGNED], sum: [0.0; ALIGNED] }
    }

    /// The queries stand at positions `from..from + rows` of the sequence whose keys and values these are.
    fn attend(&mut self, keys: &[f32], vals: &Packed, from: usize, rows: usize, settings: Settings) {
        let d = settings.heads.size;
        let Self { queries, scores, out, max, sum } = self;
        out.clear();
        out.resize(ALIGNED * vals.width, 0.0);
        (*max, *sum) = ([f32::NEG_INFINITY; ALIGNED], [0.0; ALIGNED]);
        for chunk in settings.chunks(from, rows) {
            let causal = Causal { rows, len: chunk.len(), offset: from - chunk.start };
            tile::scores(scores, CHUNK, queries, &keys[chunk.start * d..], d, causal);
            for (row, scores) in scores.chunks_exact_mut(CHUNK).take(rows).enumerate() {
                let seen = settings.seen(from + row, &chunk);
                let before = max[row];
                let added = weights(scores, &seen, settings, &mut max[row]);
                hide(scores, &seen);
                let factor = exp(before - max[row]);
                sum[row] = sum[row] * factor + added;
                if factor < 1.0 {
                    out[row * vals.width..][..vals.width].iter_mut().for_each(|value| *value *= factor);
                }
            }
            tile::add_product(out, scores, CHUNK, &vals.values[chunk.start * vals.width..], vals.width, causal);
        }
    }
}

/// Zeros where a row does not see and a tile may look.
pub(super) fn hide(row: &mut [f32], seen: &Range<usize>) {
    row[..seen.start].fill(0.0);
    let end = (seen.end + ROWS).min(row.len());
    row[seen.end..end].fill(0.0);
}

/// The whole vectors that hold what a row sees.
pub(super) fn whole_vectors(seen: &Range<usize>) -> Range<usize> {
    seen.start / COLUMNS * COLUMNS..seen.end.next_multiple_of(COLUMNS)
}

vectorised! {
/// Products of the columns that a row sees become `exp(S − max)`, where `max` grows to the largest `S`; returns their sum. What lies beside
/// them in the same vectors is lost.
fn weights(row: &mut [f32], seen: &Range<usize>, settings: Settings, max: &mut f32) -> f32 {
    let vectors = whole_vectors(seen);
    let mut scale = settings.scale;
    if let Some(cap) = settings.soft_cap {
        row[vectors.clone()].iter_mut().for_each(|value| *value = soft_cap::value(*value * settings.scale, cap));
        scale = 1.0;
    }
    row[vectors.start..seen.start].fill(f32::NEG_INFINITY);
    row[seen.end..vectors.end].fill(f32::NEG_INFINITY);
    let row = &mut row[vectors];
    let largest = (largest(row) * scale).max(*max);
    *max = largest;
    let mut sums = [0.0f32; COLUMNS];
    for vector in row.chunks_exact_mut(COLUMNS) {
        for (value, sum) in vector.iter_mut().zip(&mut sums) {
            *value = exp(*value * scale - largest);
            *sum += *value;
        }
    }
    sums.iter().sum()
}
}
