//! Causal grouped-query attention over packed sequences, in blocks, without storing the probabilities.
//!
//! Per head: `P = softmax(scale · Q Kᵀ)` over the keys at or before each query *of the same sequence*, `O = P V`.
//! Kept for the backward pass: `O` and `L = log Σ exp` of each row (the FlashAttention form, Dao et al. 2022):
//! `P = exp(scale · Q Kᵀ − L)`, `D = rowsum(dO ∘ O)`, `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P ∘ (dP − D) · scale`, `dQ = dS K`,
//! `dK = dSᵀ Q`.
//!
//! Shapes: one fused row per token, `[n, (H + 2K)·d]`: query heads, key heads, value heads; query head `i` reads key head
//! `i / (H/K)`. `O` is `[n, H·d]`, `L` is `[n·H]`, head by head within a row.
//!
//! Sequences lie one after the other in the rows ([`Segments`]); a query sees its own sequence only, so a packed batch equals
//! its sequences computed alone. No padding exists. One task per (sequence, key head): the sums over a group's query heads
//! run in one fixed order.

use candle_core::Tensor;
use rayon::prelude::*;

use super::gemm::{Threads, View, ViewMut, Write, gemm};
use super::{exp, host, largest, tensor, vectorised};
use crate::error::Result;

/// Query rows handled at once: 64 rows of scores of a 2,048-token sequence take 512 KB, which stays in the second-level cache.
const BLOCK: usize = 64;

/// Where each sequence of a batch lies in the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    bounds: Vec<(usize, usize)>,
}

impl Segments {
    /// Sequences of these lengths, one after the other.
    #[must_use]
    pub fn from_lengths(lengths: &[usize]) -> Self {
        let mut start = 0;
        let bounds = lengths.iter().map(|length| {
            start += length;
            (start - length, start)
        });
        Self { bounds: bounds.filter(|(start, end)| start < end).collect() }
    }

    /// Neighbouring rows with the same id form one sequence.
    #[must_use]
    pub fn from_ids(ids: &[u32]) -> Self {
        let lengths: Vec<usize> = ids.chunk_by(|a, b| a == b).map(<[u32]>::len).collect();
        Self::from_lengths(&lengths)
    }

    /// Position of each row within its sequence.
    #[must_use]
    pub fn positions(&self) -> Vec<u32> {
        self.bounds.iter().flat_map(|(start, end)| 0..(end - start) as u32).collect()
    }

    /// First and one-past-last row of each sequence.
    #[must_use]
    pub fn bounds(&self) -> &[(usize, usize)] {
        &self.bounds
    }
}

/// Number and size of the heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads `H`.
    pub query: usize,
    /// Key and value heads `K`; divides `H`.
    pub key_value: usize,
    /// Values per head `d`.
    pub size: usize,
}

impl Heads {
    /// Width of a fused row.
    #[must_use]
    pub fn width(self) -> usize {
        (self.query + 2 * self.key_value) * self.size
    }

    fn group(self) -> usize {
        self.query / self.key_value
    }

    fn scale(self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }
}

/// `O` and `L`.
pub fn forward(qkv: &Tensor, segments: &Segments, heads: Heads) -> Result<(Tensor, Vec<f32>)> {
    let (n, width) = qkv.dims2()?;
    let values = host(qkv)?;
    let mut out = vec![0.0; n * heads.query * heads.size];
    let mut log_sums = vec![0.0; n * heads.query];
    let (out_ptr, log_ptr) = (Shared::new(&mut out), Shared::new(&mut log_sums));
    tasks(segments, heads).into_par_iter().for_each_init(Vec::new, |scores, ((start, end), kv)| {
        let d = heads.size;
        let keys = Rows { data: &values, width, first_column: (heads.query + kv) * d, first_row: start };
        let vals = Rows { first_column: keys.first_column + heads.key_value * d, ..keys };
        for head in kv * heads.group()..(kv + 1) * heads.group() {
            for from in (start..end).step_by(BLOCK) {
                let to = (from + BLOCK).min(end);
                let queries = Rows { data: &values, width, first_column: head * d, first_row: from };
                let mut logs = [0.0; BLOCK];
                let rows = from - start..to - start;
                let block = Block { queries, keys, values: vals, rows, heads };
                // SAFETY: this task alone writes the columns of its heads in the rows of its sequence.
                let out = unsafe { out_ptr.from(from * heads.query * d + head * d) };
                block.attend(scores, out, heads.query * d, &mut logs);
                for (row, log) in (from..to).zip(logs) {
                    // SAFETY: as above, one value per row and head.
                    unsafe { log_ptr.from(row * heads.query + head)[0] = log };
                }
            }
        }
    });
    Ok((tensor(out, (n, heads.query * heads.size))?, log_sums))
}

/// Attention of `m` new rows over everything cached: `queries` is `[m, H·d]`, `keys` and `values` hold `past + m` rows of
/// `K·d`; query row `i` sees keys `0..=past + i`. Returns `[m, H·d]`.
pub fn forward_cached(queries: &[f32], keys: &[f32], values: &[f32], past: usize, heads: Heads) -> Vec<f32> {
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
                heads,
            };
            // SAFETY: this task alone writes the columns of its head.
            let out = unsafe { out_ptr.from(from * q_width + head * heads.size) };
            block.attend(scores, out, q_width, &mut [0.0; BLOCK]);
        }
    });
    out
}

