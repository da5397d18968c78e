//! A layer of a decoder on a device, forward and backward: `decoder/attention.rs` and `decoder/feed_forward.rs` with the device's
//! operations.

use super::Gpu;
use super::attention::{Attended, Tiles};
use super::gpu::{QkNorm, Rotation, Statistics};
use super::linear::{Adapters, Inner, Linear, Parameters};
use super::memory::{Buffer, Matrix};
use crate::decoder::{self, wanted};
use crate::error::Result;
use crate::ops::activation::Activation;
use crate::ops::attention::Settings;
use crate::ops::linear::WantsDx;
use crate::ops::rope::Direction;
use crate::ops::{host, norm};

/// A layer with its frozen weights.
#[derive(Debug)]
pub struct Layer {
    attention_norm: Norm,
    qkv: Linear,
    qk_norm: Option<QkNorm>,
    o: Linear,
    o_norm: Option<Norm>,
    settings: Settings,
    up_norm: Norm,
    up: Linear,
    activation: Activation,
    down: Linear,
    down_norm: Option<Norm>,
}

/// A normalisation with its weights in f32.
#[derive(Debug)]
pub enum Norm {
    Rms { weight: Buffer, eps: f32 },
    Layer { weight: Buffer, bias: Buffer, eps: f32 },
}

/// What a batch is on the device.
pub struct Place<'a> {
    pub positions: Buffer,
    pub tiles: Tiles,
    pub rotation: Option<&'a Rotation>,
    pub parameters: Option<&'a Parameters>,
}

/// What the backward pass needs of a layer.
pub struct Kept {
    pub x: Matrix,
    x_statistics: Statistics,
    /// Queries and keys before their normalisation, where there is one.
    raw: Option<Matrix>,
    qkv: Matrix,
    qkv_inner: Inner,
    attended: Attended,
    o_inner: Inner,
    o_out: Option<(Matrix, Statistics)>,
    middle: Matrix,
    middle_statistics: Statistics,
    up: Matrix,
    up_inner: Inner,
    down_inner: Inner,
    down_out: Option<(Matrix, Statistics)>,
}

impl Layer {
    /// A copy on the device.
    pub fn new(gpu: &Gpu, layer: &decoder::Layer) -> Result<Self> {
        let (attention, feed_forward) = (&layer.attention, &layer.feed_forward);
        let of = |norm: &Option<norm::Norm>| norm.as_ref().map(|norm| Norm::new(gpu, norm)).transpose();
        Ok(Self {
            attention_norm: Norm::new(gpu, &attention.norm)?,
            qkv: Linear::new(gpu, &attention.qkv)?,
            qk_norm: attention.qk_norm.as_ref().map(|norm| qk_norm(gpu, norm)).transpose()?,
            o: Linear::new(gpu, &attention.o)?,
            o_norm: of(&attention.residual.norm)?,
            settings: attention.settings,
            up_norm: Norm::new(gpu, &feed_forward.norm)?,
            up: Linear::new(gpu, &feed_forward.up)?,
            activation: feed_forward.activation,
            down: Linear::new(gpu, &feed_forward.down)?,
            down_norm: of(&feed_forward.residual.norm)?,
        })
    }

    /// Output, and what the backward pass needs.
    pub fn forward(
        &self,
        gpu: &Gpu,
        x: Matrix,
        place: &Place<'_>,
        adapters: Option<&Adapters<'_>>,
    ) -> Result<(Matrix, Kept)> {
        let (hidden, x_statistics) = self.attention_norm.forward(gpu, &x)?;
        let (projected, qkv_inner) = self.qkv.forward(gpu, &hidden, adapters)?;
        let (qkv, raw) = match &self.qk_norm {
            Some(norm) => (gpu.qk_norm_forward(&projected, norm, self.settings.heads)?, Some(projected)),
            None => (projected, None),
        };
        self.rotate(gpu, &qkv, place, Direction::Forward)?;
        let attended = gpu.attention_forward(&qkv, &place.tiles, self.settings)?;
        let (out, o_inner) = self.o.forward(gpu, &attended.out, adapters)?;
        let (middle, o_out) = add_normed(gpu, self.o_norm.as_ref(), out, &x)?;

        let (hidden, middle_statistics) = self.up_norm.forward(gpu, &middle)?;
        let (up, up_inner) = self.up.forward(gpu, &hidden, adapters)?;
        drop(hidden);
        let active = gpu.activation_forward(self.activation, &up)?;
        let (out, down_inner) = self.down.forward(gpu, &active, adapters)?;
        let (y, down_out) = add_normed(gpu, self.down_norm.as_ref(), out, &middle)?;
        let kept = Kept {
            x,
            x_statistics,
            raw,
            qkv,
            qkv_inner,
            attended,
            o_inner,
            o_out,
            middle,
            middle_statistics,
            up,
            up_inner,
            down_inner,
            down_out,
        };
        Ok((y, kept))
    }

