//! First half of a layer: `x + [norm] O(attention(rope([qk_norm] QKV(norm(x)))))`.

use candle_core::Tensor;

use super::residual::Residual;
use super::{Gradients, Place, wanted};
use crate::adapters::LayerAdapters;
use crate::error::Result;
use crate::ops::attention::{self, Settings};
use crate::ops::linear::{AdaptedLinear, Inner, Wants, WantsDx};
use crate::ops::norm::{Norm, Normed};
use crate::ops::qk_norm::{self, QkNorm};
use crate::ops::rope::{self, Direction, RopeTable};
use crate::ops::{host, tensor};

pub(crate) struct AttentionBlock {
    pub norm: Norm,
    pub qkv: AdaptedLinear,
    pub qk_norm: Option<QkNorm>,
    pub o: AdaptedLinear,
    pub residual: Residual,
    pub settings: Settings,
}

/// What the backward pass needs; everything that one elementwise pass restores is left out.
pub(crate) struct Kept {
    pub normed: Normed,
    projected: Projected,
    attended: Tensor,
    log_sums: Vec<f32>,
    o_inner: Inner,
    out: Option<Normed>,
}

/// Fused queries, keys and values, ready for attention.
struct Projected {
    qkv: Tensor,
    inner: Inner,
    qk: Option<qk_norm::Kept>,
}

/// Rotated keys and values of the tokens seen so far.
pub(crate) struct Cached<'a> {
    pub keys: &'a mut Vec<f32>,
    pub values: &'a mut Vec<f32>,
    /// Tokens seen.
    pub past: usize,
}

impl AttentionBlock {
    pub fn forward(&self, x: Tensor, place: &Place<'_>) -> Result<(Tensor, Kept)> {
        let (hidden, normed) = self.norm.forward(x)?;
        let projected = self.project(&hidden, place.positions, place.rope, place.adapters)?;
        drop(hidden);
        let (attended, log_sums) = attention::forward(&projected.qkv, place.segments, self.settings)?;
        let (out, o_inner) = self.o.forward(&attended, place.adapters)?;
        let (y, out) = self.residual.forward(&normed.x, out)?;
        Ok((y, Kept { normed, projected, attended, log_sums, o_inner, out }))
    }

    /// Gradient with respect to `x`; where that is not wanted, anything.
    pub fn backward(
        &self,
        dy: &Tensor,
        kept: &Kept,
        place: &Place<'_>,
        wants: Wants<'_>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let d_out = self.residual.backward(dy, kept.out.as_ref())?;
        let inside = Wants { dx: WantsDx::Yes, ..wants };
        let (d_attended, new) = self.o.backward(&d_out, &kept.attended, &kept.o_inner, place.adapters, inside)?;
        gradients.extend(new);
        let d_attended = wanted(d_attended)?;
        let qkv = &kept.projected.qkv;
        let settings = self.settings;
        let d_qkv = attention::backward(&d_attended, qkv, &kept.attended, &kept.log_sums, place.segments, settings)?;
        self.rotate(&d_qkv, place.positions, place.rope, Direction::Backward)?;
        if let (Some(norm), Some(kept)) = (&self.qk_norm, &kept.projected.qk) {
            norm.backward(&d_qkv, kept, self.settings.heads)?;
        }
        let hidden = self.norm.recompute(&kept.normed)?;
        let (d_hidden, new) = self.qkv.backward(&d_qkv, &hidden, &kept.projected.inner, place.adapters, wants)?;
        gradients.extend(new);
        match d_hidden {
            Some(d_hidden) => self.norm.backward(&d_hidden, &kept.normed, Some(dy)),
            None => Ok(dy.clone()),
        }
    }

    /// Appends the rows of `x` to the cache and attends to everything in it.
    pub fn advance(
        &self,
        x: Tensor,
        cache: Cached<'_>,
        rope: Option<&RopeTable>,
        adapters: Option<&LayerAdapters>,
    ) -> Result<Tensor> {
        let (m, heads) = (x.dim(0)?, self.settings.heads);
        let (q_width, kv_width) = (heads.query * heads.size, heads.key_value * heads.size);
        let positions: Vec<u32> = (cache.past..cache.past + m).map(|position| position as u32).collect();
        let (hidden, normed) = self.norm.forward(x)?;
        let projected = self.project(&hidden, &positions, rope, adapters)?;
        let mut queries = Vec::with_capacity(m * q_width);
        for row in host(&projected.qkv)?.chunks_exact(heads.width()) {
            queries.extend_from_slice(&row[..q_width]);
            cache.keys.extend_from_slice(&row[q_width..q_width + kv_width]);
            cache.values.extend_from_slice(&row[q_width + kv_width..]);
        }
        let attended = attention::forward_cached(&queries, cache.keys, cache.values, cache.past, self.settings);
        let (out, _) = self.o.forward(&tensor(attended, (m, q_width))?, adapters)?;
        Ok(self.residual.forward(&normed.x, out)?.0)
    }

    fn project(
        &self,
        hidden: &Tensor,
        positions: &[u32],
        rope: Option<&RopeTable>,
        adapters: Option<&LayerAdapters>,
    ) -> Result<Projected> {
        let (qkv, inner) = self.qkv.forward(hidden, adapters)?;
        let qk = self.qk_norm.as_ref().map(|norm| norm.forward(&qkv, self.settings.heads)).transpose()?;
        self.rotate(&qkv, positions, rope, Direction::Forward)?;
        Ok(Projected { qkv, inner, qk })
    }

    fn rotate(&self, qkv: &Tensor, positions: &[u32], rope: Option<&RopeTable>, direction: Direction) -> Result<()> {
        let heads = self.settings.heads;
        match rope {
            Some(rope) => rope::rotate(qkv, heads.query + heads.key_value, positions, rope, direction),
            None => Ok(()),
        }
    }
}
