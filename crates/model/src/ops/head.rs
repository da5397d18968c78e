//! Language-model head: `z = W x`, bent by a soft cap where the model has one.
//!
//! Shapes: `x` `[n, h]`, `W` `[V, h]`, `z` `[n, V]`. Training never holds all of `z`: see [`super::cross_entropy`].

use candle_core::Tensor;
use rayon::prelude::*;

use super::linear::{Sizes, product};
use super::{host, soft_cap};
use crate::error::Result;

/// The frozen head.
#[derive(Debug)]
pub struct Head {
    /// `[V, h]`.
    pub weight: Tensor,
    /// Logits stay below this.
    pub soft_cap: Option<f32>,
}

impl Head {
    /// Logits of every row of `x`, row by row.
    pub fn logits(&self, x: &Tensor) -> Result<Vec<f32>> {
        let (n, width) = x.dims2()?;
        let out = self.weight.dim(0)?;
        let mut logits = vec![0.0; n * out];
        self.logits_into(&mut logits, &host(x)?, Sizes { n, out, width })?;
        Ok(logits)
    }

    /// The same into a buffer `[n, V]`, from `n` rows of values.
    pub(super) fn logits_into(&self, logits: &mut [f32], x: &[f32], sizes: Sizes) -> Result<()> {
        product(logits, x, &host(&self.weight)?, sizes);
        if let Some(cap) = self.soft_cap {
            logits.par_chunks_mut(sizes.out).for_each(|row| soft_cap::forward(row, cap));
        }
        Ok(())
    }
}
