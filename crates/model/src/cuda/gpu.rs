//! A device and one method for each kernel: shapes of grid and block, arguments in the order of the source.
//!
//! Shapes, formulas: the Rust file of the same operation.

use std::sync::Arc;

use super::backend::{Argument, Backend, Launch, Operand, Product};
use super::memory::{Buffer, Matrix};
use crate::error::{ModelError, Result};
use crate::ops::activation::Activation;
use crate::ops::attention::Heads;
use crate::ops::rope::{Direction, RopeTable};

use Argument::{Float, Int, Long, Pointer};

/// A device, shared by all that lies on it.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub(super) backend: Arc<dyn Backend>,
}

/// Cosines and sines of every position on the device.
#[derive(Debug)]
pub struct Rotation {
    cosines: Buffer,
    sines: Buffer,
    half: usize,
}

/// [`crate::ops::qk_norm`]'s weights on the device.
#[derive(Debug)]
pub struct QkNorm {
    /// Of the queries, f32.
    pub query: Buffer,
    /// Of the keys, f32.
    pub key: Buffer,
    /// Added to the mean square.
    pub eps: f32,
}

impl QkNorm {
    fn sizes(&self, heads: Heads) -> [Argument; 4] {
        [int(heads.query), int(heads.key_value), int(heads.size), Float(self.eps)]
    }
}

/// The statistics of each row that a normalisation keeps.
pub type Statistics = Buffer;

/// Threads of an elementwise block.
const THREADS: usize = 256;
/// Blocks of an elementwise kernel at the most: enough for every multiprocessor, after which each thread takes several values.
const BLOCKS: usize = 4096;

impl Gpu {
    /// The kernels of a device.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }

    /// A matrix whose values do not matter.
    pub fn matrix(&self, rows: usize, cols: usize) -> Result<Matrix> {
        Matrix::new(&self.backend, rows, cols)
    }

    /// A copy of values, row by row.
    pub fn upload(&self, values: &[f32], cols: usize) -> Result<Matrix> {
        Matrix::of(&self.backend, values, cols)
    }

    /// A copy of f32 values.
    pub fn floats(&self, values: &[f32]) -> Result<Buffer> {
        Buffer::of_floats(&self.backend, values)
    }

    /// `c = scale · a · b` as a new matrix, `[m, n]`.
    pub fn product(&self, m: usize, n: usize, k: usize, scale: f32, a: Operand, b: Operand) -> Result<Matrix> {
        let c = self.matrix(m, n)?;
        self.multiply(Product {
            m,
            n,
            k,
            scale,
            a,
            b,
            c: c.at(0),
            c_stride: n,
            c_stored: self.backend.stored(),
            add: false,
        })?;
        Ok(c)
    }

    /// Any product; one without rows or columns is nothing to compute.
    pub fn multiply(&self, product: Product) -> Result<()> {
        if product.m == 0 || product.n == 0 {
            return Ok(());
        }
        // SAFETY: callers take addresses and sizes from matrices of this device.
        unsafe { self.backend.multiply(&product) }
    }

    /// RMSNorm: `y` and `r`.
    pub fn rms_norm_forward(&self, x: &Matrix, weight: &Buffer, eps: f32) -> Result<(Matrix, Statistics)> {
        let (y, r) = (self.matrix(x.rows, x.cols)?, self.room(x.rows)?);
        let arguments = [x.arg(), weight.arg(), y.arg(), r.arg(), int(x.cols), Float(eps)];
        self.per_row("rms_norm_forward", x, &arguments)?;
        Ok((y, r))
    }

    /// RMSNorm: `residual + dx`.
    pub fn rms_norm_backward(
        &self,
        dy: &Matrix,
        x: &Matrix,
        weight: &Buffer,
        r: &Statistics,
        residual: Option<&Matrix>,
    ) -> Result<Matrix> {
        let dx = self.matrix(x.rows, x.cols)?;
        let arguments = [dy.arg(), x.arg(), weight.arg(), r.arg(), or_null(residual), dx.arg(), int(x.cols)];
        self.per_row("rms_norm_backward", x, &arguments)?;
        Ok(dx)
    }

