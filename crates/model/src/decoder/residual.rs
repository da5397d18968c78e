//! The end of a block: `x + out`, or `x + norm(out)` where the model normalises the outputs of its blocks (Gemma 2).

use candle_core::Tensor;

use crate::error::Result;
use crate::ops::add_to;
use crate::ops::norm::{Norm, Normed};

pub(crate) struct Residual {
    pub norm: Option<Norm>,
}

impl Residual {
    /// The sum, and what the backward pass needs.
    pub fn forward(&self, x: &Tensor, out: Tensor) -> Result<(Tensor, Option<Normed>)> {
        match &self.norm {
            None => {
                add_to(&out, x)?;
                Ok((out, None))
            }
            Some(norm) => {
                let (normed, kept) = norm.forward(out)?;
                add_to(&normed, x)?;
                Ok((normed, Some(kept)))
            }
        }
    }

    /// Gradient with respect to `out`; that with respect to `x` is `dy` itself.
    pub fn backward(&self, dy: &Tensor, kept: Option<&Normed>) -> Result<Tensor> {
        match (&self.norm, kept) {
            (Some(norm), Some(kept)) => norm.backward(dy, kept, None),
            _ => Ok(dy.clone()),
        }
    }
}