/// Gradient with respect to the fused rows.
pub fn backward(
    d_out: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    log_sums: &[f32],
    segments: &Segments,
    heads: Heads,
) -> Result<Tensor> {
    let (n, width) = qkv.dims2()?;
    let (values, d_outs, outs) = (host(qkv)?, host(d_out)?, host(out)?);
    let (d, scale, out_width) = (heads.size, heads.scale(), heads.query * heads.size);
    let mut grad = vec![0.0; n * width];
    let grad_ptr = Shared::new(&mut grad);
    tasks(segments, heads).into_par_iter().for_each_init(
        <(Vec<f32>, Vec<f32>)>::default,
        |(p, ds), ((start, end), kv)| {
            let k_column = (heads.query + kv) * d;
            let v_column = k_column + heads.key_value * d;
            let at = |row: usize, column: usize| row * width + column;
            for head in kv * heads.group()..(kv + 1) * heads.group() {
                for from in (start..end).step_by(BLOCK) {
                    let to = (from + BLOCK).min(end);
                    let (rows, seen) = (to - from, to - start);
                    p.resize(rows * seen, 0.0);
                    ds.resize(rows * seen, 0.0);
                    let queries = View::new(&values[at(from, head * d)..], rows, d, width);
                    let keys = View::new(&values[at(start, k_column)..], seen, d, width);
                    let vals = View::new(&values[at(start, v_column)..], seen, d, width);
                    let d_out = View::new(&d_outs[from * out_width + head * d..], rows, d, out_width);
                    gemm(ViewMut::new(p, rows, seen, seen), Write::Replace, scale, queries, keys.t(), Threads::One);
                    gemm(ViewMut::new(ds, rows, seen, seen), Write::Replace, 1.0, d_out, vals.t(), Threads::One);
                    for (i, (p, ds)) in p.chunks_exact_mut(seen).zip(ds.chunks_exact_mut(seen)).enumerate() {
                        let row = from + i;
                        let at = row * out_width + head * d;
                        let delta: f32 = d_outs[at..at + d].iter().zip(&outs[at..at + d]).map(|(a, b)| a * b).sum();
                        let log_sum = log_sums[row * heads.query + head];
                        let visible = row - start + 1;
                        backward_row(&mut p[..visible], &mut ds[..visible], log_sum, delta, scale);
                        p[visible..].fill(0.0);
                        ds[visible..].fill(0.0);
                    }
                    let (p, ds) = (View::new(p, rows, seen, seen), View::new(ds, rows, seen, seen));
                    // SAFETY: this task alone writes its query heads, its key head and its value head in its sequence.
                    let (dq, dk, dv) = unsafe {
                        (
                            grad_ptr.from(at(from, head * d)),
                            grad_ptr.from(at(start, k_column)),
                            grad_ptr.from(at(start, v_column)),
                        )
                    };
                    gemm(ViewMut::new(dq, rows, d, width), Write::Replace, 1.0, ds, keys, Threads::One);
                    gemm(ViewMut::new(dk, seen, d, width), Write::Add, 1.0, ds.t(), queries, Threads::One);
                    gemm(ViewMut::new(dv, seen, d, width), Write::Add, 1.0, p.t(), d_out, Threads::One);
                }
            }
        },
    );
    tensor(grad, (n, width))
}

type Task = ((usize, usize), usize);

fn tasks(segments: &Segments, heads: Heads) -> Vec<Task> {
    segments.bounds.iter().flat_map(|bounds| (0..heads.key_value).map(move |kv| (*bounds, kv))).collect()
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
    fn view(self, rows: usize, d: usize) -> View<'a> {
        View::new(&self.data[self.first_row * self.width + self.first_column..], rows, d, self.width)
    }
}

/// Some query rows of one head; `rows` are their positions among the keys.
struct Block<'a> {
    queries: Rows<'a>,
    keys: Rows<'a>,
    values: Rows<'a>,
    rows: std::ops::Range<usize>,
    heads: Heads,
}

impl Block<'_> {
    fn attend(&self, scores: &mut Vec<f32>, out: &mut [f32], out_width: usize, log_sums: &mut [f32; BLOCK]) {
        let (d, rows, seen) = (self.heads.size, self.rows.len(), self.rows.end);
        scores.resize(rows * seen, 0.0);
        let (queries, keys) = (self.queries.view(rows, d), self.keys.view(seen, d));
        gemm(
            ViewMut::new(scores, rows, seen, seen),
            Write::Replace,
            self.heads.scale(),
            queries,
            keys.t(),
            Threads::One,
        );
        for ((i, scores), log_sum) in scores.chunks_exact_mut(seen).enumerate().zip(log_sums) {
            let (visible, hidden) = scores.split_at_mut(self.rows.start + i + 1);
            *log_sum = softmax(visible);
            hidden.fill(0.0);
        }
        let probabilities = View::new(scores, rows, seen, seen);
        gemm(
            ViewMut::new(out, rows, d, out_width),
            Write::Replace,
            1.0,
            probabilities,
            self.values.view(seen, d),
            Threads::One,
        );
    }
}

