//! The emulation itself: it must notice what would be wrong on a card.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::emulated;
use crate::cuda::backend::{Argument, Backend, Launch, Stored};
use crate::cuda::emulator::{Emulator, Order};
use crate::cuda::memory::Buffer;
use crate::cuda::source;

/// In the first two each thread gives its neighbour's index, once without the barrier that this needs.
const WRONG: &str = r"
KERNEL(unsynchronised)(float *out) {
    __shared__ float own[64];
    own[threadIdx.x] = (float)threadIdx.x;
    out[threadIdx.x] = own[(threadIdx.x + 1) % 64];
}
KERNEL(synchronised)(float *out) {
    __shared__ float own[64];
    own[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = own[(threadIdx.x + 1) % 64];
}
KERNEL(divergent)(float *out) {
    if (threadIdx.x == 3) __syncthreads();
    else __syncwarp();
    out[threadIdx.x] = 1.0f;
}
KERNEL(outside)(float *out) {
    if (threadIdx.x == 0) out[64] = 1.0f;
}
KERNEL(behind)(float *out) {
    DYNAMIC_SHARED(memory);
    ((float *)memory)[threadIdx.x + 1] = out[threadIdx.x];
}
KERNEL(unwritten)(float *out) {
    DYNAMIC_SHARED(memory);
    out[threadIdx.x] = ((float *)memory)[threadIdx.x];
}
KERNEL(unwritten_static)(float *out) {
    __shared__ float own[64];
    out[threadIdx.x] = own[threadIdx.x];
}
KERNEL(left_by_another_block)(float *out) {
    __shared__ float own[64];
    if (blockIdx.x == 0) own[threadIdx.x] = 1.0f;
    else out[threadIdx.x] = own[threadIdx.x];
}
";

/// What a kernel writes to 64 values.
fn run(kernel: &'static str, order: Order) -> Result<Vec<f32>, String> {
    let unit = format!("{}\n{WRONG}", source::translation_unit());
    let emulator: Arc<dyn Backend> = Arc::new(Emulator::of_source(&unit, Stored::F32, 16, order));
    let out = Buffer::of_floats(&emulator, &[0.0; 64]).unwrap();
    let arguments = [Argument::Pointer(out.pointer())];
    let launch = Launch { kernel, grid: [2, 1], threads: 64, shared: 256, arguments: &arguments };
    // SAFETY: `outside` writes one value into the guard behind the memory, the others write 64 values.
    let done = unsafe { emulator.launch(&launch) };
    done.and_then(|()| out.floats(0, 64)).map_err(|error| error.to_string())
}

#[test]
fn missing_barriers_divergent_ones_and_writes_outside_are_noticed() {
    let good = run("synchronised", Order::Forward).unwrap();
    assert_eq!(Ok(good.clone()), run("synchronised", Order::Reversed));
    assert_eq!(good[..3], [1.0, 2.0, 3.0]);
    let bits = |order| run("unsynchronised", order).unwrap().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_ne!(bits(Order::Forward), bits(Order::Reversed), "a missing barrier");
    let stuck = run("divergent", Order::Forward).unwrap_err();
    assert!(stuck.contains("divergent") && stuck.contains("wait for each other"), "{stuck}");
    let behind = run("behind", Order::Forward).unwrap_err();
    assert!(behind.contains("behind its shared memory"), "{behind}");
    let unknown = run("no_such_kernel", Order::Forward).unwrap_err();
    assert!(unknown.contains("no kernel of this name"), "{unknown}");
    for order in [Order::Forward, Order::Reversed] {
        for kernel in ["unwritten", "unwritten_static", "left_by_another_block"] {
            assert!(run(kernel, order).unwrap().iter().all(|value| value.is_nan()), "{kernel}");
        }
    }
    assert!(catch_unwind(AssertUnwindSafe(|| run("outside", Order::Forward))).is_err(), "a write outside");
}

#[test]
fn every_kernel_of_every_file_is_known_once() {
    let mut kernels = source::kernels();
    let count = kernels.len();
    kernels.sort_unstable();
    kernels.dedup();
    assert_eq!(kernels.len(), count);
    for kernel in ["rms_norm_forward", "attention_backward_keys", "nf4_multiply", "cross_entropy"] {
        assert!(kernels.contains(&kernel), "{kernel} in {kernels:?}");
    }
    let gpu = emulated(Emulator::open(Stored::F32, 16, Order::Forward));
    assert_eq!((gpu.backend.head(), gpu.backend.stored()), (16, Stored::F32));
}

/// NVRTC needs no card, so this also runs where only its library is.
#[cfg(feature = "cuda")]
#[test]
fn the_runtime_compiler_takes_every_kernel() {
    use crate::cuda::compiler::{compile, has_compiler};
    use crate::error::Version;

    if !has_compiler() {
        eprintln!("skipped: libnvrtc cannot be opened");
        return;
    }
    let (ampere, hopper) = (Version(8, 0), Version(9, 0));
    for (card, stored) in
        [(Version(7, 5), Stored::F32), (ampere, Stored::F32), (ampere, Stored::Bf16), (hopper, Stored::Bf16)]
    {
        for head in if card == hopper { vec![64, 128, 256] } else { vec![128] } {
            let compiled = compile(&source::translation_unit(), card, stored, head).unwrap();
            assert!(compiled.cubin.starts_with(b"\x7fELF"), "machine code");
            for kernel in source::kernels() {
                let section = format!(".text.{kernel}\0");
                let is_there = compiled.cubin.windows(section.len()).any(|bytes| bytes == section.as_bytes());
                assert!(is_there && compiled.ptx.contains(&format!(".entry {kernel}(")), "{kernel} for {card}");
            }
            assert_eq!(compiled.ptx.contains("mma.sync"), stored == Stored::Bf16, "tensor cores for bf16 alone");
        }
    }
    assert!(compile("KERNEL(", ampere, Stored::F32, 16).unwrap_err().to_string().contains("nvrtc"));
    // no compiler of today knows it
    let future = compile(&source::translation_unit(), Version(99, 0), Stored::F32, 16).unwrap_err().to_string();
    assert!(future.contains("compute capability 99.0") && future.contains("libnvrtc"), "{future}");
}
