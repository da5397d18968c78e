//! Backward pass of attention; formulas in the module above.

use candle_core::Tensor;
use rayon::prelude::*;

use super::forward::{hide, whole_vectors};
use super::tile::{self, ALIGNED, COLUMNS, Causal, Packed};
use super::{CHUNK, Segments, Settings, Task, tasks};
use crate::error::Result;
use crate::ops::shared::Shared;
use crate::ops::{exp, host, soft_cap, tensor, vectorised};

/// Gradient with respect to the fused rows.
pub fn backward(
    d_out: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    log_sums: &[f32],
    segments: &Segments,
    settings: Settings,
) -> Result<Tensor> {
    let (n, width) = qkv.dims2()?;
    let (values, d_outs, outs) = (host(qkv)?, host(d_out)?, host(out)?);
    let heads = settings.heads;
    let (d, out_width) = (heads.size, heads.query * heads.size);
    let mut grad = vec![0.0; n * width];
    let grad_ptr = Shared::new(&mut grad);
    let tasks = tasks(segments, heads);
    let of_keys: Vec<Option<OfKeys>> = tasks
        .par_iter()
        .map_init(
            || Block::new(d),
            |block, task| {
                let Task { start, end, heads: of_task } = task;
                let (k_column, v_column) = settings.key_value_columns(of_task.start);
                let keys = Keys::new(&values[start * width..], end - start, (k_column, v_column), d, width);
                let mut of_keys = OfKeys::zero(keys.rows.values.len());
                for head in of_task.clone() {
                    for from in (0..end - start).step_by(ALIGNED) {
                        let rows = ALIGNED.min(end - start - from);
                        let first = start + from;
                        let at = first * out_width + head * d;
                        block.queries.fill(&values[first * width + head * d..], rows, d, width);
                        block.d_out.fill(&d_outs[at..], rows, d, out_width);
                        row_products(&mut block.delta[..rows], &d_outs[at..], &outs[at..], d, out_width);
                        for (row, log_sum) in block.log_sums.iter_mut().take(rows).enumerate() {
                            *log_sum = log_sums[(first + row) * heads.query + head];
                        }
                        block.differentiate(&keys, &mut of_keys, from, rows, settings);
                        for (row, dq) in block.dq.chunks_exact(keys.rows.width).take(rows).enumerate() {
                            // SAFETY: this task alone writes the columns of its query heads in the rows of its sequence.
                            let to = unsafe { grad_ptr.from((first + row) * width + head * d) };
                            to[..d].copy_from_slice(&dq[..d]);
                        }
                    }
                }
                if of_task.len() == heads.group() {
                    add_of_keys(&grad_ptr, &of_keys, task, settings);
                    return None;
                }
                Some(of_keys)
            },
        )
        .collect();
    // tasks that share a key head follow one another
    let per_key_head = tasks.first().map_or(1, |task| heads.group() / task.heads.len());
    of_keys.par_chunks(per_key_head).zip(tasks.par_chunks(per_key_head)).for_each(|(of_keys, tasks)| {
        of_keys.iter().flatten().for_each(|of_keys| add_of_keys(&grad_ptr, of_keys, &tasks[0], settings));
    });
    tensor(grad, (n, width))
}

/// Adds to `dK` and `dV` of a task's key head, of which no other thread computes anything at the same time.
fn add_of_keys(grad: &Shared<'_>, OfKeys { dk, dv }: &OfKeys, task: &Task, settings: Settings) {
    let (d, width) = (settings.heads.size, settings.heads.width());
    let (k_column, v_column) = settings.key_value_columns(task.heads.start);
    let padded = d.next_multiple_of(COLUMNS);
    for row in 0..task.end - task.start {
        let at = (task.start + row) * width;
        // SAFETY: the caller alone writes the columns of this key head and this value head in the rows of the sequence.
        unsafe {
            add(&mut grad.from(at + k_column)[..d], &dk[row * padded..]);
            add(&mut grad.from(at + v_column)[..d], &dv[row * padded..]);
        }
    }
}

fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// What a task's query heads add to `dK` and `dV`, packed.
struct OfKeys {
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl OfKeys {
    fn zero(len: usize) -> Self {
        Self { dk: vec![0.0; len], dv: vec![0.0; len] }
    }
}

/// Keys and values of a head.
struct Keys {
    rows: Packed,
    key_panels: Vec<f32>,
    value_panels: Vec<f32>,
}

impl Keys {
    fn new(values: &[f32], len: usize, (k_column, v_column): (usize, usize), d: usize, width: usize) -> Self {
        let rows = Packed::new(&values[k_column..], len, d, width);
        let value_panels = Packed::new(&values[v_column..], len, d, width).panels(d);
        Self { key_panels: rows.panels(d), rows, value_panels }
    }
}

/// Some queries of a head.
struct Block {
    queries: Packed,
    d_out: Packed,
    delta: [f32; ALIGNED],
    log_sums: [f32; ALIGNED],
    p: Vec<f32>,
    ds: Vec<f32>,
    dq: Vec<f32>,
}

impl Block {
    fn new(d: usize) -> Self {
        let packed = || Packed::new(&[], 0, d, 1);
        let scratch = || vec![0.0; ALIGNED * CHUNK];
        let (delta, log_sums) = ([0.0; ALIGNED], [0.0; ALIGNED]);
        Self { queries: packed(), d_out: packed(), delta, log_sums, p: scratch(), ds: scratch(), dq: Vec::new() }
    }

    /// The queries stand at positions `from..from + rows`.
    fn differentiate(&mut self, keys: &Keys, of_keys: &mut OfKeys, from: usize, rows: usize, settings: Settings) {
        let (d, width) = (settings.heads.size, keys.rows.width);
        let Self { queries, d_out, delta, log_sums, p, ds, dq } = self;
        dq.clear();
        dq.resize(ALIGNED * width, 0.0);
        for chunk in settings.chunks(from, rows) {
            let causal = Causal { rows, len: chunk.len(), offset: from - chunk.start };
            tile::scores(p, CHUNK, queries, &keys.key_panels[chunk.start * d..], d, causal);
            tile::scores(ds, CHUNK, d_out, &keys.value_panels[chunk.start * d..], d, causal);
            for (row, (p, ds)) in p.chunks_exact_mut(CHUNK).zip(ds.chunks_exact_mut(CHUNK)).take(rows).enumerate() {
                let seen = settings.seen(from + row, &chunk);
                // also of what lies beside them in the same vectors, which is hidden afterwards
                let vectors = whole_vectors(&seen);
                gradients(&mut p[vectors.clone()], &mut ds[vectors], log_sums[row], delta[row], settings);
                hide(p, &seen);
                hide(ds, &seen);
            }
            tile::add_product(dq, ds, CHUNK, &keys.rows.values[chunk.start * width..], width, causal);
            tile::add_transposed_product(
                &mut of_keys.dk[chunk.start * width..],
                ds,
                CHUNK,
                &queries.values,
                width,
                causal,
            );
            tile::add_transposed_product(
                &mut of_keys.dv[chunk.start * width..],
                p,
                CHUNK,
                &d_out.values,
                width,
                causal,
            );
        }
    }
}

fn gradients(p: &mut [f32], ds: &mut [f32], log_sum: f32, delta: f32, settings: Settings) {
    match settings.soft_cap {
        None => row_gradient(p, ds, log_sum, delta, settings.scale),
        Some(cap) => capped_row_gradient(p, ds, log_sum, delta, settings.scale, cap),
    }
}

vectorised! {
/// `D = rowsum(a ∘ b)` of rows `stride` apart.
fn row_products(sums: &mut [f32], a: &[f32], b: &[f32], d: usize, stride: usize) {
    for ((sum, a), b) in sums.iter_mut().zip(a.chunks(stride)).zip(b.chunks(stride)) {
        let (a, b) = (a[..d].chunks_exact(8), b[..d].chunks_exact(8));
        let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
        let mut sums = [0.0f32; 8];
        for (a, b) in a.zip(b) {
            for i in 0..8 {
                sums[i] += a[i] * b[i];
            }
        }
        *sum = sums.iter().sum::<f32>() + rest;
    }
}
}

vectorised! {
/// `P` from products and `dS` from `dP`, in place, for the visible keys of one query.
pub(in crate::ops) fn row_gradient(p: &mut [f32], ds: &mut [f32], log_sum: f32, delta: f32, scale: f32) {
    for (p, ds) in p.iter_mut().zip(ds) {
        *p = exp(*p * scale - log_sum);
        *ds = *p * (*ds - delta) * scale;
    }
}
}

vectorised! {
/// The same with a soft cap on the scores.
fn capped_row_gradient(p: &mut [f32], ds: &mut [f32], log_sum: f32, delta: f32, scale: f32, cap: f32) {
    for (p, ds) in p.iter_mut().zip(ds) {
        let score = soft_cap::value(*p * scale, cap);
        *p = exp(score - log_sum);
        *ds = *p * (*ds - delta) * scale * soft_cap::slope(score, cap);
    }
}
}
