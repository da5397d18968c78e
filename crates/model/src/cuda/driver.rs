//! A card of NVIDIA: driver, cuBLAS and the runtime compiler, opened when they are there. A binary with this runs on machines without
//! any of them, and then says what is missing.
//!
//! Everything goes to one stream in the order of the calls, so that memory is given back to the driver's pool while the kernels that
//! use it still wait to run, and every step adds up in the same order. cuBLAS computes f32 in f32 (no TF32) and bf16 with sums in f32,
//! those of parts that it computes apart included.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublas::result::{self as blas, CublasError};
use cudarc::cublas::sys as blas_sys;
use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::backend::{Argument, Backend, Launch, Product, Stored};
use super::{Gpu, compiler, source};
use crate::decoder::Decoder;
use crate::error::{ModelError, Result, Version};

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
    /// [`ModelError::NoGpu`] says which library, driver or card is missing; [`ModelError::OldDriver`] and
    /// [`ModelError::UnknownArchitecture`] which of them do not go together; [`ModelError::NotOnGpu`] that the card is too old.
    pub(crate) fn open(ordinal: usize, stored: Stored, head_dim: usize) -> Result<Self> {
        check_libraries()?;
        let no_gpu = |error: DriverError| ModelError::NoGpu { reason: format!("card {ordinal}: {error}") };
        let context = CudaContext::new(ordinal).map_err(no_gpu)?;
        compiler::check_driver(driver_version()?, compiler::version()?)?;
        let (major, minor) = context.compute_capability().map_err(no_gpu)?;
        let capability = Version(major, minor);
        if stored == Stored::Bf16 && major < 8 {
            return Err(ModelError::NotOnGpu { what: format!("bf16 on a card of compute capability {capability}") });
        }
        if !context.has_async_alloc() {
            return Err(ModelError::NotOnGpu { what: "memory pools, which this card's driver lacks".to_owned() });
        }
        let most_shared = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(no_gpu)?;
        let head = head_dim.next_multiple_of(16);
        let compiled = compiler::compile(&source::translation_unit(), capability, stored, head)?;
        keep_memory(&context)?;
        // SAFETY: machine code that says itself how long it is, and which the driver copies.
        let load = || unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) };
        let module = with_room(&context, "cuModuleLoadData", None, load)?;
        let blas = with_room(&context, "cublasCreate", None, blas::create_handle)?;
        let most_shared = usize::try_from(most_shared).unwrap_or(USUAL_SHARED);
        let driver = Self { context, module, functions: Mutex::default(), blas, stored, head, most_shared };
        // else cuBLAS may add the parts of a long sum up in bf16
        let mode = blas_sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: a handle that has just been made.
        let set = unsafe { blas_sys::cublasSetMathMode(driver.blas, mode) }.result();
        set.map_err(|error| failed("cublasSetMathMode", error))?;
        Ok(driver)
    }

    fn function(&self, kernel: &'static str) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel) {
            return Ok(function.0);
        }
        let name = CString::new(kernel).map_err(|error| failed(kernel, error))?;
        // SAFETY: the module is loaded as long as `self` lives.
        let find = || unsafe { result::module::get_function(self.module, name.clone()) };
        let function = with_room(&self.context, kernel, None, find)?;
        functions.insert(kernel, Function(function));
        Ok(function)
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|error| failed("cuCtxSetCurrent", error))
    }
}

impl Decoder {
    /// From now on card `ordinal` computes losses and gradients, too: [`Decoder::losses_and_gradients`]. Logits and generation stay on the
    /// processor, and so does the adapter between steps. On an error the model is as it was.
    ///
    /// # Errors
    /// [`ModelError::NoGpu`] says which library, driver or card is missing; [`ModelError::OldDriver`] and
    /// [`ModelError::UnknownArchitecture`] which of them do not go together; [`ModelError::NotOnGpu`] which part of the model has no
    /// kernel, or that the card is too old; [`ModelError::GpuMemory`] when it does not fit.
    pub fn add_gpu(&mut self, ordinal: usize, stored: Stored) -> Result<()> {
        let driver = Driver::open(ordinal, stored, self.config().head_dim)?;
        self.add_device(Gpu::new(Arc::new(driver)))
    }

