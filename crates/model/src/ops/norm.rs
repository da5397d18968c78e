//! The normalisation of a model: which operation, with its frozen weights.

use candle_core::Tensor;

use super::{layer_norm, rms_norm};
use crate::error::Result;

/// One of the operations beside this file.
#[derive(Debug)]
pub enum Norm {
    /// [`rms_norm`].
    Rms {
        /// `[h]`.
        weight: Tensor,
        /// Added to the mean square.
        eps: f32,
    },
    /// [`layer_norm`].
    Layer {
        /// `[h]`.
        weight: Tensor,
        /// `[h]`.
        bias: Tensor,
        /// Added to the variance.
        eps: f32,
    },
}

/// What the backward pass needs of a normalisation: its input, and the statistics of each row.
#[derive(Debug)]
pub struct Normed {
    /// Input, `[n, h]`.
    pub x: Tensor,
    /// As the operation defines them.
    pub statistics: Vec<f32>,
}

impl Norm {
    /// `y`, and what the backward pass needs.
    pub fn forward(&self, x: Tensor) -> Result<(Tensor, Normed)> {
        let (y, statistics) = match self {
            Self::Rms { weight, eps } => rms_norm::forward(&x, weight, *eps)?,
            Self::Layer { weight, bias, eps } => layer_norm::forward(&x, weight, bias, *eps)?,
        };
        Ok((y, Normed { x, statistics }))
    }

    /// `y` again.
    pub fn recompute(&self, kept: &Normed) -> Result<Tensor> {
        match self {
            Self::Rms { weight, .. } => rms_norm::recompute(&kept.x, weight, &kept.statistics),
            Self::Layer { weight, bias, .. } => layer_norm::recompute(&kept.x, weight, bias, &kept.statistics),
        }
    }

    /// Gradient with respect to `x`, added to `residual` where there is one.
    pub fn backward(&self, dy: &Tensor, kept: &Normed, residual: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Rms { weight, .. } => rms_norm::backward(dy, &kept.x, weight, &kept.statistics, residual),
            Self::Layer { weight, .. } => layer_norm::backward(dy, &kept.x, weight, &kept.statistics, residual),
        }
    }
}
