//! Matrices in a block format of llama.cpp, as candle computes it: what [`super::q8_0`] and [`super::q4_k`] have in common.

use candle_core::quantized::GgmlType;
use rayon::prelude::*;

/// Blocks that one task quantises.
const BLOCKS_PER_TASK: usize = 64;

/// A matrix whose rows are a whole number of blocks each.
#[derive(Debug, Clone)]
pub struct GgmlBlocks<B>(Vec<B>);

impl<B: GgmlType> GgmlBlocks<B> {
    /// Values in a block.
    pub const BLOCK: usize = B::BLCK_SIZE;

    /// Quantises the values of a matrix, row by row. Their number must be a multiple of [`Self::BLOCK`].
    #[must_use]
    pub fn quantise(values: &[f32]) -> Self {
        assert!(values.len().is_multiple_of(B::BLCK_SIZE), "rows of whole blocks only");
        let mut blocks = vec![B::zeros(); values.len() / B::BLCK_SIZE];
        blocks
            .par_chunks_mut(BLOCKS_PER_TASK)
            .zip(values.par_chunks(BLOCKS_PER_TASK * B::BLCK_SIZE))
            .for_each(|(blocks, values)| B::from_float(values, blocks));
        Self(blocks)
    }

    /// Dequantises the values from index `first` on, as many as `out` holds; both are multiples of [`Self::BLOCK`].
    pub fn read(&self, first: usize, out: &mut [f32]) {
        let (block, count) = (first / B::BLCK_SIZE, out.len() / B::BLCK_SIZE);
        assert!(block * B::BLCK_SIZE == first && count * B::BLCK_SIZE == out.len(), "whole blocks only");
        B::to_float(&self.0[block..block + count], out);
    }

    /// Bytes for so many values.
    #[must_use]
    pub fn bytes(num_values: usize) -> usize {
        num_values / B::BLCK_SIZE * size_of::<B>()
    }
}

#[cfg(test)]
pub(super) mod testing {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::rng::Rng;

    /// Asserts that quantising equals candle's own tensor of this format to the bit, and that any rows read as the whole.
    pub fn equals_candle<B: GgmlType>(dtype: GgmlDType, largest_error: f32) {
        let (rows, width) = (5, 2 * B::BLCK_SIZE);
        let mut rng = Rng::new(11, 0);
        let values: Vec<f32> = (0..rows * width).map(|_| (rng.uniform() - 0.5) * rng.uniform()).collect();
        let tensor = Tensor::from_slice(&values, (rows, width), &Device::Cpu).unwrap();
        let candle = QTensor::quantize(&tensor, dtype).unwrap().dequantize(&Device::Cpu).unwrap();
        let candle = candle.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let stored = GgmlBlocks::<B>::quantise(&values);
        let read = |first: usize, count: usize| {
            let mut out = vec![0.0; count * width];
            stored.read(first * width, &mut out);
            out
        };
        assert!(read(0, rows) == candle);
        assert!(read(2, 2) == candle[2 * width..4 * width]);
        let worst = values.iter().zip(&candle).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(worst > 0.0 && worst <= largest_error, "{worst}");
    }
}
