//! Frozen matrices: as f32, or quantised, which takes a quarter to an eighth of the memory.
//!
//! Forward `y = x Wᵀ`, gradient of the input `dx = dy W`; `W` itself gets no gradient. A quantised `W` is never there as a whole in
//! f32: a block of rows at a time is dequantised into a buffer that the next one reuses, and multiplied. The values are those of the
//! format to the bit, so what is computed is what its dequantised matrix would compute, up to the order of the sum over blocks in
//! `dx`. One file for each format: [`nf4`], [`q8_0`], [`q4_k`].
//! Shapes: `W` is `[out, in]`, `x` `[n, in]`, `y` `[n, out]`.

pub mod dynamic_code;
mod ggml_blocks;
pub mod nf4;
pub mod q4_k;
pub mod q8_0;
pub mod torch_mean;

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::nf4::Nf4;
use self::q4_k::Q4K;
use self::q8_0::Q8_0;
use crate::error::{ModelError, Result};
use crate::ops::gemm::{self, Threads, View, ViewMut, Write, gemm};
use crate::ops::host;

/// How the projections of the layers are stored. Embedding, norms, biases and head are never quantised, as in QLoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// f32.
    #[default]
    None,
    /// 4.13 bits a value: QLoRA's normal float with double quantisation.
    Nf4,
    /// 8.5 bits a value.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4.5 bits a value.
    #[serde(rename = "q4_k")]
    Q4K,
}

impl Quantization {
    /// As settings and files write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Nf4 => "nf4",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Nf4, Self::Q8_0, Self::Q4K].into_iter().find(|quantization| quantization.name() == name)
    }

    /// Bytes of a matrix `[out, in]`.
    #[must_use]
    pub fn bytes(self, [out, width]: [usize; 2]) -> usize {
        let num_values = out * width;
        match self {
            Self::None => 4 * num_values,
            Self::Nf4 => Nf4::bytes(num_values),
            Self::Q8_0 => Q8_0::bytes(num_values),
            Self::Q4K => Q4K::bytes(num_values),
        }
    }

    /// Values of a row that belong together: a matrix's width must be a multiple of it.
    #[must_use]
    pub const fn block(self) -> usize {
        match self {
            Self::None | Self::Nf4 => 1,
            Self::Q8_0 => Q8_0::BLOCK,
            Self::Q4K => Q4K::BLOCK,
        }
    }
}

/// One matrix `[out, in]`.
#[derive(Debug)]
pub struct FrozenMatrix {
    shape: [usize; 2],
    values: Values,
}

#[derive(Debug)]
enum Values {
    F32(Tensor),
    Nf4(Nf4),
    Q8_0(Q8_0),
    Q4K(Q4K),
}

impl FrozenMatrix {
    /// Quantises `weight`, `[out, in]`; `name` is for the error of a width that the format cannot divide.
    pub fn new(name: &str, weight: Tensor, quantization: Quantization) -> Result<Self> {
        let (out, width) = weight.dims2()?;
        if !width.is_multiple_of(quantization.block()) {
            let (format, block) = (quantization.name(), quantization.block());
            return Err(ModelError::Unquantisable { name: name.to_owned(), width, format, block });
        }
        let values = match quantization {
            Quantization::None => Values::F32(weight),
            Quantization::Nf4 => Values::Nf4(Nf4::quantise(&host(&weight)?)),
            Quantization::Q8_0 => Values::Q8_0(Q8_0::quantise(&host(&weight)?)),
            Quantization::Q4K => Values::Q4K(Q4K::quantise(&host(&weight)?)),
        };
        Ok(Self { shape: [out, width], values })
    }

    /// Number of rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.shape[0]
    }

    /// Writes rows from `first` on, as many as `out` holds.
    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let first = first * self.shape[1];
        match &self.values {
            Values::F32(weight) => out.copy_from_slice(&host(weight)?[first..first + out.len()]),
            Values::Nf4(stored) => stored.read(first, out),
            Values::Q8_0(stored) => stored.read(first, out),
            Values::Q4K(stored) => stored.read(first, out),
        }
        Ok(())
    }
}

/// Matrices of the same width one below the other, so that one product serves them all. Each is quantised by itself, as
/// `bitsandbytes` does it, so that joining changes no bit.
#[derive(Debug)]
pub struct FrozenWeight {
    id: u64,
    shape: [usize; 2],
    matrices: Vec<FrozenMatrix>,
}

