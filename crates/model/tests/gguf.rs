//! What is written as GGUF and read back computes what was trained: every architecture, tokenizer and template included.
//! llama.cpp itself is asked by `tests/parity/check-gguf-in-llama-cpp.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tunesmith_model::gguf::{Encoding, GgufExport, GgufModel, Modelfile};
use tunesmith_model::rng::Rng;
use tunesmith_model::{
    Adapter, AdapterConfig, Decoder, LoraConfig, Message, Method, ModelError, Tokenizer, encode_prompt,
};

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A golden of `tests/parity/goldens/architectures` with a byte-level vocabulary of 61 tokens, and its tokenizer.
fn architecture(name: &str, to: &Path) -> Tokenizer {
    for item in std::fs::read_dir(repository("tests/parity/goldens/architectures").join(name)).unwrap() {
        let path = item.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
    if name == "gemma2" {
        // llama.cpp fixes this one
        change_config(to, |config| config["query_pre_attn_scalar"] = config["head_dim"].clone());
    }
    write_tokenizer(to, |_| {});
    Tokenizer::load(to).unwrap()
}

fn change_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
}

fn write_tokenizer(to: &Path, change: impl FnOnce(&mut Value)) {
    let letters = (b'a'..=b'z').chain(b'0'..=b'9').map(char::from).map(String::from);
    let tokens = ["<|bos|>", "<|end|>"].map(String::from).into_iter().chain(letters).chain(["Ġ".into(), "Ġa".into()]);
    let vocabulary: serde_json::Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let mut tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(0, "<|bos|>"), special(1, "<|end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [["Ġ", "a"]]},
    });
    change(&mut tokenizer);
    std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let settings = json!({"bos_token": "<|bos|>", "eos_token": "<|end|>"});
    std::fs::write(to.join("tokenizer_config.json"), settings.to_string()).unwrap();
}

fn adapter(model: &Decoder) -> Adapter {
    let method = Method::Lora(LoraConfig { rank: 3, alpha: 6.0, use_rslora: false, use_dora: false });
    let config = AdapterConfig { method, target_modules: model.config().modules().to_vec() };
    let mut adapter = Adapter::new(config, model, 1).unwrap();
    let mut rng = Rng::new(2, 2);
    adapter.update(|_, values| values.iter_mut().for_each(|v| *v += (rng.uniform() - 0.5) * 0.2)).unwrap();
    adapter
}

fn export(
    folder: &Path,
    tokenizer: &Tokenizer,
    adapter: Option<&Adapter>,
    encoding: Encoding,
) -> Result<GgufModel, ModelError> {
    let to = folder.join("model.gguf");
    let export = GgufExport { folder, tokenizer, adapter, encoding, name: "test", source: "0" };
    let mut percents = Vec::new();
    export.plan()?.write(&to, |progress| percents.push(progress.percent()))?;
    assert!(percents.is_sorted() && percents.last() == Some(&100), "{percents:?}");
    GgufModel::open(&to)
}

