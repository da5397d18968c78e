//! Clipping by the global norm: all gradients together are scaled so that their norm is at most `max_norm`.
//!
//! As `torch.nn.utils.clip_grad_norm_`: factor `min(1, max_norm / (norm + 1e-6))`.

/// Euclidean norm of all values, summed in f64 in a fixed order.
#[must_use]
pub fn global_norm(gradients: &[Vec<f32>]) -> f64 {
    gradients.iter().flatten().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// Scales in place; returns the norm before.
pub fn clip(gradients: &mut [Vec<f32>], max_norm: f64) -> f64 {
    let norm = global_norm(gradients);
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        gradients.iter_mut().flatten().for_each(|value| *value *= factor as f32);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_gradients_are_scaled() {
        let mut gradients = vec![vec![3.0, 0.0], vec![4.0]];
        assert_eq!(clip(&mut gradients, 10.0), 5.0);
        assert_eq!(gradients, [vec![3.0, 0.0], vec![4.0]]);
        assert_eq!(clip(&mut gradients, 1.0), 5.0);
        assert!((global_norm(&gradients) - 1.0).abs() < 1e-6);
    }
}
