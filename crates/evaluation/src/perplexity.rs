//! Perplexity per token, word and byte, with confidence intervals, and the paired comparison of two models.
//!
//! `perplexity = exp(sum of negative log-likelihoods / number of units)`. Only the per-word and per-byte figures can be
//! compared between models with different tokenizers.

use serde::{Deserialize, Serialize};
use tunesmith_contract::{
    evaluation::{Interval, Perplexity},
    ids::DocumentId,
};

use crate::bootstrap::Bootstrap;

/// What a model's loss on one test document is. Several entries of one document (its examples) are added up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentLoss {
    /// The document.
    pub document: DocumentId,
    /// Sum of the negative log-likelihoods of the scored tokens, in nats.
    pub nll: f64,
    /// Number of scored tokens.
    pub tokens: u64,
    /// Number of white-space separated words that these tokens spell.
    pub words: u64,
    /// Number of UTF-8 bytes that these tokens spell.
    pub bytes: u64,
}

/// Losses that give no perplexity. None of these is helped by a retry.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EvaluationError {
    /// Nothing was scored.
    #[error("the test split has no scored {unit}: all labels are masked, or the split is empty; check the dataset")]
    NothingScored {
        /// `tokens`, `words` or `bytes`.
        unit: &'static str,
    },
    /// A sum that is no number, or negative.
    #[error("the loss of document {document} is {nll}, which no model gives; the run diverged")]
    NotANumber {
        /// The document.
        document: DocumentId,
        /// What was found.
        nll: String,
    },
    /// Two models were not scored on the same text.
    #[error(
        "the models were not scored on the same text: document {document} has {left} scored {unit} for one and {right} for the other"
    )]
    NotPaired {
        /// The first document that differs.
        document: DocumentId,
        /// What was counted.
        unit: &'static str,
        /// Count of the reference model.
        left: u64,
        /// Count of the tuned model.
        right: u64,
    },
}

/// Perplexity of one model in its three units, each with a 95 % confidence interval over documents.
///
/// # Errors
/// [`EvaluationError::NothingScored`], [`EvaluationError::NotANumber`].
pub fn perplexity(losses: &[DocumentLoss], bootstrap: &Bootstrap) -> Result<Perplexity, EvaluationError> {
    let losses = by_document(losses)?;
    let unit = |unit: &'static str, count: fn(&DocumentLoss) -> u64| {
        if losses.iter().all(|l| count(l) == 0) {
            return Err(EvaluationError::NothingScored { unit });
        }
        let all = rate(&losses, count, &vec![1; losses.len()]);
        // A resample may draw only documents without any of the unit; it says nothing, so it counts as the whole.
        // Beyond what a double holds the figure is the largest one: JSON has no infinity.
        let value = |drawn: &[u32]| rate(&losses, count, drawn).or(all).unwrap_or(0.0).exp().min(f64::MAX);
        Ok(bootstrap.interval(losses.len(), value))
    };
    Ok(Perplexity {
        token: unit("tokens", |l| l.tokens)?,
        word: unit("words", |l| l.words)?,
        byte: unit("bytes", |l| l.bytes)?,
    })
}

/// By how many per cent the tuned model's perplexity lies below the reference model's, paired: both are resampled together,
/// so that what makes a document hard for both cancels out. Positive is better.
///
/// Perplexities are per token where the counts of tokens agree (same tokenizer), else per byte.
///
/// # Errors
/// [`EvaluationError::NotPaired`] when documents or their bytes differ; the errors of [`perplexity`].
pub fn improvement_percent(
    reference: &[DocumentLoss],
    tuned: &[DocumentLoss],
    bootstrap: &Bootstrap,
) -> Result<Interval, EvaluationError> {
    let (reference, tuned) = (by_document(reference)?, by_document(tuned)?);
    paired(&reference, &tuned)?;
    let same_tokens = reference.iter().zip(&tuned).all(|(r, t)| r.tokens == t.tokens);
    let count: fn(&DocumentLoss) -> u64 = if same_tokens { |l| l.tokens } else { |l| l.bytes };
    if reference.iter().all(|l| count(l) == 0) {
        return Err(EvaluationError::NothingScored { unit: if same_tokens { "tokens" } else { "bytes" } });
    }
    let difference = |drawn: &[u32]| Some(rate(&tuned, count, drawn)? - rate(&reference, count, drawn)?);
    let all = difference(&vec![1; reference.len()]);
    Ok(bootstrap.interval(reference.len(), |drawn| {
        (100.0 * (1.0 - difference(drawn).or(all).unwrap_or(0.0).exp())).max(f64::MIN)
    }))
}