fn logits(model: &Decoder, ids: &[u32], adapter: Option<&Adapter>) -> Vec<f32> {
    model.logits(ids, adapter).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

/// Largest difference relative to the largest logit.
fn difference(got: &[f32], wanted: &[f32]) -> f32 {
    let largest = wanted.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    got.iter().zip(wanted).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

#[test]
fn every_architecture_comes_back_with_its_adapter_merged_in() {
    for (name, longest) in [
        ("llama-biases", 40),
        ("mistral", 7), // llama.cpp has no windows here: the context is cut to one
        ("qwen2", 9),
        ("qwen2-yarn", 40),
        ("qwen3", 40),
        ("phi3", 11),
        ("phi3-longrope", 40),
        ("gemma2", 40),
        ("gpt2", 40),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = architecture(name, folder.path());
        let model = Decoder::load(folder.path()).unwrap();
        let adapter = adapter(&model);
        let ids: Vec<u32> = (0..longest).map(|i| i * 11 % 61).collect();
        let wanted = logits(&model, &ids, Some(&adapter));
        assert!(difference(&logits(&model, &ids, None), &wanted) > 1e-2, "{name}: the adapter changes something");
        let read = export(folder.path(), &tokenizer, Some(&adapter), Encoding::F16).unwrap();
        let found = difference(&logits(&read.decoder, &ids, None), &wanted);
        println!("{name}: largest relative difference of a logit {found:e}");
        // f16 rounds each weight by 2^-11
        assert!(found < 5e-3, "{name}: {found}");
        if longest < 40 {
            let longer = read.decoder.logits(&vec![1; longest as usize + 1], None);
            assert!(matches!(longer, Err(ModelError::TooManyPositions { .. })), "{name}");
        }
        assert_eq!(read.tokenizer.terminators(), tokenizer.terminators());
        assert_eq!(read.tokenizer.encode("ab a3").unwrap(), tokenizer.encode("ab a3").unwrap());
    }
}

#[test]
fn the_embedded_base_model_comes_back_in_every_format_with_tokenizer_template_and_stop() {
    let base = repository("trainer-image/base-model");
    let (model, tokenizer) = (Decoder::load(&base).unwrap(), Tokenizer::load(&base).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("model.gguf");
    let chat = [
        Message::new("system", "Answer shortly."),
        Message::new("user", "When does the 7:45 ferry leave? I'd like 12 tickets – für Zoë 🚢."),
    ];
    let ids = encode_prompt(&tokenizer, &chat).unwrap();
    let wanted = logits(&model, &ids, None);
    let mut sizes = Vec::new();
    for (encoding, limit) in [(Encoding::F16, 1e-6), (Encoding::Q8_0, 0.05), (Encoding::Q4K, 0.5)] {
        let export =
            GgufExport { folder: &base, tokenizer: &tokenizer, adapter: None, encoding, name: "mini", source: "0" };
        export.plan().unwrap().write(&to, |_| {}).unwrap();
        sizes.push(std::fs::metadata(&to).unwrap().len());
        let read = GgufModel::open(&to).unwrap();
        let found = difference(&logits(&read.decoder, &ids, None), &wanted);
        println!("{encoding:?}: {} bytes, largest relative difference of a logit {found:e}", sizes[sizes.len() - 1]);
        // the base model is stored in f16: that form loses nothing
        assert!(found <= limit, "{encoding:?}: {found}");
        assert_eq!(encode_prompt(&read.tokenizer, &chat).unwrap(), ids);
        assert_eq!((read.tokenizer.eos(), read.tokenizer.bos()), (tokenizer.eos(), tokenizer.bos()));
        assert_eq!(read.tokenizer.terminators(), tokenizer.terminators());
        let text = "Line one\n\n  Line 2: \"it's\" 3,141.59\tTAB <|user|> end   ";
        assert_eq!(read.tokenizer.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    }
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
    assert_eq!(
        Modelfile::new("model.gguf", &tokenizer, 1024).unwrap().text(),
        "FROM ./model.gguf\nTEMPLATE \"\"\"{{ range .Messages }}{{ if eq .Role \"system\" }}<|system|>{{ .Content }}<|end|>\
         {{ else if eq .Role \"user\" }}<|user|>{{ .Content }}<|end|>{{ else if eq .Role \"assistant\" }}<|assistant|>{{ .Content }}\
         <|end|>{{ end }}{{ end }}<|assistant|>\"\"\"\nPARAMETER stop \"<|end|>\"\nPARAMETER num_ctx 1024\n"
    );
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused_by_name_before_a_byte_is_written() {
    let refused = |name: &str, config: &dyn Fn(&mut Value), tokenizer: &dyn Fn(&mut Value)| {
        let folder = tempfile::tempdir().unwrap();
        architecture(name, folder.path());
        change_config(folder.path(), config);
        write_tokenizer(folder.path(), tokenizer);
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let error = export(folder.path(), &tokenizer, None, Encoding::F16).err().unwrap();
        assert!(matches!(error, ModelError::NotInGguf { .. }), "{error}");
        assert!(!folder.path().join("model.gguf.part").exists(), "{error}");
        error.to_string()
    };
    let (same, keep) = (|_: &mut Value| {}, |_: &mut Value| {});
    let error = refused("llama-yarn", &same, &keep);
    assert!(error.contains("the ramp of yarn = 8 and 1"), "{error}");
    let error = refused("llama-yarn-untruncated", &same, &keep);
    assert!(error.contains("the ramp of yarn = 8 and 2, truncated false"), "{error}");
    let error = refused("gemma2", &|config| config["query_pre_attn_scalar"] = json!(7), &keep);
    assert!(error.contains("the scale of attention"), "{error}");
    let error = refused("gemma2", &|config| config["attn_logit_softcapping"] = Value::Null, &keep);
    assert!(error.contains("a soft cap = null"), "{error}");
    let vocabulary = |change: &dyn Fn(&mut Value)| refused("llama-biases", &same, change);
    let error = vocabulary(&|tokenizer| tokenizer["model"]["byte_fallback"] = json!(true));
    assert!(error.contains("normalizer = null") && error.contains("merged-safetensors"), "{error}");
    let error = vocabulary(&|tokenizer| tokenizer["pre_tokenizer"] = json!({"type": "Whitespace"}));
    assert!(error.contains("pre_tokenizer") && error.contains("smollm"), "{error}");
    let error = vocabulary(&|tokenizer| tokenizer["normalizer"] = json!({"type": "Lowercase"}));
    assert!(error.contains("normalizer"), "{error}");
    let error = vocabulary(&|tokenizer| tokenizer["added_tokens"][1]["rstrip"] = json!(true));
    assert!(error.contains("added token"), "{error}");
    let error = vocabulary(&|tokenizer| tokenizer["model"]["vocab"]["zz"] = json!(61));
    assert!(error.contains("\"zz\"") && error.contains("fewer rows"), "{error}");
}

#[test]
fn an_adapter_of_another_model_and_a_truncated_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = architecture("qwen3", folder.path());
    let other = Decoder::load(&repository("tests/parity/goldens/architectures/phi3")).unwrap();
    let error = export(folder.path(), &tokenizer, Some(&adapter(&other)), Encoding::F16).err().unwrap();
    assert!(matches!(error, ModelError::AdapterMismatch { .. }), "{error}");
    export(folder.path(), &tokenizer, None, Encoding::Q8_0).unwrap();
    let path = folder.path().join("model.gguf");
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 3, 40, bytes.len() / 2, bytes.len() - 64] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(matches!(GgufModel::open(&path), Err(ModelError::BadGguf { .. })), "{length}");
    }
}
