//! Second half of a layer: `x + [norm] Down(activation(Up(norm(x))))`; with a gate, `Up` is gate and up side by side.

use candle_core::Tensor;

use super::residual::Residual;
use super::{Gradients, wanted};
use crate::adapters::LayerAdapters;
use crate::error::Result;
use crate::ops::activation::Activation;
use crate::ops::linear::{AdaptedLinear, Inner, Wants, WantsDx};
use crate::ops::norm::{Norm, Normed};

pub(crate) struct FeedForward {
    pub norm: Norm,
    pub up: AdaptedLinear,
    pub activation: Activation,
    pub down: AdaptedLinear,
    pub residual: Residual,
}

/// What the backward pass needs; everything that one elementwise pass restores is left out.
pub(crate) struct Kept {
    normed: Normed,
    up: Tensor,
    up_inner: Inner,
    pub last: Last,
}

/// The part of it that only the last product gives. It is small, and with it a layer that is computed again needs no such product.
pub(crate) struct Last {
    down_inner: Inner,
    out: Option<Normed>,
}

impl FeedForward {
    pub fn forward(&self, x: Tensor, adapters: Option<&LayerAdapters>) -> Result<(Tensor, Kept)> {
        let (hidden, normed) = self.norm.forward(x)?;
        let (up, up_inner) = self.up.forward(&hidden, adapters)?;
        drop(hidden);
        let (out, down_inner) = self.down.forward(&self.activation.forward(&up)?, adapters)?;
        let (y, out) = self.residual.forward(&normed.x, out)?;
        Ok((y, Kept { normed, up, up_inner, last: Last { down_inner, out } }))
    }

    /// What [`FeedForward::forward`] kept, again; the output is not needed.
    pub fn recompute(&self, x: Tensor, last: Last, adapters: Option<&LayerAdapters>) -> Result<Kept> {
        let (hidden, normed) = self.norm.forward(x)?;
        let (up, up_inner) = self.up.forward(&hidden, adapters)?;
        Ok(Kept { normed, up, up_inner, last })
    }

    /// Gradient with respect to `x`, which is always wanted: attention lies before.
    pub fn backward(
        &self,
        dy: &Tensor,
        kept: &Kept,
        adapters: Option<&LayerAdapters>,
        wants: Wants<'_>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let inside = Wants { dx: WantsDx::Yes, ..wants };
        let d_out = self.residual.backward(dy, kept.last.out.as_ref())?;
        let active = self.activation.forward(&kept.up)?;
        let (d_active, new) = self.down.backward(&d_out, &active, &kept.last.down_inner, adapters, inside)?;
        gradients.extend(new);
        drop(active);
        let d_up = self.activation.backward(&wanted(d_active)?, &kept.up)?;
        let hidden = self.norm.recompute(&kept.normed)?;
        let (d_hidden, new) = self.up.backward(&d_up, &hidden, &kept.up_inner, adapters, inside)?;
        gradients.extend(new);
        self.norm.backward(&wanted(d_hidden)?, &kept.normed, Some(dy))
    }
}
