//! A card of NVIDIA: driver, cuBLAS and the runtime compiler, opened when they are there. A binary with this runs on machines without
//! any of them, and then says what is missing.
//!
//! Everything goes to one stream in the order of the calls, so that memory is given back to the driver's pool while the kernels that
//! use it still wait to run, and every step adds up in the same order. cuBLAS computes f32 in f32 (no TF32) and bf16 with sums in f32.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublas::{result as blas, sys as blas_sys};
use cudarc::driver::{CudaContext, result, sys};
use cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts};

use super::backend::{Argument, Backend, Launch, Product, Stored};
use super::{Gpu, source};
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};

/// A card with the kernels of this crate.
#[derive(Debug)]
pub(crate) struct Driver {
    context: Arc<CudaContext>,
    module: sys::CUmodule,
    functions: Mutex<HashMap<&'static str, Function>>,
    blas: blas_sys::cublasHandle_t,
    stored: Stored,
    head: usize,
    most_shared: usize,
}

#[derive(Debug, Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: the driver's handles may be used from any thread that has made the context its own, which every method does first.
unsafe impl Send for Function {}
// SAFETY: as above; cuBLAS locks its handle itself, and all work goes to one stream.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

/// The legacy stream, in which everything happens in the order of the calls.
const STREAM: sys::CUstream = std::ptr::null_mut();
/// Shared memory that a block gets without asking for more.
const USUAL_SHARED: usize = 48 << 10;

impl Driver {
    /// Opens card `ordinal` for attention heads of `head_dim` values.
    ///
    /// # Errors
    /// [`ModelError::NoGpu`] says which library, driver or card is missing; [`ModelError::NotOnGpu`] that the card is too old.
    pub(crate) fn open(ordinal: usize, stored: Stored, head_dim: usize) -> Result<Self> {
        check_libraries()?;
        let no_gpu =
            |error: cudarc::driver::DriverError| ModelError::NoGpu { reason: format!("card {ordinal}: {error}") };
        let context = CudaContext::new(ordinal).map_err(no_gpu)?;
        let capability = context.compute_capability().map_err(no_gpu)?;
        if stored == Stored::Bf16 && capability.0 < 8 {
            let (major, minor) = capability;
            return Err(ModelError::NotOnGpu { what: format!("bf16 on a card of compute capability {major}.{minor}") });
        }
        if !context.has_async_alloc() {
            return Err(ModelError::NotOnGpu { what: "memory pools, which this card's driver lacks".to_owned() });
        }
        let most_shared = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(no_gpu)?;
        let head = head_dim.next_multiple_of(16);
        let ptx = compile(&source::translation_unit(), capability, stored, head)?;
        keep_memory(&context)?;
        let text = CString::new(ptx.to_src()).map_err(|error| failed("nvrtc", error))?;
        // SAFETY: a text that ends with zero, which the driver copies.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) }
            .map_err(|error| failed("cuModuleLoadData", error))?;
        let blas = blas::create_handle().map_err(|error| failed("cublasCreate", error))?;
        let most_shared = usize::try_from(most_shared).unwrap_or(USUAL_SHARED);
        Ok(Self { context, module, functions: Mutex::default(), blas, stored, head, most_shared })
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(|error| failed("cuMemGetInfo", error))
    }

    fn function(&self, kernel: &'static str) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel) {
            return Ok(function.0);
        }
        let name = CString::new(kernel).map_err(|error| failed(kernel, error))?;
        // SAFETY: the module is loaded as long as `self` lives.
        let function =
            unsafe { result::module::get_function(self.module, name) }.map_err(|error| failed(kernel, error))?;
        functions.insert(kernel, Function(function));
        Ok(function)
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|error| failed("cuCtxSetCurrent", error))
    }
}

impl Decoder {
    /// The same model, whose losses and gradients card `ordinal` computes. Logits and generation stay on the processor, and so does
    /// the adapter between steps.
    ///
    /// # Errors
    /// [`ModelError::NoGpu`] says which library, driver or card is missing; [`ModelError::NotOnGpu`] which part of the model has no
    /// kernel, or that the card is too old; [`ModelError::GpuMemory`] when it does
    /// not fit.
    pub fn on_gpu(self, ordinal: usize, stored: Stored) -> Result<Self> {
        let driver = Driver::open(ordinal, stored, self.config().head_dim)?;
        self.with_gpu(Gpu::new(Arc::new(driver)))
    }
}

