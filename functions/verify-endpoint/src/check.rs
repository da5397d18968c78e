//! Whether an endpoint answers what was trained. No I/O.

use tunesmith_contract::{ErrorName, error_name::Failure, job::ReferenceLogits};

/// Largest absolute difference between the endpoint's logits and the trainer's that is accepted.
///
/// Both run the same code in f32; another processor may choose other kernels and another order of additions. Logits are of
/// the order of 10, so this is about 1e-4 relative: far above rounding, far below a wrong adapter, base, dtype or template
/// (those differ by more than 0.1).
pub const TOLERANCE: f64 = 1e-3;

/// Compares logits.
///
/// # Errors
/// [`ErrorName::VerificationFailed`] when the lengths differ, a value is not finite, or the difference is above [`TOLERANCE`].
pub fn compare(reference: &ReferenceLogits, found: &[f32]) -> Result<f64, Failure> {
    let failed = |message: String| Failure::new(ErrorName::VerificationFailed, message);
    if reference.logits.len() != found.len() {
        return Err(failed(format!(
            "the endpoint returned {} logits, the trained model has {}: another base model or tokenizer is deployed",
            found.len(),
            reference.logits.len()
        )));
    }
    if let Some(index) = found.iter().position(|v| !v.is_finite()) {
        return Err(failed(format!("logit {index} of the endpoint is not finite")));
    }
    let pairs = reference.logits.iter().zip(found);
    let largest = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    if largest > TOLERANCE {
        return Err(failed(format!(
            "the endpoint's logits differ by up to {largest:.2e} from the trained model's, {TOLERANCE:.0e} is allowed: \
             check that the endpoint's image is the trainer's version and that the adapter is the run's"
        )));
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> ReferenceLogits {
        ReferenceLogits { tokens: vec![1, 2], logits: vec![0.5, -1.0, 3.0] }
    }

    #[test]
    fn equal_and_nearly_equal_logits_pass() {
        assert_eq!(compare(&reference(), &[0.5, -1.0, 3.0]).unwrap(), 0.0);
        assert!(compare(&reference(), &[0.5, -1.0, 3.0001]).unwrap() > 0.0);
    }

    #[test]
    fn another_model_is_named_as_such() {
        for (found, word) in [
            (vec![0.5, -1.0], "2 logits"),
            (vec![0.5, f32::NAN, 3.0], "logit 1"),
            (vec![0.5, -1.0, 3.1], "differ by up to"),
        ] {
            let failure = compare(&reference(), &found).unwrap_err();
            assert_eq!(failure.name, ErrorName::VerificationFailed);
            assert!(failure.message.contains(word), "{}", failure.message);
        }
    }
}
