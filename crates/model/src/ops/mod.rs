//! One file per operation: formula, shapes, forward, backward, CPU kernel, gradient test.
//!
//! Shapes: `n` rows (tokens of all sequences of a batch, one after the other, no padding), `h` hidden size, `f` FFN size,
//! `H`/`K` query/key-value heads, `d` head size, `V` vocabulary. All values are f32, row-major and contiguous.
//!
//! Every kernel splits its work by rows or heads, never by the number of threads, so that results are the same to the bit
//! at any thread count.

pub mod activation;
pub mod attention;
pub mod cross_attention;
pub mod cross_entropy;
pub mod geglu;
pub mod gelu;
pub mod gemm;
pub mod head;
pub mod layer_norm;
pub mod linear;
pub mod norm;
pub mod qk_norm;
pub mod relative_position;
pub mod relu;
pub mod rms_norm;
pub mod rope;
pub mod rope_scaling;
mod shared;
pub mod soft_cap;
pub mod swiglu;

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Deref;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Shape, Storage, Tensor};
use rayon::prelude::*;

use crate::error::Result;

/// Read access to the values of a contiguous f32 CPU tensor.
struct Host<G> {
    guard: G,
    start: usize,
    len: usize,
}

impl<G: Deref<Target = Storage>> Deref for Host<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.start + self.len],
            _ => &[], // ruled out by `host`
        }
    }
}

/// The values of `tensor`; fails when it is not a contiguous f32 tensor on the CPU.
pub(crate) fn host(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (guard, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(candle_core::Error::Msg(format!("tensor {:?} is not contiguous", tensor.shape())).into());
    };
    match &*guard {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Host { guard, start, len: end - start }),
        _ => Err(candle_core::Error::Msg(format!("tensor {:?} is not f32 on the cpu", tensor.shape())).into()),
    }
}

/// Fails when `tensor` has another shape.
pub(crate) fn check_shape(tensor: &Tensor, wanted: [usize; 2]) -> Result<()> {
    match tensor.dims() == wanted {
        true => Ok(()),
        false => Err(candle_core::Error::Msg(format!("tensor {:?} should be {wanted:?}", tensor.shape())).into()),
    }
}

/// Wraps values as a tensor without copying them.
pub(crate) fn tensor<S: Into<Shape>>(values: Vec<f32>, shape: S) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape.into(), &Device::Cpu)?)
}

/// `len` values that `fill` writes, instead of zeros that are overwritten: a step makes some gigabytes of them.
///
/// # Safety
/// `fill` writes every element.
pub(crate) unsafe fn filled(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    fill(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is there, and the caller promises the values.
    unsafe { values.set_len(len) };
    values
}

/// Changes the values of `tensor` in place. Nobody else may hold `Host` of the same storage meanwhile.
pub(crate) fn update(tensor: &Tensor, change: impl FnOnce(&mut [f32])) -> Result<()> {
    struct Change<F>(Cell<Option<F>>);

    impl<F: FnOnce(&mut [f32])> InplaceOp1 for Change<F> {
        fn name(&self) -> &'static str {
            "update"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let range = layout.contiguous_offsets();
            match (storage, range, self.0.take()) {
                (CpuStorage::F32(values), Some((start, end)), Some(change)) => {
                    change(&mut values[start..end]);
                    Ok(())
                }
                _ => Err(candle_core::Error::Msg("update needs a contiguous f32 tensor".into())),
            }
        }
    }

    Ok(tensor.inplace_op1(&Change(Cell::new(Some(change))))?)
}

/// `sum ← sum + x`, in place: candle's own addition allocates, and its threads wait for each other by spinning.
pub(crate) fn add_to(sum: &Tensor, x: &Tensor) -> Result<()> {
    const CHUNK: usize = 16 << 10;
    let xs = host(x)?;
    update(sum, |sum| {
        sum.par_chunks_mut(CHUNK).zip(xs.par_chunks(CHUNK)).for_each(|(sum, x)| {
            sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        });
    })
}

