//! The model computes what `transformers` computes. Goldens: `tests/parity/make-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{compare_logits, goldens};
use serde::Deserialize;
use tunesmith_model::chat::encode_conversation;
use tunesmith_model::{Decoder, GenerationPrompt, Message, Role, Tokenizer, encode_prompt, peft};

fn compare(folder: &str, file: &str, adapter_folder_opt: Option<&str>) {
    let model = Decoder::load(&goldens(folder)).unwrap();
    let adapter = adapter_folder_opt.map(|folder| peft::load(&goldens(folder), model.config()).unwrap());
    compare_logits(&model, adapter.as_ref(), &goldens(folder).join(file));
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
