//! Matrix product into an existing buffer: `dst = [dst +] scale · a · b`, any strides.
//!
//! candle's own `matmul` always allocates its result; training accumulates (base product, then adapter product) into one.
//! Both use the same `gemm` crate, which chooses AVX-512, AVX2 or NEON at run time. For a given shape each result element is
//! summed in one fixed order, whatever the number of threads (tested below): threads have strips of rows or columns, none so small that
//! `gemm` adds up in another order than for the whole.

use std::marker::PhantomData;

use gemm::Parallelism;
use rayon::prelude::*;

use super::filled;

/// A matrix in a slice: element `(i, j)` lies at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows are `row_stride` apart.
    #[must_use]
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed matrix, without moving anything.
    #[must_use]
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Number of rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows `start..end`, which must exist.
    #[must_use]
    pub fn rows(self, start: usize, end: usize) -> Self {
        Self { data: &self.data[start * self.row_stride..], rows: end - start, ..self }
    }

    /// Columns `start..end`, which must exist.
    #[must_use]
    pub fn columns(self, start: usize, end: usize) -> Self {
        Self { data: &self.data[start * self.col_stride..], cols: end - start, ..self }
    }

    /// One row of a matrix that is not transposed.
    #[must_use]
    pub fn row(&self, index: usize) -> &'a [f32] {
        debug_assert!(self.col_stride == 1, "a row of a transposed matrix is not a slice");
        &self.data[index * self.row_stride..][..self.cols]
    }

    fn span(&self) -> usize {
        span(self.rows, self.cols, self.row_stride, self.col_stride)
    }
}

/// A row-major matrix to write to.
pub struct ViewMut<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    data: PhantomData<&'a mut [f32]>,
}

impl<'a> ViewMut<'a> {
    /// A row-major matrix whose rows are `row_stride` apart. Panics when the slice is too short.
    #[must_use]
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(span(rows, cols, row_stride, 1) <= data.len(), "gemm destination too short");
        Self { start: data.as_mut_ptr(), rows, cols, row_stride, data: PhantomData }
    }

    /// The same matrix, to be written again later.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { data: PhantomData, ..*self }
    }

    /// Columns `start..end`. Panics when they do not exist.
    pub fn columns(&mut self, start: usize, end: usize) -> ViewMut<'_> {
        assert!(start <= end && end <= self.cols, "columns {start}..{end} of {}", self.cols);
        let (rows, row_stride) = (self.rows, self.row_stride);
        // An empty matrix may have no memory at all.
        let offset = if rows == 0 { 0 } else { start };
        // SAFETY: the first row holds `cols` values, as `new` asserts, and `start` is at most that.
        let first = unsafe { self.start.add(offset) };
        ViewMut { start: first, cols: end - start, rows, row_stride, data: PhantomData }
    }
}

/// What happens to the values that were in the destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// They are overwritten.
    Replace,
    /// The product is added to them.
    Add,
}

/// Who computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread only: for use inside a task that is already parallel.
    One,
    /// The current rayon pool.
    Pool,
}

/// `scale · a · b` as a new row-major matrix, `[a.rows, b.cols]`, written once. Panics as [`gemm`] does.
#[must_use]
pub fn product(scale: f32, a: View<'_>, b: View<'_>, threads: Threads) -> Vec<f32> {
    let (rows, cols) = (a.rows, b.cols);
    // SAFETY: with `Write::Replace`, `gemm` reads nothing of its destination and writes every element.
    unsafe {
        filled(rows * cols, |values| {
            let start = values.as_mut_ptr().cast();
            let dst = ViewMut { start, rows, cols, row_stride: cols, data: PhantomData };
            gemm(dst, Write::Replace, scale, a, b, threads);
        })
    }
}

