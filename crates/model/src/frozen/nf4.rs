//! NF4 with double quantisation (Dettmers et al. 2023, "QLoRA", arXiv 2305.14314), to the bit as `bitsandbytes` 0.50 quantises and
//! dequantises f32 weights on the CPU (`quantize_4bit(…, quant_type="nf4", compress_statistics=True)`, what `Linear4bit` calls).
//!
//! The matrix counts as one row of values `w_i` in blocks of 64; block `b` has the scale `a_b = max |w_i|`.
//! ```text
//! quantise      c_i = the index of the value of CODE nearest to w_i / a_b, of two the lower      4 bits a value
//!               μ = mean of all a_b                                                              one f32 a matrix
//!               s_k = max |a_b − μ| over 256 blocks, s_b its own                                 one f32 for 16,384 values
//!               q_b = the index of the value of the dynamic code nearest to (a_b − μ) / s_b      8 bits for 64 values
//! dequantise    ã_b = DYNAMIC[q_b] · s_b + μ
//!               w̃_i = CODE[c_i] · ã_b
//! ```
//! Together 4.127 bits a value. CODE holds 16 quantiles of the normal distribution, scaled to ±1, 0 among them. Layout: two codes a
//! byte, the first in the high half; rows follow each other without gaps, so a block may span two of them.
//! Where a value is stored in bf16 or f16, its f32 value is quantised; dequantised values stay f32.

use rayon::prelude::*;

use super::dynamic_code::SIGNED;
use super::torch_mean::mean;
use crate::ops::vectorised;

/// Values that share a scale.
pub const BLOCK: usize = 64;
/// Scales that share a scale of their own.
const SCALES: usize = 256;
/// Blocks whose scales are dequantised at once, on the stack.
const GROUP: usize = 64;

/// The code values (QLoRA, appendix E).
#[allow(clippy::excessive_precision)] // as published
pub const CODE: [f32; 16] = [
    -1.0,
    -0.696_192_800_998_687_7,
    -0.525_073_051_452_636_7,
    -0.394_917_488_098_144_53,
    -0.284_441_381_692_886_35,
    -0.184_773_430_228_233_34,
    -0.091_050_036_251_544_95,
    0.0,
    0.079_580_299_556_255_34,
    0.160_930_201_411_247_25,
    0.246_112_301_945_686_34,
    0.337_915_241_718_292_24,
    0.440_709_829_330_444_34,
    0.562_617_003_917_694_1,
    0.722_956_836_223_602_3,
    1.0,
];

/// What separates neighbouring code values.
const MIDPOINTS: [f32; 15] = {
    let (mut midpoints, mut i) = ([0.0; 15], 0);
    while i < 15 {
        midpoints[i] = (CODE[i] + CODE[i + 1]) / 2.0;
        i += 1;
    }
    midpoints
};

/// A matrix in NF4.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    num_values: usize,
    /// `c`, two a byte.
    pub codes: Vec<u8>,
    /// `q`, one for each block.
    pub absmax_codes: Vec<u8>,
    /// `s`, one for each 256 blocks.
    pub absmax_scales: Vec<f32>,
    /// `μ`.
    pub offset: f32,
}

impl Nf4 {
    /// Quantises the values of a matrix, row by row.
    #[must_use]
    pub fn quantise(values: &[f32]) -> Self {
        let num_blocks = values.len().div_ceil(BLOCK);
        let mut codes = vec![0u8; values.len().div_ceil(2)];
        let mut absmax = vec![0.0f32; num_blocks];
        values
            .par_chunks(BLOCK)
            .zip(codes.par_chunks_mut(BLOCK / 2))
            .zip(absmax.par_iter_mut())
            .with_min_len(GROUP)
            .for_each(|((values, codes), absmax)| *absmax = quantise_block(values, codes));
        let offset = mean(&absmax);
        let (mut absmax_codes, mut absmax_scales) = (vec![0u8; num_blocks], vec![0.0f32; num_blocks.div_ceil(SCALES)]);
        let groups = absmax.chunks_mut(SCALES).zip(absmax_codes.chunks_mut(SCALES)).zip(&mut absmax_scales);
        for ((absmax, codes), scale) in groups {
            absmax.iter_mut().for_each(|absmax| *absmax -= offset);
            *scale = absmax.iter().fold(0.0, |most, value| value.abs().max(most));
            if *scale > 0.0 {
                let inverse = 1.0 / *scale;
                codes.iter_mut().zip(absmax).for_each(|(code, value)| *code = SIGNED.nearest_on_grid(*value * inverse));
            }
        }
        Self { num_values: values.len(), codes, absmax_codes, absmax_scales, offset }
    }

