//! Vocabularies of SentencePiece's kind: BPE over characters, `▁` for spaces, bytes for characters that are no token.
//!
//! llama.cpp (`llm_tokenizer_spm`) cuts special tokens out, writes `▁` for each space and, where the file says so, one more in front
//! of every piece that is left; then it merges by scores ([`super::merges`]). It knows no other normalisation and no cuts.
//!
//! Scores come from the merges of `tokenizer.json` and not from a `tokenizer.model` beside it: that is what trained the adapter, every
//! base has it, and llama.cpp compares scores only with each other. (Its converter reads `tokenizer.model`, and without one gives every
//! token the same score, which merges from the left.)
//!
//! Left out: `▁` put in front of the first piece alone, or of pieces that do not begin with one (`Metaspace` with `prepend_scheme`
//! `first` or `always`, as transformers 5 makes them of a `tokenizer.model`). A `▁` that stands in a text as such, twice and more in a row,
//! is merged with what is beside it, also where an added token of `▁`s would be cut out.

use std::collections::HashSet;

use candle_core::quantized::gguf_file::Value as Field;
use serde_json::{Value, json};

use super::vocabulary::{BYTE, CONTROL, NORMAL, Token, UNKNOWN, USER_DEFINED, columns, pairs};
use super::{Metadata, merges, refuse};
use crate::error::Result;

/// What stands for a space.
pub(super) const SPACE: &str = "▁";

/// The keys of such a tokenizer alone.
///
/// # Errors
/// [`crate::ModelError::NotInGguf`] for one that llama.cpp would normalise, cut or merge otherwise.
pub(super) fn write(json: &Value, mut tokens: Vec<Token>) -> Result<Metadata> {
    let model = &json["model"];
    let prefix = space_prefix(json)?;
    check(json, prefix)?;
    let unknown = model["unk_token"].as_str();
    for token in &mut tokens {
        token.kind = match token.kind {
            CONTROL | USER_DEFINED if Some(token.text.as_str()) == unknown => UNKNOWN,
            // merges make it of spaces, and in an answer it is written with spaces: llama.cpp writes user-defined ones as they are
            USER_DEFINED if token.text.contains(SPACE) => NORMAL,
            NORMAL if is_byte(&token.text) => BYTE,
            kind => kind,
        };
    }
    check_bytes(&tokens)?;
    let scores = merges::scores(&tokens, &pairs(model)?)?;
    let (texts, kinds) = columns(tokens);
    Ok(vec![
        ("tokenizer.ggml.model".into(), Field::String("llama".into())),
        ("tokenizer.ggml.pre".into(), Field::String("default".into())),
        ("tokenizer.ggml.tokens".into(), texts),
        ("tokenizer.ggml.scores".into(), Field::Array(scores.into_iter().map(Field::F32).collect())),
        ("tokenizer.ggml.token_type".into(), kinds),
        ("tokenizer.ggml.add_space_prefix".into(), Field::Bool(prefix)),
    ])
}

/// Whether `▁` is put in front of every piece between special tokens.
fn space_prefix(json: &Value) -> Result<bool> {
    let (normalizer, pre) = (&json["normalizer"], &json["pre_tokenizer"]);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let steps: Vec<&Value> = match &normalizer["normalizers"] {
        Value::Array(steps) => steps.iter().collect(),
        _ if normalizer.is_null() => Vec::new(),
        _ => vec![normalizer],
    };
    let prefix = match steps.as_slice() {
        [] if pre["type"] == "Metaspace" => return metaspace(pre),
        [first, second] if **first == prepend && **second == replace => true,
        [only] if **only == replace => false,
        _ => {
            let remedy = "llama.cpp writes ▁ for spaces and changes nothing else: export merged-safetensors instead";
            return refuse("tokenizer.json: normalizer", normalizer, remedy);
        }
    };
    // Gemma's: at spaces, of which the normalizer leaves none
    let no_cut =
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    if pre.is_null() || *pre == no_cut {
        return Ok(prefix);
    }
    let remedy = "llama.cpp cuts no text before it merges by scores: export merged-safetensors instead";
    refuse("tokenizer.json: pre_tokenizer", pre, remedy)
}

/// The same where transformers 5 wrote the file.
fn metaspace(pre: &Value) -> Result<bool> {
    if pre["replacement"] == SPACE && pre["prepend_scheme"] == "never" && pre["split"] == false {
        return Ok(false);
    }
    let remedy = "llama.cpp puts ▁ in front of every text and behind every special token, or nowhere, and cuts nothing: export \
        merged-safetensors instead";
    refuse("tokenizer.json: pre_tokenizer", pre, remedy)
}

fn check(json: &Value, prefix: bool) -> Result<()> {
    let model = &json["model"];
    if model["ignore_merges"] == true {
        return refuse(
            "tokenizer.json: model.ignore_merges",
            true,
            "llama.cpp merges: export merged-safetensors instead",
        );
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let spaced = token["content"].as_str().is_some_and(|content| content.contains(SPACE));
        // looked for after normalisation, and as normalised itself
        if token["normalized"] == true && (prefix || spaced) {
            let remedy = "it is found only behind a space, in llama.cpp everywhere: export merged-safetensors instead";
            return refuse("tokenizer.json: added token", token, remedy);
        }
    }
    Ok(())
}

fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| b"0123456789ABCDEF".contains(&digit)))
}

/// Every byte is a token, or a character that is one: llama.cpp ends with an error at others.
fn check_bytes(tokens: &[Token]) -> Result<()> {
    let texts: HashSet<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
    let is_there = |byte: &u8| {
        texts.contains(format!("<0x{byte:02X}>").as_str())
            || byte.is_ascii() && texts.contains(char::from(*byte).to_string().as_str())
    };
    match (0..=u8::MAX).find(|byte| !is_there(byte)) {
        None => Ok(()),
        Some(byte) => {
            let remedy = "unknown characters are spelled with bytes: fetch tokenizer.json again";
            refuse("tokenizer.json: model.vocab", format!("no <0x{byte:02X}>"), remedy)
        }
    }
}

/// What llama.cpp does before it merges, and to an answer, as parts of a `tokenizer.json`.
pub(super) fn read(prefix: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let mut normalizer = replace.clone();
    if prefix {
        normalizer = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]});
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"normalizer": normalizer, "pre_tokenizer": null, "decoder": {"type": "Sequence", "decoders": decoders}})
}
