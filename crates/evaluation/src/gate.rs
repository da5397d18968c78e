//! Whether a model is good enough to be shown to its approver: a pure comparison of figures with settings.

use tunesmith_contract::{
    evaluation::{Evaluation, GateCheck, GateDecision},
    settings::GateSettings,
};

/// Decides. The checks, in this order:
/// 1. `gate.min_test_tokens`: enough was tested to say anything;
/// 2. `gate.min_improvement_percent`: the **lower bound** of the paired confidence interval over the base model, so that luck
///    with a small test split does not pass;
/// 3. `gate.max_regression_percent`, when a model is live: the estimate, not its bound, because the live model passed the same
///    gate and an equal model must be replaceable;
/// 4. every figure is a finite number.
#[must_use]
pub fn decide(evaluation: &Evaluation, gate: &GateSettings) -> GateDecision {
    let mut checks = vec![enough_tokens(evaluation, gate), better_than_base(evaluation, gate)];
    checks.extend(evaluation.improvement_over_live_percent.map(|over_live| not_worse_than_live(over_live.value, gate)));
    checks.push(finite(evaluation));
    GateDecision { passed: checks.iter().all(|check| check.passed), checks }
}

fn enough_tokens(evaluation: &Evaluation, gate: &GateSettings) -> GateCheck {
    let (wanted, found) = (gate.min_test_tokens, evaluation.tokens);
    let passed = found >= wanted;
    GateCheck {
        name: "gate.min_test_tokens".into(),
        wanted: wanted as f64,
        found: found as f64,
        passed,
        message: if passed {
            format!("the test split has {found} tokens, at least {wanted} are asked for")
        } else {
            format!(
                "the test split has only {found} tokens, {wanted} are needed for a decision; upload more documents or lower gate.min_test_tokens"
            )
        },
    }
}

fn better_than_base(evaluation: &Evaluation, gate: &GateSettings) -> GateCheck {
    let interval = evaluation.improvement_percent;
    let wanted = gate.min_improvement_percent;
    let passed = interval.low >= wanted;
    let figures = format!(
        "perplexity per token fell from {:.2} to {:.2}, by {:.1} % (95 % confidence: {:.1} to {:.1} %)",
        evaluation.base.token.value, evaluation.tuned.token.value, interval.value, interval.low, interval.high
    );
    GateCheck {
        name: "gate.min_improvement_percent".into(),
        wanted,
        found: if interval.low.is_finite() { interval.low } else { f64::MIN },
        passed,
        message: if passed {
            format!("{figures}; at least {wanted} % is asked for, and the lower bound counts")
        } else if interval.value >= wanted {
            format!(
                "{figures}; the lower bound must be at least {wanted} %: the test split is too small or too mixed to be sure, upload more documents"
            )
        } else {
            format!(
                "{figures}; at least {wanted} % is asked for: train longer, upload more documents, or lower gate.min_improvement_percent"
            )
        },
    }
}

fn not_worse_than_live(improvement: f64, gate: &GateSettings) -> GateCheck {
    let wanted = gate.max_regression_percent;
    // Above the live model's: the negative of an improvement. Adding zero turns -0 into 0, which reads better.
    let found = -improvement + 0.0;
    let passed = found <= wanted;
    GateCheck {
        name: "gate.max_regression_percent".into(),
        wanted,
        found: if found.is_finite() { found } else { f64::MAX },
        passed,
        message: if passed {
            format!(
                "compared with the live model the test perplexity changed by {found:+.1} %, at most +{wanted} % is allowed"
            )
        } else {
            format!(
                "the test perplexity is {found:.1} % above the live model's, at most {wanted} % is allowed; the live model stays"
            )
        },
    }
}

