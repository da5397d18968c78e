//! The dynamic 8-bit code of Dettmers et al. 2022 ("8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861), as
//! `bitsandbytes` makes it: 256 values in decades from `10⁻⁶` to `1`, each decade with twice as many steps as the one below, so
//! that small values keep their relative precision.
//!
//! Two parts store numbers in it: the moments of 8-bit AdamW, and the block scales of NF4 ([`super::nf4`]).

use std::sync::LazyLock;

/// The 256 code values, ascending, with the midpoints that separate them.
#[derive(Debug)]
pub struct Code {
    values: [f32; 256],
    midpoints: [f32; 255],
}

/// For values of either sign: the first moment, and block scales less their mean.
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
    #[must_use]
    pub fn nearest(&self, value: f32) -> u8 {
        self.midpoints.partition_point(|middle| *middle < value) as u8
    }

    /// Index of the code value that is nearest to the nearest of 65,536 equidistant points from −1 to 1. That is what the CPU
    /// kernel of `bitsandbytes` 0.50 finds, which looks these points up in a table; 0 itself is no such point. `value` is
    /// within ±1.
    #[must_use]
    pub fn nearest_on_grid(&self, value: f32) -> u8 {
        const LAST: f32 = 65_535.0;
        // the kernel's own roundings, its fused multiplication among them
        let point = (0.5 * (value.clamp(-1.0, 1.0) + 1.0)).mul_add(LAST, 0.5).floor();
        self.nearest(2.0 * point / LAST - 1.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_differs_from_the_nearest_value_by_a_neighbour_at_the_most() {
        for code in [&*SIGNED, &*UNSIGNED] {
            assert!(code.values().is_sorted());
            for i in -1000..=1000 {
                let value = i as f32 / 1000.0;
                let (grid, nearest) = (code.nearest_on_grid(value), code.nearest(value));
                // near 0 many code values lie within one step of the grid
                let same_place = (code.values()[usize::from(grid)] - code.values()[usize::from(nearest)]).abs() < 4e-5;
                assert!(grid.abs_diff(nearest) <= 1 || same_place, "{value}: {grid} {nearest}");
            }
            assert_eq!((code.nearest_on_grid(1.0), code.nearest_on_grid(7.0)), (255, 255));
        }
        assert_eq!((SIGNED.nearest_on_grid(-1.0), SIGNED.nearest_on_grid(-7.0)), (0, 0));
    }
}
