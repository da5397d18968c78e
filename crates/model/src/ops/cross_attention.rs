//! Attention of the queries of one sequence over the keys and values of another, or of the same: T5's three kinds.
//!
//! Per head: `S_ij = Q_i · K_j + b(j − i)`, without a scale; `b` is [`super::relative_position`] or absent.
//! `P = softmax(S)` over the keys that a query sees, all of them or those up to its own position; `O = P V`.
//! Kept for the backward pass: `O` and `L = log Σ exp S` of each row: `P = exp(S − L)`, `D = rowsum(dO ∘ O)`, `dV = Pᵀ dO`,
//! `dP = dO Vᵀ`, `dS = P ∘ (dP − D)`, `dQ = dS K`, `dK = dSᵀ Q`. `b` is frozen.
//!
//! Shapes: `Q` and `O` `[n, H·d]`, `KV` `[t, 2·H·d]` with all keys of a row before its values, `L` `[n·H]`, head by head within a
//! row. Sequences lie one after the other in the rows; the i-th of the queries looks at the i-th of the keys ([`Pair`]).
//! One task per pair and head.

use rayon::prelude::*;

use super::attention::Segments;
use super::attention::backward::row_gradient;
use super::attention::cached::softmax;
use super::gemm::{Threads, View, ViewMut, Write, gemm};
use super::relative_position::RelativeBias;
use super::shared::Shared;

/// Query rows handled at once: 64 rows of scores of a 2,048-token sequence take 512 KB, which stays in the second-level cache.
const BLOCK: usize = 64;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// All of its pair.
    All,
    /// Those up to its own position.
    Past,
}

/// What fixes attention beside queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// Heads `H`.
    pub heads: usize,
    /// Values per head `d`.
    pub size: usize,
    /// Which keys a query sees.
    pub sees: Sees,
    /// Bias by relative position.
    pub bias: Option<&'a RelativeBias>,
}

/// Rows that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// First and one-past-last row of the queries.
    pub queries: (usize, usize),
    /// First and one-past-last row of the keys.
    pub keys: (usize, usize),
    /// Position of the first query among the keys.
    pub past: usize,
}

/// The i-th sequence of the queries with the i-th of the keys.
#[must_use]
pub fn pairs(queries: &Segments, keys: &Segments) -> Vec<Pair> {
    let pair = |(queries, keys): (&(usize, usize), &(usize, usize))| Pair { queries: *queries, keys: *keys, past: 0 };
    queries.bounds().iter().zip(keys.bounds()).map(pair).collect()
}

/// `O` and `L`.
#[must_use]
pub fn forward(q: &[f32], kv: &[f32], pairs: &[Pair], settings: Settings<'_>) -> (Vec<f32>, Vec<f32>) {
    let Settings { heads, size: d, .. } = settings;
    let width = heads * d;
    let mut out = vec![0.0; q.len()];
    let mut log_sums = vec![0.0; q.len() / d];
    let (out_ptr, log_ptr) = (Shared::new(&mut out), Shared::new(&mut log_sums));
    tasks(pairs, heads).into_par_iter().for_each_init(Vec::new, |scores, (pair, head)| {
        for block in blocks(pair, head, settings) {
            block.scores(q, kv, scores);
            for (i, row) in scores.chunks_exact_mut(block.seen).enumerate() {
                let (visible, hidden) = row.split_at_mut(block.visible(i));
                // SAFETY: this task alone writes the values of its head in the rows of its pair.
                unsafe { log_ptr.from((block.from + i) * heads + head)[0] = softmax(visible) };
                hidden.fill(0.0);
            }
            // SAFETY: as above.
            let out = unsafe { out_ptr.from(block.from * width + head * d) };
            let p = View::new(scores, block.rows, block.seen, block.seen);
            gemm(ViewMut::new(out, block.rows, d, width), Write::Replace, 1.0, p, block.values(kv), Threads::One);
        }
    });
    (out, log_sums)
}

/// What the forward pass took and gave.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// `Q`.
    pub q: &'a [f32],
    /// `KV`.
    pub kv: &'a [f32],
    /// `O`.
    pub out: &'a [f32],
    /// `L`.
    pub log_sums: &'a [f32],
}

