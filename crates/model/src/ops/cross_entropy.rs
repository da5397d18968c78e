//! Language-model head and cross-entropy together, in chunks of rows, so that the full `[n, V]` logits never exist.
//!
//! Per row with a target `t`: `z` from the head, `loss = log Σ exp(z) − z_t`; gradient `dx = c · Wᵀ (softmax(z) − onehot(t))` with
//! a constant `c` that the caller chooses (1 / number of targets of the whole accumulation window makes the mean exact for
//! unequal lengths). A soft cap of the head puts its slope before `Wᵀ`. `W` is frozen. Rows whose target is [`IGNORE`] cost nothing: they are left out before the product.
//! Shapes: `x` `[n, h]`, `W` `[V, h]`, targets `[n]`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::gemm::{Threads, View, ViewMut, Write, gemm};
use super::head::Head;
use super::linear::Sizes;
use super::{exp, host, largest, soft_cap, tensor, vectorised};
use crate::error::{ModelError, Result};

/// Marks a row that has no part in the loss.
pub const IGNORE: u32 = u32::MAX;

/// Rows of logits that exist at once: measured best on two cores; at 49,152 tokens a chunk takes 25 MB.
pub(crate) const CHUNK: usize = 128;

/// Loss of every row (0 where the target is [`IGNORE`]).
pub fn forward(x: &Tensor, head: &Head, targets: &[u32]) -> Result<Vec<f32>> {
    Ok(run(x, head, targets, None)?.0)
}

/// Loss of every row and the gradient `[n, h]` with factor `scale`.
pub fn forward_backward(x: &Tensor, head: &Head, targets: &[u32], scale: f32) -> Result<(Vec<f32>, Tensor)> {
    let (losses, grad) = run(x, head, targets, Some(scale))?;
    Ok((losses, tensor(grad, x.dims2()?)?))
}

fn run(x: &Tensor, head: &Head, targets: &[u32], scale_opt: Option<f32>) -> Result<(Vec<f32>, Vec<f32>)> {
    let (n, h) = x.dims2()?;
    let vocabulary = head.weight.dim(0)?;
    let rows: Vec<usize> = (0..n.min(targets.len())).filter(|row| targets[*row] != IGNORE).collect();
    if let Some(id) = rows.iter().map(|row| targets[*row]).find(|id| *id as usize >= vocabulary) {
        return Err(ModelError::TokenOutOfRange { id, vocabulary });
    }
    let (xs, w) = (host(x)?, host(&head.weight)?);
    let mut losses = vec![0.0; n];
    let mut grad = vec![0.0; if scale_opt.is_some() { n * h } else { 0 }];
    let (mut gathered, mut d_gathered) = (vec![0.0; CHUNK * h], vec![0.0; CHUNK * h]);
    let mut logits = vec![0.0; CHUNK.min(rows.len()) * vocabulary];
    for chunk in rows.chunks(CHUNK) {
        let m = chunk.len();
        for (to, row) in gathered.chunks_exact_mut(h).zip(chunk) {
            to.copy_from_slice(&xs[row * h..(row + 1) * h]);
        }
        let logits = &mut logits[..m * vocabulary];
        head.logits_into(logits, &gathered[..m * h], Sizes { n: m, out: vocabulary, width: h })?;
        let chunk_losses: Vec<f32> = logits
            .par_chunks_mut(vocabulary)
            .zip(chunk)
            .map(|(logits, row)| {
                let capped = head.soft_cap.filter(|_| scale_opt.is_some()).map(|cap| (logits.to_vec(), cap));
                let loss = row_loss(logits, targets[*row] as usize, scale_opt);
                if let Some((capped, cap)) = capped {
                    soft_cap::backward(logits, &capped, cap);
                }
                loss
            })
            .collect();
        for (row, loss) in chunk.iter().zip(chunk_losses) {
            losses[*row] = loss;
        }
        if scale_opt.is_some() {
            let (d_logits, w) = (View::new(logits, m, vocabulary, vocabulary), View::new(&w, vocabulary, h, h));
            gemm(ViewMut::new(&mut d_gathered, m, h, h), Write::Replace, 1.0, d_logits, w, Threads::Pool);
            for (from, row) in d_gathered.chunks_exact(h).zip(chunk) {
                grad[row * h..(row + 1) * h].copy_from_slice(from);
            }
        }
    }
    Ok((losses, grad))
}

vectorised! {
/// Loss of one row of logits; with a scale the logits become their gradient.
fn row_loss(logits: &mut [f32], target: usize, scale_opt: Option<f32>) -> f32 {
    let max = largest(logits);
    let at_target = logits[target];
    let mut sums = [0.0f32; 16];
    let mut chunks = logits.chunks_exact_mut(16);
    for chunk in &mut chunks {
        for i in 0..16 {
            chunk[i] = exp(chunk[i] - max);
            sums[i] += chunk[i];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for value in chunks.into_remainder() {
        *value = exp(*value - max);
        sum += *value;
    }
    if let Some(scale) = scale_opt {
        let factor = scale / sum;
        logits.iter_mut().for_each(|value| *value *= factor);
        logits[target] -= scale;
    }
    // a row of NaN has no largest value; it must not become a finite loss
    if at_target.is_nan() || sum.is_nan() { f32::NAN } else { max + sum.ln() - at_target }
}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, random};

    fn targets() -> Vec<u32> {
        (0..300).map(|i| if i % 3 == 0 { IGNORE } else { i % 17 }).collect()
    }

    fn head(soft_cap: Option<f32>) -> Head {
        Head { weight: random(2, &[17, 9], 1.0), soft_cap }
    }

    #[test]
    fn gradient_agrees_with_finite_differences_across_chunks() {
        let x = random(1, &[300, 9], 1.0);
        for head in [head(None), head(Some(1.2))] {
            let (losses, dx) = forward_backward(&x, &head, &targets(), 0.5).unwrap();
            assert_eq!(losses, forward(&x, &head, &targets()).unwrap());
            check_gradient(&x, &dx, 1e-3, |x| {
                0.5 * forward(x, &head, &targets()).unwrap().iter().map(|l| f64::from(*l)).sum::<f64>()
            });
        }
    }

    #[test]
    fn ignored_rows_have_neither_loss_nor_gradient() {
        let x = random(1, &[300, 9], 1.0);
        let (losses, dx) = forward_backward(&x, &head(None), &targets(), 1.0).unwrap();
        let dx = dx.to_vec2::<f32>().unwrap();
        for row in (0..300).step_by(3) {
            assert_eq!(losses[row], 0.0);
            assert!(dx[row].iter().all(|v| *v == 0.0));
        }
        assert!(losses[1] > 0.0 && dx[1].iter().any(|v| *v != 0.0));
    }

    #[test]
    fn nan_stays_visible_and_foreign_tokens_are_refused() {
        let x = tensor(vec![f32::NAN; 9], (1, 9)).unwrap();
        assert!(forward(&x, &head(None), &[3]).unwrap()[0].is_nan());
        let error = forward(&random(1, &[1, 9], 1.0), &head(None), &[17]).unwrap_err();
        assert!(matches!(error, ModelError::TokenOutOfRange { id: 17, vocabulary: 17 }));
    }
}
