//! NF4 with double quantisation equals `bitsandbytes` to the bit. Goldens: `tests/parity/make-quantisation-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use safetensors::SafeTensors;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tunesmith_model::frozen::nf4::Nf4;
use tunesmith_model::frozen::torch_mean::mean;

fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens/quantisation");
    std::fs::read(folder.join(name)).unwrap()
}

fn floats(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn dequantised(stored: &Nf4, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    stored.read(0, &mut values);
    values
}

/// The script's `formula`.
fn formula(count: usize) -> Vec<f32> {
    let value = |i: u64| {
        let mixed = (i * 2_654_435_761 + 12_345) % (1 << 32);
        let uniform = ((mixed >> 8) as i64 - (1 << 23)) as f32 * 2f32.powi(-23);
        uniform * uniform.abs()
    };
    (0..count as u64).map(value).collect()
}

#[test]
fn nf4_equals_bitsandbytes_to_the_bit() {
    let file = golden("nf4.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let cases: Vec<String> =
        tensors.names().into_iter().filter_map(|name| name.strip_suffix(".weight").map(str::to_owned)).collect();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let data = |part: &str| tensors.tensor(&format!("{case}.{part}")).unwrap().data().to_vec();
        let weight = floats(&data("weight"));
        let stored = Nf4::quantise(&weight);
        assert_eq!(stored.codes, data("codes"), "{case}");
        assert_eq!(bytes(&[stored.offset]), data("offset"), "{case}: {} {:?}", stored.offset, floats(&data("offset")));
        assert_eq!(stored.absmax_codes, data("absmax"), "{case}");
        assert_eq!(bytes(&stored.absmax_scales), data("scales"), "{case}");
        assert!(bytes(&dequantised(&stored, weight.len())) == data("dequantised"), "{case}");
    }
}

#[derive(Deserialize)]
struct Large {
    rows: usize,
    width: usize,
    offset: f32,
    codes: String,
    absmax: String,
    scales: String,
    dequantised: String,
}

#[test]
fn a_matrix_of_a_real_layer_equals_bitsandbytes_to_the_bit() {
    let large: Large = serde_json::from_slice(&golden("large.json")).unwrap();
    let weight = formula(large.rows * large.width);
    let stored = Nf4::quantise(&weight);
    let sha256 = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    assert_eq!(stored.offset.to_bits(), large.offset.to_bits());
    assert_eq!(sha256(&stored.codes), large.codes);
    assert_eq!(sha256(&stored.absmax_codes), large.absmax);
    assert_eq!(sha256(&bytes(&stored.absmax_scales)), large.scales);
    assert_eq!(sha256(&bytes(&dequantised(&stored, weight.len()))), large.dequantised);
}

#[test]
fn the_mean_equals_torch_to_the_bit() {
    let means: Vec<(usize, f32)> = serde_json::from_slice(&golden("means.json")).unwrap();
    assert_eq!(means.len(), 20);
    for (count, wanted) in means {
        let values: Vec<f32> = formula(count).iter().map(|value| value.abs()).collect();
        assert_eq!(mean(&values).to_bits(), wanted.to_bits(), "{count}: {} {wanted}", mean(&values));
    }
}