    /// Dequantises the values from index `first` on, as many as `out` holds; they must exist.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        assert!(first + out.len() <= self.num_values, "the matrix ends before these values");
        let (before, rest) = out.split_at_mut(out.len().min(first.next_multiple_of(BLOCK) - first));
        self.read_within(first, before);
        let block = first.div_ceil(BLOCK);
        let (whole, after) = rest.split_at_mut(rest.len() / BLOCK * BLOCK);
        for (index, out) in whole.chunks_mut(GROUP * BLOCK).enumerate() {
            let block = block + index * GROUP;
            let (mut scales, count) = ([0.0; GROUP], out.len() / BLOCK);
            scales[..count].iter_mut().enumerate().for_each(|(i, scale)| *scale = self.scale(block + i));
            read_blocks(&self.codes[block * BLOCK / 2..(block + count) * BLOCK / 2], &scales[..count], out);
        }
        self.read_within(block * BLOCK + whole.len(), after);
    }

    /// Bytes of all parts for so many values.
    #[must_use]
    pub fn bytes(num_values: usize) -> usize {
        let num_blocks = num_values.div_ceil(BLOCK);
        num_values.div_ceil(2) + num_blocks + 4 * num_blocks.div_ceil(SCALES) + 4
    }

    /// Values of one block.
    fn read_within(&self, first: usize, out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        let scale = self.scale(first / BLOCK);
        for (index, value) in (first..).zip(out) {
            let pair = self.codes[index / 2];
            *value = CODE[usize::from(if index % 2 == 0 { pair >> 4 } else { pair & 15 })] * scale;
        }
    }

    /// `ã` of a block.
    fn scale(&self, block: usize) -> f32 {
        SIGNED.values()[usize::from(self.absmax_codes[block])] * self.absmax_scales[block / SCALES] + self.offset
    }
}

/// Smallest number that blocks are divided by: those of zeros must not become NaN. `bitsandbytes`' value.
const TINY: f32 = 1e-38;

/// Writes the codes and returns the scale. The last block of a matrix may be shorter than [`BLOCK`]; `bitsandbytes` divides there
/// where it multiplies by the inverse elsewhere, and stores [`TINY`] as scale of a short block of zeros.
fn quantise_block(values: &[f32], codes: &mut [u8]) -> f32 {
    let absmax = values.iter().fold(0.0f32, |most, value| value.abs().max(most));
    let mut normal = [0.0f32; BLOCK];
    let is_whole = values.len() == BLOCK;
    let inverse = 1.0 / absmax.max(TINY);
    for (normal, value) in normal.iter_mut().zip(values) {
        *normal = if is_whole { value * inverse } else { value / absmax.max(TINY) };
    }
    nearest_codes(&normal, codes);
    if is_whole { absmax } else { absmax.max(TINY) }
}

vectorised! {
/// Indices of the nearest code values, two a byte.
fn nearest_codes(normal: &[f32; BLOCK], codes: &mut [u8]) {
    let mut nearest = [0u32; BLOCK];
    for (nearest, value) in nearest.iter_mut().zip(normal) {
        for middle in MIDPOINTS {
            *nearest += u32::from(middle < *value);
        }
    }
    for (pair, code) in nearest.as_chunks::<2>().0.iter().zip(codes) {
        *code = ((pair[0] << 4) | pair[1]) as u8;
    }
}
}

/// `CODE[c] · scale` of whole blocks, with the widest instructions that the processor has. All variants give the same bits: one
/// multiplication a value.
fn read_blocks(codes: &[u8], scales: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the feature.
            return unsafe { x86::read_blocks_avx512(codes, scales, out) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the feature.
            return unsafe { x86::read_blocks_avx2(codes, scales, out) };
        }
    }
    read_blocks_portable(codes, scales, out);
}

fn read_blocks_portable(codes: &[u8], scales: &[f32], out: &mut [f32]) {
    for ((codes, scale), out) in codes.as_chunks::<32>().0.iter().zip(scales).zip(out.as_chunks_mut::<BLOCK>().0) {
        for (pair, out) in codes.iter().zip(out.as_chunks_mut::<2>().0) {
            *out = [CODE[usize::from(pair >> 4)] * scale, CODE[usize::from(pair & 15)] * scale];
        }
    }
}

