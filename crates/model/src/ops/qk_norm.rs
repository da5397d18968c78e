//! Normalisation of each query and key head before the rotation (Qwen3; Henry et al. 2020 in the RMS form).
//!
//! Forward, per head of `d` values: `y = w · (x · r)` with `r = 1 / sqrt(mean(x²) + eps)`, one `w` for all query heads and one for
//! all key heads; values are left alone. Backward as in [`super::rms_norm`], head by head.
//! Shapes: fused rows `[n, (H + 2K)·d]` as in [`super::attention`], changed in place; `w` is `[d]`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::attention::Heads;
use super::rms_norm::{backward_row, dot, scale_row};
use super::{ROWS_PER_TASK, host, update};
use crate::error::Result;

/// The two frozen weights.
#[derive(Debug)]
pub struct QkNorm {
    /// Of the queries, `[d]`.
    pub query: Tensor,
    /// Of the keys, `[d]`.
    pub key: Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

/// What the backward pass needs: queries and keys as they were, `[n, (H + K)·d]`.
#[derive(Debug)]
pub struct Kept(Vec<f32>);

impl QkNorm {
    /// Normalises in place.
    pub fn forward(&self, qkv: &Tensor, heads: Heads) -> Result<Kept> {
        let (q, k) = (host(&self.query)?, host(&self.key)?);
        let (d, width, changed) = (heads.size, heads.width(), (heads.query + heads.key_value) * heads.size);
        let mut raw = Vec::with_capacity(qkv.dim(0)? * changed);
        host(qkv)?.chunks_exact(width).for_each(|row| raw.extend_from_slice(&row[..changed]));
        update(qkv, |values| {
            values.par_chunks_mut(ROWS_PER_TASK * width).zip(raw.par_chunks(ROWS_PER_TASK * changed)).for_each(
                |(rows, raw)| {
                    for (row, raw) in rows.chunks_exact_mut(width).zip(raw.chunks_exact(changed)) {
                        for (head, (y, x)) in row.chunks_exact_mut(d).zip(raw.chunks_exact(d)).enumerate() {
                            let w = if head < heads.query { &*q } else { &*k };
                            scale_row(y, x, w, self.inverse_rms(x));
                        }
                    }
                },
            );
        })?;
        Ok(Kept(raw))
    }

    /// Turns the gradient of the normalised rows into that of the rows before, in place.
    pub fn backward(&self, d_qkv: &Tensor, kept: &Kept, heads: Heads) -> Result<()> {
        let (q, k) = (host(&self.query)?, host(&self.key)?);
        let (d, width, changed) = (heads.size, heads.width(), (heads.query + heads.key_value) * heads.size);
        update(d_qkv, |values| {
            values.par_chunks_mut(ROWS_PER_TASK * width).zip(kept.0.par_chunks(ROWS_PER_TASK * changed)).for_each(
                |(rows, raw)| {
                    let mut dy = vec![0.0; d];
                    for (row, raw) in rows.chunks_exact_mut(width).zip(raw.chunks_exact(changed)) {
                        for (head, (dx, x)) in row.chunks_exact_mut(d).zip(raw.chunks_exact(d)).enumerate() {
                            let w = if head < heads.query { &*q } else { &*k };
                            dy.copy_from_slice(dx);
                            dx.fill(0.0);
                            backward_row(dx, &dy, x, w, self.inverse_rms(x));
                        }
                    }
                },
            );
        })
    }

    fn inverse_rms(&self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::rms_norm;
    use crate::ops::testing::{check_gradient, dot as inner, random};

    const HEADS: Heads = Heads { query: 4, key_value: 2, size: 6 };

    fn norm() -> QkNorm {
        QkNorm { query: random(1, &[6], 1.0), key: random(2, &[6], 1.0), eps: 1e-5 }
    }

    fn normed(x: &Tensor) -> (Tensor, Kept) {
        let copy = x.copy().unwrap();
        let kept = norm().forward(&copy, HEADS).unwrap();
        (copy, kept)
    }

    #[test]
    fn heads_are_normalised_one_by_one_and_values_stay() {
        let x = random(3, &[19, HEADS.width()], 1.0);
        let y = normed(&x).0;
        let key_head = |t: &Tensor| t.narrow(1, 5 * 6, 6).unwrap().contiguous().unwrap();
        let (wanted, _) = rms_norm::forward(&key_head(&x), &norm().key, 1e-5).unwrap();
        assert_eq!(key_head(&y).to_vec2::<f32>().unwrap(), wanted.to_vec2::<f32>().unwrap());
        let values = |t: &Tensor| t.narrow(1, 6 * 6, 12).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(values(&x), values(&y));
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        let (x, dy) = (random(3, &[19, HEADS.width()], 1.0), random(4, &[19, HEADS.width()], 1.0));
        let (_, kept) = normed(&x);
        let dx = dy.copy().unwrap();
        norm().backward(&dx, &kept, HEADS).unwrap();
        check_gradient(&x, &dx, 2e-3, |x| inner(&normed(x).0, &dy));
    }
}
