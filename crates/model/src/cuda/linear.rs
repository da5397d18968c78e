//! [`crate::ops::linear`] on a device: frozen matrices side by side, each with LoRA or nothing.
//!
//! Formulas and shapes are in `ops/linear.rs` and `adapters/lora.rs`. Products add to what is there, so that no sum of a base and its
//! adapter is stored twice. A matrix in NF4 is dequantised as a whole just before its product, which at a training step's number of rows
//! costs little beside it; for a few rows the product reads the codes themselves.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::backend::{Operand, Product, Stored};
use super::gpu::{Gpu, not_on_gpu};
use super::memory::{Buffer, Matrix};
use super::nf4::{FEW, Nf4Parts};
use crate::adapters::{Adapter, Method, Module, ModuleAdapter};
use crate::error::Result;
use crate::frozen::{AsStored, FrozenWeight};
use crate::ops::host;
use crate::ops::linear::{AdaptedLinear, Part, WantsDx};

/// Frozen matrices of the same width, one below the other.
#[derive(Debug)]
pub struct Linear {
    matrices: Vec<Frozen>,
    bias: Option<Buffer>,
    parts: Vec<Part>,
    out: usize,
    width: usize,
}

#[derive(Debug)]
struct Frozen {
    start: usize,
    len: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Plain(Matrix),
    Nf4(Nf4Parts),
}

/// `u = x Aᵀ` of each part that has an adapter.
pub type Inner = Vec<Option<Matrix>>;

impl Linear {
    /// A copy on the device.
    pub fn new(gpu: &Gpu, linear: &AdaptedLinear) -> Result<Self> {
        let (weight, bias, parts) = linear.frozen();
        let [out, width] = weight.shape();
        let bias = bias.map(|bias| gpu.floats(&host(bias)?)).transpose()?;
        Ok(Self { matrices: frozen(gpu, weight)?, bias, parts: parts.to_vec(), out, width })
    }

    /// `y`, and what the backward pass needs.
    pub fn forward(&self, gpu: &Gpu, x: &Matrix, adapters: Option<&Adapters<'_>>) -> Result<(Matrix, Inner)> {
        let (n, stored) = (x.rows, gpu.backend.stored());
        let y = gpu.matrix(n, self.out)?;
        let loras: Vec<Option<Lora>> = self.parts.iter().map(|part| adapters?.get(part.module)).collect();
        // Where every column has an adapter, its term comes first: the large product then adds to it while it writes, which saves a
        // pass over `y`, and rounds the small term by its own size.
        let adapters_first = n > FEW && loras.iter().all(Option::is_some);
        if !adapters_first {
            self.frozen_product(gpu, x, &y, false)?;
        }
        let mut inner = Vec::with_capacity(self.parts.len());
        for (part, lora) in self.parts.iter().zip(loras) {
            let Some(lora) = lora else {
                inner.push(None);
                continue;
            };
            let u = gpu.product(n, lora.rank, self.width, 1.0, x.view(), lora.a.t())?;
            let sizes = Product { m: n, n: part.len, k: lora.rank, scale: lora.scale, ..product(u.view(), lora.b.t()) };
            let (c, add) = (y.at(part.start), !adapters_first);
            gpu.multiply(Product { c, c_stride: self.out, c_stored: stored, add, ..sizes })?;
            inner.push(Some(u));
        }
        if adapters_first {
            self.frozen_product(gpu, x, &y, true)?;
        }
        if let Some(bias) = &self.bias {
            gpu.add_bias(&y, bias)?;
        }
        Ok((y, inner))
    }

    /// `dx` where it is wanted; the gradients of the adapters go to their places.
    pub fn backward(
        &self,
        gpu: &Gpu,
        dy: &Matrix,
        x: &Matrix,
        inner: &Inner,
        adapters: Option<&Adapters<'_>>,
        wants: WantsDx,
    ) -> Result<Option<Matrix>> {
        let (n, stored) = (x.rows, gpu.backend.stored());
        let dx = if wants == WantsDx::Yes { Some(gpu.matrix(n, self.width)?) } else { None };
        // the first product writes `dx`, all others add to it; the largest comes last
        let mut add = false;
        for (part, u) in self.parts.iter().zip(inner) {
            let (Some(lora), Some(u)) = (adapters.and_then(|adapters| adapters.get(part.module)), u) else { continue };
            let (rank, dy) = (lora.rank, dy.columns_from(part.start));
            let du = gpu.product(n, rank, part.len, lora.scale, dy, lora.b)?;
            let of_b = Product { m: part.len, n: rank, k: n, scale: lora.scale, ..product(dy.t(), u.view()) };
            gpu.multiply(Product { c: lora.b_gradient, c_stride: rank, c_stored: Stored::F32, ..of_b })?;
            let of_a = Product { m: rank, n: self.width, k: n, ..product(du.view().t(), x.view()) };
            gpu.multiply(Product { c: lora.a_gradient, c_stride: self.width, c_stored: Stored::F32, ..of_a })?;
            if let Some(dx) = &dx {
                let sizes = Product { m: n, n: self.width, k: rank, ..product(du.view(), lora.a) };
                gpu.multiply(Product { c: dx.at(0), c_stride: self.width, c_stored: stored, add, ..sizes })?;
                add = true;
            }
        }
        let Some(dx) = dx else { return Ok(None) };
        for frozen in &self.matrices {
            let w = frozen.values(gpu, self.width)?;
            let sizes =
                Product { m: n, n: self.width, k: frozen.len, ..product(dy.columns_from(frozen.start), w.view()) };
            gpu.multiply(Product { c: dx.at(0), c_stride: self.width, c_stored: stored, add, ..sizes })?;
            add = true;
        }
        Ok(Some(dx))
    }

