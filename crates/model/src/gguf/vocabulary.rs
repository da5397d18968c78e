//! `tokenizer.ggml.*` and the chat template: a byte-level BPE `tokenizer.json` into a file's head, and back.
//!
//! llama.cpp merges as `tokenizers` does; cuts go by name ([`super::pre_tokenizer`]); special tokens are told by their type.
//! SentencePiece vocabularies (Llama 2, Mistral 7B, Gemma, Phi-3: BPE with `byte_fallback`) are merged by scores there and are
//! refused. Unicode normalisation (NFC of Qwen) is left out, as in every GGUF: text that is already in NFC is cut the same.
//!
//! llama.cpp ends an answer at the tokens of `eos`, `eot` and `eom`, and by itself at tokens with well-known spellings
//! (`<|end|>`, `<|im_end|>` and others).

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::Value as Field;
use serde_json::{Map, Value, json};

use super::pre_tokenizer::Pre;
use super::{Metadata, refuse};
use crate::chat;
use crate::error::{ModelError, Result};
use crate::tokenizer::{Special, Tokenizer, optional_json, special, template_source};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Keys of the tokens that end an answer, the first for the end of a text.
const ENDS: [&str; 3] = ["eos", "eot", "eom"];

/// The keys of the tokenizer in `folder`, filled up to `vocab_size` tokens: embeddings are often longer than vocabularies.
///
/// # Errors
/// [`ModelError::NotInGguf`] for a tokenizer that llama.cpp would cut or merge otherwise.
pub fn write(folder: &Path, tokenizer: &Tokenizer, vocab_size: usize) -> Result<Metadata> {
    let path = folder.join("tokenizer.json");
    let text = fs::read_to_string(&path).map_err(ModelError::io(&path))?;
    let json: Value = serde_json::from_str(&text).map_err(ModelError::json(&path))?;
    let model = &json["model"];
    check(&json)?;
    let pre = tokenizer.pre_tokenizer().and_then(Pre::of);
    let Some(pre) = pre.filter(|pre| pre.ignore_merges == (model["ignore_merges"] == true)) else {
        let remedy =
            "known are those that cut as gpt-2, smollm, llama-bpe and qwen2: export merged-safetensors instead";
        return refuse("tokenizer.json: pre_tokenizer", &json["pre_tokenizer"], remedy);
    };

    let (tokens, types) = tokens(&json, vocab_size)?;
    let settings = optional_json(&folder.join("tokenizer_config.json"))?;
    let mut metadata: Metadata = vec![
        ("tokenizer.ggml.model".into(), Field::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Field::String(pre.name.into())),
        ("tokenizer.ggml.tokens".into(), strings(tokens)),
        ("tokenizer.ggml.token_type".into(), Field::Array(types.into_iter().map(Field::I32).collect())),
        ("tokenizer.ggml.merges".into(), strings(merges(model)?)),
    ];
    let mut id = |key: &str, id: u32| metadata.push((format!("tokenizer.ggml.{key}_token_id"), Field::U32(id)));
    if let Some(bos) = tokenizer.bos() {
        id("bos", bos);
    }
    let ends = ends(tokenizer)?;
    ends.iter().zip(ENDS).for_each(|(end, key)| id(key, *end));
    for (key, name) in [("padding", "pad_token"), ("unknown", "unk_token")] {
        if let Some(token) = special(&settings, name).and_then(|token| tokenizer.token_id(&token)) {
            id(key, token);
        }
    }
    let Special { bos, eos } = tokenizer.added_around()?;
    for (key, added) in [("add_bos_token", bos), ("add_eos_token", eos)] {
        metadata.push((format!("tokenizer.ggml.{key}"), Field::Bool(added)));
    }
    if let Some(template) = template_source(folder, &settings)? {
        metadata.push(("tokenizer.chat_template".into(), Field::String(chat::without_generation_tags(&template))));
    }
    Ok(metadata)
}

/// The tokens that end an answer, that of the text first.
fn ends(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let others = tokenizer.terminators().iter().copied().filter(|id| Some(*id) != tokenizer.eos());
    let ends: Vec<u32> = tokenizer.eos().into_iter().chain(others).collect();
    if ends.len() > ENDS.len() {
        return refuse(
            "eos_token_id",
            format!("{ends:?}"),
            "GGUF has room for three: name fewer in generation_config.json",
        );
    }
    Ok(ends)
}

fn check(json: &Value) -> Result<()> {
    let model = &json["model"];
    if model["type"] != "BPE" || model["byte_fallback"] == true {
        let value = format!("{} with byte_fallback {}", model["type"], model["byte_fallback"]);
        let remedy = "byte-level BPE is written (Llama 3, SmolLM, Qwen, GPT-2): export merged-safetensors instead";
        return refuse("tokenizer.json: model", value, remedy);
    }
    let empty = |value: &Value| value.is_null() || value == "";
    for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "unk_token"] {
        if !empty(&model[key]) {
            return refuse(format!("tokenizer.json: model.{key}"), &model[key], "llama.cpp merges without it");
        }
    }
    let normalizer = &json["normalizer"];
    if !normalizer.is_null() && normalizer["type"] != "NFC" {
        return refuse("tokenizer.json: normalizer", normalizer, "llama.cpp changes no text before it merges");
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        if ["single_word", "lstrip", "rstrip"].iter().any(|key| token[key] == true) {
            return refuse(
                "tokenizer.json: added token",
                token,
                "llama.cpp leaves the white space around tokens alone",
            );
        }
    }
    Ok(())
}

