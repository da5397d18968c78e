//! What the engine generates.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use tunesmith_contract::documents::{Message, Role};
use tunesmith_model::{
    AdaLoraConfig, AdapterConfig, Decoder, Ia3Config, LoraConfig, Method, Module, Tokenizer, encode_prompt, peft,
};
use tunesmith_serving::{
    Engine, Limits, ServedModel,
    engine::{EngineError, Piece, Pieces, Prompt},
    openai::{FinishReason, Options, Usage, Weights},
};

fn greedy(max_tokens: u32) -> Options {
    Options { temperature: 0.0, max_tokens: Some(max_tokens), ..Options::default() }
}

fn user(text: &str) -> [Message; 1] {
    [Message { role: Role::User, content: text.into() }]
}

async fn collect(mut pieces: Pieces) -> (Vec<String>, FinishReason, Usage) {
    let mut texts = Vec::new();
    while let Some(piece) = pieces.recv().await {
        match piece.unwrap() {
            Piece::Text(text) => texts.push(text),
            Piece::Done { finish, usage } => return (texts, finish, usage),
        }
    }
    panic!("no end");
}

async fn text(engine: &Engine, prompt: &str, options: Options, weights: Weights) -> (String, FinishReason, Usage) {
    let (texts, finish, usage) = collect(engine.generate(Prompt::Text(prompt), options, weights, 1).unwrap()).await;
    (texts.concat(), finish, usage)
}

/// Token by token without a cache: the whole text through the model each time, and the largest logit.
fn by_full_forward(folder: &Path, prompt: &str, tokens: usize, tuned: bool) -> String {
    let base = folder.join("base");
    let (llama, tokenizer) = (Decoder::load(&base).unwrap(), Tokenizer::load(&base).unwrap());
    let adapter = tuned.then(|| peft::load(&folder.join("adapter"), llama.config()).unwrap());
    let mut ids = tokenizer.encode(prompt).unwrap();
    let start = ids.len();
    while ids.len() < start + tokens {
        let logits = llama.logits(&ids, adapter.as_ref()).unwrap().to_vec2::<f32>().unwrap().pop().unwrap();
        let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        if tokenizer.terminators().contains(&(best as u32)) {
            break;
        }
        ids.push(best as u32);
    }
    tokenizer.decode(&ids[start..]).unwrap()
}

#[tokio::test]
async fn greedy_answers_equal_the_full_forward_for_base_and_tuned() {
    let folder = common::folder();
    let engine = common::engine(&folder);
    let mut answers = Vec::new();
    for (weights, tuned) in [(Weights::Tuned, true), (Weights::Base, false)] {
        for prompt in ["hello", "x", "Größe?"] {
            let (answer, _, usage) = text(&engine, prompt, greedy(40), weights).await;
            assert_eq!(answer, by_full_forward(folder.path(), prompt, 40, tuned), "{prompt}");
            assert_eq!(usage.prompt_tokens, prompt.len() as u64, "the tokenizer has one token a byte");
            answers.push(answer);
        }
    }
    assert_ne!(answers[..3], answers[3..], "the adapter changes nothing");
}

#[tokio::test]
async fn adapters_of_every_method_are_served_as_the_full_forward_has_them() {
    let dora = Method::Lora(LoraConfig { rank: 4, alpha: 8.0, use_dora: true, use_rslora: true });
    let feedforward = Method::Ia3(Ia3Config { feedforward_modules: vec![Module::Down] });
    for method in [dora, Method::AdaLora(AdaLoraConfig::for_steps(10)), feedforward] {
        let config = AdapterConfig { method, ..AdapterConfig::default() };
        let folder = common::folder_with(config.clone());
        let (answer, ..) = text(&common::engine(&folder), "hello", greedy(20), Weights::Tuned).await;
        assert_eq!(answer, by_full_forward(folder.path(), "hello", 20, true), "{config:?}");
        assert_ne!(answer, by_full_forward(folder.path(), "hello", 20, false), "{config:?} changes nothing");
    }
}

#[tokio::test]
async fn a_seed_repeats_an_answer() {
    let folder = common::folder();
    let engine = common::engine(&folder);
    let hot = |seed| Options { seed: Some(seed), max_tokens: Some(30), temperature: 1.5, ..Options::default() };
    let first = text(&engine, "a", hot(5), Weights::Tuned).await;
    assert_eq!(first, text(&engine, "a", hot(5), Weights::Tuned).await);
    assert_ne!(first.0, text(&engine, "a", hot(6), Weights::Tuned).await.0);
}

#[tokio::test]
async fn answers_end_at_their_limit_or_before_a_stop_text() {
    let folder = common::folder();
    let engine = common::engine(&folder);
    let (whole, finish, usage) = text(&engine, "hello", greedy(30), Weights::Tuned).await;
    assert_eq!((finish, usage), (FinishReason::Length, Usage::new(5, 30)));
    let characters: Vec<char> = whole.chars().collect();
    // a stop text of two characters in the middle of the answer: it lies across the border between two tokens
    let stop: String = characters[characters.len() / 2..][..2].iter().collect();
    let before = whole.split(&stop).next().unwrap();
    let options = Options { stop: vec!["not there".into(), stop.clone()], ..greedy(30) };
    let (stopped, finish, usage) = text(&engine, "hello", options, Weights::Tuned).await;
    assert_eq!((stopped.as_str(), finish), (before, FinishReason::Stop));
    assert!(usage.completion_tokens < 30);
    // the context ends an answer too
    let prompt = "y".repeat(common::CONTEXT * 3 / 4);
    let (_, finish, usage) = text(&engine, &prompt, greedy(2000), Weights::Tuned).await;
    assert_eq!((finish, usage.total_tokens), (FinishReason::Length, common::CONTEXT as u64));
}

