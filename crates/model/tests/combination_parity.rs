//! Combined adapters are those that `peft`'s `add_weighted_adapter` makes. Goldens: `tests/parity/make-combination-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use tunesmith_model::adapters::ModuleAdapter;
use tunesmith_model::adapters::combine::{Combination, combine, rerank};
use tunesmith_model::{Adapter, ModelConfig, peft};

fn goldens(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens").join(path)
}

/// Largest difference between the changes `s · B A`, relative to the largest value: vectors of an SVD may differ in sign.
fn difference(got: &Adapter, wanted: &Adapter, model: &ModelConfig) -> f32 {
    let mut worst = 0.0f32;
    assert_eq!(got.modules().count(), wanted.modules().count());
    for ((place, got), (same, wanted)) in got.modules().zip(wanted.modules()) {
        assert_eq!(place.path, same.path);
        let [out, width] = model.module_shape(place.module);
        let change = |adapter: &ModuleAdapter| {
            let mut weight = vec![0.0f32; out * width];
            adapter.merge_into(&mut weight, width).unwrap();
            weight
        };
        let (got, wanted) = (change(got), change(wanted));
        let largest = wanted.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        assert!(largest > 1e-2, "{}", place.path);
        let difference = got.iter().zip(&wanted).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        worst = worst.max(difference / largest);
    }
    worst
}

/// Largest difference between the tensors themselves.
fn tensor_difference(got: &Adapter, wanted: &Adapter) -> f32 {
    let mut worst = 0.0f32;
    for ((name, got), (same, wanted)) in got.parameters().into_iter().zip(wanted.parameters()) {
        assert_eq!((&name, got.dims()), (&same, wanted.dims()));
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        worst = values(got).iter().zip(values(wanted)).fold(worst, |most, (a, b)| most.max((a - b).abs()));
    }
    worst
}

#[test]
fn combined_and_reranked_adapters_are_those_of_peft() {
    let model = ModelConfig::from_file(&goldens("gqa-tied/config.json")).unwrap();
    let load = |name: &str| peft::load(&goldens("combinations").join(name), &model).unwrap();
    let (first, second, third) = (load("first"), load("second"), load("third"));
    let all = [(&first, 0.7), (&second, -0.4), (&third, 1.3)];

    let linear = combine(&all[..2], Combination::Linear, &model).unwrap();
    let cat = combine(&all, Combination::Cat, &model).unwrap();
    for (name, got) in [("linear", &linear), ("cat", &cat)] {
        let wanted = load(name);
        assert_eq!(got.config(), wanted.config(), "{name}");
        let (tensors, changes) = (tensor_difference(got, &wanted), difference(got, &wanted, &model));
        println!("{name}: largest difference of a tensor {tensors:e}, relative of a change {changes:e}");
        assert!(tensors <= 1e-6 && changes <= 1e-6, "{name}: {tensors} {changes}");
    }

    let svd = combine(&all, Combination::Svd { rank: Some(3) }, &model).unwrap();
    for (name, got) in [("svd", svd), ("reranked", rerank(&first, 2, &model).unwrap())] {
        let wanted = load(name);
        let changes = difference(&got, &wanted, &model);
        println!("{name}: largest relative difference of a change {changes:e}");
        // peft's SVD is in f32
        assert!(changes <= 1e-5, "{name}: {changes}");
        if name == "svd" {
            assert_eq!(got.config(), wanted.config());
        }
    }
}
