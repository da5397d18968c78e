//! Q4_K of llama.cpp: 4 bits a value in groups of 32 with scale and minimum of 6 bits each, 4.5 bits together.
//!
//! A block of 256 values of a row has 8 groups: `w̃_i = d · s_g · q_i − d_min · m_g` with `q_i` from 0 to 15. Scale and minimum of a
//! group minimise its squared error; `s_g`, `m_g` are these in steps of `d`, `d_min`, the largest over 63. Layout of a block: `d`,
//! `d_min` (f16), 12 bytes with 8 × 2 six-bit numbers, 128 bytes of `q`. The width of a matrix must be a multiple of 256.

use candle_core::quantized::k_quants::BlockQ4K;

use super::ggml_blocks::GgmlBlocks;

/// A matrix in Q4_K.
pub type Q4K = GgmlBlocks<BlockQ4K>;

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::frozen::ggml_blocks::testing::equals_candle;

    #[test]
    fn q4_k_equals_candle_to_the_bit() {
        // half a step, a fifteenth of the values' range, which is at most 1; and the rounding of scale and minimum
        equals_candle::<BlockQ4K>(GgmlDType::Q4K, 0.5 / 15.0 * 2.0);
        assert_eq!((Q4K::BLOCK, Q4K::bytes(2560)), (256, 1440));
    }

    #[test]
    fn one_block_by_hand() {
        // two values in every group: both ends of its range are exact but for the f16 of d and d_min
        let values: Vec<f32> = (0..256).map(|i| if i % 2 == 0 { -1.0 } else { 2.0 }).collect();
        let mut read = vec![9.0; 256];
        Q4K::quantise(&values).read(0, &mut read);
        for (value, read) in values.iter().zip(&read) {
            assert!((value - read).abs() < 3e-3, "{value} {read}");
        }
    }
}