/// Mean negative log-likelihood per unit over drawn documents.
fn rate(losses: &[DocumentLoss], count: fn(&DocumentLoss) -> u64, drawn: &[u32]) -> Option<f64> {
    let (mut nll, mut units) = (0.0, 0u64);
    for (loss, times) in losses.iter().zip(drawn) {
        nll += loss.nll * f64::from(*times);
        units += count(loss) * u64::from(*times);
    }
    (units > 0).then(|| nll / units as f64)
}

/// One entry for each document, sorted by id.
fn by_document(losses: &[DocumentLoss]) -> Result<Vec<DocumentLoss>, EvaluationError> {
    let mut merged = std::collections::BTreeMap::<&DocumentId, DocumentLoss>::new();
    for loss in losses {
        if !loss.nll.is_finite() || loss.nll < 0.0 {
            return Err(EvaluationError::NotANumber { document: loss.document.clone(), nll: loss.nll.to_string() });
        }
        let sum = merged.entry(&loss.document).or_insert_with(|| DocumentLoss {
            nll: 0.0,
            tokens: 0,
            words: 0,
            bytes: 0,
            document: loss.document.clone(),
        });
        sum.nll += loss.nll;
        sum.tokens += loss.tokens;
        sum.words += loss.words;
        sum.bytes += loss.bytes;
    }
    if merged.is_empty() {
        return Err(EvaluationError::NothingScored { unit: "tokens" });
    }
    Ok(merged.into_values().collect())
}

