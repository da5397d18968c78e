//! `tokenizer.ggml.*` and the chat template: `tokenizer.json` into a file's head, and back.
//!
//! Two kinds are written. Byte-level BPE (`gpt2`: Llama 3, SmolLM, Qwen, GPT-2): llama.cpp merges as `tokenizers` does; cuts go by
//! name ([`super::pre_tokenizer`]). BPE of SentencePiece's kind (`llama`: Llama 2, Mistral 7B, Phi-3, Gemma): it merges by scores
//! (`sentence_piece.rs`). Special tokens are told by their type. Unicode normalisation (NFC of Qwen) is left out, as in every
//! GGUF: text that is already in NFC is cut the same. Unigram and WordPiece (T5, BERT) are refused: no decoder here has one.
//!
//! llama.cpp ends an answer at the tokens of `eos`, `eot` and `eom`, and by itself at tokens with well-known spellings
//! (`</s>`, `<|end|>`, `<|im_end|>` and others).

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::Value as Field;
use serde_json::{Map, Value, json};

use super::pre_tokenizer::Pre;
use super::sentence_piece::{self, SPACE};
use super::{GgufExport, Metadata, merges, refuse};
use crate::chat;
use crate::error::{ModelError, Result};
use crate::tokenizer::{Special, Tokenizer, optional_json, special, template_source};

/// `enum llama_token_type`.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// Keys of the tokens that end an answer, the first for the end of a text.
const ENDS: [&str; 3] = ["eos", "eot", "eom"];
/// A model with one of these in its name has the white space behind its special tokens taken away (`llama_vocab::impl::load`): no
/// key says so.
const SWALLOWING: [&str; 2] = ["phi-3", "phi3"];
/// Special tokens of such a model that leave it there. They and `</s>` must exist: llama.cpp ends with an error else.
const KEEPING: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// A token and its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub text: String,
    pub kind: i32,
}

impl Token {
    /// Whether it is found in a text before anything is merged, so that its spelling never comes up in merges. One with `▁` does: it
    /// is looked for before spaces become that.
    pub fn is_cut_out(&self) -> bool {
        matches!(self.kind, UNKNOWN | CONTROL | USER_DEFINED) && !self.text.contains(SPACE)
    }
}

/// What a tokenizer says in a file's head.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    /// `tokenizer.*`.
    pub metadata: Metadata,
    /// `general.name`: the model's, with what llama.cpp must find in it.
    pub name: String,
}

