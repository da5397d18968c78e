//! Ten QLoRA steps equal `peft` on a base that `bitsandbytes` quantised: losses, norms, gradients, every trained tensor, logits.
//! Goldens: `tests/parity/make-quantisation-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::ten_steps::{Golden, TOLERANCE, ten_steps};
use common::{goldens, relative_difference, tensors};
use tunesmith_model::{Decoder, Quantization, peft};
use tunesmith_training::step::accumulate;

#[test]
fn ten_steps_of_qlora_equal_peft_with_bitsandbytes() {
    let folder = goldens("quantisation/qlora");
    let model = Decoder::load_quantised(&goldens("gqa-tied"), Quantization::Nf4).unwrap();
    ten_steps(&model, &folder);

    // on the base as it is in the file the loss is another one: the test would notice
    let (golden, plain) = (Golden::of(&folder), Decoder::load(&goldens("gqa-tied")).unwrap());
    let init = peft::load(&folder.join("init"), plain.config()).unwrap();
    let loss = accumulate(&plain, &init, &golden.batches(0)).unwrap().loss;
    assert!((loss / golden.losses[0] - 1.0).abs() > 1e-3, "{loss}");

    let golden = tensors(&folder.join("logits.safetensors"));
    let ids: Vec<u32> = golden["ids"].1.iter().map(|id| *id as u32).collect();
    let trained = peft::load(&folder.join("final"), model.config()).unwrap();
    let logits = model.logits(&ids, Some(&trained)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let of_logits = relative_difference(&logits, &golden["logits"].1);
    assert!(of_logits <= TOLERANCE, "logits: {of_logits}");
    println!("logits {of_logits:e}");
}
