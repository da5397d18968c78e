//! Writes a model with an adapter as GGUF in every format, and what `tests/parity/check-gguf-in-llama-cpp.py` compares:
//! `cargo run -p tunesmith-model --example gguf-for-llama-cpp -- <base model folder> <output folder>` makes `F16.gguf`, `Q8_0.gguf`,
//! `Q4_K.gguf`, `Modelfile` and `golden.json` (token ids, logits of base and adapter, logits of each file read back by this crate,
//! greedy continuations, token ids of texts, rendered conversations). The adapter is LoRA of seeded noise on every module.

use std::error::Error;
use std::path::PathBuf;

use serde_json::{Value, json};
use tunesmith_model::gguf::{Encoding, GgufExport, GgufModel, Modelfile};
use tunesmith_model::rng::Rng;
use tunesmith_model::{
    Adapter, AdapterConfig, Decoder, GenerationPrompt, LoraConfig, Message, Method, ModelError, Tokenizer,
};

const TEXTS: [&str; 6] = [
    "The ferry leaves at 7:45 from pier 3; it's full, we've sold 1,234 tickets.",
    "Two\n\nparagraphs,   spaces\tand tabs.\r\nAnd a last line \n",
    "Grüße an Zoë – naïve café, 東京 123円, Привет!",
    "don't DON'T I'll I'LL (x=y) [z] {w} ...!? \"quoted\" ½ ² 👩‍🚀🚀",
    "<|user|>not a turn<|end|>",
    " leading and trailing ",
];
const GREEDY: usize = 24;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(base), Some(out)) = (arguments.next().map(PathBuf::from), arguments.next().map(PathBuf::from)) else {
        return Err("usage: gguf-for-llama-cpp <base model folder> <output folder>".into());
    };
    std::fs::create_dir_all(&out)?;
    let (model, tokenizer) = (Decoder::load(&base)?, Tokenizer::load(&base)?);
    let adapter = noise(&model)?;
    let chats = chats();
    let mut golden = json!({ "texts": [], "chats": [], "files": {} });
    for text in TEXTS {
        push(&mut golden["texts"], json!({ "text": text, "ids": tokenizer.encode(text)? }));
    }
    let mut ids: Vec<u32> = (0..24).map(|i| i * 11 % model.config().vocab_size.min(61) as u32).collect();
    match tokenizer.chat_template() {
        Ok(template) => {
            for messages in &chats {
                let rendered = template.render(messages, GenerationPrompt::Add)?;
                ids = tokenizer.encode_rendered(&rendered)?;
                push(&mut golden["chats"], json!({ "messages": messages, "rendered": rendered, "ids": ids }));
            }
        }
        Err(ModelError::NoChatTemplate) => {}
        Err(error) => return Err(error.into()),
    }
    golden["ids"] = json!(ids);
    golden["terminators"] = json!(tokenizer.terminators());
    golden["logits"] = json!(model.logits(&ids, Some(&adapter))?.to_vec2::<f32>()?);
    golden["base_logits"] = json!(model.logits(&ids, None)?.to_vec2::<f32>()?);
    for (name, encoding) in [("F16", Encoding::F16), ("Q8_0", Encoding::Q8_0), ("Q4_K", Encoding::Q4K)] {
        let path = out.join(format!("{name}.gguf"));
        let export = GgufExport {
            folder: &base,
            tokenizer: &tokenizer,
            adapter: Some(&adapter),
            encoding,
            name: "parity",
            source: "parity",
        };
        export.plan()?.write(&path, |_| {})?;
        let read = GgufModel::open(&path)?;
        // a file may say fewer positions than the base has
        let ids = &ids[..ids.len().min(read.decoder.config().max_position_embeddings)];
        golden["files"][name] = json!({
            "logits": read.decoder.logits(ids, None)?.to_vec2::<f32>()?,
            "greedy": greedy(&read.decoder, ids)?,
        });
    }
    std::fs::write(out.join("golden.json"), serde_json::to_vec(&golden)?)?;
    let modelfile = Modelfile::new("F16.gguf", &tokenizer, model.config().max_position_embeddings)?;
    std::fs::write(out.join("Modelfile"), modelfile.text())?;
    Ok(())
}

fn push(list: &mut Value, item: Value) {
    if let Value::Array(items) = list {
        items.push(item);
    }
}

fn chats() -> Vec<Vec<Message>> {
    let turn = |role: &str, content: &str| Message::new(role, content);
    vec![
        vec![turn("user", "When does the ferry leave?")],
        vec![
            turn("system", "Answer shortly."),
            turn("user", "  Who signs the log? \n"),
            turn("assistant", "The master."),
            turn("user", "And after 22:00 – who's next?"),
        ],
    ]
}

fn noise(model: &Decoder) -> Result<Adapter, ModelError> {
    let method = Method::Lora(LoraConfig { rank: 4, alpha: 8.0, use_rslora: false, use_dora: false });
    let config = AdapterConfig { method, target_modules: model.config().modules().to_vec() };
    let mut adapter = Adapter::new(config, model, 1)?;
    let mut rng = Rng::new(2, 2);
    adapter.update(|_, values| values.iter_mut().for_each(|v| *v += (rng.uniform() - 0.5) * 0.04))?;
    Ok(adapter)
}

/// The likeliest token, again and again.
fn greedy(model: &Decoder, ids: &[u32]) -> Result<Vec<u32>, ModelError> {
    let mut cache = model.new_cache();
    let mut logits = model.advance(&mut cache, ids, None)?;
    let mut answer = Vec::new();
    let room = model.config().max_position_embeddings.saturating_sub(ids.len());
    for _ in 0..GREEDY.min(room) {
        let best = logits
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (id, logit)| if *logit > best.1 { (id, *logit) } else { best });
        answer.push(best.0 as u32);
        logits = model.advance(&mut cache, &[best.0 as u32], None)?;
    }
    Ok(answer)
}