    /// LayerNorm: `y` and the statistics.
    pub fn layer_norm_forward(&self, x: &Matrix, w: &Buffer, b: &Buffer, eps: f32) -> Result<(Matrix, Statistics)> {
        let (y, statistics) = (self.matrix(x.rows, x.cols)?, self.room(2 * x.rows)?);
        let arguments = [x.arg(), w.arg(), b.arg(), y.arg(), statistics.arg(), int(x.cols), Float(eps)];
        self.per_row("layer_norm_forward", x, &arguments)?;
        Ok((y, statistics))
    }

    /// LayerNorm: `residual + dx`.
    pub fn layer_norm_backward(
        &self,
        dy: &Matrix,
        x: &Matrix,
        weight: &Buffer,
        statistics: &Statistics,
        residual: Option<&Matrix>,
    ) -> Result<Matrix> {
        let dx = self.matrix(x.rows, x.cols)?;
        let arguments = [dy.arg(), x.arg(), weight.arg(), statistics.arg(), or_null(residual), dx.arg(), int(x.cols)];
        self.per_row("layer_norm_backward", x, &arguments)?;
        Ok(dx)
    }

    /// Queries and keys of fused rows normalised, values as they are.
    pub fn qk_norm_forward(&self, raw: &Matrix, norm: &QkNorm, heads: Heads) -> Result<Matrix> {
        let y = self.matrix(raw.rows, raw.cols)?;
        let arguments = [&[raw.arg(), norm.query.arg(), norm.key.arg(), y.arg()][..], &norm.sizes(heads)].concat();
        self.launch("qk_norm_forward", [raw.rows, 1], 256, 0, &arguments)?;
        Ok(y)
    }

    /// The gradient of fused rows before that normalisation, in place of the one after it.
    pub fn qk_norm_backward(&self, d_qkv: &Matrix, raw: &Matrix, norm: &QkNorm, heads: Heads) -> Result<()> {
        let arguments = [&[d_qkv.arg(), raw.arg(), norm.query.arg(), norm.key.arg()][..], &norm.sizes(heads)].concat();
        self.launch("qk_norm_backward", [raw.rows, 1], 256, 0, &arguments)
    }

    /// The rotation's table on the device.
    pub fn rotation(&self, table: &RopeTable) -> Result<Rotation> {
        let (cosines, sines, half) = table.values();
        Ok(Rotation { cosines: self.floats(cosines)?, sines: self.floats(sines)?, half })
    }

    /// Rotates the first `heads` heads of each row in place; `positions` holds one `int` a row.
    pub fn rope(
        &self,
        x: &Matrix,
        heads: usize,
        positions: &Buffer,
        rotation: &Rotation,
        direction: Direction,
    ) -> Result<()> {
        let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
        let table = [rotation.cosines.arg(), rotation.sines.arg()];
        let sizes = [int(x.cols), int(heads), int(rotation.half), Float(sign)];
        self.per_row("rope", x, &[&[x.arg(), positions.arg()][..], &table, &sizes].concat())
    }

    /// `y` of a non-linearity.
    pub fn activation_forward(&self, activation: Activation, x: &Matrix) -> Result<Matrix> {
        let (kernel, f) = match activation {
            Activation::SwiGlu => ("swiglu_forward", x.cols / 2),
            Activation::GeGluTanh => ("geglu_forward", x.cols / 2),
            Activation::GeluTanh => ("gelu_forward", x.cols),
            Activation::Relu => return Err(not_on_gpu("the activation relu (T5)")),
        };
        let y = self.matrix(x.rows, f)?;
        self.per_row(kernel, &y, &[x.arg(), y.arg(), int(f)])?;
        Ok(y)
    }

    /// Gradient with respect to a non-linearity's input.
    pub fn activation_backward(&self, activation: Activation, dy: &Matrix, x: &Matrix) -> Result<Matrix> {
        let kernel = match activation {
            Activation::SwiGlu => "swiglu_backward",
            Activation::GeGluTanh => "geglu_backward",
            Activation::GeluTanh => "gelu_backward",
            Activation::Relu => return Err(not_on_gpu("the activation relu (T5)")),
        };
        let dx = self.matrix(x.rows, x.cols)?;
        self.per_row(kernel, dy, &[dy.arg(), x.arg(), dx.arg(), int(dy.cols)])?;
        Ok(dx)
    }

