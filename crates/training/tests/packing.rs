//! Packing and splitting change how a step is computed, never what; and a run can be left anywhere.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{config, dataset, in_pool, model, run};
use tunesmith_model::{AdapterConfig, Batch, IGNORE, Recompute};
use tunesmith_training::sampler::{Layout, Sampler};
use tunesmith_training::step::{Sums, accumulate};
use tunesmith_training::{Optimizer, StepReport, Trainer, TrainingConfig, TrainingError};

fn packed() -> TrainingConfig {
    TrainingConfig { packing: true, ..config() }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |most, value| most.max(value.abs()))
}

#[test]
fn packed_gradients_equal_those_of_the_sequences_alone() {
    let (model, data) = (model(), dataset(1));
    let mut trainer = Trainer::new(packed(), model.clone(), data.clone()).unwrap();
    // B is zero at the start, and with it every gradient of A
    run(&mut trainer, 3);
    let mut sampler = Sampler::new(data.lengths(), Layout::Packed { capacity: 64 }, 5);
    let rows = sampler.next(sampler.num_rows());
    assert!(rows.len() < data.len(), "some rows hold several sequences");
    let together: Vec<_> = rows.iter().map(|row| data.batch(row).unwrap()).collect();
    let alone: Vec<_> = rows.concat().iter().map(|index| data.batch(&[*index]).unwrap()).collect();
    let together = accumulate(&model, trainer.adapter(), &together).unwrap();
    let alone = accumulate(&model, trainer.adapter(), &alone).unwrap();
    assert!((together.loss / alone.loss - 1.0).abs() < 1e-5, "{} {}", together.loss, alone.loss);
    let mut worst = 0.0f32;
    for (a, b) in together.gradients.iter().zip(&alone.gradients) {
        let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        worst = worst.max(largest(&difference) / largest(b));
    }
    println!("largest relative difference of a gradient: {worst:e}");
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn a_batch_without_targets_amid_a_step_changes_nothing() {
    let (model, data) = (model(), dataset(1));
    let mut trainer = Trainer::new(config(), model.clone(), data.clone()).unwrap();
    run(&mut trainer, 2);
    let [first, last] = [0, 1].map(|index| data.batch(&[index]).unwrap());
    let none = Batch::new(first.ids().to_vec(), vec![IGNORE; first.ids().len()], first.lengths().to_vec()).unwrap();
    let batches = [first, none, last];
    let mut sums = Sums::new(batches.iter().map(Batch::num_targets).sum());
    let nlls = sums.add(&model, trainer.adapter(), &batches, Recompute::Nothing).unwrap();
    assert!(nlls[0] > 0.0 && nlls[1] == 0.0 && nlls[2] > 0.0, "{nlls:?}");
    let [first, _, last] = batches;
    let wanted = accumulate(&model, trainer.adapter(), &[first, last]).unwrap();
    assert_eq!((sums.loss(), &sums.gradients), (wanted.loss, &wanted.gradients));
}

#[test]
fn packing_fills_the_rows_and_the_number_of_steps_is_known() {
    let epochs = |packing| TrainingConfig { packing, max_steps: None, epochs: 2, ..config() };
    let [single, packed] = [false, true].map(|packing| Trainer::new(epochs(packing), model(), dataset(1)).unwrap());
    assert_eq!(single.total_steps(), 6);
    let packing = packed.packing();
    println!("{packing:?}, {:.3} filled", packing.efficiency());
    assert!(packing.num_rows < 11 && packing.efficiency() > single.packing().efficiency());
    assert_eq!(packed.total_steps(), 2 * packing.num_rows.div_ceil(4));
    let mut trainer = packed;
    let reports = run(&mut trainer, 2 * packing.num_rows.div_ceil(4));
    let seen: usize = reports.iter().map(|report| report.num_sequences).sum();
    assert_eq!(seen, 22, "every sequence once in each epoch");
    assert_eq!(reports.iter().map(|report| report.num_tokens).sum::<usize>(), 2 * packing.num_tokens);
}

/// Runs to the end; saves and resumes after `leave_at` batches, with another number of threads.
fn left_and_resumed(config: &TrainingConfig, leave_at: usize) -> (Vec<StepReport>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let (mut reports, saved) = in_pool(1, || {
        let mut trainer = Trainer::new(config.clone(), model(), dataset(1)).unwrap();
        let reports: Vec<StepReport> = (0..leave_at).filter_map(|_| trainer.advance().unwrap()).collect();
        (reports, trainer.save(folder.path()).unwrap())
    });
    in_pool(2, || {
        let mut trainer = Trainer::resume(&saved, model(), dataset(1)).unwrap();
        while !trainer.is_complete() {
            reports.push(trainer.step().unwrap());
        }
        let last = trainer.save(folder.path()).unwrap();
        let names = ["adapter/adapter_model.safetensors", "optimizer.safetensors", "state.json"];
        (reports, names.map(|name| std::fs::read(last.join(name)).unwrap()).concat())
    })
}

#[test]
fn a_packed_run_left_after_any_batch_ends_with_the_same_bits() {
    // one row a batch, three batches a step: the places are in the middle of accumulation and of epochs
    let config = TrainingConfig { batch_size: 1, accumulation: 3, max_steps: Some(6), ..packed() };
    let whole = left_and_resumed(&config, 0);
    assert!(whole.0[5].epoch > 1.5, "the second epoch is under way: {}", whole.0[5].epoch);
    for leave_at in [1, 2, 3, 4, 7, 8, 11] {
        let resumed = left_and_resumed(&config, leave_at);
        assert_eq!(whole.0, resumed.0, "left after batch {leave_at}");
        assert!(whole.1 == resumed.1, "left after batch {leave_at}: adapter, moments or state differ");
    }
}

#[test]
fn eight_bit_moments_resume_bit_for_bit() {
    let config = TrainingConfig { optimizer: Optimizer::AdamW8bit, adapter: AdapterConfig::lora(64, 16.0), ..packed() };
    let (whole, resumed) = (left_and_resumed(&config, 0), left_and_resumed(&config, 9));
    assert_eq!(whole.0, resumed.0);
    assert!(whole.1 == resumed.1);
}

#[test]
fn eight_bit_adamw_learns_as_well_as_thirty_two_bits() {
    let losses = [Optimizer::AdamW, Optimizer::AdamW8bit].map(|optimizer| {
        let config = TrainingConfig {
            optimizer,
            adapter: AdapterConfig::lora(64, 16.0),
            max_steps: Some(60),
            learning_rate: 3e-3,
            ..config()
        };
        let mut trainer = Trainer::new(config, model(), dataset(1)).unwrap();
        let bytes = trainer.optimizer().num_bytes();
        let first = run(&mut trainer, 60)[0].loss;
        let after = trainer.evaluate(&dataset(1)).unwrap();
        let (nll, count) = after.iter().fold((0.0, 0), |(nll, n), e| (nll + e.nll, n + e.num_targets));
        println!("{optimizer:?}: from {first:.4} to {:.4} nats per token, {bytes} bytes", nll / count as f64);
        (first, nll / count as f64, bytes)
    });
    let [(before, full, full_bytes), (_, small, small_bytes)] = losses;
    assert!(full < 0.7 * before, "32 bits learn: {before} to {full}");
    assert!((small - full).abs() < 0.05 * (before - full), "{small} beside {full}");
    assert!(small_bytes < full_bytes / 2);
}

#[test]
fn a_checkpoint_resumes_with_another_split_of_the_same_steps() {
    for packing in [false, true] {
        let split = |batch_size, accumulation| TrainingConfig { batch_size, accumulation, packing, ..config() };
        let mut straight = Trainer::new(split(2, 3), model(), dataset(1)).unwrap();
        let wanted = run(&mut straight, 10);
        let folder = tempfile::tempdir().unwrap();
        let mut first = Trainer::new(split(2, 3), model(), dataset(1)).unwrap();
        run(&mut first, 4);
        // and two of the six rows of the next step
        assert!(first.advance().unwrap().is_none());
        let saved = first.save(folder.path()).unwrap();
        let mut trainer = Trainer::resume(&saved, model(), dataset(1)).unwrap();
        assert_eq!((trainer.num_steps_done(), trainer.num_rows_underway()), (4, 2));
        let error = trainer.resplit(2, 2).unwrap_err();
        assert!(matches!(&error, TrainingError::BadSetting { value, .. } if value == "2 x 2"), "{error}");
        trainer.resplit(3, 2).unwrap();
        for (got, wanted) in run(&mut trainer, 6).iter().zip(&wanted[4..]) {
            let same = |report: &StepReport| (report.step, report.num_sequences, report.num_tokens, report.num_targets);
            assert_eq!(same(got), same(wanted));
            let difference = (got.loss / wanted.loss - 1.0).abs();
            println!("packing {packing}, step {}: loss differs by {difference:e}", got.step);
            assert!(difference < 1e-5, "step {}: {} wanted {}", got.step, got.loss, wanted.loss);
        }
    }
}
