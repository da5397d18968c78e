//! Memory of a device that is given back when nobody uses it any more.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::backend::{Backend, Operand, Stored};
use crate::error::Result;

/// Bytes on a device.
#[derive(Debug)]
pub struct Buffer {
    backend: Arc<dyn Backend>,
    pointer: u64,
    bytes: usize,
}

impl Buffer {
    /// Memory whose content does not matter.
    pub fn new(backend: &Arc<dyn Backend>, bytes: usize) -> Result<Self> {
        // no device gives out nothing
        let bytes = bytes.max(1);
        Ok(Self { pointer: backend.allocate(bytes)?, backend: Arc::clone(backend), bytes })
    }

    /// Memory that holds zeros.
    pub fn zeros(backend: &Arc<dyn Backend>, bytes: usize) -> Result<Self> {
        let buffer = Self::new(backend, bytes)?;
        backend.clear(buffer.pointer, buffer.bytes)?;
        Ok(buffer)
    }

    /// A copy of these bytes.
    pub fn of_bytes(backend: &Arc<dyn Backend>, bytes: &[u8]) -> Result<Self> {
        let buffer = Self::new(backend, bytes.len())?;
        backend.upload(buffer.pointer, bytes)?;
        Ok(buffer)
    }

    /// A copy as f32.
    pub fn of_floats(backend: &Arc<dyn Backend>, values: &[f32]) -> Result<Self> {
        Self::of_bytes(backend, as_bytes(values))
    }

    /// A copy as the device stores values.
    pub fn of_values(backend: &Arc<dyn Backend>, values: &[f32]) -> Result<Self> {
        let buffer = Self::new(backend, values.len() * backend.stored().bytes())?;
        buffer.write_values(0, values)?;
        Ok(buffer)
    }

    /// Writes from value `first` on, as the device stores values.
    pub fn write_values(&self, first: usize, values: &[f32]) -> Result<()> {
        let stored = self.backend.stored();
        let to = self.pointer + (first * stored.bytes()) as u64;
        match stored {
            Stored::F32 => self.backend.upload(to, as_bytes(values)),
            Stored::Bf16 => self.backend.upload(to, &in_bf16(values)),
        }
    }

    /// A copy as `int`.
    pub fn of_ints(backend: &Arc<dyn Backend>, values: impl Iterator<Item = usize>) -> Result<Self> {
        let bytes: Vec<u8> = values.flat_map(|value| (value as i32).to_ne_bytes()).collect();
        Self::of_bytes(backend, &bytes)
    }

    /// Where it begins.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// `count` f32 values from `first` on.
    pub fn floats(&self, first: usize, count: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; count];
        // SAFETY: the bytes of the values, any of which are an f32.
        let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), 4 * count) };
        self.backend.download(self.pointer + 4 * first as u64, bytes)?;
        Ok(values)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.backend.free(self.pointer);
    }
}

/// The bytes that values are.
fn as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: every byte of an f32 has a value, and nothing is less aligned than a byte.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Values rounded to bf16.
fn in_bf16(values: &[f32]) -> Vec<u8> {
    const CHUNK: usize = 64 << 10;
    let mut bytes = vec![0; 2 * values.len()];
    bytes.par_chunks_mut(2 * CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(bytes, values)| {
        for (bytes, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *bytes = bf16::from_f32(*value).to_bits().to_ne_bytes();
        }
    });
    bytes
}

/// A row-major matrix of values, as the device stores them.
#[derive(Debug, Clone)]
pub struct Matrix {
    buffer: Arc<Buffer>,
    stored: Stored,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl Matrix {
    /// A matrix whose values do not matter.
    pub fn new(backend: &Arc<dyn Backend>, rows: usize, cols: usize) -> Result<Self> {
        let buffer = Buffer::new(backend, rows * cols * backend.stored().bytes())?;
        Ok(Self { buffer: Arc::new(buffer), stored: backend.stored(), rows, cols })
    }

    /// A matrix of zeros.
    pub fn zeros(backend: &Arc<dyn Backend>, rows: usize, cols: usize) -> Result<Self> {
        let buffer = Buffer::zeros(backend, rows * cols * backend.stored().bytes())?;
        Ok(Self { buffer: Arc::new(buffer), stored: backend.stored(), rows, cols })
    }

    /// A copy of values, row by row.
    pub fn of(backend: &Arc<dyn Backend>, values: &[f32], cols: usize) -> Result<Self> {
        let buffer = Buffer::of_values(backend, values)?;
        Ok(Self { buffer: Arc::new(buffer), stored: backend.stored(), rows: values.len() / cols.max(1), cols })
    }

    /// Where column `column` of the first row lies.
    pub fn at(&self, column: usize) -> u64 {
        self.buffer.pointer() + (column * self.stored.bytes()) as u64
    }

    /// The columns from `column` on as they are.
    pub fn columns_from(&self, column: usize) -> Operand {
        Operand { pointer: self.at(column), stride: self.cols, transposed: false }
    }

    /// The whole matrix as it is.
    pub fn view(&self) -> Operand {
        self.columns_from(0)
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.rows * self.cols
    }

    /// All values as f32, row by row.
    #[cfg(test)]
    pub fn values(&self) -> Result<Vec<f32>> {
        if self.stored == Stored::F32 {
            return self.buffer.floats(0, self.count());
        }
        let mut bytes = vec![0; 2 * self.count()];
        self.buffer.backend.download(self.buffer.pointer, &mut bytes)?;
        Ok(bytes.as_chunks::<2>().0.iter().map(|bytes| bf16::from_bits(u16::from_ne_bytes(*bytes)).to_f32()).collect())
    }
}

impl Operand {
    /// The transpose.
    #[must_use]
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}