#[tokio::test]
async fn no_piece_holds_half_a_character() {
    let folder = common::folder();
    let engine = common::engine(&folder);
    // any byte after any other: mostly invalid UTF-8, which only ever shows as whole replacement characters
    let options = Options { temperature: 2.0, seed: Some(1), max_tokens: Some(150), ..Options::default() };
    let (texts, _, _) = collect(engine.generate(Prompt::Text("a"), options, Weights::Base, 0).unwrap()).await;
    assert!(texts.iter().all(|text| !text.is_empty()));
}

#[tokio::test]
async fn prompts_that_do_not_fit_are_refused_with_the_counts() {
    let folder = common::folder();
    let engine = common::engine(&folder);
    let long = "y".repeat(common::CONTEXT);
    let refused = engine.generate(Prompt::Text(&long), greedy(10), Weights::Tuned, 0).unwrap_err();
    assert!(matches!(refused, EngineError::TooLong { tokens: 200, limit: 190 }), "{refused}");
    let api = engine.generate(Prompt::Text(&long), greedy(500), Weights::Tuned, 0).unwrap_err().to_api("prompt");
    assert_eq!((api.status, api.body.code.as_deref()), (400, Some("context_length_exceeded")));
    assert_eq!(api.body.context.unwrap().limit, 150);
    assert!(engine.logits(vec![9999], Weights::Tuned).await.is_err());
    assert!(engine.logits(vec![], Weights::Tuned).await.is_err());
}

#[tokio::test]
async fn logits_are_those_of_the_model() {
    let folder = common::folder();
    let engine = common::engine(&folder);
    let base = folder.path().join("base");
    let llama = Decoder::load(&base).unwrap();
    let adapter = peft::load(&folder.path().join("adapter"), llama.config()).unwrap();
    for (weights, adapter) in [(Weights::Tuned, Some(&adapter)), (Weights::Base, None)] {
        let expected = llama.advance(&mut llama.new_cache(), &[7, 8, 9], adapter).unwrap();
        assert_eq!(engine.logits(vec![7, 8, 9], weights).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_dropped_answer_frees_it() {
    let folder = common::folder();
    // the worker waits for nobody: only an answer that never ends within the test keeps the queue full
    let engine =
        Engine::start(common::model(&folder), Limits { queue: 1, default_tokens: 8, max_tokens: 2000 }).unwrap();
    let ask = || engine.generate(Prompt::Text("hello"), greedy(190), Weights::Tuned, 0);
    let mut held = Vec::new();
    let mut refused = None;
    for _ in 0..1000 {
        match ask() {
            Ok(pieces) => held.push(pieces),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let refused = refused.expect("a thousand requests found room in a queue of one");
    assert!(matches!(refused, EngineError::Busy(1)));
    assert_eq!(refused.to_api("messages").status, 503);
    held.clear();
    // whoever went away is passed over; the next request gets its answer
    let pieces = loop {
        match ask() {
            Ok(pieces) => break pieces,
            Err(EngineError::Busy(_)) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(collect(pieces).await.2.completion_tokens, 190);
}

#[test]
fn a_tokenizer_and_an_adapter_of_another_model_are_refused() {
    let folder = common::folder();
    let base = folder.path().join("base");
    let refused = |wanted: &str| {
        let error = ServedModel::load("tiny", &base, Some(&folder.path().join("adapter"))).err().unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    // another token ends a text than config.json says
    let path = base.join("tokenizer_config.json");
    let right = std::fs::read(&path).unwrap();
    let mut settings: serde_json::Value = serde_json::from_slice(&right).unwrap();
    settings["eos_token"] = "<|user|>".into();
    std::fs::write(&path, settings.to_string()).unwrap();
    refused("use the tokenizer files that came with the base model");
    std::fs::write(&path, right).unwrap();
    common::model(&folder);
    // the same shapes with other values
    let weights = base.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let at = {
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = tensors.tensor("model.layers.1.mlp.up_proj.weight").unwrap();
        view.data().as_ptr() as usize - bytes.as_ptr() as usize
    };
    bytes[at..at + 4].copy_from_slice(&0.25f32.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    refused("load the base model that adapter_config.json names (\"tiny\")");
}

/// The embedded base model (`trainer-image/base-model`), as the demo serves it.
#[tokio::test]
async fn the_embedded_model_ends_its_answers() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../trainer-image/base-model");
    let tokenizer = Tokenizer::load(&base).unwrap();
    let engine = Engine::start(ServedModel::load("mini", &base, None).unwrap(), Limits::default()).unwrap();
    for question in ["Hello!", "Who are you?", "Thank you."] {
        let pieces = engine.generate(Prompt::Chat(&user(question)), greedy(200), Weights::Tuned, 0).unwrap();
        let (texts, finish, usage) = collect(pieces).await;
        let answer = texts.concat();
        println!("{question} -> {answer} ({usage:?})");
        assert_eq!(finish, FinishReason::Stop, "{question}: {answer}");
        assert!(!answer.contains("<|"), "{answer}");
        let turn = tunesmith_model::Message::new("user", question);
        assert_eq!(usage.prompt_tokens, encode_prompt(&tokenizer, &[turn]).unwrap().len() as u64);
    }
}