vectorised! {
/// `P` from scores and `dS` from `dP`, in place, for the visible keys of one query.
fn backward_row(p: &mut [f32], ds: &mut [f32], log_sum: f32, delta: f32, scale: f32) {
    for (p, ds) in p.iter_mut().zip(ds) {
        *p = exp(*p - log_sum);
        *ds = *p * (*ds - delta) * scale;
    }
}
}

vectorised! {
/// In place; returns `log Σ exp`.
fn softmax(row: &mut [f32]) -> f32 {
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
struct Shared<'a> {
    start: *mut f32,
    len: usize,
    buffer: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a mutable borrow that lives as long as this value; who calls `from` promises disjointness.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn new(buffer: &'a mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), buffer: std::marker::PhantomData }
    }

    /// Everything from `offset` on.
    ///
    /// # Safety
    /// Elements that the caller reads or writes through the slice are touched by no other task.
    #[allow(clippy::mut_from_ref)]
    unsafe fn from(&self, offset: usize) -> &mut [f32] {
        let offset = offset.min(self.len);
        // SAFETY: inside the borrowed buffer; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), self.len - offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, dot, random};

    const HEADS: Heads = Heads { query: 4, key_value: 2, size: 8 };

    /// The textbook form in f64.
    fn naive(qkv: &Tensor, lengths: &[usize]) -> Vec<Vec<f64>> {
        let rows = qkv.to_vec2::<f32>().unwrap();
        let d = HEADS.size;
        let mut out = vec![vec![0.0; HEADS.query * d]; rows.len()];
        for (start, end) in Segments::from_lengths(lengths).bounds() {
            for i in *start..*end {
                for head in 0..HEADS.query {
                    let kv = head / 2;
                    let score = |j: usize| -> f64 {
                        let k = (HEADS.query + kv) * d;
                        (0..d).map(|c| f64::from(rows[i][head * d + c]) * f64::from(rows[j][k + c])).sum::<f64>()
                            / (d as f64).sqrt()
                    };
                    let total: f64 = (*start..=i).map(|j| score(j).exp()).sum();
                    #[allow(clippy::needless_range_loop)] // the formula's own index
                    for j in *start..=i {
                        let v = (HEADS.query + HEADS.key_value + kv) * d;
                        for c in 0..d {
                            out[i][head * d + c] += score(j).exp() / total * f64::from(rows[j][v + c]);
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn forward_equals_the_textbook_form_across_blocks_and_sequences() {
        let lengths = [3, 150, 1, 64];
        let qkv = random(1, &[218, HEADS.width()], 2.0);
        let (out, _) = forward(&qkv, &Segments::from_lengths(&lengths), HEADS).unwrap();
        for (row, wanted) in out.to_vec2::<f32>().unwrap().iter().zip(naive(&qkv, &lengths)) {
            for (a, b) in row.iter().zip(wanted) {
                assert!((f64::from(*a) - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        let segments = Segments::from_lengths(&[70, 2]);
        let (qkv, d_out) = (random(1, &[72, HEADS.width()], 1.0), random(2, &[72, HEADS.query * HEADS.size], 1.0));
        let (out, log_sums) = forward(&qkv, &segments, HEADS).unwrap();
        let grad = backward(&d_out, &qkv, &out, &log_sums, &segments, HEADS).unwrap();
        check_gradient(&qkv, &grad, 3e-3, |x| dot(&forward(x, &segments, HEADS).unwrap().0, &d_out));
    }

    #[test]
    fn cached_rows_equal_the_whole_sequence() {
        let n = 130;
        let qkv = random(5, &[n, HEADS.width()], 1.0);
        let (out, _) = forward(&qkv, &Segments::from_lengths(&[n]), HEADS).unwrap();
        let out = out.to_vec2::<f32>().unwrap();
        let rows = qkv.to_vec2::<f32>().unwrap();
        let columns = |from: usize, heads: usize, rows: &[Vec<f32>]| -> Vec<f32> {
            rows.iter().flat_map(|row| row[from * HEADS.size..(from + heads) * HEADS.size].to_vec()).collect()
        };
        let (keys, values) = (columns(4, 2, &rows), columns(6, 2, &rows));
        let late = forward_cached(&columns(0, 4, &rows[50..]), &keys, &values, 50, HEADS);
        for (a, b) in late.iter().zip(out[50..].concat()) {
            assert!((a - b).abs() < 1e-6);
        }
    }

    #[test]
    fn ids_and_lengths_describe_the_same_segments() {
        assert_eq!(Segments::from_ids(&[4, 4, 9, 9, 9, 1]), Segments::from_lengths(&[2, 3, 0, 1]));
        assert_eq!(Segments::from_lengths(&[2, 3]).positions(), [0, 1, 0, 1, 2]);
    }
}