/// The tokenizer of an export, filled up to `vocab_size` tokens: embeddings are often longer than vocabularies.
///
/// # Errors
/// [`ModelError::NotInGguf`] for a tokenizer that llama.cpp would cut or merge otherwise.
pub fn write(export: &GgufExport<'_>, vocab_size: usize) -> Result<Vocabulary> {
    let (folder, tokenizer) = (export.folder, export.tokenizer);
    let path = folder.join("tokenizer.json");
    let text = fs::read_to_string(&path).map_err(ModelError::io(&path))?;
    let json: Value = serde_json::from_str(&text).map_err(ModelError::json(&path))?;
    check(&json)?;
    let name = model_name(&json, export.name)?;
    let tokens = tokens(&json, vocab_size)?;
    let mut metadata = match json["model"]["byte_fallback"] == true {
        true => sentence_piece::write(&json, tokens)?,
        false => byte_level(&json, tokenizer, tokens)?,
    };
    let mut id = |key: &str, id: u32| metadata.push((format!("tokenizer.ggml.{key}_token_id"), Field::U32(id)));
    if let Some(bos) = tokenizer.bos() {
        id("bos", bos);
    }
    let ends = ends(tokenizer)?;
    ends.iter().zip(ENDS).for_each(|(end, key)| id(key, *end));
    let settings = optional_json(&folder.join("tokenizer_config.json"))?;
    let unknown = special(&settings, "unk_token").or_else(|| json["model"]["unk_token"].as_str().map(str::to_owned));
    for (key, token) in [("padding", special(&settings, "pad_token")), ("unknown", unknown)] {
        if let Some(token) = token.and_then(|token| tokenizer.token_id(&token)) {
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
    Ok(Vocabulary { metadata, name })
}

/// The keys of a byte-level tokenizer alone.
fn byte_level(json: &Value, tokenizer: &Tokenizer, tokens: Vec<Token>) -> Result<Metadata> {
    let model = &json["model"];
    if !is_empty(&model["unk_token"]) {
        return refuse("tokenizer.json: model.unk_token", &model["unk_token"], "llama.cpp merges without it");
    }
    let normalizer = &json["normalizer"];
    if !normalizer.is_null() && normalizer["type"] != "NFC" {
        return refuse("tokenizer.json: normalizer", normalizer, "llama.cpp changes no text before it merges");
    }
    let pre = tokenizer.pre_tokenizer().and_then(Pre::of);
    let Some(pre) = pre.filter(|pre| pre.ignore_merges == (model["ignore_merges"] == true)) else {
        let remedy =
            "known are those that cut as gpt-2, smollm, llama-bpe and qwen2: export merged-safetensors instead";
        return refuse("tokenizer.json: pre_tokenizer", &json["pre_tokenizer"], remedy);
    };
    let merges = pairs(model)?;
    if let Some(pair) = merges.iter().flatten().find(|part| part.contains(' ')) {
        return refuse("tokenizer.json: model.merges", pair, "no byte is spelled so: fetch tokenizer.json again");
    }
    let (texts, kinds) = columns(tokens);
    Ok(vec![
        ("tokenizer.ggml.model".into(), Field::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Field::String(pre.name.into())),
        ("tokenizer.ggml.tokens".into(), texts),
        ("tokenizer.ggml.token_type".into(), kinds),
        ("tokenizer.ggml.merges".into(), strings(merges.into_iter().map(|pair| pair.join(" ")))),
    ])
}

/// Texts and types as a file has them.
pub(super) fn columns(tokens: Vec<Token>) -> (Field, Field) {
    let (texts, kinds): (Vec<String>, Vec<Field>) =
        tokens.into_iter().map(|token| (token.text, Field::I32(token.kind))).unzip();
    (strings(texts), Field::Array(kinds))
}

/// The name under which llama.cpp treats the white space behind special tokens as `tokenizer.json` says.
fn model_name(json: &Value, name: &str) -> Result<String> {
    let added = || json["added_tokens"].as_array().into_iter().flatten();
    let swallows = |token: &Value| token["rstrip"] == true;
    let known = swallowing(name);
    if !added().any(swallows) {
        if known {
            let remedy =
                "llama.cpp takes away the white space behind the special tokens of a model named so: name it otherwise";
            return refuse("the name of the base model", name, remedy);
        }
        return Ok(name.to_owned());
    }
    let keeps = |token: &Value| token["content"].as_str().is_some_and(|content| KEEPING.contains(&content));
    let remedy = "llama.cpp takes away white space only as for Phi-3: export merged-safetensors instead";
    if let Some(odd) = added().find(|token| swallows(token) == keeps(token)) {
        return refuse("tokenizer.json: added token", odd, remedy);
    }
    let exists = |text: &str| added().any(|token| token["content"] == text) || !json["model"]["vocab"][text].is_null();
    if let Some(missing) = KEEPING.into_iter().chain(["</s>"]).find(|text| !exists(text)) {
        return refuse("tokenizer.json: added tokens with rstrip", format!("no {missing}"), remedy);
    }
    Ok(if known { name.to_owned() } else { format!("{name} (phi-3)") })
}

fn swallowing(name: &str) -> bool {
    let name = name.to_lowercase();
    SWALLOWING.iter().any(|known| name.contains(known))
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

fn is_empty(value: &Value) -> bool {
    value.is_null() || value == ""
}

/// What holds for both kinds.
fn check(json: &Value) -> Result<()> {
    let model = &json["model"];
    if model["type"] != "BPE" {
        let remedy = "BPE is written, byte-level or of SentencePiece's kind: export merged-safetensors instead";
        return refuse("tokenizer.json: model.type", &model["type"], remedy);
    }
    for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        if !is_empty(&model[key]) {
            return refuse(format!("tokenizer.json: model.{key}"), &model[key], "llama.cpp merges without it");
        }
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        if ["single_word", "lstrip"].iter().any(|key| token[key] == true) {
            return refuse(
                "tokenizer.json: added token",
                token,
                "llama.cpp looks for it everywhere and leaves the white space before it alone",
            );
        }
    }
    Ok(())
}

/// Spelling and type of every id.
fn tokens(json: &Value, vocab_size: usize) -> Result<Vec<Token>> {
    let mut tokens: Vec<Option<Token>> = vec![None; vocab_size];
    let mut set = |text: &str, id: &Value, kind: i32| match id.as_u64().and_then(|id| tokens.get_mut(id as usize)) {
        Some(place) => {
            *place = Some(Token { text: text.to_owned(), kind });
            Ok(())
        }
        None => refuse(
            format!("tokenizer.json: id of {text:?}"),
            id,
            "the embedding has fewer rows: use the tokenizer that came with the base model",
        ),
    };
    for (text, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        set(text, id, NORMAL)?;
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
        set(token["content"].as_str().unwrap_or_default(), &token["id"], kind)?;
    }
    let unused = |id: usize| Token { text: format!("[PAD{id}]"), kind: UNUSED };
    Ok(tokens.into_iter().enumerate().map(|(id, token)| token.unwrap_or_else(|| unused(id))).collect())
}

/// The merges of a model; `tokenizers` writes pairs as text or as lists of two.
pub(super) fn pairs(model: &Value) -> Result<Vec<[String; 2]>> {
    let pair = |merge: &Value| match merge {
        Value::String(pair) => pair.split_once(' ').map(|(left, right)| [left.to_owned(), right.to_owned()]),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Some([left.clone(), right.clone()]),
            _ => None,
        },
        _ => None,
    };
    let pairs: Option<Vec<[String; 2]>> =
        model["merges"].as_array().and_then(|merges| merges.iter().map(pair).collect());
    match pairs {
        Some(pairs) => Ok(pairs),
        None => refuse("tokenizer.json: model.merges", "not a list of pairs", "fetch tokenizer.json again"),
    }
}

fn strings(values: impl IntoIterator<Item = String>) -> Field {
    Field::Array(values.into_iter().map(Field::String).collect())
}

/// The tokenizer that a file describes: of byte-level ones with the cuts that llama.cpp makes under the name they go by.
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
    let flag_opt = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}")).and_then(|flag| flag.to_bool().ok());
    let flag = |key: &str| flag_opt(key).unwrap_or(false);
    let kinds = field("tokenizer.ggml.token_type")?.to_vec().map_err(|_| wrong("tokenizer.ggml.token_type"))?;
    let mut tokens: Vec<Token> = Vec::new();
    for (text, kind) in texts("tokenizer.ggml.tokens")?.into_iter().zip(kinds) {
        let kind = kind.to_i32().map_err(|_| wrong("tokenizer.ggml.token_type"))?;
        tokens.push(Token { text, kind });
    }
    let vocabulary: Map<String, Value> = tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| token.kind != UNUSED)
        .map(|(id, token)| (token.text.clone(), json!(id)))
        .collect();
    let swallows =
        metadata.get("general.name").and_then(|name| name.to_string().ok()).is_some_and(|name| swallowing(name));
    let added: Vec<Value> = tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| matches!(token.kind, UNKNOWN | CONTROL | USER_DEFINED))
        .map(|(id, token)| {
            json!({"id": id, "content": token.text, "single_word": false, "lstrip": false,
                "rstrip": swallows && !KEEPING.contains(&token.text.as_str()), "normalized": false,
                "special": token.kind != USER_DEFINED})
        })
        .collect();
    let spelling = |id: Option<u32>| id.and_then(|id| tokens.get(id as usize)).map(|token| token.text.clone());
    let mut model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary});
    let mut json = match text("tokenizer.ggml.model")?.as_str() {
        "gpt2" => {
            let name = text("tokenizer.ggml.pre")?;
            let unknown = || bad(format!("tokenizer.ggml.pre {name:?} is not among {}", Pre::names()));
            let pre = Pre::named(name).ok_or_else(unknown)?;
            model["merges"] = json!(texts("tokenizer.ggml.merges")?);
            model["ignore_merges"] = json!(pre.ignore_merges);
            json!({"normalizer": null, "pre_tokenizer": pre.json(),
                "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}})
        }
        "llama" => {
            let key = "tokenizer.ggml.scores";
            let scores = field(key)?.to_vec().map_err(|_| wrong(key))?;
            let scores: Vec<f32> =
                scores.iter().map(|score| score.to_f32().map_err(|_| wrong(key))).collect::<Result<_>>()?;
            model["merges"] = json!(merges::from_scores(&tokens, &scores));
            model["unk_token"] = json!(spelling(id("unknown")));
            model["fuse_unk"] = json!(true);
            model["byte_fallback"] = json!(true);
            // llama.cpp's own default
            sentence_piece::read(flag_opt("add_space_prefix").unwrap_or(true))
        }
        other => return Err(bad(format!("tokenizer.ggml.model {other:?} is neither gpt2 nor llama"))),
    };
    let (bos, eos) = (id("bos"), id("eos"));
    let around = |id: Option<u32>, added: bool| id.filter(|_| added).and_then(|id| Some((spelling(Some(id))?, id)));
    json["version"] = json!("1.0");
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    json["added_tokens"] = Value::Array(added);
    json["post_processor"] = post_processor(around(bos, flag("add_bos_token")), around(eos, flag("add_eos_token")));
    json["model"] = model;
    let inner: tokenizers::Tokenizer =
        json.to_string().parse().map_err(|error: tokenizers::Error| bad(error.to_string()))?;
    let terminators: BTreeSet<u32> = ENDS.iter().filter_map(|key| id(key)).collect();
    let template = metadata.get("tokenizer.chat_template").and_then(|template| template.to_string().ok());
    let [bos_text, eos_text] = [bos, eos].map(|id| spelling(id).unwrap_or_default());
    let template = template.map(|source| chat::ChatTemplate::new(source, &bos_text, &eos_text)).transpose()?;
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
