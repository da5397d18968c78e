//! Vocabularies of SentencePiece's kind in GGUF: what is written, what comes back, what is refused.
//! Goldens: `tests/parity/make-sentencepiece-goldens.py`; llama.cpp itself is asked by `check-gguf-in-llama-cpp.py --sentencepiece`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value as Field;
use common::{goldens, largest_difference, logits};
use serde_json::{Value, json};
use tunesmith_model::gguf::vocabulary::{self, Vocabulary};
use tunesmith_model::gguf::{Encoding, GgufExport, GgufModel};
use tunesmith_model::{Decoder, Message, ModelConfig, ModelError, Tokenizer, encode_prompt};

const MODELS: [&str; 3] = ["llama", "gemma", "phi3"];

fn golden(model: &str) -> PathBuf {
    goldens("sentencepiece").join(model)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What a tokenizer says in the head of a file for a base of this name.
fn head(folder: &Path, tokenizer: &Tokenizer, name: &str) -> Result<Vocabulary, ModelError> {
    let export = GgufExport { folder, tokenizer, adapter: None, encoding: Encoding::F16, name, source: "0" };
    vocabulary::write(&export, ModelConfig::from_file(&folder.join("config.json")).unwrap().vocab_size)
}

/// The same of a golden, by key, and the name of the model.
fn keys(model: &str) -> (HashMap<String, Field>, String) {
    let tokenizer = Tokenizer::load(&golden(model)).unwrap();
    let Vocabulary { metadata, name } = head(&golden(model), &tokenizer, "test").unwrap();
    (metadata.into_iter().collect(), name)
}

/// Tokens by spelling: id, type and score.
fn tokens(keys: &HashMap<String, Field>) -> HashMap<String, (usize, i32, f32)> {
    let list = |key: &str| keys[&format!("tokenizer.ggml.{key}")].to_vec().unwrap().clone();
    let (kinds, scores) = (list("token_type"), list("scores"));
    let token = |(id, text): (usize, &Field)| {
        let text = text.to_string().unwrap().clone();
        (text, (id, kinds[id].to_i32().unwrap(), scores[id].to_f32().unwrap()))
    };
    let all: HashMap<_, _> = list("tokens").iter().enumerate().map(token).collect();
    assert_eq!((all.len(), all.len()), (kinds.len(), scores.len()), "llama.cpp wants every spelling once");
    all
}

#[test]
fn a_model_comes_back_with_the_tokens_of_tricky_texts() {
    for model in MODELS {
        let folder = golden(model);
        let (decoder, tokenizer) = (Decoder::load(&folder).unwrap(), Tokenizer::load(&folder).unwrap());
        tokenizer.check_model(decoder.config().vocab_size).unwrap();
        let to = tempfile::tempdir().unwrap();
        let path = to.path().join("model.gguf");
        let export = GgufExport {
            folder: &folder,
            tokenizer: &tokenizer,
            adapter: None,
            encoding: Encoding::F16,
            name: "test",
            source: "0",
        };
        export.plan().unwrap().write(&path, |_| {}).unwrap();
        let read = GgufModel::open(&path).unwrap();
        for case in read_json(&folder.join("texts.json")).as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let wanted: Vec<u32> =
                case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(tokenizer.encode(text).unwrap(), wanted, "{model}: {text:?}");
            assert_eq!(read.tokenizer.encode(text).unwrap(), wanted, "{model}, read back: {text:?}");
            assert_eq!(
                read.tokenizer.decode(&wanted).unwrap(),
                tokenizer.decode(&wanted).unwrap(),
                "{model}: {text:?}"
            );
        }
        assert_eq!((read.tokenizer.bos(), read.tokenizer.eos()), (tokenizer.bos(), tokenizer.eos()), "{model}");
        assert_eq!(read.tokenizer.terminators(), tokenizer.terminators(), "{model}");
        let turns = [
            Message::new("system", "Answer shortly."),
            Message::new("user", " Who signs the log? \n"),
            Message::new("assistant", "The master 🚢."),
            Message::new("user", "When?"),
        ];
        let ids = encode_prompt(&tokenizer, &turns).unwrap();
        assert_eq!(encode_prompt(&read.tokenizer, &turns).unwrap(), ids, "{model}");
        // the golden is stored in f16: that form loses nothing
        let wanted = logits(&decoder, &ids, None);
        let spread = wanted.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
        let difference = largest_difference(&logits(&read.decoder, &ids, None), &wanted) / spread;
        println!("{model}: {} tokens, largest relative difference of a logit {difference:e}", ids.len());
        assert!(difference <= 1e-5, "{model}: {difference}");
    }
}

