//! Vectors equal those of the wheel's own library (goldens by `make-goldens.py`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use serde_json::Value;
use tunesmith_retrieval::{EmbedError, Embedder, EmbedderFiles};

/// From the issue: "vectors equal to those of the wheel's own library to 1e-4".
const TOLERANCE: f64 = 1e-4;

fn goldens() -> Vec<(String, String, Vec<f64>)> {
    let file: Value = serde_json::from_str(include_str!("goldens/embeddings.json")).unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    let texts = file["texts"].as_array().unwrap();
    texts.iter().map(|t| (text(&t["name"]), text(&t["text"]), numbers(&t["vector"]))).collect()
}

#[test]
fn vectors_equal_those_of_sentence_transformers() {
    let goldens = goldens();
    assert_eq!(goldens.len(), 12);
    let texts: Vec<&str> = goldens.iter().map(|(_, text, _)| text.as_str()).collect();
    let vectors = common::embedder().embed(&texts).unwrap();
    for ((name, _, expected), vector) in goldens.iter().zip(vectors.iter()) {
        assert_eq!(vector.len(), expected.len());
        let worst = vector.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst <= TOLERANCE, "{name}: off by {worst}");
        let length: f64 = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((length - 1.0).abs() < 1e-5, "{name}: length {length}");
    }
}

#[test]
fn a_vector_does_not_depend_on_its_neighbours() {
    let goldens = goldens();
    let texts: Vec<&str> = goldens.iter().map(|(_, text, _)| text.as_str()).collect();
    let together = common::embedder().embed(&texts).unwrap();
    for (i, text) in texts.iter().enumerate() {
        assert_eq!(common::embedder().embed(&[text]).unwrap().row(0), together.row(i), "{text:?}");
    }
    assert_eq!(common::embedder().embed(&[""; 0]).unwrap().rows(), 0);
}

#[test]
fn damaged_files_are_named() {
    let good = || EmbedderFiles {
        config:
            br#"{"vocab_size":9,"hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,"intermediate_size":8,
                     "max_position_embeddings":8,"type_vocab_size":2,"layer_norm_eps":1e-12,"hidden_act":"gelu"}"#
                .to_vec(),
        tokenizer: br###"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":null,"post_processor":null,"decoder":null,
            "model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",
            "max_input_chars_per_word":100,"vocab":{"[UNK]":0}}}"###
            .to_vec(),
        weights: b"\x02\0\0\0\0\0\0\0{}".to_vec(),
    };
    let error = |files| Embedder::load(files).err().unwrap();
    assert!(matches!(error(EmbedderFiles { config: b"{}".to_vec(), ..good() }), EmbedError::Config(_)));
    assert!(matches!(error(EmbedderFiles { tokenizer: vec![0; 9], ..good() }), EmbedError::Tokenizer(_)));
    assert!(matches!(error(EmbedderFiles { weights: vec![255; 9], ..good() }), EmbedError::Weights(_)));
    let missing = error(good()).to_string();
    assert!(missing.contains("position_embeddings.weight"), "{missing}");
    let relu = String::from_utf8(good().config).unwrap().replace("\"gelu\"", "\"relu\"");
    let refused = error(EmbedderFiles { config: relu.into_bytes(), ..good() }).to_string();
    assert!(refused.contains("relu"), "{refused}");
}
