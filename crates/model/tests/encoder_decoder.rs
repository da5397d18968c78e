//! T5 computes what `transformers` and `peft` compute. Goldens: `tests/parity/make-encoder-decoder-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde::Deserialize;
use tunesmith_model::ops::relative_position::{Buckets, Direction};
use tunesmith_model::{Adapter, Decoder, EncoderDecoder, IGNORE, ModelError, PairBatch, peft};

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens/encoder-decoder").join(path)
}

fn tensors(path: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(golden(path)).unwrap();
    let values = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.tensors().into_iter().map(|(name, view)| (name, values(view.data()))).collect()
}

fn ids(values: &[f32]) -> Vec<u32> {
    values.iter().map(|id| if *id < 0.0 { IGNORE } else { *id as u32 }).collect()
}

fn largest_difference(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |most, value| most.max(value.abs()))
}

/// Logits of three pairs, whole within 1e-4, and token by token through the cache within 1e-5 of the whole, relative to the
/// largest logit.
fn compare_logits(model: &EncoderDecoder, adapter: Option<&Adapter>, path: &str) {
    let golden = tensors(path);
    for index in 0..3 {
        let read = |what: &str| &golden[&format!("{what}.{index}")];
        let (source, inputs, wanted) = (ids(read("source")), ids(read("inputs")), read("logits"));
        let got = model.logits(&source, &inputs, adapter).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (difference, spread) = (largest_difference(&got, wanted), largest(wanted));
        println!("{path} pair {index}: largest difference {difference:e}, largest logit {spread}");
        assert!(spread > 0.5, "a golden of near-zero logits proves nothing");
        assert!(difference <= 1e-4, "{path} pair {index}: {difference}");

        let (mut written, width) = (model.read(&source, adapter).unwrap(), model.config().vocab_size);
        for (row, id) in inputs.iter().enumerate() {
            let last = model.advance(&mut written, &[*id], adapter).unwrap();
            let difference = largest_difference(&last, &got[row * width..(row + 1) * width]) / spread;
            assert!(difference <= 1e-5, "{path} pair {index} row {row} through the cache: {difference}");
        }
    }
}

/// Gradients of an adapter that `peft` wrote, relative to the largest value of each tensor.
fn compare_adapter(model: &EncoderDecoder, folder: &str) {
    let adapter = peft::load(&golden(folder), model.config()).unwrap();
    compare_logits(model, Some(&adapter), &format!("{folder}/adapted.safetensors"));
    let wanted = tensors(&format!("{folder}/gradients.safetensors"));
    let pair = |index: usize| (ids(&wanted[&format!("source.{index}")]), ids(&wanted[&format!("target.{index}")]));
    let batch = PairBatch::new(&[pair(0), pair(1)], model.config().decoder_start_token_id).unwrap();
    let result = model.loss_and_gradients(&batch, &adapter, 1.0 / batch.num_targets() as f32).unwrap();
    let names: Vec<String> = adapter.parameters().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len() + 4, wanted.len(), "peft has as many tensors");
    let mut worst = 0.0f32;
    for (tensor, gradient) in names.iter().zip(&result.gradients) {
        // gradients are stored under the names of the model, which has no `.weight` after DoRA's magnitude
        let name = format!("base_model.model.{tensor}");
        let wanted = wanted.get(&name).or_else(|| wanted.get(&format!("{name}.weight")));
        let wanted = wanted.unwrap_or_else(|| panic!("no golden of {name}"));
        let got = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let difference = largest_difference(&got, wanted) / largest(wanted);
        worst = worst.max(difference);
        assert!(largest(wanted) > 1e-5 && difference <= 1e-4, "{folder} {tensor}: {difference} of {}", largest(wanted));
    }
    println!("{folder}: largest relative difference of a gradient {worst:e}");
}

#[derive(Deserialize)]
struct Answer {
    source: Vec<u32>,
    answer: Vec<u32>,
}

fn compare(name: &str, adapters: &[&str]) {
    let model = EncoderDecoder::load(&golden(name)).unwrap();
    compare_logits(&model, None, &format!("{name}/logits.safetensors"));
    let answers: Vec<Answer> =
        serde_json::from_slice(&std::fs::read(golden(&format!("{name}/greedy.json"))).unwrap()).unwrap();
    for Answer { source, answer } in &answers {
        assert_eq!(model.greedy(source, 16, None).unwrap(), *answer, "{name} writes what transformers writes");
        // what the whole text gives at every place, without a cache
        let inputs = [&[model.config().decoder_start_token_id][..], &answer[..answer.len() - 1]].concat();
        let rows = model.logits(source, &inputs, None).unwrap().to_vec2::<f32>().unwrap();
        let best = |row: &Vec<f32>| (0..row.len()).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32;
        assert_eq!(rows.iter().map(best).collect::<Vec<_>>(), *answer);
    }
    adapters.iter().for_each(|method| compare_adapter(&model, &format!("{name}/{method}")));
}

#[test]
fn t5_with_relu_and_a_tied_and_scaled_head() {
    compare("t5", &["lora", "dora", "ia3"]);
}

#[test]
fn t5_1_1_with_a_gate_a_head_of_its_own_and_stacks_of_unequal_depth() {
    compare("t5-v1.1", &["lora"]);
}

#[derive(Deserialize)]
struct BucketGoldens {
    distances: Vec<i64>,
    cases: Vec<BucketCase>,
}

#[derive(Deserialize)]
struct BucketCase {
    count: usize,
    max_distance: usize,
    both: bool,
    buckets: Vec<usize>,
}

#[test]
fn every_distance_falls_into_the_bucket_of_transformers() {
    let goldens: BucketGoldens = serde_json::from_slice(&std::fs::read(golden("buckets.json")).unwrap()).unwrap();
    assert_eq!(goldens.cases.len(), 10);
    for BucketCase { count, max_distance, both, buckets } in goldens.cases {
        let direction = if both { Direction::Both } else { Direction::Back };
        let of = Buckets { count, max_distance, direction };
        for (distance, wanted) in goldens.distances.iter().zip(buckets) {
            assert_eq!(of.bucket(*distance), wanted, "{of:?} at {distance}");
        }
    }
}

#[test]
fn the_pipeline_refuses_t5_as_what_it_is_and_a_surplus_tensor_is_named() {
    let error = Decoder::load(&golden("t5")).err().unwrap();
    assert!(matches!(error, ModelError::EncoderDecoderModel), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(golden("t5/config.json")).unwrap();
    std::fs::copy(golden("t5/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let load = |from: &str, to: &str| {
        assert!(config.contains(from));
        std::fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
        EncoderDecoder::load(folder.path()).err().unwrap()
    };
    let error = load("\"num_layers\": 2", "\"num_layers\": 1, \"num_decoder_layers\": 2");
    assert!(matches!(&error, ModelError::SurplusTensor { name } if name.starts_with("encoder.block.1.")), "{error}");
    let error = load("\"num_heads\": 3", "\"num_heads\": 3, \"tie_word_embeddings\": false");
    assert!(matches!(&error, ModelError::MissingTensor { name, .. } if name == "lm_head.weight"), "{error}");
}
