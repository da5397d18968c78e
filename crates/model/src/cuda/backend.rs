//! What the device half of the engine asks of a device.
//!
//! Addresses are numbers that only the device can follow. Calls are carried out in the order in which they are made; what is
//! downloaded is what all calls before have left. So memory may be freed while a kernel that uses it still waits to run.

use std::fmt::Debug;

use crate::error::Result;

/// How weights and activations are stored on the device. Sums, statistics, losses and gradients of adapters are f32 in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stored {
    /// Four bytes: the numbers of the CPU, up to the order of sums.
    F32,
    /// Two bytes, products by tensor cores.
    Bf16,
}

impl Stored {
    /// Bytes of a value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// One argument of a kernel, in the type that its source names.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    /// Any pointer; 0 is null.
    Pointer(u64),
    /// `int`.
    Int(i32),
    /// `long long`.
    Long(i64),
    /// `float`.
    Float(f32),
}

/// A kernel to start.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Its name in the source.
    pub kernel: &'static str,
    /// Blocks in both directions.
    pub grid: [usize; 2],
    /// Threads of a block: a multiple of 32.
    pub threads: usize,
    /// Bytes of shared memory that the block gets beside what the source declares.
    pub shared: usize,
    /// In the order of the source.
    pub arguments: &'a [Argument],
}

/// A row-major matrix of stored values.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// Where it begins.
    pub pointer: u64,
    /// Values from one row to the next, as it lies in memory.
    pub stride: usize,
    /// Whether the product takes its transpose.
    pub transposed: bool,
}

/// `c = scale · a · b`, or added to `c`; `a` is `[m, k]` and `b` `[k, n]` after transposing, `c` row-major.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of `c`.
    pub m: usize,
    /// Columns of `c`.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Factor.
    pub scale: f32,
    /// Left.
    pub a: Operand,
    /// Right.
    pub b: Operand,
    /// Where `c` begins.
    pub c: u64,
    /// Values from one of its rows to the next.
    pub c_stride: usize,
    /// How `c` is stored: as the operands, or f32.
    pub c_stored: Stored,
    /// Whether it is added to what `c` holds.
    pub add: bool,
}

impl Product {
    /// The same in the words of BLAS, which counts by columns and so sees every matrix transposed: it is asked for `cᵀ = bᵀ aᵀ`. `m` and
    /// `n` are its rows and columns, `a` and `b` its left and right operand, each with its leading dimension as stride.
    #[must_use]
    pub fn by_columns(self) -> Self {
        Self { m: self.n, n: self.m, a: self.b, b: self.a, ..self }
    }
}

/// A device with the kernels of [`super::source`].
pub trait Backend: Debug + Send + Sync {
    /// How it stores values.
    fn stored(&self) -> Stored;

    /// `HEAD` of the source: the head size that attention was compiled for.
    fn head(&self) -> usize;

    /// Bytes of shared memory that a block can have.
    fn most_shared(&self) -> usize;

    /// Bytes that can still be had.
    fn free_memory(&self) -> Result<usize>;

    /// Memory for so many bytes, whatever it holds.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back that [`Backend::allocate`] gave.
    fn free(&self, pointer: u64);

    /// Sets bytes to zero.
    fn clear(&self, pointer: u64, bytes: usize) -> Result<()>;

    /// Copies to the device.
    fn upload(&self, pointer: u64, bytes: &[u8]) -> Result<()>;

    /// Copies from the device, when everything before is done.
    fn download(&self, pointer: u64, bytes: &mut [u8]) -> Result<()>;

    /// Starts a kernel.
    ///
    /// # Safety
    /// Types and number of the arguments are those of the source, and every pointer has the memory that the kernel reads and writes.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Starts a product.
    ///
    /// # Safety
    /// The three matrices lie in memory of this device, and `c` overlaps neither operand.
    unsafe fn multiply(&self, product: &Product) -> Result<()>;
}
