//! A tiny random Llama with a tokenizer of single bytes, written as a model folder.

use std::{collections::HashMap, fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, json};
use tempfile::TempDir;
use tunesmith_model::{Adapter, AdapterConfig, Decoder, peft, rng::Rng};
use tunesmith_serving::{Engine, Limits, ServedModel};

pub const CONTEXT: usize = 200;
const HIDDEN: usize = 32;
const INNER: usize = 48;
const SPECIAL: [&str; 4] = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"];
const VOCABULARY: usize = 256 + SPECIAL.len();
const TEMPLATE: &str = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// Folder `base` with the model, folder `adapter` with a LoRA adapter that changes its answers.
pub fn folder() -> TempDir {
    folder_with(AdapterConfig::lora(4, 8.0))
}

/// The same with an adapter of another method.
pub fn folder_with(config: AdapterConfig) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    fs::create_dir(&base).unwrap();
    write_config(&base);
    write_tokenizer(&base);
    write_weights(&base);
    let llama = Decoder::load(&base).unwrap();
    let mut adapter = Adapter::new(config, &llama, 1).unwrap();
    let mut rng = Rng::new(9, 0);
    adapter.update(|_, values| values.iter_mut().for_each(|v| *v = (rng.uniform() - 0.5) * 0.5)).unwrap();
    peft::save(&adapter, &folder.path().join("adapter"), "tiny").unwrap();
    folder
}

pub fn model(folder: &TempDir) -> ServedModel {
    let adapter = folder.path().join("adapter");
    ServedModel::load("tiny", &folder.path().join("base"), Some(&adapter)).unwrap()
}

pub fn engine(folder: &TempDir) -> Engine {
    Engine::start(model(folder), Limits { queue: 2, default_tokens: 24, max_tokens: 2000 }).unwrap()
}

fn write_config(base: &Path) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "hidden_act": "silu", "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": null, "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true, "eos_token_id": 0
    });
    fs::write(base.join("config.json"), config.to_string()).unwrap();
}

/// GPT-2's spelling of bytes: the printable ones as they are, the others from U+0100 on.
fn spellings() -> Vec<char> {
    let mut next = 256;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap()
            }
        })
        .collect()
}

fn write_tokenizer(base: &Path) {
    let mut vocabulary: Map<_, _> = SPECIAL.iter().enumerate().map(|(i, s)| ((*s).to_owned(), json!(i))).collect();
    vocabulary.extend(spellings().into_iter().enumerate().map(|(i, c)| (c.to_string(), json!(i + SPECIAL.len()))));
    let added: Vec<_> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false})
        })
        .collect();
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []}
    });
    fs::write(base.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let settings = json!({"eos_token": "<|end|>", "chat_template": TEMPLATE});
    fs::write(base.join("tokenizer_config.json"), settings.to_string()).unwrap();
}

fn write_weights(base: &Path) {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![16, HIDDEN]),
            ("self_attn.v_proj", vec![16, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let mut rng = Rng::new(3, 0);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            // norms around 1; the embedding large, so that the head has clear favourites
            let (middle, width) = match (shape.len(), name.contains("embed")) {
                (1, _) => (1.0, 0.2),
                (_, true) => (0.0, 2.0),
                _ => (0.0, 0.6),
            };
            let values =
                (0..shape.iter().product()).flat_map(|_| (middle + (rng.uniform() - 0.5) * width).to_le_bytes());
            let values = values.collect();
            (name, shape, values)
        })
        .collect();
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()))
        .collect();
    fs::write(base.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}
