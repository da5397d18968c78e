//! Every kernel and the walk over a model against the operations of the processor, on every device that is there: the emulation, in both
//! orders of its threads, and with feature `cuda` the first card. Inputs are numbers that bf16 can hold, so that one reference serves
//! both forms.

mod attention;
mod emulation;
mod model;
mod operations;

use std::collections::HashMap;
use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::Mutex;

use candle_core::Tensor;
use half::bf16;

use super::Gpu;
use super::backend::Stored;
use super::emulator::{Emulator, Order};
use crate::ops::{host, tensor, testing};

/// A device, and whether it is the emulation.
pub struct Device {
    pub gpu: Gpu,
    pub stored: Stored,
    pub emulated: bool,
}

/// All devices, with attention compiled for `head`.
pub fn devices(head: usize) -> Vec<Device> {
    let mut found = Vec::new();
    for stored in [Stored::F32, Stored::Bf16] {
        for order in [Order::Forward, Order::Reversed] {
            found.push(Device { gpu: emulated(Emulator::open(stored, head, order)), stored, emulated: true });
        }
        #[cfg(feature = "cuda")]
        found.extend(card(stored, head).map(|gpu| Device { gpu, stored, emulated: false }));
    }
    found
}

/// The kernels of an emulation.
pub fn emulated(emulator: Emulator) -> Gpu {
    Gpu::new(Arc::new(emulator))
}

/// The first card with its kernels, which are translated once for all tests.
#[cfg(feature = "cuda")]
fn card(stored: Stored, head: usize) -> Option<Gpu> {
    type Cards = HashMap<(Stored, usize), Option<Gpu>>;
    static CARDS: Mutex<Option<Cards>> = Mutex::new(None);
    let open = || match crate::cuda::driver::Driver::open(0, stored, head) {
        Ok(driver) => Some(Gpu::new(Arc::new(driver))),
        Err(error) => {
            eprintln!("skipped on a card: {error}");
            None
        }
    };
    CARDS.lock().unwrap().get_or_insert_default().entry((stored, head)).or_insert_with(open).clone()
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "wants a card: benches/gpu.sh runs it, so that a comparison which did not happen is not taken for one that succeeded"]
fn a_card_is_there() {
    assert!(card(Stored::F32, 16).is_some() && card(Stored::Bf16, 16).is_some());
}

/// What `run` gives on each device is within `tolerance` (f32, bf16) of `wanted`, measured by the largest value of `wanted`, and the
/// same to the bit when it runs again and in either order of the emulation's threads.
pub fn agree(what: &str, wanted: &[f32], tolerance: [f32; 2], run: impl Fn(&Gpu) -> Vec<f32>) {
    let size = wanted.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    assert!(size > 0.0, "{what}: nothing to compare");
    let mut emulated: HashMap<Stored, Vec<u32>> = HashMap::new();
    for device in devices(16) {
        let got = run(&device.gpu);
        assert_eq!(got.len(), wanted.len(), "{what} {:?}", device.stored);
        let tolerance = size * tolerance[usize::from(device.stored == Stored::Bf16)];
        for (index, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            let error = (got - wanted).abs();
            assert!(error <= tolerance, "{what} {:?} at {index}: {got}, wanted {wanted}", device.stored);
        }
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&run(&device.gpu)), "{what} {:?}: another result in another run", device.stored);
        if device.emulated {
            let first = emulated.entry(device.stored).or_insert_with(|| bits(&got));
            assert_eq!(*first, bits(&got), "{what} {:?}: depends on the order of the threads", device.stored);
        }
    }
}

/// Largest difference, measured by the largest value of `wanted`.
pub fn worst(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let size = wanted.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let off = |(got, wanted): (&f32, &f32)| if got.is_finite() { (got - wanted).abs() } else { f32::INFINITY };
    got.iter().zip(wanted).map(off).fold(0.0, f32::max) / size
}

/// Uniform within ± `scale`, in numbers that bf16 can hold.
pub fn random(seed: u64, shape: &[usize], scale: f32) -> Tensor {
    let values = values(&testing::random(seed, shape, scale));
    tensor(values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect(), shape).unwrap()
}

pub fn values(tensor: &Tensor) -> Vec<f32> {
    host(tensor).unwrap().to_vec()
}

/// Rounding of f32 sums in another order, of bf16 results and of what is stored on the way to them.
pub const CLOSE: [f32; 2] = [3e-6, 1e-2];
