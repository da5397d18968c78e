//! The same mathematics on a GPU: kernels of our own, products by cuBLAS.
//!
//! The CUDA source of an operation lies beside its Rust file (`ops/rms_norm.cu` beside `ops/rms_norm.rs`, where formula and shapes
//! are). [`source`] joins them to one translation unit, which the runtime compiler (NVRTC) translates for the card that is there.
//! [`Gpu`] starts them, one method a kernel; [`linear`] and [`model`] walk a model with them as [`crate::decoder`] does on the
//! processor. What a device must be able to do is the trait [`backend::Backend`], which two things implement:
//! `driver` (feature `cuda`, with `compiler`), a card behind the libraries of NVIDIA, opened when they are there; and `emulator` (tests),
//! CUDA's execution model on the processor, so that all of this runs and is compared where no GPU is.
//!
//! On the device: frozen weights, activations and the gradients of a step. On the host: the adapter in f32, its moments, AdamW and the
//! clipping, which are small; a step moves the adapter up and its gradients down. Decisions: `docs/adr/007-cuda.md`.

mod attention;
mod backend;
#[cfg(feature = "cuda")]
mod compiler;
#[cfg(feature = "cuda")]
pub mod driver;
#[cfg(test)]
mod emulator;
mod gpu;
mod layer;
mod linear;
mod memory;
mod model;
mod nf4;
mod source;
#[cfg(test)]
mod tests;

pub use backend::Stored;
pub(crate) use gpu::Gpu;
pub(crate) use linear::has_kernels;
pub(crate) use model::GpuModel;
