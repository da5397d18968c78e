//! Attention on every device: packing, grouped queries, window, soft cap, heads that fill their tile or not.

use super::{agree, devices, random, values};
use crate::cuda::Gpu;
use crate::cuda::backend::Stored;
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

/// `O`, and the gradient of the fused rows.
fn run(gpu: &Gpu, qkv: &[f32], d_out: &[f32], lengths: &[usize], settings: Settings) -> (Vec<f32>, Vec<f32>) {
    let heads = settings.heads;
    let tiles = gpu.tiles(&Segments::from_lengths(lengths)).unwrap();
    let (qkv, d_out) = (gpu.upload(qkv, heads.width()).unwrap(), gpu.upload(d_out, heads.query * heads.size).unwrap());
    let attended = gpu.attention_forward(&qkv, &tiles, settings).unwrap();
    let d_qkv = gpu.attention_backward(&d_out, &qkv, &attended, &tiles, settings).unwrap();
    (attended.out.values().unwrap(), d_qkv.values().unwrap())
}

#[test]
fn attention_and_its_gradient_equal_the_processors_across_sequences() {
    let n = LENGTHS.iter().sum();
    let segments = Segments::from_lengths(&LENGTHS);
    for settings in VARIANTS {
        let heads = settings.heads;
        let (qkv, d_out) = (random(1, &[n, heads.width()], 2.0), random(2, &[n, heads.query * heads.size], 1.0));
        let (out, log_sums) = forward(&qkv, &segments, settings).unwrap();
        let d_qkv = backward(&d_out, &qkv, &out, &log_sums, &segments, settings).unwrap();
        let on = |gpu: &Gpu| run(gpu, &values(&qkv), &values(&d_out), &LENGTHS, settings);
        agree(&format!("attention {settings:?}"), &values(&out), CLOSE, |gpu| on(gpu).0);
        agree(&format!("attention backward {settings:?}"), &values(&d_qkv), CLOSE, |gpu| on(gpu).1);
    }
}

#[test]
fn larger_heads_take_more_tiles() {
    let settings = Settings { heads: Heads { query: 2, key_value: 1, size: 40 }, ..PLAIN };
    let (qkv, d_out) = (random(3, &[50, settings.heads.width()], 1.0), random(4, &[50, 80], 1.0));
    let segments = Segments::from_lengths(&[50]);
    let (out, log_sums) = forward(&qkv, &segments, settings).unwrap();
    let d_qkv = backward(&d_out, &qkv, &out, &log_sums, &segments, settings).unwrap();
    for device in devices(48) {
        let (got, gradient) = run(&device.gpu, &values(&qkv), &values(&d_out), &[50], settings);
        let tolerance = CLOSE[usize::from(device.stored == Stored::Bf16)];
        for (got, wanted) in [(got, values(&out)), (gradient, values(&d_qkv))] {
            let size = wanted.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let worst = got.iter().zip(&wanted).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(worst <= tolerance * size, "{:?}: off by {worst} of {size}", device.stored);
        }
    }
}

#[test]
fn what_another_sequence_holds_changes_no_bit() {
    let settings = Settings { window: Some(20), ..PLAIN };
    let (n, width) = (LENGTHS.iter().sum::<usize>(), HEADS.width());
    let (qkv, d_out) = (values(&random(1, &[n, width], 2.0)), values(&random(2, &[n, 32], 1.0)));
    let mut other = qkv.clone();
    other[..3 * width].fill(7.0);
    other[94 * width..].fill(-7.0);
    for device in devices(16) {
        let [(out, grad), (other_out, other_grad)] =
            [&qkv, &other].map(|qkv| run(&device.gpu, qkv, &d_out, &LENGTHS, settings));
        assert!(out[3 * 32..94 * 32] == other_out[3 * 32..94 * 32] && out[..96] != other_out[..96]);
        assert!(grad[3 * width..94 * width] == other_grad[3 * width..94 * width]);
    }
}

/// The processor's emulation would take minutes for these.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "wants an NVIDIA card"]
fn heads_and_lengths_of_real_models_on_a_card() {
    let lengths = [700, 1, 333];
    let n = lengths.iter().sum();
    for (size, window) in [(64, None), (128, None), (128, Some(256)), (256, Some(100))] {
        let heads = Heads { query: 8, key_value: 2, size };
        let settings = Settings { heads, scale: 1.0 / (size as f32).sqrt(), window, ..PLAIN };
        let (qkv, d_out) = (random(5, &[n, heads.width()], 2.0), random(6, &[n, 8 * size], 1.0));
        let segments = Segments::from_lengths(&lengths);
        let (out, log_sums) = forward(&qkv, &segments, settings).unwrap();
        let d_qkv = backward(&d_out, &qkv, &out, &log_sums, &segments, settings).unwrap();
        for device in devices(size).iter().filter(|device| !device.emulated) {
            let (got, gradient) = run(&device.gpu, &values(&qkv), &values(&d_out), &lengths, settings);
            let tolerance = [1e-5, 3e-2][usize::from(device.stored == Stored::Bf16)];
            for (got, wanted) in [(&got, values(&out)), (&gradient, values(&d_qkv))] {
                let size = wanted.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                let worst = got.iter().zip(&wanted).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
                println!("{settings:?} {:?}: off by {:.1e} of the largest", device.stored, worst / size);
                assert!(worst <= tolerance * size);
            }
            assert!((got, gradient) == run(&device.gpu, &values(&qkv), &values(&d_out), &lengths, settings), "bits");
        }
    }
}