/// `dst = scale · a · b`, or added to `dst`. Panics when the shapes do not fit: that is an error of the calling kernel.
pub fn gemm(dst: ViewMut<'_>, write: Write, scale: f32, a: View<'_>, b: View<'_>, threads: Threads) {
    assert!(dst.rows == a.rows && dst.cols == b.cols && a.cols == b.rows, "gemm shapes do not fit");
    assert!(a.span() <= a.data.len() && b.span() <= b.data.len(), "gemm operand too short");
    if a.cols == 0 {
        // an empty sum: AdaLoRA may leave a module no rank at all
        if write == Write::Replace {
            for row in 0..dst.rows {
                // SAFETY: every row lies in the destination; zero bytes are the value 0.
                unsafe { dst.start.add(row * dst.row_stride).write_bytes(0, dst.cols) };
            }
        }
        return;
    }
    let by_rows = dst.rows >= dst.cols;
    let (length, breadth) = if by_rows { (dst.rows, dst.cols) } else { (dst.cols, dst.rows) };
    let num_threads = if threads == Threads::Pool { rayon::current_num_threads() } else { 1 };
    let num_strips = num_strips(length, breadth, a.cols, num_threads);
    let start = Start(dst.start);
    let compute = |strip: usize| {
        let bound =
            |strip: usize| if strip == num_strips { length } else { length * strip / num_strips / STRIP * STRIP };
        let (from, to) = (bound(strip), bound(strip + 1));
        // SAFETY: the assertions above, and that in `ViewMut::new`, keep every access inside the three matrices; `dst` is borrowed
        // mutably, and strips do not overlap.
        unsafe {
            if by_rows {
                sequential(start.at(from * dst.row_stride), dst.row_stride, write, scale, a.rows(from, to), b);
            } else {
                sequential(start.at(from), dst.row_stride, write, scale, a, b.columns(from, to));
            }
        }
    };
    if num_strips == 1 { compute(0) } else { (0..num_strips).into_par_iter().for_each(compute) }
}

/// Strips are multiples of this long, except the last.
const STRIP: usize = 48;
/// Operations worth a task, some ten microseconds.
const WORTH: usize = 1 << 20;
/// With fewer results than these, `gemm` may take a kernel that adds in another order: no strip is as small.
const SMALL: usize = 256;

/// Into how many strips a product is divided. `gemm` can divide it itself, but its threads meet between packing and multiplying
/// several times: two of them were slower than one at the shapes of a step (docs/benchmarks.md, f32 matrix products).
fn num_strips(length: usize, breadth: usize, depth: usize, num_threads: usize) -> usize {
    if num_threads == 1 || length * breadth == 0 {
        return 1;
    }
    let shortest = (2 * STRIP).max(SMALL / breadth + 2 * STRIP);
    (2 * length * breadth * depth / WORTH).min(length / shortest).min(2 * num_threads).max(1)
}

/// The first element of a destination whose strips are written by several threads.
struct Start(*mut f32);

// SAFETY: every task writes a strip of its own.
unsafe impl Sync for Start {}

impl Start {
    /// # Safety
    /// `offset` lies in the destination, or there is nothing to write.
    unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

/// # Safety
/// `dst` points to `a.rows` rows of `b.cols` values, `row_stride` apart, that nobody else touches; the operands are as long as their
/// shapes say.
unsafe fn sequential(dst: *mut f32, row_stride: usize, write: Write, scale: f32, a: View<'_>, b: View<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            dst,
            1,
            row_stride as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn span(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed, 0);
        (0..len).map(|_| rng.uniform() - 0.5).collect()
    }

    #[test]
    fn adds_a_scaled_product_of_a_transposed_operand() {
        let (m, n, k) = (5, 7, 3);
        let (a, b) = (random(m * k, 1), random(n * k, 2));
        let mut dst = vec![1.0; m * n];
        let view = View::new(&b, n, k, k).t();
        gemm(ViewMut::new(&mut dst, m, n, n), Write::Add, 2.0, View::new(&a, m, k, k), view, Threads::One);
        for i in 0..m {
            for j in 0..n {
                let sum: f32 = (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum();
                assert!((dst[i * n + j] - (1.0 + 2.0 * sum)).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn result_is_the_same_to_the_bit_at_any_number_of_threads() {
        // the shapes of a training step: projections, adapters, head, and a lone row as in generation
        for (m, n, k) in [
            (1000, 512, 256),
            (1000, 16, 256),
            (256, 16, 1000),
            (16, 688, 1000),
            (128, 4096, 256),
            (1, 768, 256),
            (1, 9000, 700),
            // so narrow that strips of it could be small enough for another kernel
            (512, 2, 2048),
            (512, 1, 2048),
            (1, 1024, 2048),
            (2048, 8, 512),
        ] {
            for transposed in [false, true] {
                let (a, b) = (random(m * k, 3), random(n * k, 4));
                let product = |num_threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
                    let mut dst = vec![0.0; m * n];
                    let b = if transposed { View::new(&b, n, k, k).t() } else { View::new(&b, k, n, n) };
                    pool.install(|| {
                        gemm(
                            ViewMut::new(&mut dst, m, n, n),
                            Write::Replace,
                            1.0,
                            View::new(&a, m, k, k),
                            b,
                            Threads::Pool,
                        );
                    });
                    dst
                };
                let one = product(1);
                for num_threads in [2, 3, 5] {
                    assert!(one == product(num_threads), "{m}x{n}x{k} differs at {num_threads} threads");
                }
            }
        }
    }
}
