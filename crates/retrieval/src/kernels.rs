//! Elementwise kernels of the encoder, vectorised.

use tunesmith_model::ops::{exp, largest, vectorised};

vectorised! {
    /// `x Φ(x)` with the exact normal distribution function, in place.
    pub(crate) fn gelu(values: &mut [f32]) {
        for x in values {
            *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

vectorised! {
    /// Softmax of one row, in place.
    pub(crate) fn softmax(row: &mut [f32]) {
        let shift = largest(row);
        let mut lanes = [0.0f32; 16];
        let mut chunks = row.chunks_exact_mut(16);
        for chunk in &mut chunks {
            for i in 0..16 {
                chunk[i] = exp(chunk[i] - shift);
                lanes[i] += chunk[i];
            }
        }
        let mut total: f32 = lanes.iter().sum();
        for x in chunks.into_remainder() {
            *x = exp(*x - shift);
            total += *x;
        }
        let part = 1.0 / total;
        row.iter_mut().for_each(|x| *x *= part);
    }
}

vectorised! {
    /// Layer normalisation (Ba et al. 2016) of each row, in place: `w (x - mean) / √(variance + eps) + b`; a row is as long as
    /// `weight`.
    pub(crate) fn norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        for row in x.chunks_exact_mut(weight.len()) {
            let mean = sum(row, |x| x) / row.len() as f32;
            let variance = sum(row, |x| (x - mean) * (x - mean)) / row.len() as f32;
            let part = 1.0 / (variance + eps).sqrt();
            for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
                *x = (*x - mean) * part * w + b;
            }
        }
    }
}

/// `x = norm(x + y)`.
pub(crate) fn add_norm(x: &mut [f32], y: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    norm(x, weight, bias, eps);
}

/// Sixteen sums side by side, which the compiler can keep in one register, and then their sum.
#[inline(always)]
fn sum(row: &[f32], value: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = row.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|x| value(*x)).sum();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += value(chunk[i]);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The error function, off by at most 5e-7: `x P(x²) / Q(x²)` on [-4, 4], the minimax fraction that Eigen and XLA use for f32.
#[inline(always)]
#[allow(clippy::excessive_precision)] // the coefficients as published
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let t = x * x;
    let p = -2.726_142_258_013_06e-10;
    let p = p * t + 2.770_681_424_959_02e-8;
    let p = p * t - 2.101_024_020_825_08e-6;
    let p = p * t - 5.692_506_394_623_46e-5;
    let p = p * t - 7.349_906_303_268_55e-4;
    let p = p * t - 2.954_599_808_540_25e-3;
    let p = p * t - 1.609_603_332_624_15e-2;
    let q = -1.456_607_184_649_96e-5;
    let q = q * t - 2.133_740_552_789_05e-4;
    let q = q * t - 1.682_826_974_382_03e-3;
    let q = q * t - 7.373_329_167_204_68e-3;
    let q = q * t - 1.426_473_905_141_89e-2;
    x * p / q
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    fn numbers() -> Vec<f32> {
        (-700..700).map(|i| i as f32 / 100.0).collect()
    }

    /// Compares with candle's operation on the same numbers as a row.
    fn check(ours: &[f32], library: impl Fn(Tensor) -> candle_core::Result<Tensor>, tolerance: f32) {
        let numbers = Tensor::from_vec(numbers(), (1, 1400), &Device::Cpu).unwrap();
        let wanted = library(numbers).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in ours.iter().zip(wanted) {
            assert!((a - b).abs() < tolerance, "{a} {b}");
        }
    }

    #[test]
    fn gelu_is_the_librarys() {
        let mut ours = numbers();
        gelu(&mut ours);
        check(&ours, |x| x.gelu_erf(), 2e-6);
    }

    #[test]
    fn softmax_is_the_librarys() {
        let mut ours = numbers();
        softmax(&mut ours);
        check(&ours, |x| candle_nn::ops::softmax_last_dim(&x), 1e-6);
    }

    #[test]
    fn norm_is_the_librarys() {
        let mut ours = numbers();
        let (weight, bias) = (vec![1.5; 1400], vec![-0.5; 1400]);
        norm(&mut ours, &weight, &bias, 1e-12);
        let as_tensor = |values: &[f32]| Tensor::from_slice(values, 1400, &Device::Cpu).unwrap();
        check(&ours, |x| candle_nn::ops::layer_norm(&x, &as_tensor(&weight), &as_tensor(&bias), 1e-12), 1e-5);
    }
}