    /// Gradient with respect to the layer's input; where that is not wanted, anything.
    pub fn backward(
        &self,
        gpu: &Gpu,
        dy: &Matrix,
        kept: Kept,
        place: &Place<'_>,
        adapters: Option<&Adapters<'_>>,
        wants: WantsDx,
    ) -> Result<Matrix> {
        let d_out = normed_gradient(gpu, self.down_norm.as_ref(), dy, kept.down_out.as_ref())?;
        let active = gpu.activation_forward(self.activation, &kept.up)?;
        let d_active = self.down.backward(gpu, &d_out, &active, &kept.down_inner, adapters, WantsDx::Yes)?;
        drop(active);
        let d_up = gpu.activation_backward(self.activation, &wanted(d_active)?, &kept.up)?;
        let (hidden, _) = self.up_norm.forward(gpu, &kept.middle)?;
        let d_hidden = wanted(self.up.backward(gpu, &d_up, &hidden, &kept.up_inner, adapters, WantsDx::Yes)?)?;
        drop((d_up, hidden));
        let d_middle = self.up_norm.backward(gpu, &d_hidden, &kept.middle, &kept.middle_statistics, Some(dy))?;

        let d_out = normed_gradient(gpu, self.o_norm.as_ref(), &d_middle, kept.o_out.as_ref())?;
        let d_attended = self.o.backward(gpu, &d_out, &kept.attended.out, &kept.o_inner, adapters, WantsDx::Yes)?;
        let d_attended = wanted(d_attended)?;
        let d_qkv = gpu.attention_backward(&d_attended, &kept.qkv, &kept.attended, &place.tiles, self.settings)?;
        self.rotate(gpu, &d_qkv, place, Direction::Backward)?;
        if let (Some(norm), Some(raw)) = (&self.qk_norm, &kept.raw) {
            gpu.qk_norm_backward(&d_qkv, raw, norm, self.settings.heads)?;
        }
        let (hidden, _) = self.attention_norm.forward(gpu, &kept.x)?;
        match self.qkv.backward(gpu, &d_qkv, &hidden, &kept.qkv_inner, adapters, wants)? {
            Some(d_hidden) => {
                self.attention_norm.backward(gpu, &d_hidden, &kept.x, &kept.x_statistics, Some(&d_middle))
            }
            None => Ok(d_middle),
        }
    }

    fn rotate(&self, gpu: &Gpu, qkv: &Matrix, place: &Place<'_>, direction: Direction) -> Result<()> {
        let heads = self.settings.heads;
        match place.rotation {
            Some(rotation) => gpu.rope(qkv, heads.query + heads.key_value, &place.positions, rotation, direction),
            None => Ok(()),
        }
    }
}

/// `x + out`, or `x + norm(out)`, and what the latter's backward pass needs.
fn add_normed(
    gpu: &Gpu,
    norm: Option<&Norm>,
    out: Matrix,
    x: &Matrix,
) -> Result<(Matrix, Option<(Matrix, Statistics)>)> {
    let Some(norm) = norm else {
        gpu.add_to(&out, x)?;
        return Ok((out, None));
    };
    let (normed, statistics) = norm.forward(gpu, &out)?;
    gpu.add_to(&normed, x)?;
    Ok((normed, Some((out, statistics))))
}

fn normed_gradient(gpu: &Gpu, norm: Option<&Norm>, dy: &Matrix, kept: Option<&(Matrix, Statistics)>) -> Result<Matrix> {
    match (norm, kept) {
        (Some(norm), Some((out, statistics))) => norm.backward(gpu, dy, out, statistics, None),
        _ => Ok(dy.clone()),
    }
}

impl Norm {
    /// A copy on the device.
    pub fn new(gpu: &Gpu, norm: &norm::Norm) -> Result<Self> {
        Ok(match norm {
            norm::Norm::Rms { weight, eps } => Self::Rms { weight: gpu.floats(&host(weight)?)?, eps: *eps },
            norm::Norm::Layer { weight, bias, eps } => {
                Self::Layer { weight: gpu.floats(&host(weight)?)?, bias: gpu.floats(&host(bias)?)?, eps: *eps }
            }
        })
    }

    /// `y` and the statistics.
    pub fn forward(&self, gpu: &Gpu, x: &Matrix) -> Result<(Matrix, Statistics)> {
        match self {
            Self::Rms { weight, eps } => gpu.rms_norm_forward(x, weight, *eps),
            Self::Layer { weight, bias, eps } => gpu.layer_norm_forward(x, weight, bias, *eps),
        }
    }

    /// Gradient with respect to `x`, added to `residual` where there is one.
    pub fn backward(
        &self,
        gpu: &Gpu,
        dy: &Matrix,
        x: &Matrix,
        statistics: &Statistics,
        residual: Option<&Matrix>,
    ) -> Result<Matrix> {
        match self {
            Self::Rms { weight, .. } => gpu.rms_norm_backward(dy, x, weight, statistics, residual),
            Self::Layer { weight, .. } => gpu.layer_norm_backward(dy, x, weight, statistics, residual),
        }
    }
}

fn qk_norm(gpu: &Gpu, norm: &crate::ops::qk_norm::QkNorm) -> Result<QkNorm> {
    let weight = |weight| gpu.floats(&host(weight)?);
    Ok(QkNorm { query: weight(&norm.query)?, key: weight(&norm.key)?, eps: norm.eps })
}
