//! The mean of f32 values, rounded as PyTorch rounds it on an x86-64 processor with one thread.
//!
//! `bitsandbytes` takes `torch.mean` of NF4's block scales as their offset; a sum in another order ends in other bits, and then
//! nearly every dequantised weight does. PyTorch's sum (`aten/src/ATen/native/cpu/SumKernel.cpp`) is a cascade: four partial sums of
//! eight lanes each (AVX2), every one of them with four levels, of which a lower is emptied into the one above after
//! `2^max(4, ⌈log₂ n⌉ / 4)` additions. With several threads PyTorch splits more than 32,768 values among them and the result
//! depends on their number; here it does not.

/// Values in a register of AVX2.
const LANES: usize = 8;
/// Partial sums that PyTorch keeps to hide the latency of an addition.
const PARTS: usize = 4;
const LEVELS: usize = 4;

/// `torch.tensor(values).mean()`; 0 of nothing.
#[must_use]
pub fn mean(values: &[f32]) -> f32 {
    if values.is_empty() { 0.0 } else { sum(values) / values.len() as f32 }
}

fn sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        let rows: Vec<[f32; 1]> = values.iter().map(|value| [*value]).collect();
        return row_sum(&rows)[0];
    }
    let (rows, rest) = values.as_chunks::<LANES>();
    let rest = rest.iter().fold(0.0, |sum, value| sum + value);
    row_sum(rows).into_iter().fold(rest, |sum, lane| sum + lane)
}

/// Sum of rows, lane by lane: row `i` belongs to part `i mod 4`, what is left over to the first.
fn row_sum<const N: usize>(rows: &[[f32; N]]) -> [f32; N] {
    let (groups, rest) = rows.as_chunks::<PARTS>();
    let mut parts = cascade(groups);
    let [first, others @ ..] = &mut parts;
    rest.iter().for_each(|row| add(first, row));
    others.iter().for_each(|part| add(first, part));
    *first
}

/// Sum of each part over all groups.
fn cascade<const N: usize>(groups: &[[[f32; N]; PARTS]]) -> [[f32; N]; PARTS] {
    let power = (groups.len().next_power_of_two().ilog2() as usize / LEVELS).max(4);
    let (step, mask) = (1usize << power, (1usize << power) - 1);
    let mut levels = [[[0.0; N]; PARTS]; LEVELS];
    let chunks = groups.chunks_exact(step);
    let rest = chunks.remainder();
    for (index, chunk) in chunks.enumerate() {
        let done = (index + 1) * step;
        chunk.iter().for_each(|group| add_group(&mut levels[0], group));
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; N]; PARTS]);
            add_group(&mut levels[level], &below);
            if done & (mask << (level * power)) != 0 {
                break;
            }
        }
    }
    let [mut total, above @ ..] = levels;
    rest.iter().for_each(|group| add_group(&mut total, group));
    above.iter().for_each(|level| add_group(&mut total, level));
    total
}

fn add_group<const N: usize>(sum: &mut [[f32; N]; PARTS], group: &[[f32; N]; PARTS]) {
    sum.iter_mut().zip(group).for_each(|(sum, row)| add(sum, row));
}

fn add<const N: usize>(sum: &mut [f32; N], row: &[f32; N]) {
    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn the_mean_is_that_of_f64_up_to_rounding() {
        let mut rng = Rng::new(3, 0);
        for count in [0usize, 1, 7, 8, 33, 1000, 70_000] {
            let values: Vec<f32> = (0..count).map(|_| rng.uniform()).collect();
            let wanted = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count.max(1) as f64;
            assert!((f64::from(mean(&values)) - wanted).abs() < 1e-6, "{count}");
        }
    }
}
