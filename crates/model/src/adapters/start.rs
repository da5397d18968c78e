//! How the tensors of a fresh adapter begin. Each method's `build` names its tensors with shape and start once; a fresh adapter
//! makes them by the start, a stored one reads them by the name.

use candle_core::Tensor;

use crate::error::Result;
use crate::ops::tensor;
use crate::rng::Rng;

/// First values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Start {
    /// Uniform within ± this.
    Uniform(f32),
    /// Normal around 0 with this standard deviation.
    Normal(f32),
    /// All the same.
    Constant(f32),
    /// The length of each row of the frozen matrix.
    RowNorms,
}

/// Gives the tensor with a name (as `peft` writes it), a shape and a start.
pub(crate) type Make<'a> = &'a mut dyn FnMut(&'static str, &[usize], Start) -> Result<Tensor>;

impl Start {
    /// The tensor; `row_norms` is called for [`Start::RowNorms`] only.
    pub fn make(self, shape: &[usize], rng: &mut Rng, row_norms: impl FnOnce() -> Result<Vec<f32>>) -> Result<Tensor> {
        let count = shape.iter().product();
        let values = match self {
            Self::Uniform(bound) => (0..count).map(|_| (rng.uniform() * 2.0 - 1.0) * bound).collect(),
            Self::Normal(deviation) => (0..count).map(|_| normal(rng) * deviation).collect(),
            Self::Constant(value) => vec![value; count],
            Self::RowNorms => row_norms()?,
        };
        tensor(values, shape)
    }
}

/// Nearly normal: twelve uniform numbers add up to a variance of 1. Exact arithmetic, so that a seed means the same on every
/// machine, which logarithm and cosine of the C library do not promise; the tails end at ± 6.
fn normal(rng: &mut Rng) -> f32 {
    (0..12).map(|_| rng.uniform()).sum::<f32>() - 6.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::host;

    #[test]
    fn normal_values_have_the_mean_and_deviation_asked_for() {
        let never = || Ok(Vec::new());
        let values = Start::Normal(0.02).make(&[100, 200], &mut Rng::new(1, 1), never).unwrap();
        let values = host(&values).unwrap();
        let mean = values.iter().sum::<f32>() / 20_000.0;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 20_000.0).sqrt();
        assert!(mean.abs() < 5e-4 && (deviation / 0.02 - 1.0).abs() < 0.02, "{mean} {deviation}");
    }
}
