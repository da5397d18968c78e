//! The model computes what `transformers` computes. Goldens: `tests/parity/make-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use safetensors::SafeTensors;
use serde::Deserialize;
use tunesmith_model::chat::encode_conversation;
use tunesmith_model::{Decoder, GenerationPrompt, Message, Role, Tokenizer, encode_prompt, peft};

fn goldens(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens").join(path)
}

/// Logits of three sequences; the largest absolute difference must stay below 1e-4.
fn compare(folder: &str, file: &str, adapter_folder_opt: Option<&str>) {
    let model = Decoder::load(&goldens(folder)).unwrap();
    let adapter = adapter_folder_opt.map(|folder| peft::load(&goldens(folder), model.config()).unwrap());
    let bytes = std::fs::read(goldens(folder).join(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: String| -> Vec<f32> {
        let data = tensors.tensor(&name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    for index in 0..3 {
        let ids: Vec<u32> = read(format!("ids.{index}")).into_iter().map(|id| id as u32).collect();
        let wanted = read(format!("logits.{index}"));
        let got = model.logits(&ids, adapter.as_ref()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let largest = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        let spread = wanted.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert_eq!(got.len(), wanted.len());
        assert!(spread > 1.0, "a golden of near-zero logits proves nothing");
        println!("{folder}/{file} sequence {index}: largest difference {largest:e}, largest logit {spread}");
        assert!(largest <= 1e-4, "{folder} sequence {index}: {largest}");

        // the same through the cache, prompt and single tokens
        let mut cache = model.new_cache();
        let cut = ids.len().div_ceil(2);
        let mut last = model.advance(&mut cache, &ids[..cut], adapter.as_ref()).unwrap();
        for id in &ids[cut..] {
            last = model.advance(&mut cache, &[*id], adapter.as_ref()).unwrap();
        }
        let wanted = &wanted[wanted.len() - last.len()..];
        let largest = last.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        assert!(largest <= 1e-4, "{folder} sequence {index} through the cache: {largest}");
    }
}

#[test]
fn logits_equal_transformers_with_grouped_heads_and_tied_head() {
    compare("gqa-tied", "logits.safetensors", None);
}

#[test]
fn logits_equal_transformers_with_llama3_scaling_and_untied_head() {
    compare("llama3-untied", "logits.safetensors", None);
}

#[test]
fn logits_equal_transformers_with_linear_scaling_in_f16_shards() {
    compare("linear-f16-sharded", "logits.safetensors", None);
}

#[test]
fn logits_of_adapters_that_peft_wrote_equal_peft() {
    compare("gqa-tied", "train/adapted.safetensors", Some("gqa-tied/train/final"));
    compare("llama3-untied", "train/adapted.safetensors", Some("llama3-untied/train/final"));
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    #[serde(default)]
    refused: Option<String>,
    #[serde(default)]
    text: String,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    ids: Vec<u32>,
    #[serde(default)]
    mask: Vec<u8>,
}

#[test]
fn chat_rendering_tokens_and_masks_equal_transformers() {
    for name in ["marked", "blocks"] {
        let folder = goldens("chat").join(name);
        let tokenizer = Tokenizer::load(&folder).unwrap();
        let template = tokenizer.chat_template().unwrap();
        let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        for case in cases {
            let rendered = template.render(&case.messages, GenerationPrompt::Leave);
            if let Some(reason) = case.refused {
                let error = rendered.unwrap_err().to_string();
                assert!(error.contains(&reason), "{error}");
                continue;
            }
            assert_eq!(rendered.unwrap(), case.text);
            assert_eq!(template.render(&case.messages[..1], GenerationPrompt::Add).unwrap(), case.prompt);
            let tokens = encode_conversation(&tokenizer, &case.messages, &[Role::Assistant]).unwrap();
            assert_eq!(tokens.ids, case.ids, "{name}: {:?}", case.text);
            let wanted: Vec<bool> = case.mask.iter().map(|mask| *mask == 1).collect();
            assert_eq!(tokens.counted, wanted, "{name}: {:?}", case.text);
            let prompt = encode_prompt(&tokenizer, &case.messages[..1]).unwrap();
            assert!(case.messages.len() == 1 || case.messages[0].role == "system" || case.ids.starts_with(&prompt));
        }
    }
}

#[test]
fn the_turn_terminator_is_inside_the_loss() {
    let tokenizer = Tokenizer::load(&goldens("chat/marked")).unwrap();
    let messages = [
        Message::new("user", "hi"),
        Message::new("assistant", "a"),
        Message::new("user", "more"),
        Message::new("assistant", "b"),
    ];
    let tokens = encode_conversation(&tokenizer, &messages, &[Role::Assistant]).unwrap();
    let end = tokenizer.eos().unwrap();
    let counted: Vec<u32> =
        tokens.ids.iter().zip(&tokens.counted).filter(|(_, counted)| **counted).map(|(id, _)| *id).collect();
    assert_eq!(counted.iter().filter(|id| **id == end).count(), 2, "one terminator per answer");
    assert_eq!(tokens.ids.iter().filter(|id| **id == end).count(), 4, "those of the user do not count");
    assert_eq!(tokenizer.decode(&counted).unwrap(), "ab");
}

#[test]
fn a_stream_never_shows_half_a_character() {
    let tokenizer = Tokenizer::load(&goldens("chat/marked")).unwrap();
    let text = "Grüße – 東京 👋 end";
    let mut stream = tokenizer.stream();
    let mut shown = String::new();
    for id in tokenizer.encode(text).unwrap() {
        let piece = stream.push(id).unwrap();
        assert!(!piece.contains('\u{FFFD}'));
        shown += &piece;
    }
    shown += &stream.finish().unwrap();
    assert_eq!(shown, text);
}
