//! Causal grouped-query attention over packed sequences, in blocks, without storing the probabilities.
//!
//! Per head: `S = scale · Q Kᵀ`, with a soft cap `S ← c · tanh(S / c)`; `P = softmax(S)` over the keys that each query sees: those
//! *of the same sequence* at or before it, with a sliding window only the newest `window` of them, itself included; `O = P V`.
//! Kept for the backward pass: `O` and `L = log Σ exp S` of each row (the FlashAttention form, Dao et al. 2022):
//! `P = exp(S − L)`, `D = rowsum(dO ∘ O)`, `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P ∘ (dP − D) · scale`, with a soft cap also
//! `∘ (1 − (S / c)²)`; `dQ = dS K`, `dK = dSᵀ Q`.
//!
//! Shapes: one fused row per token, `[n, (H + 2K)·d]`: query heads, key heads, value heads; query head `i` reads key head
//! `i / (H/K)`. `O` is `[n, H·d]`, `L` is `[n·H]`, head by head within a row.
//!
//! Sequences lie one after the other in the rows ([`Segments`]); a query sees its own sequence only, so a packed batch equals
//! its sequences computed alone. No padding exists. A task has a sequence and the query heads of a key head, or one of them when
//! there are few: that depends on the batch alone, and the sums over a group's query heads run in one fixed order. A window makes the cost grow with `n · window` and not with `n²`.
//!
//! Queries and keys are taken a few at a time (forward: [`forward`](mod@forward), backward: [`mod@backward`]), in products that leave out what
//! causality hides ([`tile`]). With a cache there is often one query only: [`forward_cached`] reads the keys where they lie.

pub(super) mod backward;
pub(super) mod cached;
mod forward;
mod tile;

use std::ops::Range;

use self::tile::ALIGNED;
pub use backward::backward;
pub use cached::forward_cached;
pub use forward::forward;

/// Keys handled at once, beside [`ALIGNED`] queries: their scores take 46 KB, which stay near the processor.
const CHUNK: usize = 5 * ALIGNED;

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

    /// Rows of the longest sequence.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.bounds.iter().map(|(start, end)| end - start).max().unwrap_or(0)
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
}

/// What fixes attention beside queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Number and size of the heads.
    pub heads: Heads,
    /// Factor of `Q Kᵀ`; `1/√d` in most models.
    pub scale: f32,
    /// `c`: scores stay below it.
    pub soft_cap: Option<f32>,
    /// Number of newest keys that a query sees, its own included.
    pub window: Option<usize>,
}