/// `e^x` with a relative error below 2e-7, in a form that the compiler vectorises (Cephes `expf`: reduction by `ln 2`,
/// polynomial of degree 5). The C library's `expf` is a call per element and four to eight times slower here.
#[inline(always)]
#[allow(clippy::excessive_precision)] // the coefficients as published
#[must_use]
pub fn exp(x: f32) -> f32 {
    // beyond these the result is 0 or infinity for every purpose of a softmax or a sigmoid
    let x = x.clamp(-87.0, 88.0);
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 + n * 2.121_944_4e-4;
    let p = 1.987_569_15e-4;
    let p = p * r + 1.398_199_950_7e-3;
    let p = p * r + 8.333_451_907_3e-3;
    let p = p * r + 4.166_579_589_4e-2;
    let p = p * r + 1.666_666_545_9e-1;
    let p = p * r + 5.000_000_120_1e-1;
    let y = p * r * r + r + 1.0;
    // the low bits of `shifted` are n itself: moved into the exponent they are 2^n, without a conversion to an integer
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

/// Defines a kernel that is compiled for several vector widths; at run time the widest one that the processor has is called.
///
/// A closure handed to a dispatcher is not enough: the compiler may leave it outside the function with the wide instructions,
/// and then nothing is gained (seen: SwiGLU three times slower). All variants compute the same bits, since no variant fuses
/// multiplication and addition.
#[macro_export]
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn portable($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn wide($($arg: $type),*) $(-> $ret)? {
                    portable($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn medium($($arg: $type),*) $(-> $ret)? {
                    portable($($arg),*)
                }
                use std::arch::is_x86_feature_detected as has;
                if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("avx2") && has!("fma") {
                    // SAFETY: the processor has every feature named at `wide`.
                    return unsafe { wide($($arg),*) };
                }
                if has!("avx2") && has!("fma") {
                    // SAFETY: the processor has every feature named at `medium`.
                    return unsafe { medium($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    };
}
pub use vectorised;

/// Largest value, sixteen lanes at a time; NaN is passed over.
#[inline(always)]
#[must_use]
pub fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}

/// Rows per parallel task of elementwise kernels: large enough to hide the cost of a task, fixed so that results do not
/// depend on the number of threads.
pub(crate) const ROWS_PER_TASK: usize = 16;

#[cfg(test)]
pub(crate) mod testing {
    //! Helpers of the gradient tests.
    use super::*;
    use crate::rng::Rng;

    pub fn random(seed: u64, shape: &[usize], scale: f32) -> Tensor {
        let mut rng = Rng::new(seed, 99);
        let values = (0..shape.iter().product()).map(|_| (rng.uniform() * 2.0 - 1.0) * scale).collect();
        tensor(values, shape).unwrap()
    }

    pub fn dot(a: &Tensor, b: &Tensor) -> f64 {
        host(a).unwrap().iter().zip(host(b).unwrap().iter()).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    }

    /// Compares the gradient `dx` of `loss` at `x` with differences in a few directions: five points, so that the third derivative
    /// of a whole model does not count as an error.
    pub fn check_gradient(x: &Tensor, dx: &Tensor, tolerance: f64, loss: impl Fn(&Tensor) -> f64) {
        for seed in 0..4 {
            let direction = random(1000 + seed, x.dims(), 1.0);
            let step = 1e-2;
            let shifted = |steps: f64| (x + (&direction * (steps * step)).unwrap()).unwrap();
            let difference = |steps: f64| loss(&shifted(steps)) - loss(&shifted(-steps));
            let numeric = (8.0 * difference(1.0) - difference(2.0)) / (12.0 * step);
            let exact = dot(dx, &direction);
            let error = (numeric - exact).abs() / (1.0 + exact.abs());
            assert!(error < tolerance, "direction {seed}: numeric {numeric}, hand-written {exact}");
        }
    }

    #[test]
    fn exp_is_close_to_the_library() {
        for i in -8000..8000 {
            let x = i as f32 * 0.01;
            let relative = (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs();
            assert!(relative < 3e-7, "exp({x}) off by {relative}");
        }
    }
}
