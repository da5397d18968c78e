//! [`crate::frozen::nf4`] on a device: `frozen/nf4.cu`.

use super::backend::Argument::{Float, Long, Pointer};
use super::gpu::{Gpu, int};
use super::memory::{Buffer, Matrix};
use crate::error::Result;
use crate::frozen::dynamic_code::SIGNED;
use crate::frozen::nf4::{CODE, Nf4};

/// A matrix in NF4 on the device: [`crate::frozen::nf4`].
#[derive(Debug)]
pub struct Nf4Parts {
    /// Codes, their scales' codes, the scales' scales, the code, the dynamic code.
    pub buffers: [Buffer; 5],
    /// `μ`.
    pub offset: f32,
}

/// `NF4_ROWS` of the source: rows for which the weights are read once.
pub const FEW: usize = 8;

impl Gpu {
    /// A matrix in NF4 on the device.
    pub fn nf4(&self, stored: &Nf4) -> Result<Nf4Parts> {
        let bytes = |bytes: &[u8]| Buffer::of_bytes(&self.backend, bytes);
        let buffers = [
            bytes(&stored.codes)?,
            bytes(&stored.absmax_codes)?,
            self.floats(&stored.absmax_scales)?,
            self.floats(&CODE)?,
            self.floats(SIGNED.values())?,
        ];
        Ok(Nf4Parts { buffers, offset: stored.offset })
    }

    /// An NF4 matrix as `[rows, cols]`.
    pub fn nf4_dequantise(&self, stored: &Nf4Parts, [rows, cols]: [usize; 2]) -> Result<Matrix> {
        let out = self.matrix(rows, cols)?;
        let rest = [Float(stored.offset), Long(out.count() as i64), out.arg()];
        let arguments = [&stored.buffers.each_ref().map(Buffer::arg)[..], &rest].concat();
        self.per_value("nf4_dequantise", out.count(), &arguments)?;
        Ok(out)
    }

    /// `x W̃ᵀ` with `W̃` `[out, width]` in NF4 into the columns of `y` from `start` on, for at most [`FEW`] rows.
    pub fn nf4_multiply(&self, stored: &Nf4Parts, x: &Matrix, y: &Matrix, start: usize, out: usize) -> Result<()> {
        const WARPS: usize = 4;
        let to = Pointer(y.at(start));
        let sizes = [Float(stored.offset), x.arg(), to, int(x.rows), int(out), int(x.cols), int(y.cols)];
        let arguments = [&stored.buffers.each_ref().map(Buffer::arg)[..], &sizes].concat();
        self.launch("nf4_multiply", [out.div_ceil(WARPS), x.rows.div_ceil(FEW)], 32 * WARPS, 0, &arguments)
    }
}
