//! The small matrix products of attention's blocks, in tiles of [`ROWS`] × [`COLUMNS`] sums that stay in registers.
//!
//! A block of scores has a hidden corner that a general product would compute, and it would pack the same keys anew for every
//! block of queries. Here keys and values of a head are laid out once for all its queries ([`Packed`]), and each product leaves out
//! the tiles that causality hides ([`Causal`]). Each sum has one fixed order.

/// Rows of a tile.
pub(super) const ROWS: usize = 6;
/// Columns of a tile: two vectors of AVX, one of AVX-512.
pub(super) const COLUMNS: usize = 16;
/// Multiple of both: to this all row counts are rounded up, with zeros.
pub(super) const ALIGNED: usize = 48;

/// One head's rows of a sequence, followed by rows of zeros.
pub(super) struct Packed {
    /// `[rows, width]`, both rounded up.
    pub values: Vec<f32>,
    /// Width of a row.
    pub width: usize,
}

impl Packed {
    /// `len` rows of `d` values, `stride` apart.
    pub fn new(data: &[f32], len: usize, d: usize, stride: usize) -> Self {
        let width = d.next_multiple_of(COLUMNS);
        let mut packed = Self { values: Vec::new(), width };
        packed.fill(data, len, d, stride);
        packed
    }

    /// Other rows in the same memory.
    pub fn fill(&mut self, data: &[f32], len: usize, d: usize, stride: usize) {
        // what lies beside the `d` values of a row is never written; rows of a longer fill before this one must go
        self.values.truncate(len * self.width);
        self.values.resize(len.next_multiple_of(ALIGNED) * self.width, 0.0);
        for (to, from) in self.values.chunks_exact_mut(self.width).zip(data.chunks(stride)).take(len) {
            let (tos, froms) = (to.chunks_exact_mut(COLUMNS), from[..d].chunks_exact(COLUMNS));
            let rest = d - froms.remainder().len();
            // pieces of one length are copied without a call
            tos.zip(froms).for_each(|(to, from)| to.copy_from_slice(from));
            to[rest..d].copy_from_slice(&from[rest..d]);
        }
    }

    /// The transposed rows in panels of [`COLUMNS`]: `[panels, d, COLUMNS]`.
    pub fn panels(&self, d: usize) -> Vec<f32> {
        let mut panels = Vec::with_capacity(self.values.len() / self.width * d);
        for rows in self.values.chunks_exact(COLUMNS * self.width) {
            for k in 0..d {
                panels.extend((0..COLUMNS).map(|column| rows[column * self.width + k]));
            }
        }
        panels
    }
}

/// Which columns each row of a block sees: row `i` those up to `offset + i`, of `len`.
#[derive(Clone, Copy)]
pub(super) struct Causal {
    pub rows: usize,
    pub len: usize,
    pub offset: usize,
}

impl Causal {
    /// Columns that the tile from row `first` on sees, as many as its last row does.
    fn seen(self, first: usize) -> usize {
        self.len.min(self.offset + first + ROWS)
    }

    /// First row that sees a column of the tile from `first` on.
    fn first_row(self, first: usize) -> usize {
        first.saturating_sub(self.offset)
    }
}

/// Where the left operand's element `(i, k)` lies: at `i * row + k * step`.
#[derive(Clone, Copy)]
struct Left<'a> {
    data: &'a [f32],
    row: usize,
    step: usize,
}

/// `scores = a · bᵀ` for the tiles that are seen: `panels` are `b` as [`Packed::panels`] gives it, `scores` has rows of `stride`. What is
/// right of a tile's last column is left as it was.
pub(super) fn scores(scores: &mut [f32], stride: usize, a: &Packed, panels: &[f32], d: usize, causal: Causal) {
    debug_assert!(causal.len.next_multiple_of(COLUMNS) <= stride);
    dispatch(Scores { scores, stride, a, panels, d, causal });
}

/// `out += p · b` over the columns of `p` that each tile sees; `out` and `b` have rows of `width`, `p` rows of `stride`.
pub(super) fn add_product(out: &mut [f32], p: &[f32], stride: usize, b: &[f32], width: usize, causal: Causal) {
    dispatch(Product { out, p, stride, b, width, causal, transposed: false });
}