/// Spelling and type of every id.
fn tokens(json: &Value, vocab_size: usize) -> Result<(Vec<String>, Vec<i32>)> {
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; vocab_size];
    let mut set = |token: &str, id: &Value, kind: i32| match id.as_u64().and_then(|id| tokens.get_mut(id as usize)) {
        Some(place) => {
            *place = Some((token.to_owned(), kind));
            Ok(())
        }
        None => refuse(
            format!("tokenizer.json: id of {token:?}"),
            id,
            "the embedding has fewer rows: use the tokenizer that came with the base model",
        ),
    };
    for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        set(token, id, NORMAL)?;
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
        set(token["content"].as_str().unwrap_or_default(), &token["id"], kind)?;
    }
    let filled = tokens.into_iter().enumerate();
    Ok(filled.map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED))).unzip())
}

/// `a b` for each pair; `tokenizers` writes pairs as text or as lists of two.
fn merges(model: &Value) -> Result<Vec<String>> {
    let pair = |merge: &Value| match merge {
        Value::String(pair) => Some(pair.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(a), Value::String(b)] if !a.contains(' ') && !b.contains(' ') => Some(format!("{a} {b}")),
            _ => None,
        },
        _ => None,
    };
    let merges: Option<Vec<String>> = model["merges"].as_array().and_then(|merges| merges.iter().map(pair).collect());
    match merges {
        Some(merges) => Ok(merges),
        None => refuse("tokenizer.json: model.merges", "not a list of pairs", "fetch tokenizer.json again"),
    }
}

fn strings(values: Vec<String>) -> Field {
    Field::Array(values.into_iter().map(Field::String).collect())
}

/// The tokenizer that a file describes, with the cuts that llama.cpp makes under the name it goes by.
///
/// # Errors
/// [`ModelError::BadGguf`] when a key is missing or means nothing here.
pub(super) fn read(metadata: &HashMap<String, Field>, path: &Path) -> Result<Tokenizer> {
    let bad = |reason: String| ModelError::BadGguf { path: path.to_path_buf(), reason };
    let field = |key: &str| metadata.get(key).ok_or_else(|| bad(format!("no {key}")));
    let wrong = |key: &str| bad(format!("{key} is not what it must be"));
    let texts = |key: &str| -> Result<Vec<String>> {
        let items = field(key)?.to_vec().map_err(|_| wrong(key))?;
        items.iter().map(|item| item.to_string().cloned().map_err(|_| wrong(key))).collect()
    };
    let text = |key: &str| field(key)?.to_string().map_err(|_| wrong(key));
    let id = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(|id| id.to_u32().ok());
    let flag =
        |key: &str| metadata.get(&format!("tokenizer.ggml.{key}")).is_some_and(|flag| flag.to_bool().unwrap_or(false));
    let name = text("tokenizer.ggml.pre")?;
    let pre =
        Pre::named(name).ok_or_else(|| bad(format!("tokenizer.ggml.pre {name:?} is not among {}", Pre::names())))?;
    let tokens = texts("tokenizer.ggml.tokens")?;
    let types = field("tokenizer.ggml.token_type")?.to_vec().map_err(|_| wrong("tokenizer.ggml.token_type"))?;
    let mut vocabulary = Map::new();
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
        let kind = kind.to_i32().map_err(|_| wrong("tokenizer.ggml.token_type"))?;
        if kind != UNUSED {
            vocabulary.insert(token.clone(), json!(id));
        }
        if kind == CONTROL || kind == USER_DEFINED {
            added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == CONTROL}));
        }
    }
    let merges = texts("tokenizer.ggml.merges")?;
    let spelling = |id: Option<u32>| id.and_then(|id| tokens.get(id as usize)).cloned().unwrap_or_default();
    let (bos, eos) = (id("bos"), id("eos"));
    let around = |id: Option<u32>, added: bool| id.filter(|_| added).map(|id| (spelling(Some(id)), id));
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": added,
        "pre_tokenizer": pre.json(),
        "post_processor": post_processor(around(bos, flag("add_bos_token")), around(eos, flag("add_eos_token"))),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.ignore_merges,
            "vocab": vocabulary, "merges": merges},
    });
    let inner: tokenizers::Tokenizer =
        json.to_string().parse().map_err(|error: tokenizers::Error| bad(error.to_string()))?;
    let terminators: BTreeSet<u32> = ENDS.iter().filter_map(|key| id(key)).collect();
    let template = metadata.get("tokenizer.chat_template").and_then(|template| template.to_string().ok());
    let template =
        template.map(|source| chat::ChatTemplate::new(source, &spelling(bos), &spelling(eos))).transpose()?;
    Tokenizer::from_parts(inner, path, bos, eos, terminators, template)
}

fn post_processor(bos: Option<(String, u32)>, eos: Option<(String, u32)>) -> Value {
    let piece = |token: &str, segment: u8| json!({"SpecialToken": {"id": token, "type_id": segment}});
    let sequence = |name: &str, segment: u8| json!({"Sequence": {"id": name, "type_id": segment}});
    let around = |inner: Value, segment: u8| {
        let before = bos.iter().map(|(token, _)| piece(token, segment));
        before.chain([inner]).chain(eos.iter().map(|(token, _)| piece(token, segment))).collect::<Vec<Value>>()
    };
    let pair = [around(sequence("A", 0), 0), around(sequence("B", 1), 1)].concat();
    let mut tokens = Map::new();
    for (token, id) in bos.iter().chain(&eos) {
        tokens.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
    }
    json!({"type": "TemplateProcessing", "single": around(sequence("A", 0), 0),
        "pair": pair, "special_tokens": tokens})
}
