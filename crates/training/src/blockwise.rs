//! Block-wise dynamic quantisation to 8 bits (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization",
//! arXiv 2110.02861), as `bitsandbytes` does it for the moments of its 8-bit optimizers.
//!
//! A block of 256 values is divided by its largest magnitude `a`; each quotient becomes the index of the nearest of 256 code
//! values: `q = argmin_j |x / a − c_j|`, read back as `x̂ = a · c_q`. The code is *dynamic*: decades from `10⁻⁶` to `1`, each
//! with twice as many steps as the one below, so that small values keep their relative precision. A block of zeros has `a = 0`
//! and reads back as zeros.

use std::sync::LazyLock;

/// Values that share one scale: what `bitsandbytes` uses for optimizer states.
pub const BLOCK: usize = 256;

/// The 256 code values, ascending, with the midpoints that separate them.
#[derive(Debug)]
pub struct Code {
    values: [f32; 256],
    midpoints: [f32; 255],
}

/// For values of either sign: the first moment.
pub static SIGNED: LazyLock<Code> = LazyLock::new(|| Code::dynamic(Sign::Signed));
/// For values that are never negative: the second moment, with twice the steps.
pub static UNSIGNED: LazyLock<Code> = LazyLock::new(|| Code::dynamic(Sign::Unsigned));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Signed,
    Unsigned,
}

impl Code {
    /// `bitsandbytes.functional.create_dynamic_map(signed, max_exponent_bits=7, total_bits=8)`: decade `i` of 7 holds the
    /// middles of `2^i` (unsigned: `2^(i+1)`) equal steps from 0.1 to 1, times `10^(i−6)`; then 0 and 1.
    fn dynamic(sign: Sign) -> Self {
        let decades = [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
        let mut values = vec![0.0f32, 1.0];
        for (index, decade) in decades.into_iter().enumerate() {
            let steps = 1usize << (index + usize::from(sign == Sign::Unsigned));
            for step in 0..steps {
                let middle = decade * ((boundary(step, steps) + boundary(step + 1, steps)) / 2.0);
                values.push(middle);
                if sign == Sign::Signed {
                    values.push(-middle);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let mut code = Self { values: [0.0; 256], midpoints: [0.0; 255] };
        code.values.copy_from_slice(&values);
        for (middle, pair) in code.midpoints.iter_mut().zip(values.windows(2)) {
            *middle = (pair[0] + pair[1]) / 2.0;
        }
        code
    }

    /// The code values, ascending.
    #[must_use]
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// Index of the nearest code value; of two equally near ones the lower.
    fn nearest(&self, value: f32) -> u8 {
        self.midpoints.partition_point(|middle| *middle < value) as u8
    }
}

/// `torch.linspace(0.1, 1, steps + 1)[index]` in f32: it counts from both ends, with fused multiplications.
fn boundary(index: usize, steps: usize) -> f32 {
    let step = (1.0f32 - 0.1) / steps as f32;
    if index < steps.div_ceil(2) {
        step.mul_add(index as f32, 0.1)
    } else {
        (-step).mul_add((steps - index) as f32, 1.0)
    }
}

/// Values in 8 bits each, with a scale for every [`BLOCK`] of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Blockwise {
    /// One code index for each value.
    pub codes: Vec<u8>,
    /// Largest magnitude of each block.
    pub absmax: Vec<f32>,
}

impl Blockwise {
    /// Zeros.
    #[must_use]
    pub fn zeros(length: usize) -> Self {
        Self { codes: vec![0; length], absmax: vec![0.0; length.div_ceil(BLOCK)] }
    }

    /// Reads block `index` into the beginning of `values`; returns how many it holds.
    pub fn read(&self, code: &Code, index: usize, values: &mut [f32; BLOCK]) -> usize {
        let codes = self.codes.chunks(BLOCK).nth(index).unwrap_or_default();
        let absmax = self.absmax.get(index).copied().unwrap_or(0.0);
        for (value, code_index) in values.iter_mut().zip(codes) {
            *value = code.values[usize::from(*code_index)] * absmax;
        }
        codes.len()
    }

    /// Replaces block `index`.
    pub fn write(&mut self, code: &Code, index: usize, values: &[f32]) {
        let absmax = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        if let Some(slot) = self.absmax.get_mut(index) {
            *slot = absmax;
        }
        let codes = self.codes.chunks_mut(BLOCK).nth(index).unwrap_or_default();
        for (slot, value) in codes.iter_mut().zip(values) {
            *slot = code.nearest(if absmax > 0.0 { value / absmax } else { 0.0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_model::rng::Rng;

    use super::*;

    #[test]
    fn what_is_read_is_near_what_was_written() {
        let mut rng = Rng::new(1, 0);
        let values: Vec<f32> = (0..600).map(|_| (rng.uniform() - 0.5) * rng.uniform().powi(6)).collect();
        let mut stored = Blockwise::zeros(600);
        values.chunks(BLOCK).enumerate().for_each(|(index, block)| stored.write(&SIGNED, index, block));
        let (mut read, mut block) = (Vec::new(), [0.0; BLOCK]);
        for index in 0..3 {
            let held = stored.read(&SIGNED, index, &mut block);
            read.extend_from_slice(&block[..held]);
        }
        assert_eq!(read.len(), 600);
        for (index, (wanted, got)) in values.iter().zip(&read).enumerate() {
            let scale = stored.absmax[index / BLOCK];
            // relative precision within a decade, absolute below the last
            assert!((wanted - got).abs() <= 0.5 * wanted.abs() + 1e-6 * scale, "{wanted} read as {got}");
            assert!((wanted - got).abs() <= 0.008 * scale, "{wanted} read as {got}");
        }
    }

    #[test]
    fn zeros_and_extremes_are_exact() {
        let mut stored = Blockwise::zeros(3);
        let mut block = [9.0; BLOCK];
        assert_eq!(stored.read(&UNSIGNED, 0, &mut block), 3);
        assert_eq!(block[..3], [0.0; 3]);
        stored.write(&UNSIGNED, 0, &[0.0, 0.25, 0.0]);
        stored.read(&UNSIGNED, 0, &mut block);
        assert_eq!(block[..3], [0.0, 0.25, 0.0], "the largest value of a block is exact");
        stored.write(&SIGNED, 0, &[0.0; 3]);
        stored.read(&SIGNED, 0, &mut block);
        assert_eq!(block[..3], [0.0; 3]);
    }
}