fn paired(reference: &[DocumentLoss], tuned: &[DocumentLoss]) -> Result<(), EvaluationError> {
    let not = |document: &DocumentId, unit, left, right| {
        Err(EvaluationError::NotPaired { document: document.clone(), unit, left, right })
    };
    for pair in reference.iter().zip(tuned) {
        let (r, t) = pair;
        if r.document != t.document {
            let first = (&r.document).min(&t.document);
            return not(first, "documents", u64::from(r.document == *first), u64::from(t.document == *first));
        }
        if r.bytes != t.bytes {
            return not(&r.document, "bytes", r.bytes, t.bytes);
        }
    }
    let longer = if reference.len() > tuned.len() { reference } else { tuned };
    match longer.get(reference.len().min(tuned.len())) {
        Some(extra) => {
            let in_reference = reference.len() > tuned.len();
            not(&extra.document, "documents", u64::from(in_reference), u64::from(!in_reference))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loss(number: u32, nll: f64, tokens: u64) -> DocumentLoss {
        DocumentLoss {
            document: DocumentId::of(&number.to_le_bytes()),
            nll,
            tokens,
            words: tokens / 2,
            bytes: tokens * 4,
        }
    }

    #[test]
    fn the_units_are_told_apart() {
        // 2 nats a token, two tokens a word, four bytes a token.
        let losses: Vec<_> = (0..10).map(|n| loss(n, 200.0, 100)).collect();
        let got = perplexity(&losses, &Bootstrap::default()).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(
            close(got.token.value, 2f64.exp())
                && close(got.word.value, 4f64.exp())
                && close(got.byte.value, 0.5f64.exp())
        );
        assert!(close(got.token.low, got.token.high), "all documents alike: no spread");
    }

    #[test]
    fn the_mean_is_over_tokens_not_over_documents() {
        let got =
            perplexity(&[loss(1, 10.0, 10), loss(2, 300.0, 100), loss(2, 0.0, 0)], &Bootstrap::default()).unwrap();
        assert!((got.token.value - (310.0f64 / 110.0).exp()).abs() < 1e-9);
        assert!(got.token.low <= 1f64.exp() + 1e-9 && got.token.high >= 3f64.exp() - 1e-9, "{got:?}");
    }

    #[test]
    fn a_paired_comparison_is_sharper_than_two_intervals() {
        // Documents differ widely, the improvement does not.
        let base: Vec<_> = (0..40).map(|n| loss(n, 100.0 * (1.0 + f64::from(n % 7)), 100)).collect();
        let tuned: Vec<_> = base
            .iter()
            .enumerate()
            .map(|(i, l)| DocumentLoss { nll: l.nll - 20.0 - (i % 3) as f64, ..l.clone() })
            .collect();
        let bootstrap = Bootstrap::default();
        let improvement = improvement_percent(&base, &tuned, &bootstrap).unwrap();
        assert!(improvement.low > 17.0 && improvement.high < 21.0, "{improvement:?}");
        let (b, t) = (perplexity(&base, &bootstrap).unwrap(), perplexity(&tuned, &bootstrap).unwrap());
        assert!(t.token.high > b.token.low, "unpaired, the intervals overlap");
        assert!((improvement.value - 100.0 * (1.0 - t.token.value / b.token.value)).abs() < 1e-9);
    }

    #[test]
    fn models_with_other_tokenizers_are_compared_by_byte() {
        let base = vec![loss(1, 400.0, 100), loss(2, 400.0, 100)];
        let tuned: Vec<_> = base.iter().map(|l| DocumentLoss { nll: 300.0, tokens: 60, ..l.clone() }).collect();
        let got = improvement_percent(&base, &tuned, &Bootstrap::default()).unwrap();
        assert!((got.value - 100.0 * (1.0 - (-0.25f64).exp())).abs() < 1e-9);
    }

    #[test]
    fn other_text_is_no_comparison() {
        let base = vec![loss(1, 4.0, 2), loss(2, 4.0, 2)];
        let bootstrap = Bootstrap::default();
        assert!(matches!(
            improvement_percent(&base, &base[..1], &bootstrap),
            Err(EvaluationError::NotPaired { unit: "documents", .. })
        ));
        let mut other = base.clone();
        other[1].bytes += 1;
        assert!(matches!(
            improvement_percent(&base, &other, &bootstrap),
            Err(EvaluationError::NotPaired { unit: "bytes", .. })
        ));
    }

    #[test]
    fn nothing_scored_and_divergence_are_errors() {
        let bootstrap = Bootstrap::default();
        assert_eq!(perplexity(&[], &bootstrap), Err(EvaluationError::NothingScored { unit: "tokens" }));
        assert_eq!(perplexity(&[loss(1, 0.0, 0)], &bootstrap), Err(EvaluationError::NothingScored { unit: "tokens" }));
        assert!(matches!(perplexity(&[loss(1, f64::NAN, 3)], &bootstrap), Err(EvaluationError::NotANumber { .. })));
    }

    proptest! {
        #[test]
        fn intervals_hold_their_value(nlls in prop::collection::vec(0.0f64..500.0, 1..30), seed in any::<u64>()) {
            let losses: Vec<_> = nlls.iter().zip(0..).map(|(nll, n)| loss(n, *nll, 1 + u64::from(n) * 7)).collect();
            let got = perplexity(&losses, &Bootstrap { resamples: 50, seed });
            // A lone one-token document has no whole word.
            if let Ok(got) = got {
                for interval in [got.token, got.word, got.byte] {
                    prop_assert!(interval.low <= interval.value && interval.value <= interval.high && interval.low >= 1.0);
                }
            }
        }
    }
}
