//! Gradients of adapter tensors as sums over rows, and what each example adds to them.
//!
//! Every trainable tensor of every method gets one of two forms, with `p` and `q` one row per token:
//! `G = s · pᵀ q` ([`outer`]: the matrices of LoRA) or `g_j = c_j · Σ_n p_nj q_nj` ([`columns`]: scales and magnitudes).
//! The rows of one example (a sequence of the batch) add `G_i` of the same form, so `‖G_i‖²` needs no second backward pass.
//! For [`outer`] it is computed in the cheaper of two ways (ghost norm, Li et al. 2022, "Large Language Models Can Be Strong
//! Differentially Private Learners"): with `t` rows, `Σ_ab (p pᵀ)_ab (q qᵀ)_ab` in `t² (a + b)` operations, or `G_i` itself in
//! `t · a · b`. With the small ranks of adapters `G_i` itself wins for all but the shortest sequences.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::Result;
use crate::ops::attention::Segments;
use crate::ops::gemm::{Threads, View, product};
use crate::ops::tensor;

/// Columns that one task adds up: their sums stay in the first-level cache, whatever the number of rows.
const COLUMNS: usize = 128;

/// Gradient of one adapter tensor.
#[derive(Debug, Clone)]
pub struct TensorGradient {
    /// Summed over all rows; shaped as the tensor.
    pub value: Tensor,
    /// Squared Frobenius norm of each example's own gradient, in the order of the batch; empty unless asked for.
    pub example_norms: Vec<f64>,
}

/// `s · pᵀ q`, `[a, b]`, from `p` `[n, a]` and `q` `[n, b]`.
pub(crate) fn outer(scale: f32, p: View<'_>, q: View<'_>, examples: Option<&Segments>) -> Result<TensorGradient> {
    let (a, b) = (p.cols(), q.cols());
    let sum = product(scale, p.t(), q, Threads::Pool);
    // the sum is not added up from the examples: its bits must not depend on whether norms are wanted
    let norm = |(start, end): &(usize, usize)| {
        let (p, q) = (p.rows(*start, *end), q.rows(*start, *end));
        let squared = if (end - start) * (a + b) < a * b { gram_norm(p, q) } else { own_norm(p, q) };
        f64::from(scale).powi(2) * squared
    };
    let example_norms = examples.map_or(Vec::new(), |examples| examples.bounds().iter().map(norm).collect());
    Ok(TensorGradient { value: tensor(sum, (a, b))?, example_norms })
}

/// `‖pᵀ q‖²` without `pᵀ q`.
fn gram_norm(p: View<'_>, q: View<'_>) -> f64 {
    let gram = |v: View<'_>| product(1.0, v, v.t(), Threads::Pool);
    gram(p).iter().zip(gram(q)).map(|(p, q)| f64::from(*p) * f64::from(q)).sum()
}

/// `‖pᵀ q‖²` from `pᵀ q`.
fn own_norm(p: View<'_>, q: View<'_>) -> f64 {
    let own = product(1.0, p.t(), q, Threads::Pool);
    own.iter().map(|value| f64::from(*value).powi(2)).sum()
}

/// `c_j · Σ_n p_nj q_nj` in the given shape, from `p` and `q` `[n, a]`; `c` is 1 when absent.
pub(crate) fn columns(
    p: View<'_>,
    q: View<'_>,
    factors_opt: Option<&[f32]>,
    shape: &[usize],
    examples: Option<&Segments>,
) -> Result<TensorGradient> {
    let sums = |start: usize, end: usize| {
        let mut sums = vec![0.0f64; p.cols()];
        sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(block, sums)| {
            let columns = block * COLUMNS..block * COLUMNS + sums.len();
            for row in start..end {
                let (p, q) = (&p.row(row)[columns.clone()], &q.row(row)[columns.clone()]);
                sums.iter_mut().zip(p).zip(q).for_each(|((sum, p), q)| *sum += f64::from(*p) * f64::from(*q));
            }
        });
        if let Some(factors) = factors_opt {
            sums.iter_mut().zip(factors).for_each(|(sum, factor)| *sum *= f64::from(*factor));
        }
        sums
    };
    let value = sums(0, p.num_rows()).into_iter().map(|sum| sum as f32).collect();
    let norm = |(start, end): &(usize, usize)| sums(*start, *end).iter().map(|sum| sum * sum).sum();
    let example_norms = examples.map_or(Vec::new(), |examples| examples.bounds().iter().map(norm).collect());
    Ok(TensorGradient { value: tensor(value, shape)?, example_norms })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::host;
    use crate::ops::testing::random;

    #[test]
    fn both_ways_to_a_norm_agree_with_the_gradient_of_the_example_alone() {
        let (p, q) = (random(1, &[12, 5], 1.0), random(2, &[12, 7], 1.0));
        let (p, q) = (host(&p).unwrap(), host(&q).unwrap());
        let (p, q) = (View::new(&p, 12, 5, 5), View::new(&q, 12, 7, 7));
        let examples = Segments::from_lengths(&[2, 10]); // the first goes through Gram matrices
        let all = outer(0.5, p, q, Some(&examples)).unwrap();
        for ((start, end), norm) in examples.bounds().iter().zip(&all.example_norms) {
            let (p, q) = (p.rows(*start, *end), q.rows(*start, *end));
            let alone = outer(0.5, p, q, None).unwrap();
            let wanted: f64 = host(&alone.value).unwrap().iter().map(|v| f64::from(*v).powi(2)).sum();
            assert!((norm / wanted - 1.0).abs() < 1e-5);
            assert!((gram_norm(p, q) / own_norm(p, q) - 1.0).abs() < 1e-5);
        }
        assert!(outer(0.5, p, q, None).unwrap().example_norms.is_empty());
    }

    #[test]
    fn column_sums_take_their_factors() {
        let (p, q) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let (p, q) = (View::new(&p, 2, 2, 2), View::new(&q, 2, 2, 2));
        let examples = Segments::from_lengths(&[1, 1]);
        let gradient = columns(p, q, Some(&[1.0, 0.5]), &[2, 1], Some(&examples)).unwrap();
        assert_eq!(gradient.value.dims(), [2, 1]);
        assert_eq!(*host(&gradient.value).unwrap(), [26.0, 22.0]);
        assert_eq!(gradient.example_norms, [25.0 + 36.0, 21.0 * 21.0 + 16.0 * 16.0]);
    }
}
