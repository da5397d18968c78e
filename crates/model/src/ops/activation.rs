//! The non-linearity of a feed-forward layer: which operation, and how wide its input is.

use candle_core::Tensor;

use super::{geglu, gelu, relu, swiglu};
use crate::error::Result;

/// One of the operations beside this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// [`swiglu`]: gated, `silu`.
    SwiGlu,
    /// [`geglu`]: gated, GELU by tanh.
    GeGluTanh,
    /// [`gelu`]: no gate, GELU by tanh.
    GeluTanh,
    /// [`relu`]: no gate.
    Relu,
}

impl Activation {
    /// `y` `[n, f]`; the input is `[n, 2f]` with a gate and `[n, f]` without.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::SwiGlu => swiglu::forward(x),
            Self::GeGluTanh => geglu::forward(x),
            Self::GeluTanh => gelu::forward(x),
            Self::Relu => relu::forward(x),
        }
    }

    /// Gradient with respect to the input.
    pub fn backward(self, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::SwiGlu => swiglu::backward(dy, x),
            Self::GeGluTanh => geglu::backward(dy, x),
            Self::GeluTanh => gelu::backward(dy, x),
            Self::Relu => relu::backward(dy, x),
        }
    }
}