#[test]
fn tokens_scores_types_and_special_ids_are_what_llama_cpp_takes_them_for() {
    let text =
        |keys: &HashMap<String, Field>, key: &str| keys[&format!("tokenizer.ggml.{key}")].to_string().unwrap().clone();
    let flag = |keys: &HashMap<String, Field>, key: &str| keys[&format!("tokenizer.ggml.{key}")].to_bool().unwrap();
    let id =
        |keys: &HashMap<String, Field>, key: &str| keys[&format!("tokenizer.ggml.{key}_token_id")].to_u32().unwrap();

    let (llama, name) = keys("llama");
    assert_eq!(name, "test");
    assert_eq!((text(&llama, "model"), text(&llama, "pre")), ("llama".to_owned(), "default".to_owned()));
    assert!(!llama.contains_key("tokenizer.ggml.merges"), "llama.cpp merges by scores");
    let flags = ["add_space_prefix", "add_bos_token", "add_eos_token"];
    assert_eq!(flags.map(|key| flag(&llama, key)), [true, true, false]);
    assert_eq!(["unknown", "bos", "eos"].map(|key| id(&llama, key)), [0, 1, 2]);
    let of = tokens(&llama);
    let kinds = |of: &HashMap<String, (usize, i32, f32)>, texts: &[&str]| -> Vec<i32> {
        texts.iter().map(|text| of[*text].1).collect()
    };
    assert_eq!(kinds(&of, &["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>", "▁t", "e", "▁▁"]), [2, 3, 3, 6, 6, 1, 1, 1]);
    let last = of.len() - 1;
    assert_eq!((of[&format!("[PAD{last}]")].0, of[&format!("[PAD{last}]")].1), (last, 5));
    // merged first, second, last of all with one score for both lengths; what no merge makes below them
    let merges = read_json(&golden("llama").join("tokenizer.json"))["model"]["merges"].clone();
    let merged = |rank: usize| format!("{}{}", merges[rank][0].as_str().unwrap(), merges[rank][1].as_str().unwrap());
    assert_eq!([of[&merged(0)].2, of[&merged(1)].2], [0.0, -1.0]);
    assert_eq!(of["▁▁▁"].2, of["▁▁▁▁"].2);
    assert!(of["▁▁"].2 < of["▁▁▁"].2 && of["▁▁▁"].2 < of["▁t"].2 && of["e"].2 < of["▁▁"].2);

    let (gemma, name) = keys("gemma");
    assert_eq!((name.as_str(), flag(&gemma, "add_space_prefix")), ("test", false));
    assert_eq!(["eos", "bos", "unknown", "eot"].map(|key| id(&gemma, key)), [1, 2, 3, 5]);
    // runs of ▁ are merged of spaces, and written as spaces in an answer: as user-defined tokens they would not be
    assert_eq!(kinds(&tokens(&gemma), &["<unk>", "<start_of_turn>", "\n", "\n\n", "<h1>", "▁▁"]), [2, 3, 4, 4, 4, 1]);

    let (phi3, name) = keys("phi3");
    assert_eq!(name, "test (phi-3)", "llama.cpp takes the white space behind special tokens away by this name alone");
    assert_eq!(flags.map(|key| flag(&phi3, key)), [true, false, false]);
    assert_eq!(kinds(&tokens(&phi3), &["<|user|>", "</s>", "<|endoftext|>"]), [3, 4, 3]);
    let tokenizer = Tokenizer::load(&golden("phi3")).unwrap();
    assert_eq!(head(&golden("phi3"), &tokenizer, "some/Phi-3-mini").unwrap().name, "some/Phi-3-mini");
}

