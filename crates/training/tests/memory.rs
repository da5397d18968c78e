//! A memory limit decides whether layers are recomputed; the result stays the same to the bit. A quantised base trains, is saved
//! and resumed as any other.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{config, dataset, goldens, model, run};
use tunesmith_model::rng::Rng;
use tunesmith_model::{Decoder, Quantization, Recompute, peft};
use tunesmith_training::{
    Dataset, Memory, RecomputeSetting, Sequence, StepReport, Trainer, TrainingConfig, TrainingError,
};

/// 44 sequences of 60 tokens, all of them one batch: more than are evaluated together.
fn long() -> Dataset {
    let mut rng = Rng::new(3, 0);
    let mut sequence = |example| {
        let ids = (0..60).map(|_| rng.below(160) as u32).collect();
        Sequence { ids, counted: (0..60).map(|i| i > 0).collect(), example }
    };
    Dataset::from_sequences((0..44).map(&mut sequence).collect()).unwrap()
}

fn large_batch(recompute: RecomputeSetting, memory_limit_mb: Option<u64>) -> TrainingConfig {
    TrainingConfig { batch_size: 44, accumulation: 1, recompute, memory_limit_mb, ..config() }
}

fn values(trainer: &Trainer) -> Vec<Vec<f32>> {
    let flat = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    trainer.adapter().parameters().into_iter().map(|(_, tensor)| flat(tensor)).collect()
}

/// Megabytes of the run of [`large_batch`]: with everything kept, and with recomputed layers.
fn needed() -> [u64; 2] {
    let config = large_batch(RecomputeSetting::Auto, None);
    let memory = Memory::predict(&config, model().config(), &long().lengths());
    assert_eq!(memory.num_tokens, 44 * 60);
    [Recompute::Nothing, Recompute::Layers].map(|recompute| memory.total(recompute).div_ceil(1 << 20))
}

#[test]
fn a_memory_limit_changes_what_is_recomputed_and_no_bit_of_the_result() {
    let [nothing, layers] = needed();
    assert!(layers < nothing, "{layers} {nothing}");
    let end = |recompute, limit_mb| -> (Recompute, Vec<StepReport>, Vec<Vec<f32>>) {
        let mut trainer = Trainer::new(large_batch(recompute, limit_mb), model(), long()).unwrap();
        let reports = run(&mut trainer, 3);
        (trainer.recompute(), reports, values(&trainer))
    };
    let (kept, reports, wanted) = end(RecomputeSetting::Auto, Some(nothing));
    assert_eq!(kept, Recompute::Nothing);
    for (setting, limit_mb) in [(RecomputeSetting::Auto, Some(nothing - 1)), (RecomputeSetting::Layers, None)] {
        let (recompute, same_reports, same) = end(setting, limit_mb);
        assert_eq!(recompute, Recompute::Layers);
        assert!(reports == same_reports && wanted == same, "{setting:?}");
    }
}

