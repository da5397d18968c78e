//! [`crate::ops::attention`] on a device: tiles, and the kernels beside it (`ops/attention/*.cu`).

use super::backend::Argument::{self, Float};
use super::gpu::{Gpu, int, not_on_gpu};
use super::memory::{Buffer, Matrix};
use crate::error::Result;
use crate::ops::attention::{Segments, Settings};

/// How the rows of a batch are split into the tiles of attention.
#[derive(Debug)]
pub struct Tiles {
    bounds: Buffer,
    count: usize,
    warps: usize,
}

/// What the backward pass of attention needs beside the fused rows.
#[derive(Debug)]
pub struct Attended {
    /// `O`.
    pub out: Matrix,
    /// `L`, `[n, H]`.
    log_sums: Buffer,
}

/// `STEP` of the source.
const STEP: usize = 32;

/// Bytes that the kernels have in shared memory beside what they are given.
const STATIC_SHARED: usize = 2 * 4 * STEP;

impl Gpu {
    /// Warps of a block of attention: as many as the device's shared memory has room for.
    ///
    /// # Errors
    /// [`crate::ModelError::NotOnGpu`] when not even the tiles of one warp fit.
    pub fn warps_of_attention(&self) -> Result<usize> {
        // the last kernel takes the most
        let wanted = |warps| self.shared_of_attention(warps)[2] + STATIC_SHARED;
        let there = self.backend.most_shared();
        [4, 2, 1].into_iter().find(|warps| wanted(*warps) <= there).ok_or_else(|| {
            let (head, least, stored) = (self.backend.head(), wanted(1), self.backend.stored());
            not_on_gpu(&format!(
                "attention with heads of {head} values in {stored:?}, which wants {least} bytes of shared memory where a block of \
                 this card has {there}"
            ))
        })
    }

    /// Splits a batch for attention.
    ///
    /// # Errors
    /// As [`Gpu::warps_of_attention`], which is asked before a model is put on a device.
    pub fn tiles(&self, segments: &Segments) -> Result<Tiles> {
        let warps = self.warps_of_attention()?;
        let rows = 16 * warps;
        let bounds = segments.bounds().iter();
        let tiles: Vec<usize> = bounds
            .flat_map(|(start, end)| (*start..*end).step_by(rows).flat_map(move |first| [*start, *end, first]))
            .collect();
        let count = tiles.len() / 3;
        Ok(Tiles { bounds: Buffer::of_ints(&self.backend, tiles.into_iter())?, count, warps })
    }

    /// Attention: `O` and `L`.
    pub fn attention_forward(&self, qkv: &Matrix, tiles: &Tiles, settings: Settings) -> Result<Attended> {
        let heads = settings.heads;
        let attended = Attended {
            out: self.matrix(qkv.rows, heads.query * heads.size)?,
            log_sums: self.room(qkv.rows * heads.query)?,
        };
        let buffers = [qkv.arg(), tiles.bounds.arg(), attended.out.arg(), attended.log_sums.arg()];
        let arguments = [&buffers[..], &of_settings(settings)].concat();
        let [shared, ..] = self.shared_of_attention(tiles.warps);
        self.launch("attention_forward", [tiles.count, heads.query], 32 * tiles.warps, shared, &arguments)?;
        Ok(attended)
    }

    /// Attention: the gradient of the fused rows.
    pub fn attention_backward(
        &self,
        d_out: &Matrix,
        qkv: &Matrix,
        attended: &Attended,
        tiles: &Tiles,
        settings: Settings,
    ) -> Result<Matrix> {
        let heads = settings.heads;
        let (delta, d_qkv) = (self.room(qkv.rows * heads.query)?, self.matrix(qkv.rows, qkv.cols)?);
        let arguments = [d_out.arg(), attended.out.arg(), delta.arg(), int(heads.query), int(heads.size)];
        self.launch("attention_delta", [qkv.rows, 1], 32 * heads.query.min(8), 0, &arguments)?;
        let buffers = [qkv.arg(), d_out.arg(), attended.log_sums.arg(), delta.arg(), tiles.bounds.arg(), d_qkv.arg()];
        let arguments = [&buffers[..], &of_settings(settings)].concat();
        let [_, queries, keys] = self.shared_of_attention(tiles.warps);
        let threads = 32 * tiles.warps;
        self.launch("attention_backward_queries", [tiles.count, heads.query], threads, queries, &arguments)?;
        self.launch("attention_backward_keys", [tiles.count, heads.key_value], threads, keys, &arguments)?;
        Ok(d_qkv)
    }

    /// Bytes of shared memory of the three kernels of attention: forward, backward by queries, backward by keys.
    fn shared_of_attention(&self, warps: usize) -> [usize; 3] {
        let bytes = self.backend.stored().bytes();
        let (rows, head, pad) = (16 * warps, self.backend.head(), 16 / bytes);
        let (whole, columns, weights) = (rows * (head + pad), head * (STEP + pad), rows * (STEP + pad));
        let step = STEP * (head + pad);
        [
            whole + step + columns + weights,
            2 * whole + 2 * step + columns + weights,
            2 * whole + 2 * step + 2 * columns + 2 * weights,
        ]
        .map(|values| values * bytes)
    }
}

fn of_settings(settings: Settings) -> [Argument; 6] {
    let Settings { heads, scale, soft_cap, window } = settings;
    let cap = Float(soft_cap.unwrap_or(0.0));
    [int(heads.query), int(heads.key_value), int(heads.size), Float(scale), cap, int(window.unwrap_or(0))]
}