#[test]
fn what_scores_or_spaces_cannot_say_is_refused_by_name() {
    let refused_as = |model: &str, name: &str, change: &dyn Fn(&mut Value)| {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "tokenizer_config.json"] {
            std::fs::copy(golden(model).join(file), folder.path().join(file)).unwrap();
        }
        let mut json = read_json(&golden(model).join("tokenizer.json"));
        change(&mut json);
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        // what is written is decided by the file
        let tokenizer = Tokenizer::load(&golden(model)).unwrap();
        let error = head(folder.path(), &tokenizer, name).unwrap_err();
        assert!(matches!(error, ModelError::NotInGguf { .. }), "{error}");
        error.to_string()
    };
    let refused = |model: &str, change: &dyn Fn(&mut Value)| refused_as(model, "test", change);
    let contains = |error: String, parts: &[&str]| assert!(parts.iter().all(|part| error.contains(part)), "{error}");

    contains(refused("llama", &|json| json["model"]["type"] = json!("Unigram")), &["model.type = \"Unigram\"", "BPE"]);
    let change = |json: &mut Value| json["normalizer"] = json!({"type": "NFKC"});
    contains(refused("llama", &change), &["normalizer = {\"type\":\"NFKC\"}", "merged-safetensors"]);
    for scheme in ["first", "always"] {
        let change = |json: &mut Value| {
            json["normalizer"] = Value::Null;
            json["pre_tokenizer"] =
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        };
        contains(refused("llama", &change), &["pre_tokenizer", scheme, "behind every special token"]);
    }
    let change = |json: &mut Value| json["pre_tokenizer"] = json!({"type": "Digits", "individual_digits": true});
    contains(refused("gemma", &change), &["pre_tokenizer", "cuts no text"]);
    let change = |json: &mut Value| json["model"]["ignore_merges"] = json!(true);
    contains(refused("llama", &change), &["model.ignore_merges = true"]);

    // merges as a training with `tokenizers` leaves them: one pair for each token
    let change = |json: &mut Value| {
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        let mut made: Vec<String> = Vec::new();
        merges.retain(|pair| {
            let token = format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
            let new = !made.contains(&token);
            made.push(token);
            new
        });
    };
    contains(refused("llama", &change), &["model.merges = none of", "whatever makes a token"]);
    let change = |json: &mut Value| {
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        let token = |pair: &Value| format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        let twice = merges.windows(2).position(|two| token(&two[0]) == token(&two[1])).unwrap();
        let pair = merges.remove(twice);
        merges.push(pair);
    };
    contains(refused("llama", &change), &["model.merges = those of", "one after the other"]);
    let change = |json: &mut Value| {
        json["model"]["vocab"].as_object_mut().unwrap().remove("<0x0B>");
    };
    contains(refused("gemma", &change), &["no <0x0B>"]);

    let change = |json: &mut Value| json["added_tokens"][1]["normalized"] = json!(true);
    contains(refused("llama", &change), &["added token", "behind a space"]);
    let change = |json: &mut Value| json["added_tokens"][1]["rstrip"] = json!(true);
    contains(refused("llama", &change), &["added token", "Phi-3"]);
    let change = |json: &mut Value| json["added_tokens"][4]["rstrip"] = json!(false);
    contains(refused("phi3", &change), &["added token", "<|assistant|>"]);
    contains(
        refused_as("llama", "my/Phi3-tuned", &|_| {}),
        &["the name of the base model = my/Phi3-tuned", "otherwise"],
    );
}