/// `dQ` and `dKV`.
#[must_use]
pub fn backward(d_out: &[f32], kept: Kept<'_>, pairs: &[Pair], settings: Settings<'_>) -> (Vec<f32>, Vec<f32>) {
    let Settings { heads, size: d, .. } = settings;
    let (width, kv_width) = (heads * d, 2 * heads * d);
    let (mut dq, mut dkv) = (vec![0.0; kept.q.len()], vec![0.0; kept.kv.len()]);
    let (dq_ptr, dkv_ptr) = (Shared::new(&mut dq), Shared::new(&mut dkv));
    tasks(pairs, heads).into_par_iter().for_each_init(<(Vec<f32>, Vec<f32>)>::default, |(p, ds), (pair, head)| {
        for block in blocks(pair, head, settings) {
            let (from, rows, seen) = (block.from, block.rows, block.seen);
            block.scores(kept.q, kept.kv, p);
            ds.resize(rows * seen, 0.0);
            let d_rows = View::new(&d_out[from * width + head * d..], rows, d, width);
            let values = block.values(kept.kv);
            gemm(ViewMut::new(ds, rows, seen, seen), Write::Replace, 1.0, d_rows, values.t(), Threads::One);
            for (i, (p, ds)) in p.chunks_exact_mut(seen).zip(ds.chunks_exact_mut(seen)).enumerate() {
                let at = (from + i) * width + head * d;
                let delta: f32 = d_out[at..at + d].iter().zip(&kept.out[at..at + d]).map(|(a, b)| a * b).sum();
                let visible = block.visible(i);
                let log_sum = kept.log_sums[(from + i) * heads + head];
                row_gradient(&mut p[..visible], &mut ds[..visible], log_sum, delta, 1.0);
                p[visible..].fill(0.0);
                ds[visible..].fill(0.0);
            }
            let (p, ds) = (View::new(p, rows, seen, seen), View::new(ds, rows, seen, seen));
            let key_at = block.first_key * kv_width + head * d;
            // SAFETY: this task alone writes the columns of its head in the rows of its pair.
            let (dq, dk, dv) =
                unsafe { (dq_ptr.from(from * width + head * d), dkv_ptr.from(key_at), dkv_ptr.from(key_at + width)) };
            let (queries, keys) = (block.queries(kept.q), block.keys(kept.kv));
            gemm(ViewMut::new(dq, rows, d, width), Write::Replace, 1.0, ds, keys, Threads::One);
            gemm(ViewMut::new(dk, seen, d, kv_width), Write::Add, 1.0, ds.t(), queries, Threads::One);
            gemm(ViewMut::new(dv, seen, d, kv_width), Write::Add, 1.0, p.t(), d_rows, Threads::One);
        }
    });
    (dq, dkv)
}

fn tasks(pairs: &[Pair], heads: usize) -> Vec<(Pair, usize)> {
    pairs.iter().flat_map(|pair| (0..heads).map(move |head| (*pair, head))).collect()
}

/// Some query rows of one head, and the keys that the last of them sees.
struct Block<'a> {
    settings: Settings<'a>,
    head: usize,
    /// First query row, and its position among the keys.
    from: usize,
    position: usize,
    rows: usize,
    first_key: usize,
    seen: usize,
}

