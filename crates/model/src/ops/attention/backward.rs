//! Backward pass of attention; formulas in the module above.

use candle_core::Tensor;
use rayon::prelude::*;

use super::kernel::Shared;
use super::{BLOCK, Segments, Settings, tasks};
use crate::error::Result;
use crate::ops::gemm::{Threads, View, ViewMut, Write, gemm};
use crate::ops::{exp, host, soft_cap, tensor, vectorised};

/// Gradient with respect to the fused rows.
pub fn backward(
    d_out: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    log_sums: &[f32],
    segments: &Segments,
    settings: Settings,
) -> Result<Tensor> {
    let (n, width) = qkv.dims2()?;
    let (values, d_outs, outs) = (host(qkv)?, host(d_out)?, host(out)?);
    let Settings { heads, scale, soft_cap, .. } = settings;
    let (d, out_width) = (heads.size, heads.query * heads.size);
    let mut grad = vec![0.0; n * width];
    let grad_ptr = Shared::new(&mut grad);
    tasks(segments, heads).into_par_iter().for_each_init(
        <(Vec<f32>, Vec<f32>)>::default,
        |(p, ds), ((start, end), kv)| {
            let k_column = (heads.query + kv) * d;
            let v_column = k_column + heads.key_value * d;
            let at = |row: usize, column: usize| row * width + column;
            for head in kv * heads.group()..(kv + 1) * heads.group() {
                for from in (start..end).step_by(BLOCK) {
                    let to = (from + BLOCK).min(end);
                    // keys from the first that the block's first query sees
                    let first = start + settings.first_seen(from - start);
                    let (rows, seen) = (to - from, to - first);
                    p.resize(rows * seen, 0.0);
                    ds.resize(rows * seen, 0.0);
                    let queries = View::new(&values[at(from, head * d)..], rows, d, width);
                    let keys = View::new(&values[at(first, k_column)..], seen, d, width);
                    let vals = View::new(&values[at(first, v_column)..], seen, d, width);
                    let d_out = View::new(&d_outs[from * out_width + head * d..], rows, d, out_width);
                    gemm(ViewMut::new(p, rows, seen, seen), Write::Replace, scale, queries, keys.t(), Threads::One);
                    gemm(ViewMut::new(ds, rows, seen, seen), Write::Replace, 1.0, d_out, vals.t(), Threads::One);
                    for (i, (p, ds)) in p.chunks_exact_mut(seen).zip(ds.chunks_exact_mut(seen)).enumerate() {
                        let row = from + i;
                        let at = row * out_width + head * d;
                        let delta: f32 = d_outs[at..at + d].iter().zip(&outs[at..at + d]).map(|(a, b)| a * b).sum();
                        let log_sum = log_sums[row * heads.query + head];
                        let visible = start + settings.first_seen(row - start) - first..row - first + 1;
                        let (p_row, ds_row) = (&mut p[visible.clone()], &mut ds[visible.clone()]);
                        match soft_cap {
                            None => row_gradient(p_row, ds_row, log_sum, delta, scale),
                            Some(cap) => capped_row_gradient(p_row, ds_row, log_sum, delta, scale, cap),
                        }
                        for hidden in [0..visible.start, visible.end..seen] {
                            p[hidden.clone()].fill(0.0);
                            ds[hidden].fill(0.0);
                        }
                    }
                    let (p, ds) = (View::new(p, rows, seen, seen), View::new(ds, rows, seen, seen));
                    // SAFETY: this task alone writes its query heads, its key head and its value head in its sequence.
                    let (dq, dk, dv) = unsafe {
                        (
                            grad_ptr.from(at(from, head * d)),
                            grad_ptr.from(at(first, k_column)),
                            grad_ptr.from(at(first, v_column)),
                        )
                    };
                    gemm(ViewMut::new(dq, rows, d, width), Write::Replace, 1.0, ds, keys, Threads::One);
                    gemm(ViewMut::new(dk, seen, d, width), Write::Add, 1.0, ds.t(), queries, Threads::One);
                    gemm(ViewMut::new(dv, seen, d, width), Write::Add, 1.0, p.t(), d_out, Threads::One);
                }
            }
        },
    );
    tensor(grad, (n, width))
}

vectorised! {
/// `P` from scores and `dS` from `dP`, in place, for the visible keys of one query.
pub(in crate::ops) fn row_gradient(p: &mut [f32], ds: &mut [f32], log_sum: f32, delta: f32, scale: f32) {
    for (p, ds) in p.iter_mut().zip(ds) {
        *p = exp(*p - log_sum);
        *ds = *p * (*ds - delta) * scale;
    }
}
}

vectorised! {
/// The same with a soft cap on the scores.
fn capped_row_gradient(p: &mut [f32], ds: &mut [f32], log_sum: f32, delta: f32, scale: f32, cap: f32) {
    for (p, ds) in p.iter_mut().zip(ds) {
        let score = soft_cap::value(*p, cap);
        *p = exp(score - log_sum);
        *ds = *p * (*ds - delta) * scale * soft_cap::slope(score, cap);
    }
}
}
