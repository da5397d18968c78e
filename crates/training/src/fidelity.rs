//! How far an exported model is from the trained one, on the tokens that count.
//!
//! `KL(p ‖ q) = Σ_v p_v (ln p_v − ln q_v)` between the next-token distributions `p` of the trained and `q` of the exported model, in
//! nats, mean over the counted tokens: what llama.cpp's `perplexity --kl-divergence` reports for its formats. It sees a
//! difference that perplexity averages away, and needs no scale: 0 is the same model.

use tunesmith_model::{Adapter, Decoder};

use crate::data::Dataset;
use crate::error::Result;

/// Result of [`compare`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fidelity {
    /// Counted tokens.
    pub tokens: u64,
    /// Mean divergence in nats per token.
    pub mean_kl: f64,
    /// Share of tokens for which both think the same one most likely.
    pub same_top: f64,
    /// Mean negative log-likelihood of the trained model in nats per token.
    pub trained_nll: f64,
    /// The same of the exported model.
    pub exported_nll: f64,
}

/// A model with what it carries.
#[derive(Clone, Copy)]
pub struct Carrying<'a> {
    /// The model.
    pub model: &'a Decoder,
    /// Its adapter.
    pub adapter: Option<&'a Adapter>,
}

/// Compares on every sequence; logits of one sequence are in memory at a time. A value that is no number makes the mean one, too.
pub fn compare(trained: Carrying<'_>, exported: Carrying<'_>, dataset: &Dataset) -> Result<Fidelity> {
    let (mut tokens, mut kl, mut same, mut trained_nll, mut exported_nll) = (0u64, 0.0, 0u64, 0.0, 0.0);
    for sequence in dataset.sequences() {
        let rows = |of: Carrying<'_>| -> Result<Vec<Vec<f32>>> {
            let logits = of.model.logits(&sequence.ids, of.adapter)?;
            Ok(logits.to_vec2::<f32>().map_err(tunesmith_model::ModelError::from)?)
        };
        let (p, q) = (rows(trained)?, rows(exported)?);
        // row i predicts token i + 1
        for (index, target) in sequence.ids.iter().enumerate().skip(1).filter(|(index, _)| sequence.counted[*index]) {
            let (p, q) = (log_softmax(&p[index - 1]), log_softmax(&q[index - 1]));
            tokens += 1;
            kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            same += u64::from(top(&p) == top(&q));
            trained_nll -= p[*target as usize];
            exported_nll -= q[*target as usize];
        }
    }
    let count = tokens.max(1) as f64;
    Ok(Fidelity {
        tokens,
        mean_kl: kl / count,
        same_top: same as f64 / count,
        trained_nll: trained_nll / count,
        exported_nll: exported_nll / count,
    })
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|logit| f64::from(logit - most));
    let sum = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|logit| logit - sum).collect()
}

fn top(values: &[f64]) -> usize {
    values
        .iter()
        .enumerate()
        .fold((0, f64::NEG_INFINITY), |best, (id, value)| if *value > best.1 { (id, *value) } else { best })
        .0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_sums_to_one_at_any_size() {
        for logits in [vec![1.0, 2.0, 3.0], vec![1000.0, 0.0], vec![-1e30, 0.0, 5.0]] {
            let sum: f64 = log_softmax(&logits).iter().map(|value| value.exp()).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{logits:?}");
        }
        assert_eq!(top(&[0.5, 2.0, 2.0]), 1);
    }
}
