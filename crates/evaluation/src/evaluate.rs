//! From measured losses to `evaluation.json`.

use tunesmith_contract::{
    evaluation::{Evaluation, Sample},
    ids::{DatasetId, RunId},
};

use crate::{
    bootstrap::Bootstrap,
    perplexity::{DocumentLoss, EvaluationError, improvement_percent, perplexity},
};

/// What was measured on the test split.
#[derive(Debug, Clone)]
pub struct Measured<'a> {
    /// The run.
    pub run: RunId,
    /// The dataset whose test split was used.
    pub dataset: DatasetId,
    /// Number of examples.
    pub examples: u64,
    /// Losses of the base model.
    pub base: &'a [DocumentLoss],
    /// Losses of the tuned model on the same examples.
    pub tuned: &'a [DocumentLoss],
    /// Losses of the live model on the same examples, when there is one.
    pub live: Option<&'a [DocumentLoss]>,
    /// Answers side by side.
    pub samples: Vec<Sample>,
}

/// Computes every figure of an evaluation.
///
/// # Errors
/// [`EvaluationError`] when nothing was scored, a loss is no number, or the models were scored on different text.
pub fn evaluate(measured: Measured<'_>, bootstrap: &Bootstrap) -> Result<Evaluation, EvaluationError> {
    let tuned = measured.tuned;
    let sum = |count: fn(&DocumentLoss) -> u64| tuned.iter().map(count).sum();
    let documents: std::collections::BTreeSet<_> = tuned.iter().map(|l| &l.document).collect();
    Ok(Evaluation {
        run: measured.run,
        dataset: measured.dataset,
        documents: documents.len() as u64,
        examples: measured.examples,
        tokens: sum(|l| l.tokens),
        words: sum(|l| l.words),
        bytes: sum(|l| l.bytes),
        base: perplexity(measured.base, bootstrap)?,
        tuned: perplexity(tuned, bootstrap)?,
        live: measured.live.map(|live| perplexity(live, bootstrap)).transpose()?,
        improvement_percent: improvement_percent(measured.base, tuned, bootstrap)?,
        improvement_over_live_percent: measured
            .live
            .map(|live| improvement_percent(live, tuned, bootstrap))
            .transpose()?,
        samples: measured.samples,
    })
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::ids::DocumentId;

    use super::*;

    #[test]
    fn every_figure_is_filled() {
        let loss = |number: u8, nll| DocumentLoss {
            document: DocumentId::of(&[number]),
            nll,
            tokens: 10,
            words: 5,
            bytes: 40,
        };
        let base = [loss(1, 30.0), loss(1, 30.0), loss(2, 30.0)];
        let tuned = [loss(1, 20.0), loss(1, 20.0), loss(2, 20.0)];
        let measured = Measured {
            run: RunId::of(&[b"r"]),
            dataset: DatasetId::of(&[b"d"]),
            examples: 3,
            base: &base,
            tuned: &tuned,
            live: Some(&tuned),
            samples: vec![],
        };
        let got = evaluate(measured, &Bootstrap::default()).unwrap();
        assert_eq!((got.documents, got.examples, got.tokens, got.words, got.bytes), (2, 3, 30, 15, 120));
        assert!((got.base.token.value - 3f64.exp()).abs() < 1e-9 && (got.tuned.token.value - 2f64.exp()).abs() < 1e-9);
        assert!((got.improvement_percent.value - 100.0 * (1.0 - (-1f64).exp())).abs() < 1e-9);
        assert!(got.improvement_over_live_percent.unwrap().value.abs() < 1e-9);
    }
}