fn blocks(pair: Pair, head: usize, settings: Settings<'_>) -> impl Iterator<Item = Block<'_>> {
    let (first, last) = pair.queries;
    let (first_key, num_keys) = (pair.keys.0, pair.keys.1 - pair.keys.0);
    (first..last).step_by(BLOCK).map(move |from| {
        let (rows, position) = (BLOCK.min(last - from), pair.past + from - first);
        let seen = if settings.sees == Sees::Past { num_keys.min(position + rows) } else { num_keys };
        Block { settings, head, from, position, rows, first_key, seen }
    })
}

impl Block<'_> {
    fn queries<'a>(&self, q: &'a [f32]) -> View<'a> {
        let (d, width) = (self.settings.size, self.settings.heads * self.settings.size);
        View::new(&q[self.from * width + self.head * d..], self.rows, d, width)
    }

    fn keys<'a>(&self, kv: &'a [f32]) -> View<'a> {
        self.columns(kv, self.head)
    }

    fn values<'a>(&self, kv: &'a [f32]) -> View<'a> {
        self.columns(kv, self.settings.heads + self.head)
    }

    fn columns<'a>(&self, kv: &'a [f32], index: usize) -> View<'a> {
        let (d, width) = (self.settings.size, 2 * self.settings.heads * self.settings.size);
        View::new(&kv[self.first_key * width + index * d..], self.seen, d, width)
    }

    /// How many keys the i-th query sees.
    fn visible(&self, i: usize) -> usize {
        if self.settings.sees == Sees::Past { self.seen.min(self.position + i + 1) } else { self.seen }
    }

    /// `S`, `[rows, seen]`.
    fn scores(&self, q: &[f32], kv: &[f32], scores: &mut Vec<f32>) {
        let (rows, seen) = (self.rows, self.seen);
        scores.resize(rows * seen, 0.0);
        let (queries, keys) = (self.queries(q), self.keys(kv));
        gemm(ViewMut::new(scores, rows, seen, seen), Write::Replace, 1.0, queries, keys.t(), Threads::One);
        let Some(bias) = self.settings.bias else { return };
        for (i, row) in scores.chunks_exact_mut(seen).enumerate() {
            let bias = bias.row(self.head, self.position + i, seen);
            row.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::*;
    use crate::ops::relative_position::{Buckets, Direction};
    use crate::ops::testing::{check_gradient, dot, random};
    use crate::ops::{host, tensor};

    const HEADS: usize = 3;
    const SIZE: usize = 4;
    const WIDTH: usize = HEADS * SIZE;

    fn bias(direction: Direction) -> RelativeBias {
        let buckets = Buckets { count: 8, max_distance: 20, direction };
        RelativeBias::new(&random(7, &[8, HEADS], 1.0), buckets, 150, 150).unwrap()
    }

    /// The three kinds, with sequences longer than a block.
    fn kinds<'a>(both: &'a RelativeBias, back: &'a RelativeBias) -> Vec<(Settings<'a>, [usize; 2], [usize; 2])> {
        let with = |sees, bias| Settings { heads: HEADS, size: SIZE, sees, bias };
        vec![
            (with(Sees::All, Some(both)), [3, 130], [3, 130]),
            (with(Sees::Past, Some(back)), [130, 3], [130, 3]),
            (with(Sees::All, None), [70, 5], [2, 90]),
        ]
    }

    /// The textbook form in f64.
    fn naive(q: &[f32], kv: &[f32], pairs: &[Pair], settings: Settings<'_>) -> Vec<f64> {
        let mut out = vec![0.0; q.len()];
        for Pair { queries, keys, past } in pairs {
            for i in queries.0..queries.1 {
                for head in 0..HEADS {
                    let position = past + i - queries.0;
                    let last = if settings.sees == Sees::Past { keys.0 + position + 1 } else { keys.1 };
                    let score = |j: usize| -> f64 {
                        let at = |c: usize| (i * WIDTH + head * SIZE + c, j * 2 * WIDTH + head * SIZE + c);
                        let dot: f64 = (0..SIZE).map(at).map(|(a, b)| f64::from(q[a]) * f64::from(kv[b])).sum();
                        dot + settings
                            .bias
                            .map_or(0.0, |bias| f64::from(bias.row(head, position, j - keys.0 + 1)[j - keys.0]))
                    };
                    let total: f64 = (keys.0..last).map(|j| score(j).exp()).sum();
                    for j in keys.0..last {
                        for c in 0..SIZE {
                            let value = f64::from(kv[j * 2 * WIDTH + WIDTH + head * SIZE + c]);
                            out[i * WIDTH + head * SIZE + c] += score(j).exp() / total * value;
                        }
                    }
                }
            }
        }
        out
    }

    fn inputs(queries: [usize; 2], keys: [usize; 2], scale: f32) -> (Tensor, Tensor, Vec<Pair>) {
        let (n, t) = (queries.iter().sum(), keys.iter().sum());
        let pairs = pairs(&Segments::from_lengths(&queries), &Segments::from_lengths(&keys));
        (random(1, &[n, WIDTH], scale), random(2, &[t, 2 * WIDTH], scale), pairs)
    }

    #[test]
    fn forward_equals_the_textbook_form_across_blocks_and_pairs() {
        let (both, back) = (bias(Direction::Both), bias(Direction::Back));
        for (settings, queries, keys) in kinds(&both, &back) {
            let (q, kv, pairs) = inputs(queries, keys, 1.5);
            let (q, kv) = (host(&q).unwrap(), host(&kv).unwrap());
            let (out, _) = forward(&q, &kv, &pairs, settings);
            for (a, b) in out.iter().zip(naive(&q, &kv, &pairs, settings)) {
                assert!((f64::from(*a) - b).abs() < 1e-5, "{:?}: {a} {b}", settings.sees);
            }
        }
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        let (both, back) = (bias(Direction::Both), bias(Direction::Back));
        for (settings, queries, keys) in kinds(&both, &back) {
            let (q, kv, pairs) = inputs(queries, keys, 1.0);
            let d_out = random(3, q.dims(), 1.0);
            let loss = |q: &Tensor, kv: &Tensor| {
                let (out, _) = forward(&host(q).unwrap(), &host(kv).unwrap(), &pairs, settings);
                dot(&tensor(out, q.dims()).unwrap(), &d_out)
            };
            let (qs, kvs) = (host(&q).unwrap(), host(&kv).unwrap());
            let (out, log_sums) = forward(&qs, &kvs, &pairs, settings);
            let kept = Kept { q: &qs, kv: &kvs, out: &out, log_sums: &log_sums };
            let (dq, dkv) = backward(&host(&d_out).unwrap(), kept, &pairs, settings);
            check_gradient(&q, &tensor(dq, q.dims()).unwrap(), 3e-3, |q| loss(q, &kv));
            check_gradient(&kv, &tensor(dkv, kv.dims()).unwrap(), 3e-3, |kv| loss(&q, kv));
        }
    }

    #[test]
    fn later_queries_alone_equal_the_whole_sequence() {
        let back = bias(Direction::Back);
        let settings = Settings { heads: HEADS, size: SIZE, sees: Sees::Past, bias: Some(&back) };
        let (q, kv, _) = inputs([100, 0], [100, 0], 1.0);
        let (q, kv) = (host(&q).unwrap(), host(&kv).unwrap());
        let whole = forward(&q, &kv, &[Pair { queries: (0, 100), keys: (0, 100), past: 0 }], settings).0;
        let late = Pair { queries: (0, 30), keys: (0, 100), past: 70 };
        for (a, b) in forward(&q[70 * WIDTH..], &kv, &[late], settings).0.iter().zip(&whole[70 * WIDTH..]) {
            assert!((a - b).abs() < 1e-6);
        }
    }
}
