//! Schedules equal `transformers`, 8-bit AdamW `bitsandbytes`, event files `tensorboard`. Goldens: `tests/parity/make-loop-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{floats, goldens, relative_difference};
use safetensors::SafeTensors;
use serde::Deserialize;
use tunesmith_training::adamw::{AdamW, Moments};
use tunesmith_training::blockwise::{BLOCK, Blockwise, SIGNED, UNSIGNED};
use tunesmith_training::{Decay, Optimizer, TrainingConfig, tensorboard};

#[derive(Deserialize)]
struct Case {
    schedule: Decay,
    total: usize,
    warmup_ratio: f64,
    decay_ratio: f64,
    peak: f64,
    rates: Vec<f64>,
}

#[test]
fn every_schedule_equals_transformers() {
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(goldens("loop/schedules.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 16);
    for case in cases {
        let config = TrainingConfig {
            schedule: case.schedule,
            learning_rate: case.peak,
            warmup_ratio: case.warmup_ratio,
            decay_ratio: case.decay_ratio,
            ..TrainingConfig::default()
        };
        let schedule = config.schedule(case.total);
        for (step, wanted) in case.rates.iter().enumerate() {
            let got = schedule.learning_rate(step);
            assert!((got - wanted).abs() <= 1e-15, "{:?} {} step {step}: {got} {wanted}", case.schedule, case.total);
        }
    }
}

fn f32s(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    floats(tensors.tensor(name).unwrap().data())
}

/// How many codes differ; none may be further than its neighbour.
fn differing(got: &[u8], wanted: &[u8]) -> usize {
    assert_eq!(got.len(), wanted.len());
    assert!(got.iter().zip(wanted).all(|(a, b)| a.abs_diff(*b) <= 1));
    got.iter().zip(wanted).filter(|(a, b)| a != b).count()
}

fn close(got: &[f32], wanted: &[f32], tolerance: f32, what: &str) {
    let worst = relative_difference(got, wanted);
    println!("{what}: largest difference {worst:e}");
    assert!(worst <= tolerance, "{what}: {worst}");
}

#[test]
fn the_code_and_its_indices_equal_bitsandbytes() {
    let bytes = std::fs::read(goldens("loop/adamw-8bit.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(SIGNED.values()[..], f32s(&tensors, "code.signed"));
    assert_eq!(UNSIGNED.values()[..], f32s(&tensors, "code.unsigned"));
    let values = f32s(&tensors, "quantize.values");
    let mut stored = Blockwise::zeros(values.len());
    values.chunks(BLOCK).enumerate().for_each(|(index, block)| stored.write(&SIGNED, index, block));
    assert_eq!(stored.absmax, f32s(&tensors, "quantize.absmax"));
    assert_eq!(stored.codes, tensors.tensor("quantize.codes").unwrap().data());
}

#[test]
fn eight_bit_adamw_equals_bitsandbytes() {
    let bytes = std::fs::read(goldens("loop/adamw-8bit.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let config = TrainingConfig { weight_decay: 0.02, ..TrainingConfig::default() };
    let mut values = f32s(&tensors, "start");
    let mut optimizer = AdamW::of(Optimizer::AdamW8bit, &[values.len()]);
    for step in 0..5 {
        let gradient = f32s(&tensors, &format!("gradient.{step}"));
        let update = optimizer.begin(&config, 1e-2);
        optimizer.apply(update, 0, &mut values, &gradient).unwrap();
        if step != 0 && step != 4 {
            continue;
        }
        close(&values, &f32s(&tensors, &format!("value.{step}")), 1e-5, &format!("parameters after {}", step + 1));
        let Moments::Blockwise { first, second } = &optimizer.moments[0] else { panic!("4300 values are quantised") };
        for (name, moment) in [("first", first), ("second", second)] {
            close(&moment.absmax, &f32s(&tensors, &format!("{name}.absmax.{step}")), 1e-6, &format!("{name} scales"));
            let codes = tensors.tensor(&format!("{name}.codes.{step}")).unwrap().data().to_vec();
            let differing = differing(&moment.codes, &codes);
            println!("step {}, {name} moment: {differing} of {} codes differ", step + 1, codes.len());
            // a value on the border of two codes may fall to either side by its last bit
            assert!(differing <= codes.len() / 1000, "{differing} codes differ");
        }
    }
}

#[test]
fn event_files_equal_tensorboard_to_the_byte() {
    let wanted = std::fs::read(goldens("loop/events.tfevents")).unwrap();
    let start = 1_795_212_000.0;
    let got = [
        tensorboard::header(start),
        tensorboard::scalars(start + 1.0, 1, &[("train/loss", 2.5), ("train/learning_rate", 1e-3)]),
        tensorboard::scalars(start + 300.0, 300, &[("train/loss", 1.25), ("eval/loss", 1.5)]),
    ];
    assert!(got.concat() == wanted);
}
