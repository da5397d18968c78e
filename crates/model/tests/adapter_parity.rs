//! Adapters that `peft` wrote compute what `peft` computes: whole texts, cached generation, merged weights. Goldens:
//! `tests/parity/make-adapter-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tunesmith_model::{Decoder, peft};

fn goldens(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens").join(path)
}

fn floats(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn largest_difference(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max)
}

/// The golden model that `method` was trained on.
fn base(method: &str) -> PathBuf {
    match method.split_once('-') {
        Some((base, _)) => goldens("architectures").join(base),
        None => goldens("gqa-tied"),
    }
}

/// The base model with the adapter written into its weights.
fn merged(base: &Path, adapter: &tunesmith_model::Adapter, to: &Path) -> Decoder {
    std::fs::copy(base.join("config.json"), to.join("config.json")).unwrap();
    let bytes = std::fs::read(base.join("model.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let (mut tensors, mut merges) = (Vec::new(), adapter.merges());
    for (name, view) in parsed.tensors() {
        let mut values = floats(view.data());
        if let Some(merge) = merges.take(&name) {
            merge.apply(view.shape(), &mut values).unwrap();
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((name, view.shape().to_vec(), bytes));
    }
    merges.finish().unwrap();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
    Decoder::load(to).unwrap()
}

#[test]
fn adapters_of_every_method_that_peft_wrote_give_the_logits_of_peft_cached_and_merged() {
    let fused = ["gpt2-dora", "gpt2-adalora", "gpt2-ia3", "phi3-dora", "phi3-adalora", "phi3-ia3"];
    for method in ["dora", "loraplus", "adalora", "ia3"].into_iter().chain(fused) {
        let model = Decoder::load(&base(method)).unwrap();
        let folder = goldens("adapters").join(method);
        let adapter = peft::load(&folder.join("final"), model.config()).unwrap();
        let bytes = std::fs::read(folder.join("adapted.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let read = |name: &str| floats(golden.tensor(name).unwrap().data());
        let ids: Vec<u32> = read("ids").into_iter().map(|id| id as u32).collect();
        let (wanted, wanted_merged) = (read("logits"), read("merged"));
        let whole = |model: &Decoder, adapter| {
            model.logits(&ids, adapter).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert!(largest_difference(&whole(&model, None), &wanted) > 1e-2, "{method} must change something");
        let difference = largest_difference(&whole(&model, Some(&adapter)), &wanted);
        assert!(difference <= 1e-4, "{method}: {difference}");

        let mut cache = model.new_cache();
        let mut last = model.advance(&mut cache, &ids[..20], Some(&adapter)).unwrap();
        for id in &ids[20..] {
            last = model.advance(&mut cache, &[*id], Some(&adapter)).unwrap();
        }
        let cached = largest_difference(&last, &wanted[wanted.len() - last.len()..]);
        assert!(cached <= 1e-4, "{method} through the cache: {cached}");

        let to = tempfile::tempdir().unwrap();
        let merged = largest_difference(&whole(&merged(&base(method), &adapter, to.path()), None), &wanted_merged);
        assert!(merged <= 1e-4, "{method} merged: {merged}");
        println!("{method}: largest difference of a logit {difference:e}, cached {cached:e}, merged {merged:e}");
    }
}