#[test]
fn a_run_that_would_not_fit_is_refused_before_its_first_step() {
    let [nothing, layers] = needed();
    let refused = |setting, limit_mb| match Trainer::new(large_batch(setting, Some(limit_mb)), model(), long()) {
        Err(error @ TrainingError::OutOfMemory { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(trainer) => panic!("{:?} fits", trainer.memory()),
    };
    let text = refused(RecomputeSetting::Auto, layers - 1);
    for part in
        [format!("needs {layers} MB"), format!("limit is {} MB", layers - 1), "2640 tokens".into(), "batch_size".into()]
    {
        assert!(text.contains(&part), "{part}: {text}");
    }
    assert!(refused(RecomputeSetting::Nothing, nothing - 1).contains("recompute = \"auto\""));
}

#[test]
fn a_run_goes_on_under_another_limit_with_the_same_bits() {
    let [nothing, layers] = needed();
    let mut whole = Trainer::new(large_batch(RecomputeSetting::Auto, None), model(), long()).unwrap();
    let mut trainer = Trainer::new(large_batch(RecomputeSetting::Auto, None), model(), long()).unwrap();
    assert_eq!(run(&mut whole, 2), run(&mut trainer, 2));
    let folder = tempfile::tempdir().unwrap();
    let saved = trainer.save(folder.path()).unwrap();
    let mut resumed = Trainer::resume(&saved, model(), long()).unwrap();
    assert_eq!(resumed.recompute(), Recompute::Nothing);
    assert!(resumed.limit_memory(RecomputeSetting::Auto, Some(layers - 1)).is_err());
    assert_eq!(resumed.recompute(), Recompute::Nothing, "nothing changes when it is refused");
    resumed.limit_memory(RecomputeSetting::Auto, Some(nothing - 1)).unwrap();
    assert_eq!(resumed.recompute(), Recompute::Layers);
    assert_eq!(run(&mut whole, 2), run(&mut resumed, 2));
    assert!(values(&whole) == values(&resumed));
}

fn quantised(quantization: Quantization) -> Arc<Decoder> {
    Arc::new(Decoder::load_quantised(&goldens("gqa-tied"), quantization).unwrap())
}

fn of(quantization: Quantization) -> TrainingConfig {
    TrainingConfig { quantization, ..config() }
}

#[test]
fn a_quantised_base_trains_and_resumes_bit_for_bit_and_the_adapter_says_so() {
    for quantization in [Quantization::Nf4, Quantization::Q8_0] {
        let fresh = || Trainer::new(of(quantization), quantised(quantization), dataset(1)).unwrap();
        let mut whole = fresh();
        let reports = run(&mut whole, 10);
        let mut first = fresh();
        run(&mut first, 4);
        let folder = tempfile::tempdir().unwrap();
        let saved = first.save(folder.path()).unwrap();
        let mut resumed = Trainer::resume(&saved, quantised(quantization), dataset(1)).unwrap();
        assert_eq!(run(&mut resumed, 6), reports[4..]);
        assert!(values(&whole) == values(&resumed), "{quantization:?}");
        let adapter = folder.path().join("adapter");
        resumed.save_adapter(&adapter, "base").unwrap();
        assert_eq!(peft::base_quantization(&adapter).unwrap(), quantization);
        assert_eq!(peft::base_quantization(&saved.join("adapter")).unwrap(), quantization);
    }
}

#[test]
fn a_base_that_is_stored_otherwise_than_the_run_says_is_refused() {
    let refused = |result: Result<Trainer, TrainingError>| result.err().unwrap().to_string();
    let text = refused(Trainer::new(of(Quantization::Nf4), model(), dataset(1)));
    assert!(text.contains("quantization = nf4, the base model was loaded as none"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let trainer = Trainer::new(of(Quantization::Nf4), quantised(Quantization::Nf4), dataset(1)).unwrap();
    let saved = trainer.save(folder.path()).unwrap();
    let resume = |model| refused(Trainer::resume(Path::new(&saved), model, dataset(1)));
    for other in [Quantization::None, Quantization::Q8_0] {
        // told by the name, or by the first logits
        let text = resume(quantised(other));
        assert!(text.contains("base model"), "{text}");
    }
}

#[test]
fn a_base_model_that_would_not_fit_is_refused_before_it_is_loaded() {
    use tunesmith_training::memory::check_base;
    let model = model();
    let needed = |quantization| model.config().weight_bytes(quantization) + model.config().loading_bytes(quantization);
    let limit = needed(Quantization::None) - 1;
    assert!(check_base(model.config(), Quantization::None, None).is_ok());
    assert!(check_base(model.config(), Quantization::Nf4, Some(limit)).is_ok());
    let text = check_base(model.config(), Quantization::None, Some(limit)).unwrap_err().to_string();
    assert!(text.contains("quantization none") && text.contains("nf4 would need"), "{text}");
}

#[test]
fn an_export_that_would_not_fit_beside_its_base_is_refused_before_anything_is_written() {
    use tunesmith_training::memory::{check_base, check_export};
    let model = model();
    let weights = model.config().weight_bytes(Quantization::None);
    let both = 2 * weights + model.config().loading_bytes(Quantization::None);
    assert!(check_export(model.config(), None).is_ok() && check_export(model.config(), Some(both)).is_ok());
    assert!(check_base(model.config(), Quantization::None, Some(both - 1)).is_ok(), "one of them fits");
    let text = check_export(model.config(), Some(both - 1)).unwrap_err().to_string();
    assert!(text.contains("for 2 of the two") && text.contains("a machine with more memory"), "{text}");
}