    /// The same model on card `ordinal` alone: [`Decoder::add_gpu`].
    ///
    /// # Errors
    /// As there.
    pub fn on_gpu(mut self, ordinal: usize, stored: Stored) -> Result<Self> {
        self.add_gpu(ordinal, stored)?;
        Ok(self)
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

    fn free_memory(&self) -> Result<usize> {
        self.context.mem_get_info().map(|(free, _)| free).map_err(|error| failed("cuMemGetInfo", error))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        // SAFETY: the context is this thread's.
        with_room(&self.context, "cuMemAllocAsync", Some(bytes), || unsafe { result::malloc_async(STREAM, bytes) })
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
        let start =
            || unsafe { result::launch_kernel(function, (x, y, 1), (threads, 1, 1), shared, STREAM, &mut pointers) };
        with_room(&self.context, launch.kernel, None, start)
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
        let start = || unsafe {
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
        };
        with_room(&self.context, "cublasGemmEx", None, start)
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

/// The latest version of CUDA that the driver runs.
fn driver_version() -> Result<Version> {
    let mut version = 0;
    // SAFETY: a number to write to.
    let said = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
    said.map_err(|error| failed("cuDriverGetVersion", error))?;
    // 1000 · major + 10 · minor
    Ok(Version(version / 1000, version % 1000 / 10))
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

/// Number of cards that this process may use (`CUDA_VISIBLE_DEVICES` hides some); 0 without a driver or without a card.
///
/// # Errors
/// [`ModelError::NoGpu`] when there is a driver and it does not work.
pub fn num_cards() -> Result<usize> {
    // SAFETY: opening the driver's library runs nothing but its own start.
    if !unsafe { sys::is_culib_present() } {
        return Ok(0);
    }
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
        Err(error) => Err(ModelError::NoGpu { reason: format!("the driver does not start: {error}") }),
    }
}

/// How card `ordinal` stores values best: bf16 where its tensor cores take it (Ampere and later), else f32.
///
/// # Errors
/// [`ModelError::NoGpu`] when there is none.
pub fn best_stored(ordinal: usize) -> Result<Stored> {
    check_libraries()?;
    let no_gpu = |error: DriverError| ModelError::NoGpu { reason: format!("card {ordinal}: {error}") };
    let (major, _) = CudaContext::new(ordinal).and_then(|context| context.compute_capability()).map_err(no_gpu)?;
    Ok(if major >= 8 { Stored::Bf16 } else { Stored::F32 })
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

/// An error of the driver or of cuBLAS.
trait Failure: Display {
    /// Whether memory is what it lacked.
    fn is_out_of_memory(&self) -> bool;
}

impl Failure for DriverError {
    fn is_out_of_memory(&self) -> bool {
        self.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }
}

impl Failure for CublasError {
    fn is_out_of_memory(&self) -> bool {
        self.0 == blas_sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED
    }
}

/// What a call gives; when it lacks memory, it is made once more after the pool has given back what it keeps: that may be what is
/// wanted outside of the pool, or in one piece.
///
/// # Errors
/// [`ModelError::GpuMemory`] when memory is lacking all the same, else [`ModelError::Gpu`].
fn with_room<T, E: Failure>(
    context: &CudaContext,
    call: &'static str,
    wanted_opt: Option<usize>,
    mut ask: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let answer = match ask() {
        Err(error) if error.is_out_of_memory() && give_back(context).is_ok() => ask(),
        answer => answer,
    };
    answer.map_err(|error| match context.mem_get_info() {
        Ok((free, total)) if error.is_out_of_memory() => ModelError::GpuMemory { call, wanted_opt, free, total },
        _ => failed(call, error),
    })
}

/// Gives the pool's unused memory back to the card.
fn give_back(context: &CudaContext) -> Result<(), DriverError> {
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

pub(super) fn failed(call: &'static str, reason: impl Display) -> ModelError {
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
        assert_eq!(card(0).is_ok(), num_cards().is_ok_and(|count| count > 0) && best_stored(0).is_ok());
        // no machine has so many
        assert!(matches!(Driver::open(1000, Stored::F32, 64), Err(ModelError::NoGpu { .. })));
    }
}
