//! Ten steps of every adapter method equal PyTorch with `peft`: losses, gradients, norms, every trained tensor, AdaLoRA's ranks.
//! Goldens: `tests/parity/make-goldens.py` (LoRA), `tests/parity/make-adapter-goldens.py` (the other methods).

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;

use common::goldens;
use tunesmith_model::Decoder;

fn ten_steps(base: &str, folder: &Path) {
    common::ten_steps::ten_steps(&Decoder::load(&goldens(base)).unwrap(), folder);
}

#[test]
fn ten_steps_equal_peft_on_all_seven_projections() {
    ten_steps("gqa-tied", &goldens("gqa-tied/train"));
}

#[test]
fn ten_steps_equal_peft_with_rslora_on_three_projections() {
    ten_steps("llama3-untied", &goldens("llama3-untied/train"));
}

#[test]
fn ten_steps_of_dora_equal_peft() {
    ten_steps("gqa-tied", &goldens("adapters/dora"));
}

#[test]
fn ten_steps_of_loraplus_with_dora_and_rslora_equal_peft() {
    ten_steps("gqa-tied", &goldens("adapters/loraplus"));
}

#[test]
fn ten_steps_of_adalora_equal_peft_with_orthogonality_importance_and_budget() {
    ten_steps("gqa-tied", &goldens("adapters/adalora"));
}

#[test]
fn ten_steps_of_ia3_equal_peft() {
    ten_steps("gqa-tied", &goldens("adapters/ia3"));
}

#[test]
fn ten_steps_of_every_method_equal_peft_on_fused_transposed_projections_with_biases() {
    for method in ["gpt2-dora", "gpt2-adalora", "gpt2-ia3"] {
        ten_steps("architectures/gpt2", &goldens("adapters").join(method));
    }
}

#[test]
fn ten_steps_of_every_method_equal_peft_on_fused_projections() {
    for method in ["phi3-dora", "phi3-adalora", "phi3-ia3"] {
        ten_steps("architectures/phi3", &goldens("adapters").join(method));
    }
}