/// Sixteen code values are as many as a register of AVX-512 holds, so that looking up is one instruction; AVX2 needs two halves.
/// A byte widened to 64 bits becomes two indices of 32 bits: its high half stays in the lower one, its low half moves to the
/// upper one. The instructions look at the lowest four (three) bits of an index alone.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, CODE};

    #[target_feature(enable = "avx512f")]
    pub fn read_blocks_avx512(codes: &[u8], scales: &[f32], out: &mut [f32]) {
        // SAFETY: 16 values are read.
        let code = unsafe { _mm512_loadu_ps(CODE.as_ptr()) };
        for ((codes, scale), out) in codes.as_chunks::<32>().0.iter().zip(scales).zip(out.as_chunks_mut::<BLOCK>().0) {
            let scale = _mm512_set1_ps(*scale);
            for (bytes, out) in codes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<16>().0) {
                let bytes = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)));
                let index = _mm512_or_si512(_mm512_srli_epi64::<4>(bytes), _mm512_slli_epi64::<32>(bytes));
                let values = _mm512_mul_ps(_mm512_permutexvar_ps(index, code), scale);
                // SAFETY: 16 values are written.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn read_blocks_avx2(codes: &[u8], scales: &[f32], out: &mut [f32]) {
        // SAFETY: 8 values are read from each half of 16.
        let (lower, upper) = unsafe { (_mm256_loadu_ps(CODE.as_ptr()), _mm256_loadu_ps(CODE.as_ptr().add(8))) };
        for ((codes, scale), out) in codes.as_chunks::<32>().0.iter().zip(scales).zip(out.as_chunks_mut::<BLOCK>().0) {
            let scale = _mm256_set1_ps(*scale);
            for (bytes, out) in codes.as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<8>().0) {
                let bytes = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(i32::from_le_bytes(*bytes)));
                let index = _mm256_or_si256(_mm256_srli_epi64::<4>(bytes), _mm256_slli_epi64::<32>(bytes));
                let (low, high) = (_mm256_permutevar8x32_ps(lower, index), _mm256_permutevar8x32_ps(upper, index));
                // the fourth bit, moved to where the instruction looks, chooses the half
                let half = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
                let values = _mm256_mul_ps(_mm256_blendv_ps(low, high, half), scale);
                // SAFETY: 8 values are written.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed, 0);
        (0..count).map(|_| (rng.uniform() - 0.5) * rng.uniform()).collect()
    }

    fn all(stored: &Nf4, count: usize) -> Vec<f32> {
        let mut out = vec![0.0; count];
        stored.read(0, &mut out);
        out
    }

    #[test]
    fn what_is_read_is_the_nearest_code_value() {
        let values = random(64 * 700 + 13, 1);
        let stored = Nf4::quantise(&values);
        for (values, read) in values.chunks(BLOCK).zip(all(&stored, values.len()).chunks(BLOCK)) {
            let absmax = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            for (value, read) in values.iter().zip(read) {
                // half the widest gap of the code, and what the scale of scales costs
                assert!((value - read).abs() <= 0.17 * absmax, "{value} {read} of {absmax}");
            }
        }
        assert_eq!(stored.bytes_held(), Nf4::bytes(values.len()));
        assert!((Nf4::bytes(1 << 24) as f64 * 8.0 / f64::from(1 << 24) - 4.127).abs() < 1e-3);
    }

    #[test]
    fn any_part_of_the_matrix_reads_as_the_whole() {
        for count in [1, 63, 64, 65, 129, 5000, 64 * 300] {
            let stored = Nf4::quantise(&random(count, 2));
            let whole = all(&stored, count);
            for (first, end) in [(0, count), (0, 1), (count / 3, count / 2), (count / 2, count), (count - 1, count)] {
                let mut part = vec![0.0; end - first];
                stored.read(first, &mut part);
                assert!(part == whole[first..end], "{first}..{end} of {count}");
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_nothing_is_no_number() {
        for count in [0, 3, 64, 1000] {
            assert!(all(&Nf4::quantise(&vec![0.0; count]), count).iter().all(|value| value.abs() <= TINY));
        }
        let mut values = random(64 * 9, 3);
        values[64..128].fill(0.0);
        values[128..192].fill(f32::MIN_POSITIVE / 8.0);
        assert!(all(&Nf4::quantise(&values), values.len()).iter().all(|value| value.is_finite()));
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let stored = Nf4::quantise(&random(64 * 37, 4));
        let scales: Vec<f32> = (0..37).map(|block| stored.scale(block)).collect();
        type Read<'a> = &'a dyn Fn(&[u8], &[f32], &mut [f32]);
        let run = |read: Read<'_>| {
            let mut out = vec![0.0; 64 * 37];
            read(&stored.codes, &scales, &mut out);
            out
        };
        let wanted = run(&read_blocks_portable);
        assert!(wanted == all(&stored, wanted.len()));
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has the feature.
                assert!(wanted == run(&|codes, scales, out| unsafe { x86::read_blocks_avx512(codes, scales, out) }));
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the feature.
                assert!(wanted == run(&|codes, scales, out| unsafe { x86::read_blocks_avx2(codes, scales, out) }));
            }
        }
    }

    impl Nf4 {
        fn bytes_held(&self) -> usize {
            self.codes.len() + self.absmax_codes.len() + 4 * self.absmax_scales.len() + 4
        }
    }
}
