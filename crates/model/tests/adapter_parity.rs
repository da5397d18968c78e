//! Adapters that `peft` wrote compute what `peft` computes: whole texts, cached generation, merged weights. Goldens:
//! `tests/parity/make-adapter-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

mod common;

use common::{goldens, largest_difference, logits, merged, tensors, token_ids};
use tunesmith_model::{Decoder, peft};

/// The folder of the golden model that `method` was trained on.
fn base(method: &str) -> PathBuf {
    match method.split_once('-') {
        Some((base, _)) => goldens("architectures").join(base),
        None => goldens("gqa-tied"),
    }
}

#[test]
fn adapters_of_every_method_that_peft_wrote_give_the_logits_of_peft_cached_and_merged() {
    let fused = ["gpt2-dora", "gpt2-adalora", "gpt2-ia3", "phi3-dora", "phi3-adalora", "phi3-ia3"];
    for method in ["dora", "loraplus", "adalora", "ia3"].into_iter().chain(fused) {
        let base = base(method);
        let model = Decoder::load(&base).unwrap();
        let folder = goldens("adapters").join(method);
        let adapter = peft::load(&folder.join("final"), model.config()).unwrap();
        let golden = tensors(&folder.join("adapted.safetensors"));
        let (ids, wanted) = (token_ids(&golden["ids"]), &golden["logits"]);
        assert!(largest_difference(&logits(&model, &ids, None), wanted) > 1e-2, "{method} must change something");
        let difference = largest_difference(&logits(&model, &ids, Some(&adapter)), wanted);
        assert!(difference <= 1e-4, "{method}: {difference}");

        let mut cache = model.new_cache();
        let mut last = model.advance(&mut cache, &ids[..20], Some(&adapter)).unwrap();
        for id in &ids[20..] {
            last = model.advance(&mut cache, &[*id], Some(&adapter)).unwrap();
        }
        let cached = largest_difference(&last, &wanted[wanted.len() - last.len()..]);
        assert!(cached <= 1e-4, "{method} through the cache: {cached}");

        let merged = merged(&base, &adapter, str::to_owned);
        let merged = largest_difference(&logits(&merged, &ids, None), &golden["merged"]);
        assert!(merged <= 1e-4, "{method} merged: {merged}");
        println!("{method}: largest difference of a logit {difference:e}, cached {cached:e}, merged {merged:e}");
    }
}
