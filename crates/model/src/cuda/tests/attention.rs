//! Attention on every device: packing, grouped queries, window, soft cap, heads that fill their tile or not.

use super::{agree, devices, emulated, random, values, worst};
use crate::cuda::Gpu;
use crate::cuda::backend::Stored;
use crate::cuda::emulator::{Emulator, Order};
use crate::ops::attention::{Heads, Segments, Settings, backward, forward};

const HEADS: Heads = Heads { query: 4, key_value: 2, size: 8 };
const PLAIN: Settings = Settings { heads: HEADS, scale: 0.353_553_4, soft_cap: None, window: None };
const VARIANTS: [Settings; 5] = [
    PLAIN,
    Settings { window: Some(5), ..PLAIN },
    Settings { soft_cap: Some(1.5), scale: 0.7, ..PLAIN },
    Settings { soft_cap: Some(1.5), window: Some(70), ..PLAIN },
    Settings { heads: Heads { query: 3, key_value: 1, size: 14 }, ..PLAIN },
];
/// Longer than a tile of 64 rows, alone, and between.
const LENGTHS: [usize; 4] = [3, 90, 1, 40];

/// Weights of bf16 are rounded before they are multiplied, so errors of single products reach a percent of the largest value.
const CLOSE: [f32; 2] = [3e-6, 2e-2];

/// A batch, and what the processor makes of it.
struct Case {
    qkv: Vec<f32>,
    d_out: Vec<f32>,
    lengths: Vec<usize>,
    settings: Settings,
    /// `O`, and the gradient of the fused rows.
    wanted: [Vec<f32>; 2],
}

impl Case {
    fn new(seed: u64, scale: f32, lengths: &[usize], settings: Settings) -> Self {
        let (n, heads) = (lengths.iter().sum(), settings.heads);
        let qkv = random(seed, &[n, heads.width()], scale);
        let d_out = random(seed + 1, &[n, heads.query * heads.size], 1.0);
        let segments = Segments::from_lengths(lengths);
        let (out, log_sums) = forward(&qkv, &segments, settings).unwrap();
        let d_qkv = backward(&d_out, &qkv, &out, &log_sums, &segments, settings).unwrap();
        let wanted = [values(&out), values(&d_qkv)];
        Self { qkv: values(&qkv), d_out: values(&d_out), lengths: lengths.to_vec(), settings, wanted }
    }

    fn run(&self, gpu: &Gpu) -> [Vec<f32>; 2] {
        let Self { settings, lengths, .. } = self;
        let heads = settings.heads;
        let tiles = gpu.tiles(&Segments::from_lengths(lengths)).unwrap();
        let qkv = gpu.upload(&self.qkv, heads.width()).unwrap();
        let d_out = gpu.upload(&self.d_out, heads.query * heads.size).unwrap();
        let attended = gpu.attention_forward(&qkv, &tiles, *settings).unwrap();
        let d_qkv = gpu.attention_backward(&d_out, &qkv, &attended, &tiles, *settings).unwrap();
        [attended.out.values().unwrap(), d_qkv.values().unwrap()]
    }

    /// What a device makes of it, and how far that is from the processor's.
    fn compare(&self, gpu: &Gpu) -> ([Vec<f32>; 2], f32) {
        let got = self.run(gpu);
        let off = got.iter().zip(&self.wanted).map(|(got, wanted)| worst(got, wanted)).fold(0.0, f32::max);
        (got, off)
    }
}

#[test]
fn attention_and_its_gradient_equal_the_processors_across_sequences() {
    for settings in VARIANTS {
        let case = Case::new(1, 2.0, &LENGTHS, settings);
        let [out, d_qkv] = &case.wanted;
        agree(&format!("attention {settings:?}"), out, CLOSE, |gpu| case.run(gpu)[0].clone());
        agree(&format!("attention backward {settings:?}"), d_qkv, CLOSE, |gpu| case.run(gpu)[1].clone());
    }
}

/// Heads that fill most of a tile of 48.
const LARGER: Settings = Settings { heads: Heads { query: 2, key_value: 1, size: 40 }, ..PLAIN };

#[test]
fn larger_heads_take_more_tiles() {
    let case = Case::new(3, 1.0, &[50], LARGER);
    for device in devices(48) {
        let (_, off) = case.compare(&device.gpu);
        let tolerance = CLOSE[usize::from(device.stored == Stored::Bf16)];
        assert!(off <= tolerance, "{:?}: off by {off} of the largest", device.stored);
    }
}

#[test]
fn blocks_of_two_warps_and_of_one_give_what_those_of_four_give() {
    let mut cases = vec![Case::new(3, 1.0, &LENGTHS, LARGER)];
    cases.extend(VARIANTS.map(|settings| Case::new(1, 2.0, &LENGTHS, settings)));
    // heads of 48: in f32 four warps want 72,448 bytes, two 49,920, one 38,656; in bf16 39,680, 27,392 and 21,248
    for (stored, most_shared, warps) in
        [(Stored::F32, 65_536, 2), (Stored::F32, 49_408, 1), (Stored::Bf16, 32_768, 2), (Stored::Bf16, 24_576, 1)]
    {
        let gpus = [Order::Forward, Order::Reversed]
            .map(|order| emulated(Emulator::open(stored, 48, order).with_most_shared(most_shared)));
        for gpu in &gpus {
            assert_eq!(gpu.warps_of_attention().unwrap(), warps);
        }
        for case in &cases {
            let [(first, off), (second, _)] = gpus.each_ref().map(|gpu| case.compare(gpu));
            let tolerance = CLOSE[usize::from(stored == Stored::Bf16)];
            assert!(off <= tolerance, "{stored:?}, {warps} warps, {:?}: off by {off}", case.settings);
            assert!(first == second, "{stored:?}, {warps} warps: depends on the order of the threads");
        }
    }
}

#[test]
fn what_another_sequence_holds_changes_no_bit() {
    let case = Case::new(1, 2.0, &LENGTHS, Settings { window: Some(20), ..PLAIN });
    let width = HEADS.width();
    let mut qkv = case.qkv.clone();
    qkv[..3 * width].fill(7.0);
    qkv[94 * width..].fill(-7.0);
    let other = Case { qkv, d_out: case.d_out.clone(), lengths: LENGTHS.to_vec(), wanted: case.wanted.clone(), ..case };
    for device in devices(16) {
        let [[out, grad], [other_out, other_grad]] = [&case, &other].map(|case| case.run(&device.gpu));
        assert!(out[3 * 32..94 * 32] == other_out[3 * 32..94 * 32] && out[..96] != other_out[..96]);
        assert!(grad[3 * width..94 * width] == other_grad[3 * width..94 * width]);
    }
}

/// The processor's emulation would take minutes for these.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "wants an NVIDIA card"]
fn heads_and_lengths_of_real_models_on_a_card() {
    for (size, window) in [(64, None), (128, None), (128, Some(256)), (256, Some(100))] {
        let heads = Heads { query: 8, key_value: 2, size };
        let settings = Settings { heads, scale: 1.0 / (size as f32).sqrt(), window, ..PLAIN };
        let case = Case::new(5, 2.0, &[700, 1, 333], settings);
        for device in devices(size).iter().filter(|device| !device.emulated) {
            let (got, off) = case.compare(&device.gpu);
            println!("{settings:?} {:?}: off by {off:.1e} of the largest", device.stored);
            assert!(off <= [1e-5, 3e-2][usize::from(device.stored == Stored::Bf16)]);
            assert!(got == case.run(&device.gpu), "bits");
        }
    }
}