impl Backend for Driver {
    fn stored(&self) -> Stored {
        self.stored
    }

    fn head(&self) -> usize {
        self.head
    }

    fn most_shared(&self) -> usize {
        self.most_shared
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        // SAFETY: the context is this thread's.
        let ask = || unsafe { result::malloc_async(STREAM, bytes) };
        // what the pool keeps in pieces may be what is wanted in one
        ask().or_else(|_| give_back(&self.context).and_then(|()| ask())).map_err(|error| {
            match (error.0, self.memory()) {
                (sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY, Ok((free, total))) => {
                    ModelError::GpuMemory { wanted: bytes, free, total }
                }
                _ => failed("cuMemAllocAsync", error),
            }
        })
    }

    fn free(&self, pointer: u64) {
        if self.bind().is_ok() {
            // SAFETY: memory that `allocate` gave, once. What an error would mean, the next call says, too.
            let _ = unsafe { result::free_async(pointer, STREAM) };
        }
    }

    fn clear(&self, pointer: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: callers clear memory that `allocate` gave.
        unsafe { result::memset_d8_async(pointer, 0, bytes, STREAM) }.map_err(|error| failed("cuMemsetD8Async", error))
    }

    fn upload(&self, pointer: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: callers write to memory that `allocate` gave; the copy has left `bytes` when the call returns.
        unsafe { result::memcpy_htod_sync(pointer, bytes) }.map_err(|error| failed("cuMemcpyHtoD", error))
    }

    fn download(&self, pointer: u64, bytes: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: callers read memory that `allocate` gave; the copy waits for the stream and is done when the call returns.
        unsafe { result::memcpy_dtoh_sync(bytes, pointer) }.map_err(|error| failed("cuMemcpyDtoH", error))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.bind()?;
        let function = self.function(launch.kernel)?;
        if launch.shared > USUAL_SHARED {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of the loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, launch.shared as i32) }
                .map_err(|error| failed("cuFuncSetAttribute", error))?;
        }
        let mut arguments = launch.arguments.to_vec();
        let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(address).collect();
        let [x, y] = launch.grid.map(|blocks| blocks as u32);
        let (threads, shared) = (launch.threads as u32, launch.shared as u32);
        // SAFETY: the caller promises arguments and memory; the driver copies the arguments before it returns.
        unsafe { result::launch_kernel(function, (x, y, 1), (threads, 1, 1), shared, STREAM, &mut pointers) }
            .map_err(|error| failed(launch.kernel, error))
    }

    unsafe fn multiply(&self, product: &Product) -> Result<()> {
        self.bind()?;
        let Product { m, n, k, scale, a, b, c, c_stride, c_stored, add } = product.by_columns();
        let kind = |stored| match stored {
            Stored::F32 => blas_sys::cudaDataType_t::CUDA_R_32F,
            Stored::Bf16 => blas_sys::cudaDataType_t::CUDA_R_16BF,
        };
        let operation = |transposed| match transposed {
            true => blas_sys::cublasOperation_t::CUBLAS_OP_T,
            false => blas_sys::cublasOperation_t::CUBLAS_OP_N,
        };
        let beta = if add { 1.0f32 } else { 0.0 };
        // SAFETY: the caller promises the memory; factors are on the host, where the handle looks for them.
        unsafe {
            blas::gemm_ex(
                self.blas,
                operation(a.transposed),
                operation(b.transposed),
                m as i32,
                n as i32,
                k as i32,
                (&raw const scale).cast(),
                a.pointer as *const c_void,
                kind(self.stored),
                a.stride as i32,
                b.pointer as *const c_void,
                kind(self.stored),
                b.stride as i32,
                (&raw const beta).cast(),
                c as *mut c_void,
                kind(c_stored),
                c_stride as i32,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| failed("cublasGemmEx", error))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.bind().is_ok() {
            // SAFETY: both belong to this value alone. Errors at the end help nobody.
            let _ = unsafe { (blas::destroy_handle(self.blas), result::module::unload(self.module)) };
        }
    }
}