/// `out += pᵀ · b`: for every column of `p` the rows of `b` of those that see it.
pub(super) fn add_transposed_product(
    out: &mut [f32],
    p: &[f32],
    stride: usize,
    b: &[f32],
    width: usize,
    causal: Causal,
) {
    dispatch(Product { out, p, stride, b, width, causal, transposed: true });
}

trait Job {
    /// `FUSED`: multiplication and addition in one instruction, which must then exist.
    fn run<const FUSED: bool>(self);
}

struct Scores<'a> {
    scores: &'a mut [f32],
    stride: usize,
    a: &'a Packed,
    panels: &'a [f32],
    d: usize,
    causal: Causal,
}

impl Job for Scores<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { scores, stride, a, panels, d, causal } = self;
        let num_panels = causal.seen(causal.rows - 1).div_ceil(COLUMNS);
        for (panel, right) in panels.chunks_exact(d * COLUMNS).take(num_panels).enumerate() {
            // rows inside: queries and one panel stay in the first-level cache
            let first_tile = causal.first_row(panel * COLUMNS) / ROWS * ROWS;
            for first in (first_tile..causal.rows).step_by(ROWS) {
                let left = Left { data: &a.values[first * a.width..], row: a.width, step: 1 };
                let sums = tile::<FUSED>([[0.0; COLUMNS]; ROWS], left, right, COLUMNS, 0..d);
                store(&mut scores[first * stride + panel * COLUMNS..], stride, &sums);
            }
        }
    }
}

struct Product<'a> {
    out: &'a mut [f32],
    p: &'a [f32],
    stride: usize,
    b: &'a [f32],
    width: usize,
    causal: Causal,
    transposed: bool,
}

impl Job for Product<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { out, p, stride, b, width, causal, transposed } = self;
        let (num_rows, row, step) = if transposed { (causal.len, 1, stride) } else { (causal.rows, stride, 1) };
        for first in (0..num_rows).step_by(ROWS) {
            let left = Left { data: &p[first * row..], row, step };
            let range = if transposed { causal.first_row(first)..causal.rows } else { 0..causal.seen(first) };
            for column in (0..width).step_by(COLUMNS) {
                let at = first * width + column;
                let sums = tile::<FUSED>(load(&out[at..], width), left, &b[column..], width, range.clone());
                store(&mut out[at..], width, &sums);
            }
        }
    }
}

type Sums = [[f32; COLUMNS]; ROWS];

/// `sums[i][j] += Σ_k left(i, k) · right[k * step + j]`.
#[inline(always)]
fn tile<const FUSED: bool>(
    mut sums: Sums,
    left: Left<'_>,
    right: &[f32],
    step: usize,
    range: std::ops::Range<usize>,
) -> Sums {
    if range.is_empty() {
        return sums;
    }
    let last = range.end - 1;
    assert!(
        (ROWS - 1) * left.row + last * left.step < left.data.len() && last * step + COLUMNS <= right.len(),
        "tile too short"
    );
    let (left_start, right_start) = (left.data.as_ptr(), right.as_ptr());
    for k in range {
        // SAFETY: the assertion holds for the last of these places, and both offsets grow with `k`.
        let columns = unsafe { &*right_start.add(k * step).cast::<[f32; COLUMNS]>() };
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: as above, for `i` up to `ROWS - 1`.
            let value = unsafe { *left_start.add(i * left.row + k * left.step) };
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = if FUSED { value.mul_add(*column, *sum) } else { *sum + value * column };
            }
        }
    }
    sums
}

#[inline(always)]
fn load(from: &[f32], stride: usize) -> Sums {
    let mut sums = [[0.0; COLUMNS]; ROWS];
    for (i, sums) in sums.iter_mut().enumerate() {
        sums.copy_from_slice(&from[i * stride..][..COLUMNS]);
    }
    sums
}

#[inline(always)]
fn store(to: &mut [f32], stride: usize, sums: &Sums) {
    for (i, sums) in sums.iter().enumerate() {
        to[i * stride..][..COLUMNS].copy_from_slice(sums);
    }
}