    /// `factor · x[rows]`.
    pub fn gather(&self, x: &Matrix, rows: &Buffer, count: usize, factor: f32) -> Result<Matrix> {
        let y = self.matrix(count, x.cols)?;
        self.per_row("gather_rows", &y, &[x.arg(), rows.arg(), y.arg(), int(x.cols), Float(factor)])?;
        Ok(y)
    }

    /// `y[rows] = x`.
    pub fn scatter(&self, x: &Matrix, rows: &Buffer, y: &Matrix) -> Result<()> {
        self.per_row("scatter_rows", x, &[x.arg(), rows.arg(), y.arg(), int(x.cols)])
    }

    /// `sum += x`.
    pub fn add_to(&self, sum: &Matrix, x: &Matrix) -> Result<()> {
        self.per_value("add_to", sum.count(), &[sum.arg(), x.arg(), Long(sum.count() as i64)])
    }

    /// `y += b` in every row.
    pub fn add_bias(&self, y: &Matrix, bias: &Buffer) -> Result<()> {
        self.per_row("add_bias", y, &[y.arg(), bias.arg(), int(y.cols)])
    }

    /// Losses of `rows` rows of f32 logits into `losses`; with a scale also their gradient.
    pub fn cross_entropy(
        &self,
        logits: &Buffer,
        [rows, vocabulary]: [usize; 2],
        targets: &Buffer,
        losses: &Buffer,
        scale_opt: Option<f32>,
        cap: Option<f32>,
    ) -> Result<Option<Matrix>> {
        let gradient = scale_opt.map(|_| self.matrix(rows, vocabulary)).transpose()?;
        let scale = scale_opt.unwrap_or(0.0);
        let arguments = [
            logits.arg(),
            targets.arg(),
            losses.arg(),
            or_null(gradient.as_ref()),
            int(vocabulary),
            Float(scale),
            Float(cap.unwrap_or(0.0)),
        ];
        self.launch("cross_entropy", [rows, 1], threads_for(vocabulary), 0, &arguments)?;
        Ok(gradient)
    }

    /// Memory for f32 values.
    pub fn room(&self, count: usize) -> Result<Buffer> {
        Buffer::new(&self.backend, 4 * count)
    }

    /// One block for each row of `x`.
    pub(super) fn per_row(&self, kernel: &'static str, x: &Matrix, arguments: &[Argument]) -> Result<()> {
        self.launch(kernel, [x.rows, 1], threads_for(x.cols), 0, arguments)
    }

    /// As many blocks as `count` values want.
    pub(super) fn per_value(&self, kernel: &'static str, count: usize, arguments: &[Argument]) -> Result<()> {
        self.launch(kernel, [count.div_ceil(THREADS).min(BLOCKS), 1], THREADS, 0, arguments)
    }

    pub(super) fn launch(
        &self,
        kernel: &'static str,
        grid: [usize; 2],
        threads: usize,
        shared: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(()); // no rows; a grid of nothing is an error of the driver
        }
        // SAFETY: the methods above pass what the source of each kernel asks for, and tests run every one of them.
        unsafe { self.backend.launch(&Launch { kernel, grid, threads, shared, arguments }) }
    }
}

/// Threads of a block that walks over a row: each takes four values or more.
fn threads_for(width: usize) -> usize {
    width.div_ceil(4).next_multiple_of(32).clamp(32, 512)
}

pub(super) fn int(value: usize) -> Argument {
    Int(value as i32)
}

fn or_null(matrix: Option<&Matrix>) -> Argument {
    matrix.map_or(Pointer(0), Matrix::arg)
}

pub(super) fn not_on_gpu(what: &str) -> ModelError {
    ModelError::NotOnGpu { what: what.to_owned() }
}

impl Buffer {
    pub(super) fn arg(&self) -> Argument {
        Pointer(self.pointer())
    }
}

impl Matrix {
    pub(super) fn arg(&self) -> Argument {
        Pointer(self.at(0))
    }
}