/// The kernels for a card, as text that its driver translates further. Needs the compiler's library, but no card.
///
/// # Errors
/// [`ModelError::Gpu`] with the compiler's own words.
pub(super) fn compile(unit: &str, (major, minor): (i32, i32), stored: Stored, head: usize) -> Result<Ptx> {
    let mut options = vec![format!("--gpu-architecture=compute_{major}{minor}"), format!("-DHEAD={head}")];
    options.extend((stored == Stored::Bf16).then(|| "-DSTORE_BF16".to_owned()));
    let options = CompileOptions { options, name: Some("tunesmith.cu".to_owned()), ..CompileOptions::default() };
    compile_ptx_with_opts(unit, options).map_err(|error| match error {
        cudarc::nvrtc::CompileError::CompileError { log, .. } => failed("nvrtc", log.to_string_lossy()),
        other => failed("nvrtc", other),
    })
}

/// Opening a library that is not there ends the process in `cudarc`, so it is asked for first.
fn check_libraries() -> Result<()> {
    // SAFETY: opening these libraries runs nothing but their own start.
    let found = unsafe {
        [
            ("libcuda.so.1 (the driver)", sys::is_culib_present()),
            ("libcublas.so", blas_sys::is_culib_present()),
            ("libnvrtc.so", cudarc::nvrtc::sys::is_culib_present()),
        ]
    };
    match found.into_iter().find(|(_, is_there)| !is_there) {
        Some((name, _)) => Err(ModelError::NoGpu { reason: format!("{name} cannot be opened") }),
        None => Ok(()),
    }
}

/// Whether the runtime compiler can be opened.
#[cfg(test)]
pub(super) fn has_compiler() -> bool {
    // SAFETY: opening the library runs nothing but its own start.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

/// What card `ordinal` is called, and its bytes that are free and in all. Memory that was given back stays in this process's pool, so
/// the difference is the most that was ever needed at once, and what other processes hold.
///
/// # Errors
/// [`ModelError::NoGpu`] when there is none, [`ModelError::Gpu`] when it does not answer.
pub fn card(ordinal: usize) -> Result<(String, usize, usize)> {
    check_libraries()?;
    let context =
        CudaContext::new(ordinal).map_err(|error| ModelError::NoGpu { reason: format!("card {ordinal}: {error}") })?;
    let name = context.name().map_err(|error| failed("cuDeviceGetName", error))?;
    let (free, total) = context.mem_get_info().map_err(|error| failed("cuMemGetInfo", error))?;
    Ok((name, free, total))
}

/// Lets the driver's pool keep what is given back: the next step asks for the same sizes again.
fn keep_memory(context: &CudaContext) -> Result<()> {
    let mut threshold = u64::MAX;
    // SAFETY: the pool of an open device; the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())
            .map_err(|error| failed("cuDeviceGetDefaultMemPool", error))?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())
    }
    .map_err(|error| failed("cuMemPoolSetAttribute", error))
}

/// Gives the pool's unused memory back to the card.
fn give_back(context: &CudaContext) -> Result<(), cudarc::driver::DriverError> {
    // SAFETY: the pool of an open device; what is still in use stays.
    unsafe {
        result::stream::synchronize(STREAM)?;
        result::mem_pool::trim_to(result::device::get_default_mem_pool(context.cu_device())?, 0)
    }
}

fn address(argument: &mut Argument) -> *mut c_void {
    match argument {
        Argument::Pointer(value) => (&raw mut *value).cast(),
        Argument::Int(value) => (&raw mut *value).cast(),
        Argument::Long(value) => (&raw mut *value).cast(),
        Argument::Float(value) => (&raw mut *value).cast(),
    }
}

fn failed(call: &'static str, reason: impl Display) -> ModelError {
    ModelError::Gpu { call, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_card_is_told_what_is_missing() {
        let opened = Driver::open(0, Stored::F32, 64).map(|driver| driver.most_shared);
        match (opened, card(0)) {
            (Ok(shared), Ok((name, free, total))) => assert!(shared >= USUAL_SHARED && free <= total, "{name}"),
            (Err(error), Err(_)) => {
                let text = error.to_string();
                assert!(matches!(error, ModelError::NoGpu { .. }), "{text}");
                assert!(text.contains("nvidia-smi") && (text.contains("lib") || text.contains("card 0")), "{text}");
            }
            (opened, card) => panic!("{opened:?} {card:?}"),
        }
        // no machine has so many
        assert!(matches!(Driver::open(1000, Stored::F32, 64), Err(ModelError::NoGpu { .. })));
    }
}