/// Runs a job compiled for the widest vectors that the processor has.
fn dispatch(job: impl Job) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn wide(job: impl Job) {
            job.run::<true>();
        }
        #[target_feature(enable = "avx2,fma")]
        fn medium(job: impl Job) {
            job.run::<true>();
        }
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("avx2") && has!("fma") {
            // SAFETY: the processor has every feature named at `wide`.
            return unsafe { wide(job) };
        }
        if has!("avx2") && has!("fma") {
            // SAFETY: the processor has every feature named at `medium`.
            return unsafe { medium(job) };
        }
    }
    // every processor of aarch64 fuses; elsewhere it would be a call per element
    job.run::<{ cfg!(target_arch = "aarch64") }>();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const STRIDE: usize = 240;

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed, 0);
        (0..len).map(|_| rng.uniform() - 0.5).collect()
    }

    /// Rows, columns, and how far the first row sees.
    fn cases() -> impl Iterator<Item = Causal> {
        [(48, 48, 0), (5, 5, 0), (48, 240, 192), (7, 199, 192), (48, 240, 480), (1, 1, 0)]
            .into_iter()
            .map(|(rows, len, offset)| Causal { rows, len, offset })
    }

    fn dot(len: usize, product: impl Fn(usize) -> f32) -> f32 {
        (0..len).map(product).sum()
    }

    #[test]
    fn every_score_that_is_seen_is_a_product_of_its_row_and_column() {
        // 24 is no multiple of a tile's width
        for d in [8, 24, 64] {
            for Causal { rows, len, offset } in cases() {
                let (a, b) = (random(rows * d, 1), random(len * d, 2));
                let mut found = vec![f32::NAN; ALIGNED * STRIDE];
                let (packed, panels) = (Packed::new(&a, rows, d, d), Packed::new(&b, len, d, d).panels(d));
                scores(&mut found, STRIDE, &packed, &panels, d, Causal { rows, len, offset });
                for i in 0..rows {
                    for j in 0..len.min(offset + i + 1) {
                        let wanted = dot(d, |k| a[i * d + k] * b[j * d + k]);
                        assert!((found[i * STRIDE + j] - wanted).abs() < 1e-5, "{d} {rows} {len} {offset}: {i} {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_with_a_triangle_add_what_its_rows_see() {
        for d in [8, 24, 64] {
            for Causal { rows, len, offset } in cases() {
                let sees = |i: usize, j: usize| j < len && j <= offset + i;
                let mut p = random(ALIGNED * STRIDE, 3);
                for i in 0..rows {
                    (0..STRIDE).filter(|j| !sees(i, *j)).for_each(|j| p[i * STRIDE + j] = 0.0);
                }
                let (of_columns, of_rows) = (random(len * d, 4), random(rows * d, 5));
                let (columns, packed_rows) = (Packed::new(&of_columns, len, d, d), Packed::new(&of_rows, rows, d, d));
                let width = columns.width;
                let (mut product, mut transposed) = (vec![1.0; ALIGNED * width], vec![1.0; columns.values.len()]);
                let causal = Causal { rows, len, offset };
                add_product(&mut product, &p, STRIDE, &columns.values, width, causal);
                add_transposed_product(&mut transposed, &p, STRIDE, &packed_rows.values, width, causal);
                for k in 0..d {
                    for i in 0..rows {
                        let wanted = 1.0 + dot(len, |j| p[i * STRIDE + j] * of_columns[j * d + k]);
                        assert!((product[i * width + k] - wanted).abs() < 1e-4, "{d} {rows} {len} {offset}: {i}");
                    }
                    for j in 0..len {
                        let wanted = 1.0 + dot(rows, |i| p[i * STRIDE + j] * of_rows[i * d + k]);
                        assert!((transposed[j * width + k] - wanted).abs() < 1e-4, "{d} {rows} {len} {offset}: {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_shorter_fill_leaves_nothing_of_a_longer_one() {
        let mut packed = Packed::new(&[1.0; 50 * 20], 50, 20, 20);
        packed.fill(&[2.0; 3 * 20], 3, 20, 20);
        assert_eq!(packed.values.len(), ALIGNED * packed.width);
        assert_eq!(packed.values.iter().sum::<f32>(), 2.0 * 60.0);
    }
}
