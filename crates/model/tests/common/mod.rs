//! Goldens, and what is compared with them.

// each test file uses a part
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tunesmith_model::{Adapter, Decoder};

pub fn goldens(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens").join(path)
}

/// All tensors of a file, which are f32; token ids are stored as such, too.
pub fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    parsed.tensors().into_iter().map(|(name, view)| (name, floats(&view))).collect()
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    assert_eq!(view.dtype(), Dtype::F32);
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

pub fn token_ids(values: &[f32]) -> Vec<u32> {
    values.iter().map(|id| *id as u32).collect()
}

pub fn largest_difference(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Logits of every position, one after the other.
pub fn logits(model: &Decoder, ids: &[u32], adapter: Option<&Adapter>) -> Vec<f32> {
    model.logits(ids, adapter).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Logits of the three sequences of a golden file, whole within 1e-4, and token by token through the cache within 1e-5 of the
/// whole, relative to the largest logit.
pub fn compare_logits(model: &Decoder, adapter: Option<&Adapter>, path: &Path) {
    let golden = tensors(path);
    let path = path.strip_prefix(goldens("")).unwrap().display();
    for index in 0..3 {
        let ids = token_ids(&golden[&format!("ids.{index}")]);
        let wanted = &golden[&format!("logits.{index}")];
        let got = logits(model, &ids, adapter);
        let difference = largest_difference(&got, wanted);
        let spread = wanted.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        println!("{path} sequence {index}: largest difference {difference:e}, largest logit {spread}");
        assert!(spread > 1.0, "a golden of near-zero logits proves nothing");
        assert!(difference <= 1e-4, "{path} sequence {index}: {difference}");

        let mut cache = model.new_cache();
        let cut = ids.len().div_ceil(3);
        let width = model.config().vocab_size;
        let mut last = model.advance(&mut cache, &ids[..cut], adapter).unwrap();
        for row in cut..ids.len() {
            last = model.advance(&mut cache, &ids[row..=row], adapter).unwrap();
            let difference = largest_difference(&last, &got[row * width..(row + 1) * width]) / spread;
            assert!(difference <= 1e-5, "{path} sequence {index} row {row} through the cache: {difference}");
        }
        assert!(largest_difference(&last, &got[got.len() - width..]) <= 1e-5 * spread);
    }
}

/// The base model in `base` with the adapter written into its weights, as `tunesmith-trainer export` does; `rename` changes the
/// names under which they are stored.
pub fn merged(base: &Path, adapter: &Adapter, rename: impl Fn(&str) -> String) -> Decoder {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(base.join("model.safetensors")).unwrap();
    let (mut stored, mut merges) = (Vec::new(), adapter.merges());
    for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let (name, mut values) = (rename(&name), floats(&view));
        if let Some(merge) = merges.take(&name) {
            merge.apply(view.shape(), &mut values).unwrap();
        }
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        stored.push((name, view.shape().to_vec(), bytes));
    }
    merges.finish().unwrap();
    let views =
        stored.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    std::fs::copy(base.join("config.json"), folder.path().join("config.json")).unwrap();
    Decoder::load(folder.path()).unwrap()
}