fn finite(evaluation: &Evaluation) -> GateCheck {
    let models = [Some(evaluation.base), Some(evaluation.tuned), evaluation.live];
    let figures = models.into_iter().flatten().flat_map(|p| [p.token, p.word, p.byte]);
    let broken = figures.flat_map(|i| [i.value, i.low, i.high]).filter(|v| !v.is_finite() || *v < 1.0).count();
    GateCheck {
        name: "finite_perplexity".into(),
        wanted: 0.0,
        found: broken as f64,
        passed: broken == 0,
        message: if broken == 0 {
            "every perplexity is a finite number of at least 1".into()
        } else {
            format!(
                "{broken} perplexities are no finite numbers of at least 1: the run diverged; lower training.learning_rate"
            )
        },
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{
        evaluation::{Interval, Perplexity},
        ids::{DatasetId, RunId},
    };

    use super::*;

    fn evaluation(improvement: (f64, f64), over_live: Option<f64>, tokens: u64) -> Evaluation {
        let interval = |value: f64| Interval { value, low: value, high: value };
        let perplexity =
            |token: f64| Perplexity { token: interval(token), word: interval(token * 2.0), byte: interval(1.5) };
        Evaluation {
            run: RunId::of(&[b"r"]),
            dataset: DatasetId::of(&[b"d"]),
            documents: 4,
            examples: 9,
            tokens,
            words: tokens / 2,
            bytes: tokens * 4,
            base: perplexity(20.0),
            tuned: perplexity(15.0),
            live: over_live.map(|_| perplexity(15.5)),
            improvement_percent: Interval { value: improvement.0, low: improvement.1, high: improvement.0 + 1.0 },
            improvement_over_live_percent: over_live.map(interval),
            samples: vec![],
        }
    }

    fn failed(evaluation: &Evaluation) -> Vec<String> {
        let decision = decide(evaluation, &GateSettings::default());
        let failed: Vec<_> = decision.checks.iter().filter(|c| !c.passed).map(|c| c.name.clone()).collect();
        assert_eq!(decision.passed, failed.is_empty());
        failed
    }

    #[test]
    fn a_clear_improvement_passes() {
        assert_eq!(failed(&evaluation((25.0, 20.0), None, 5_000)), Vec::<String>::new());
        assert_eq!(decide(&evaluation((25.0, 20.0), Some(3.0), 5_000), &GateSettings::default()).checks.len(), 4);
    }

    #[test]
    fn the_lower_bound_counts() {
        let lucky = evaluation((5.0, 1.0), None, 5_000);
        assert_eq!(failed(&lucky), ["gate.min_improvement_percent"]);
        let decision = decide(&lucky, &GateSettings::default());
        assert!(decision.checks[1].message.contains("too small or too mixed"), "{}", decision.checks[1].message);
    }

    #[test]
    fn too_small_a_test_decides_nothing() {
        assert_eq!(failed(&evaluation((25.0, 20.0), None, 499)), ["gate.min_test_tokens"]);
    }

    #[test]
    fn a_worse_model_than_the_live_one_is_refused_and_an_equal_one_is_not() {
        assert_eq!(failed(&evaluation((25.0, 20.0), Some(0.0), 5_000)), Vec::<String>::new());
        assert_eq!(failed(&evaluation((25.0, 20.0), Some(-1.0), 5_000)), Vec::<String>::new());
        assert_eq!(failed(&evaluation((25.0, 20.0), Some(-1.01), 5_000)), ["gate.max_regression_percent"]);
    }

    #[test]
    fn figures_that_are_no_numbers_fail_closed() {
        let mut broken = evaluation((f64::NAN, f64::NAN), Some(f64::NAN), 5_000);
        broken.tuned.token.value = f64::INFINITY;
        let decision = decide(&broken, &GateSettings::default());
        assert!(decision.checks.iter().all(|c| c.found.is_finite()), "JSON has no NaN");
        assert_eq!(
            failed(&broken),
            ["gate.min_improvement_percent", "gate.max_regression_percent", "finite_perplexity"]
        );
    }
}