/// The values of one matrix, as they lie in memory.
#[cfg(any(test, feature = "cuda"))]
pub(crate) enum AsStored<'a> {
    F32(&'a Tensor),
    Nf4(&'a Nf4),
    /// A block format of llama.cpp.
    Ggml(Quantization),
}

/// Values that are dequantised at once: 4 MB, large enough that a product runs at full speed, small beside a layer.
const BLOCK_VALUES: usize = 1 << 20;
/// Values that one task dequantises.
const TASK_VALUES: usize = 1 << 14;

thread_local! {
    /// The buffer for dequantised rows. Taken out while it is used: the thread pool may start another product on this thread.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl FrozenWeight {
    /// Joins matrices of the same width.
    pub fn join(matrices: Vec<FrozenMatrix>) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let width = matrices.first().map_or(0, |matrix| matrix.shape[1]);
        let out = matrices.iter().map(FrozenMatrix::num_rows).sum();
        if let Some(other) = matrices.iter().find(|matrix| matrix.shape[1] != width) {
            let found = other.shape.to_vec();
            return Err(ModelError::WrongShape {
                name: "joined".to_owned(),
                wanted: vec![other.shape[0], width],
                found,
            });
        }
        let tensors: Vec<&Tensor> = matrices
            .iter()
            .filter_map(|matrix| match &matrix.values {
                Values::F32(weight) => Some(weight),
                _ => None,
            })
            .collect();
        let matrices = match tensors.len() == matrices.len() && tensors.len() > 1 {
            true => vec![FrozenMatrix { shape: [out, width], values: Values::F32(Tensor::cat(&tensors, 0)?) }],
            false => matrices,
        };
        Ok(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), shape: [out, width], matrices })
    }

    /// Distinguishes this weight from every other of the process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// `[out, in]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// `y = x Wᵀ` as a new matrix, `x` `[n, in]`.
    pub fn forward(&self, x: View<'_>) -> Result<Vec<f32>> {
        let (n, [out, width]) = (x.num_rows(), self.shape);
        if let Some(weight) = self.whole() {
            return Ok(gemm::product(1.0, x, View::new(&host(weight)?, out, width, width).t(), Threads::Pool));
        }
        let mut y = vec![0.0; n * out];
        self.product(ViewMut::new(&mut y, n, out, out), x, 0..out)?;
        Ok(y)
    }

    /// `dx = dy W` as a new matrix, `dy` `[n, out]`.
    pub fn backward(&self, dy: View<'_>) -> Result<Vec<f32>> {
        let (n, [out, width]) = (dy.num_rows(), self.shape);
        if let Some(weight) = self.whole() {
            return Ok(gemm::product(1.0, dy, View::new(&host(weight)?, out, width, width), Threads::Pool));
        }
        let mut dx = vec![0.0; n * width];
        self.input_gradient(ViewMut::new(&mut dx, n, width, width), Write::Replace, dy, 0..out)?;
        Ok(dx)
    }

    /// Rows of each matrix and how it is stored, for an engine that keeps its own copy.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn as_stored(&self) -> impl Iterator<Item = (usize, AsStored<'_>)> {
        self.matrices.iter().map(|matrix| {
            let stored = match &matrix.values {
                Values::F32(weight) => AsStored::F32(weight),
                Values::Nf4(stored) => AsStored::Nf4(stored),
                Values::Q8_0(_) => AsStored::Ggml(Quantization::Q8_0),
                Values::Q4K(_) => AsStored::Ggml(Quantization::Q4K),
            };
            (matrix.num_rows(), stored)
        })
    }

    /// The matrix, where it is there in f32: it needs no blocks.
    fn whole(&self) -> Option<&Tensor> {
        match self.matrices.as_slice() {
            [FrozenMatrix { values: Values::F32(weight), .. }] => Some(weight),
            _ => None,
        }
    }

    /// `y = x W[rows]ᵀ`.
    pub fn product(&self, mut y: ViewMut<'_>, x: View<'_>, rows: Range<usize>) -> Result<()> {
        let start = rows.start;
        self.for_each_block(rows, |block, w| {
            let y = y.columns(block.start - start, block.end - start);
            gemm(y, Write::Replace, 1.0, x, w.t(), Threads::Pool);
        })
    }

    /// `dx = dy W[rows]`, or added to `dx`.
    pub fn input_gradient(&self, mut dx: ViewMut<'_>, write: Write, dy: View<'_>, rows: Range<usize>) -> Result<()> {
        let start = rows.start;
        let mut write = write;
        self.for_each_block(rows, |block, w| {
            let dy = dy.columns(block.start - start, block.end - start);
            gemm(dx.reborrow(), write, 1.0, dy, w, Threads::Pool);
            write = Write::Add;
        })
    }

    /// Writes rows from `first` on, as many as `out` holds.
    pub fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let width = self.shape[1];
        let (mut first, mut out) = (first, out);
        for matrix in &self.matrices {
            let count = matrix.num_rows().saturating_sub(first).min(out.len() / width.max(1));
            let (now, rest) = out.split_at_mut(count * width);
            if count > 0 {
                matrix.read_rows(first, now)?;
            }
            first = first.saturating_sub(matrix.num_rows());
            out = rest;
        }
        Ok(())
    }

    /// Hands `rows` to `with` as f32, block by block, with the rows that each block is.
    fn for_each_block(&self, rows: Range<usize>, mut with: impl FnMut(Range<usize>, View<'_>)) -> Result<()> {
        let width = self.shape[1];
        if let [FrozenMatrix { values: Values::F32(weight), .. }] = &self.matrices[..] {
            let values = host(weight)?;
            with(rows.clone(), View::new(&values[rows.start * width..], rows.len(), width, width));
            return Ok(());
        }
        let (per_block, per_task) = ((BLOCK_VALUES / width.max(1)).max(1), (TASK_VALUES / width.max(1)).max(1));
        let mut scratch = SCRATCH.take();
        scratch.resize(scratch.len().max(per_block.min(rows.len()) * width), 0.0);
        for first in rows.clone().step_by(per_block) {
            let block = first..rows.end.min(first + per_block);
            let values = &mut scratch[..block.len() * width];
            values
                .par_chunks_mut(per_task * width)
                .enumerate()
                .try_for_each(|(task, values)| self.read_rows(first + task * per_task, values))?;
            with(block.clone(), View::new(values, block.len(), width, width));
        }
        SCRATCH.set(scratch);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
