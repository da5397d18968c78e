//! Q8_0 of llama.cpp: 8 bits a value and a scale for every 32 of a row, 8.5 bits together.
//!
//! `d = max |w| / 127` over the block, rounded to f16; `q_i = round(w_i / d)` with `d` before that rounding; read back as
//! `w̃_i = d · q_i`. Layout of a block: `d` (f16), `q_0 … q_31` (i8). The width of a matrix must be a multiple of 32.

use candle_core::quantized::k_quants::BlockQ8_0;

use super::ggml_blocks::GgmlBlocks;

/// A matrix in Q8_0.
pub type Q8_0 = GgmlBlocks<BlockQ8_0>;

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::frozen::ggml_blocks::testing::equals_candle;

    #[test]
    fn q8_0_equals_candle_to_the_bit() {
        // half a step of the largest value's 1/127, and the rounding of d
        equals_candle::<BlockQ8_0>(GgmlDType::Q8_0, 0.5 / 254.0 * 1.2);
        assert_eq!((Q8_0::BLOCK, Q8_0::bytes(3200)), (32, 3400));
    }

    #[test]
    fn one_block_by_hand() {
        let mut values = [0.0f32; 32];
        (values[0], values[1], values[2]) = (127.0, -63.5, 0.4);
        let mut read = [9.0; 32];
        Q8_0::quantise(&values).read(0, &mut read);
        // d = 1: halves are rounded away from zero
        assert_eq!(read[..4], [127.0, -64.0, 0.0, 0.0]);
    }
}
