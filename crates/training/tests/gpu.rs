//! Runs of training on a card of NVIDIA against the same runs on the processor: `benches/gpu.sh` runs them.

#![cfg(feature = "cuda")]
// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{config, dataset, goldens, relative_difference, run};
use tunesmith_model::cuda::{Stored, driver};
use tunesmith_model::{Decoder, Recompute};
use tunesmith_training::{StepReport, Trainer, TrainingConfig};

/// The golden model. The programs of tests may run on another machine than they were built on, so a variable can say where it lies.
fn base() -> Decoder {
    let folder = std::env::var_os("TUNESMITH_GOLDENS").map_or_else(|| goldens(""), PathBuf::from);
    Decoder::load(&folder.join("gqa-tied")).unwrap()
}

fn on_gpu(stored: Stored) -> Arc<Decoder> {
    Arc::new(base().on_gpu(0, stored).unwrap())
}

fn ten_steps(model: Arc<Decoder>, config: TrainingConfig, recompute: Recompute) -> (Vec<StepReport>, Vec<f32>) {
    let mut trainer = Trainer::new(config, model, dataset(1)).unwrap().with_recompute(recompute);
    let reports = run(&mut trainer, 10);
    let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let values = trainer.adapter().parameters().iter().flat_map(|(_, tensor)| values(tensor)).collect();
    (reports, values)
}

#[test]
#[ignore = "wants an NVIDIA card"]
fn ten_steps_on_a_gpu_end_where_the_processors_end() {
    for packing in [false, true] {
        let config = || TrainingConfig { packing, ..config() };
        let (wanted, values) = ten_steps(Arc::new(base()), config(), Recompute::Nothing);
        for (stored, loss_tolerance, tolerance) in [(Stored::F32, 1e-4, 1e-3), (Stored::Bf16, 5e-2, 0.2)] {
            let model = on_gpu(stored);
            let (reports, found) = ten_steps(model.clone(), config(), Recompute::Nothing);
            for (report, wanted) in reports.iter().zip(&wanted) {
                let off = (report.loss - wanted.loss).abs();
                assert!(off <= loss_tolerance, "{stored:?} step {}: off by {off}", report.step);
            }
            let off = relative_difference(&found, &values);
            println!("{stored:?}, packing {packing}: the adapter is off by {off:e}");
            assert!(off <= tolerance, "{stored:?}: the adapter is off by {off}");
            assert!(found == ten_steps(model.clone(), config(), Recompute::Nothing).1, "another result in another run");
            assert!(found == ten_steps(model, config(), Recompute::Layers).1, "recomputing must not change a bit");
        }
    }
}

#[test]
#[ignore = "wants an NVIDIA card"]
fn evaluation_on_a_gpu_equals_the_processors() {
    let losses = |model: Arc<Decoder>| {
        let trainer = Trainer::new(config(), model, dataset(1)).unwrap();
        trainer.evaluate(&dataset(2)).unwrap().iter().map(|example| example.nll).collect::<Vec<_>>()
    };
    let (got, wanted) = (losses(on_gpu(Stored::F32)), losses(Arc::new(base())));
    assert!(got.len() == wanted.len() && !wanted.is_empty(), "{} examples, wanted {}", got.len(), wanted.len());
    for (got, wanted) in got.iter().zip(&wanted) {
        assert!((got - wanted).abs() <= 1e-4 * wanted.max(1.0), "{got} {wanted}");
    }
}

#[test]
#[ignore = "wants two NVIDIA cards of the same kind, and says so where there is one"]
fn ten_steps_on_two_gpus_give_the_bits_of_one() {
    if driver::num_cards().unwrap() < 2 {
        println!("not compared: there is one card");
        return;
    }
    // one batch of the two for each card
    assert_eq!(config().accumulation, 2);
    for stored in [Stored::F32, Stored::Bf16] {
        let two = Arc::new(base().on_gpu(0, stored).unwrap().on_gpu(1, stored).unwrap());
        assert_eq!(two.num_devices(Some(&config().adapter.method)), 2);
        let (wanted, values) = ten_steps(on_gpu(stored), config(), Recompute::Nothing);
        let (reports, found) = ten_steps(two, config(), Recompute::Nothing);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(bits(&found) == bits(&values), "{stored:?}: another adapter");
        let losses = |reports: &[StepReport]| reports.iter().map(|report| report.loss.to_bits()).collect::<Vec<_>>();
        assert_eq!(losses(&reports), losses(&wanted), "{stored:?}");
    }
}