    /// `x Wᵀ` into `y`, or added to it.
    fn frozen_product(&self, gpu: &Gpu, x: &Matrix, y: &Matrix, add: bool) -> Result<()> {
        for frozen in &self.matrices {
            if let (Values::Nf4(stored), true) = (&frozen.values, x.rows <= FEW) {
                gpu.nf4_multiply(stored, x, y, frozen.start, frozen.len)?;
                continue;
            }
            let w = frozen.values(gpu, self.width)?;
            let sizes = Product { m: x.rows, n: frozen.len, k: self.width, ..product(x.view(), w.view().t()) };
            let (c, c_stored) = (y.at(frozen.start), gpu.backend.stored());
            gpu.multiply(Product { c, c_stride: self.out, c_stored, add, ..sizes })?;
        }
        Ok(())
    }
}

impl Frozen {
    fn values(&self, gpu: &Gpu, width: usize) -> Result<Matrix> {
        match &self.values {
            Values::Plain(values) => Ok(values.clone()),
            Values::Nf4(stored) => gpu.nf4_dequantise(stored, [self.len, width]),
        }
    }
}

/// Operands with everything else at its usual value.
fn product(a: Operand, b: Operand) -> Product {
    Product { m: 0, n: 0, k: 0, scale: 1.0, a, b, c: 0, c_stride: 0, c_stored: Stored::F32, add: false }
}

fn frozen(gpu: &Gpu, weight: &FrozenWeight) -> Result<Vec<Frozen>> {
    let (mut start, width) = (0, weight.shape()[1]);
    let mut found = Vec::new();
    for (len, stored) in weight.as_stored() {
        let values = match stored {
            AsStored::F32(values) => Values::Plain(gpu.upload(&host(values)?, width)?),
            AsStored::Nf4(stored) => Values::Nf4(gpu.nf4(stored)?),
            AsStored::Ggml(quantization) => {
                return Err(not_on_gpu(&format!("a base quantised as {}", quantization.name())));
            }
        };
        found.push(Frozen { start, len, values });
        start += len;
    }
    Ok(found)
}

/// Whether there are kernels for adapters of this method: LoRA and rsLoRA.
pub fn has_kernels(method: &Method) -> bool {
    matches!(method, Method::Lora(lora) if !lora.use_dora)
}

/// LoRA of a whole model on the device: `A` and `B` of every module in one piece of memory, their gradients in another.
#[derive(Debug)]
pub struct Parameters {
    values: Buffer,
    gradients: Buffer,
    sites: BTreeMap<(usize, Module), Site>,
    /// Where each tensor begins, in the order of [`Adapter::parameters`], and its shape.
    tensors: Vec<(usize, Vec<usize>)>,
    /// Bytes of a value.
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Site {
    a: usize,
    b: usize,
    rank: usize,
    width: usize,
    scale: f32,
}

/// Every tensor begins at a multiple of so many values: cuBLAS reads 16 bytes at once only where they are aligned.
const ALIGNED: usize = 64;

impl Parameters {
    /// Copies the adapter, a LoRA ([`has_kernels`]), to the device.
    pub fn new(gpu: &Gpu, adapter: &Adapter) -> Result<Self> {
        let (mut len, mut sites, mut tensors) = (0, BTreeMap::new(), Vec::new());
        for (place, module) in adapter.modules() {
            let ModuleAdapter::Lora(lora) = module else { continue };
            let mut add = |tensor: &Tensor| {
                let start = len;
                len = (start + tensor.elem_count()).next_multiple_of(ALIGNED);
                tensors.push((start, tensor.dims().to_vec()));
                start
            };
            let (a, b) = (add(&lora.a), add(&lora.b));
            let (rank, width) = lora.a.dims2()?;
            sites.insert((place.layer, place.module), Site { a, b, rank, width, scale: lora.scale });
        }
        let bytes = gpu.backend.stored().bytes();
        let (values, gradients) = (Buffer::new(&gpu.backend, len * bytes)?, Buffer::zeros(&gpu.backend, 4 * len)?);
        for ((_, tensor), (start, _)) in adapter.parameters().into_iter().zip(&tensors) {
            values.write_values(*start, &host(tensor)?)?;
        }
        Ok(Self { values, gradients, sites, tensors, bytes })
    }

    /// Those of one layer.
    pub fn layer(&self, layer: usize) -> Adapters<'_> {
        Adapters { parameters: self, layer }
    }

    /// The gradients in the order of [`Adapter::parameters`].
    pub fn gradients(&self) -> Result<Vec<Tensor>> {
        let tensor = |(start, shape): &(usize, Vec<usize>)| {
            crate::ops::tensor(self.gradients.floats(*start, shape.iter().product())?, shape.as_slice())
        };
        self.tensors.iter().map(tensor).collect()
    }
}

/// LoRA of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Adapters<'a> {
    parameters: &'a Parameters,
    layer: usize,
}

/// LoRA of one module.
struct Lora {
    a: Operand,
    b: Operand,
    rank: usize,
    scale: f32,
    a_gradient: u64,
    b_gradient: u64,
}

impl Adapters<'_> {
    fn get(&self, module: Module) -> Option<Lora> {
        let parameters = self.parameters;
        let site = parameters.sites.get(&(self.layer, module))?;
        let value = |start: usize, stride: usize| Operand {
            pointer: parameters.values.pointer() + (start * parameters.bytes) as u64,
            stride,
            transposed: false,
        };
        let gradient = |start: usize| parameters.gradients.pointer() + 4 * start as u64;
        Some(Lora {
            a: value(site.a, site.width),
            b: value(site.b, site.rank),
            rank: site.rank,
            scale: site.scale,
            a_gradient: gradient(site.a),
            b_gradient: gradient(site.b),
        })
    }
}