impl Settings {
    /// Position of the first key that the query at `position` sees.
    fn first_seen(self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The keys that queries at positions `from..from + rows` see, in chunks that begin at multiples of [`ALIGNED`], as `from` does.
    fn chunks(self, from: usize, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let first = self.first_seen(from) / ALIGNED * ALIGNED;
        (first..from + rows).step_by(CHUNK).map(move |start| start..(start + CHUNK).min(from + rows))
    }

    /// Those of a chunk's keys that the query at `position` sees, counted from the chunk's first. There is at least one: a window does
    /// not move past a chunk within a block.
    fn seen(self, position: usize, chunk: &Range<usize>) -> Range<usize> {
        let end = (position + 1).clamp(chunk.start, chunk.end) - chunk.start;
        let start = self.first_seen(position).saturating_sub(chunk.start);
        start.min(end)..end
    }

    /// First columns of the key head and of the value head that a query head reads.
    fn key_value_columns(self, head: usize) -> (usize, usize) {
        let heads = self.heads;
        let key = (heads.query + head / heads.group()) * heads.size;
        (key, key + heads.key_value * heads.size)
    }
}

/// Query heads that one thread computes for one sequence: neighbours that read the same key head.
struct Task {
    start: usize,
    end: usize,
    heads: Range<usize>,
}

/// Fewer tasks are divided further: three key heads would keep two threads busy for two rounds of which one is half empty.
const ENOUGH: usize = 8;

fn tasks(segments: &Segments, heads: Heads) -> Vec<Task> {
    let together = if segments.bounds.len() * heads.key_value < ENOUGH { 1 } else { heads.group() };
    let of_sequence = |(start, end): (usize, usize)| {
        let firsts = (0..heads.query).step_by(together);
        firsts.map(move |first| Task { start, end, heads: first..first + together })
    };
    segments.bounds.iter().copied().flat_map(of_sequence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, dot, random};
    use crate::ops::{host, tensor};
    use candle_core::Tensor;

    const HEADS: Heads = Heads { query: 4, key_value: 2, size: 8 };
    const PLAIN: Settings = Settings { heads: HEADS, scale: 0.353_553_4, soft_cap: None, window: None };
    // sizes that fill no tile, one key head for all
    const ODD: Heads = Heads { query: 3, key_value: 1, size: 24 };
    const VARIANTS: [Settings; 6] = [
        PLAIN,
        Settings { heads: ODD, ..PLAIN },
        Settings { heads: Heads { key_value: 3, ..ODD }, window: Some(250), ..PLAIN },
        Settings { window: Some(5), ..PLAIN },
        Settings { soft_cap: Some(1.5), scale: 0.7, ..PLAIN },
        Settings { soft_cap: Some(1.5), window: Some(70), ..PLAIN },
    ];

    /// The textbook form in f64.
    fn naive(qkv: &Tensor, lengths: &[usize], settings: Settings) -> Vec<Vec<f64>> {
        let rows = qkv.to_vec2::<f32>().unwrap();
        let Heads { query, key_value, size: d } = settings.heads;
        let mut out = vec![vec![0.0; query * d]; rows.len()];
        for (start, end) in Segments::from_lengths(lengths).bounds() {
            for i in *start..*end {
                for head in 0..query {
                    let kv = head / settings.heads.group();
                    let score = |j: usize| -> f64 {
                        let k = (query + kv) * d;
                        let dot: f64 =
                            (0..d).map(|c| f64::from(rows[i][head * d + c]) * f64::from(rows[j][k + c])).sum();
                        let score = dot * f64::from(settings.scale);
                        settings.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    };
                    let seen = || (*start..=i).filter(|j| settings.window.is_none_or(|window| i - j < window));
                    let total: f64 = seen().map(|j| score(j).exp()).sum();
                    for j in seen() {
                        let v = (query + key_value + kv) * d;
                        for c in 0..d {
                            out[i][head * d + c] += score(j).exp() / total * f64::from(rows[j][v + c]);
                        }
                    }
                }
            }
        }
        out
    }

    /// Around the sizes of blocks and chunks; the second is few enough tasks that heads are computed one by one.
    const LENGTHS: [&[usize]; 2] = [&[3, 530, 1, 64, 5, 47, 48, 49, 239, 240, 241], &[300]];

    #[test]
    fn forward_equals_the_textbook_form_across_blocks_and_sequences() {
        for (settings, lengths) in VARIANTS.into_iter().flat_map(|settings| LENGTHS.map(|lengths| (settings, lengths)))
        {
            let qkv = random(1, &[lengths.iter().sum(), settings.heads.width()], 2.0);
            let (out, _) = forward(&qkv, &Segments::from_lengths(lengths), settings).unwrap();
            for (row, wanted) in out.to_vec2::<f32>().unwrap().iter().zip(naive(&qkv, lengths, settings)) {
                for (a, b) in row.iter().zip(wanted) {
                    assert!((f64::from(*a) - b).abs() < 1e-5, "{settings:?}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        for (settings, lengths) in VARIANTS.into_iter().flat_map(|settings| LENGTHS.map(|lengths| (settings, lengths)))
        {
            let (n, heads) = (lengths.iter().sum(), settings.heads);
            let segments = Segments::from_lengths(lengths);
            let (qkv, d_out) = (random(1, &[n, heads.width()], 1.0), random(2, &[n, heads.query * heads.size], 1.0));
            let (out, log_sums) = forward(&qkv, &segments, settings).unwrap();
            let grad = backward(&d_out, &qkv, &out, &log_sums, &segments, settings).unwrap();
            check_gradient(&qkv, &grad, 3e-3, |x| dot(&forward(x, &segments, settings).unwrap().0, &d_out));
        }
    }

    #[test]
    fn what_is_no_number_stays_visible_and_does_not_reach_other_sequences() {
        let mut values = host(&random(1, &[80, HEADS.width()], 1.0)).unwrap().to_vec();
        values[(50 + 3) * HEADS.width()] = f32::NAN;
        let qkv = tensor(values, (80, HEADS.width())).unwrap();
        let (out, log_sums) = forward(&qkv, &Segments::from_lengths(&[50, 30]), PLAIN).unwrap();
        let rows = out.to_vec2::<f32>().unwrap();
        assert!(rows[..50].concat().iter().all(|value| value.is_finite()));
        assert!(rows[53].iter().any(|value| value.is_nan()) && log_sums[53 * HEADS.query].is_nan());
    }

    #[test]
    fn cached_rows_equal_the_whole_sequence() {
        let n = 130;
        for settings in VARIANTS {
            let Heads { query, key_value, size } = settings.heads;
            let qkv = random(5, &[n, settings.heads.width()], 1.0);
            let rows = qkv.to_vec2::<f32>().unwrap();
            let columns = |from: usize, heads: usize, rows: &[Vec<f32>]| -> Vec<f32> {
                rows.iter().flat_map(|row| row[from * size..(from + heads) * size].to_vec()).collect()
            };
            let (keys, values) = (columns(query, key_value, &rows), columns(query + key_value, key_value, &rows));
            let (out, _) = forward(&qkv, &Segments::from_lengths(&[n]), settings).unwrap();
            let out = out.to_vec2::<f32>().unwrap();
            let late = forward_cached(&columns(0, query, &rows[50..]), &keys, &values, 50, settings);
            for (a, b) in late.iter().zip(out[50..].concat()) {
                assert!((a - b).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn ids_and_lengths_describe_the_same_segments() {
        assert_eq!(Segments::from_ids(&[4, 4, 9, 9, 9, 1]), Segments::from_lengths(&[2, 3, 0, 1]));
        assert_eq!(Segments::from_lengths(&[2, 3]).positions(), [0, 1, 0, 1, 2]);
    }
}
