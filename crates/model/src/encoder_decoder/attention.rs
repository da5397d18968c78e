//! An attention block of T5: `x + O(attention(Q(norm(x)), KV(s)))`. The source `s` is `norm(x)` itself or, in cross-attention, what the
//! encoder made of the other text.

use candle_core::Tensor;

use crate::adapters::LayerAdapters;
use crate::decoder::{Gradients, wanted};
use crate::error::Result;
use crate::ops::cross_attention::{self, Pair, Sees, Settings};
use crate::ops::linear::{AdaptedLinear, Inner, Wants, WantsDx};
use crate::ops::norm::{Norm, Normed};
use crate::ops::relative_position::RelativeBias;
use crate::ops::{host, tensor};

pub(super) struct AttentionBlock {
    pub norm: Norm,
    pub q: AdaptedLinear,
    /// Keys and values side by side.
    pub kv: AdaptedLinear,
    pub o: AdaptedLinear,
    pub heads: usize,
    pub size: usize,
    pub sees: Sees,
}

/// What a block must know besides its input.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub pairs: &'a [Pair],
    pub bias: Option<&'a RelativeBias>,
    /// In cross-attention what the encoder made of the other text.
    pub source: Option<&'a Tensor>,
    pub adapters: Option<&'a LayerAdapters>,
}

/// What the backward pass needs; everything that one elementwise pass restores is left out.
pub(super) struct Kept {
    normed: Normed,
    q: Tensor,
    q_inner: Inner,
    kv: Tensor,
    kv_inner: Inner,
    attended: Tensor,
    log_sums: Vec<f32>,
    o_inner: Inner,
}

impl AttentionBlock {
    pub fn forward(&self, x: Tensor, place: Place<'_>) -> Result<(Tensor, Kept)> {
        let (hidden, normed) = self.norm.forward(x)?;
        let (q, q_inner) = self.q.forward(&hidden, place.adapters)?;
        let (kv, kv_inner) = self.kv.forward(place.source.unwrap_or(&hidden), place.adapters)?;
        drop(hidden);
        let (out, log_sums) = cross_attention::forward(&host(&q)?, &host(&kv)?, place.pairs, self.settings(place.bias));
        let attended = tensor(out, q.dims())?;
        let (out, o_inner) = self.o.forward(&attended, place.adapters)?;
        let y = (&normed.x + out)?;
        Ok((y, Kept { normed, q, q_inner, kv, kv_inner, attended, log_sums, o_inner }))
    }

    /// Gradients with respect to `x` (where it is not wanted, anything) and, in cross-attention, the source.
    pub fn backward(
        &self,
        dy: &Tensor,
        kept: &Kept,
        place: Place<'_>,
        dx: WantsDx,
        gradients: &mut Gradients,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let wants = |dx| Wants { dx, norms_of: None };
        let (d_attended, new) =
            self.o.backward(dy, &kept.attended, &kept.o_inner, place.adapters, wants(WantsDx::Yes))?;
        gradients.extend(new);
        let (dq, dkv) = {
            let (q, kv, out) = (host(&kept.q)?, host(&kept.kv)?, host(&kept.attended)?);
            let of_forward = cross_attention::Kept { q: &q, kv: &kv, out: &out, log_sums: &kept.log_sums };
            let d_attended = wanted(d_attended)?;
            let d_out = host(&d_attended)?;
            cross_attention::backward(&d_out, of_forward, place.pairs, self.settings(place.bias))
        };
        let (dq, dkv) = (tensor(dq, kept.q.dims())?, tensor(dkv, kept.kv.dims())?);
        let hidden = self.norm.recompute(&kept.normed)?;
        let (mut d_hidden, new) = self.q.backward(&dq, &hidden, &kept.q_inner, place.adapters, wants(dx))?;
        gradients.extend(new);
        let (source, of_source) = place.source.map_or((&hidden, dx), |source| (source, WantsDx::Yes));
        let (mut d_source, new) = self.kv.backward(&dkv, source, &kept.kv_inner, place.adapters, wants(of_source))?;
        gradients.extend(new);
        if place.source.is_none() {
            d_hidden = match (d_hidden, d_source.take()) {
                (Some(of_q), Some(of_kv)) => Some((of_q + of_kv)?),
                _ => None,
            };
        }
        let dx = match d_hidden {
            Some(d_hidden) => self.norm.backward(&d_hidden, &kept.normed, Some(dy))?,
            None => dy.clone(),
        };
        Ok((dx, d_source))
    }

    /// Keys and values of a source that is known from the start.
    pub fn remember(&self, source: &Tensor, adapters: Option<&LayerAdapters>) -> Result<Vec<f32>> {
        Ok(host(&self.kv.forward(source, adapters)?.0)?.to_vec())
    }

    /// Some rows after `past` others, which attend to what is remembered; in self-attention their own keys and values are added.
    pub fn advance(&self, x: Tensor, remembered: &mut Vec<f32>, past: usize, place: Place<'_>) -> Result<Tensor> {
        let (hidden, normed) = self.norm.forward(x)?;
        if self.sees == Sees::Past {
            remembered.extend_from_slice(&host(&self.kv.forward(&hidden, place.adapters)?.0)?);
        }
        let (q, _) = self.q.forward(&hidden, place.adapters)?;
        let num_keys = remembered.len() / (2 * self.heads * self.size);
        let pair = Pair { queries: (0, q.dim(0)?), keys: (0, num_keys), past };
        let (out, _) = cross_attention::forward(&host(&q)?, remembered, &[pair], self.settings(place.bias));
        let (out, _) = self.o.forward(&tensor(out, q.dims())?, place.adapters)?;
        Ok((normed.x + out)?)
    }

    fn settings<'a>(&self, bias: Option<&'a RelativeBias>) -> Settings<'a> {
        Settings { heads: self.heads, size: self.size, sees: self.sees, bias }
    }
}
