//! Whether an exported model is the trained one: it answers the same, stops at the same tokens, reads texts and writes
//! conversations the same (gibberish after an export has always one of these causes: Unsloth #3899, #211).

use std::sync::Arc;

use tunesmith_contract::{documents, job::ExportFormat};
use tunesmith_model::{Adapter, Decoder, GenerationPrompt, Message, ModelError, Tokenizer, gguf::Modelfile};
use tunesmith_training::{
    Tokenisation,
    fidelity::{Carrying, Fidelity, compare},
};

use crate::{
    base::Base,
    error::{Result, TrainerError},
    examples::{Split, turns},
};

/// An export, read again.
pub struct Exported {
    /// Its weights.
    pub model: Arc<Decoder>,
    /// Its adapter, in the form that has one.
    pub adapter: Option<Adapter>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The `Modelfile` beside it, made from that tokenizer.
    pub modelfile: Option<Modelfile>,
}

/// What people write for the form.
#[must_use]
pub fn name(format: ExportFormat) -> &'static str {
    match format {
        ExportFormat::PeftAdapter => "peft-adapter",
        ExportFormat::MergedSafetensors => "merged-safetensors",
        ExportFormat::GgufF16 => "gguf-f16",
        ExportFormat::GgufQ8_0 => "gguf-q8_0",
        ExportFormat::GgufQ4K => "gguf-q4_k",
    }
}

/// Largest mean divergence in nats per token that each form explains.
///
/// An adapter is a copy. Rounding a weight to 16 bits moves a logit by about 2⁻⁹ of itself (bf16) or less, and the divergence with
/// its square. llama.cpp reports 0.0004 to 0.0014 for Q8_0 and 0.013 to 0.031 for Q4_K_M on Llama 2 7B and Llama 3 8B
/// (`tools/perplexity/README.md`); small models lose more, so about four times the larger figure is allowed. A wrong
/// order of rows, a wrong scale or a forgotten adapter gives 0.5 and more.
#[must_use]
pub fn limit(format: ExportFormat) -> f64 {
    match format {
        ExportFormat::PeftAdapter => 0.0,
        ExportFormat::MergedSafetensors | ExportFormat::GgufF16 => 1e-3,
        ExportFormat::GgufQ8_0 => 5e-3,
        ExportFormat::GgufQ4K => 0.12,
    }
}

/// Compares the exported with the trained model on these lines of a dataset, cut to `length` tokens.
///
/// # Errors
/// What differs first: [`TrainerError::ExportStops`], [`TrainerError::ExportReads`], [`TrainerError::ExportDiverges`].
pub fn check(
    format: ExportFormat,
    base: &Base,
    adapter: &Adapter,
    exported: &Exported,
    lines: &[documents::Example],
    length: usize,
) -> Result<Fidelity> {
    stops(format, &base.tokenizer, &exported.tokenizer)?;
    reads(format, &base.tokenizer, exported, lines)?;
    // a GGUF file may say fewer positions than the base has
    let positions = [base.model.config(), exported.model.config()].map(|config| config.max_position_embeddings);
    let how = Tokenisation::of_length(positions.into_iter().fold(length, usize::min));
    let split = Split::prepare(&base.tokenizer, lines, &how);
    split.left_out.warn("test");
    let dataset = split.dataset(&base.tokenizer, &how)?;
    let trained = Carrying { model: &base.model, adapter: Some(adapter) };
    let fidelity = compare(trained, Carrying { model: &exported.model, adapter: exported.adapter.as_ref() }, &dataset)?;
    // not `>`: a NaN must not pass
    if fidelity.mean_kl <= limit(format) {
        return Ok(fidelity);
    }
    let (found, limit, tokens) = (fidelity.mean_kl, limit(format), fidelity.tokens);
    Err(TrainerError::ExportDiverges { format: name(format), found, limit, tokens })
}

fn stops(format: ExportFormat, trained: &Tokenizer, exported: &Tokenizer) -> Result<()> {
    if trained.terminators() == exported.terminators() && trained.eos() == exported.eos() {
        return Ok(());
    }
    let (trained, exported) = (ends(trained), ends(exported));
    Err(TrainerError::ExportStops { format: name(format), trained, exported })
}

/// The token that ends a text, then all that end an answer.
fn ends(tokenizer: &Tokenizer) -> Vec<u32> {
    tokenizer.eos().into_iter().chain(tokenizer.terminators().iter().copied()).collect()
}

/// Every text has the same tokens, every conversation the same text and tokens.
fn reads(format: ExportFormat, trained: &Tokenizer, exported: &Exported, lines: &[documents::Example]) -> Result<()> {
    for (example, line) in lines.iter().enumerate() {
        let differs = |what, trained: String, exported: String| {
            let short = |text: String| text.chars().take(120).collect();
            let (trained, exported) = (short(trained), short(exported));
            Err(TrainerError::ExportReads { format: name(format), what, example, trained, exported })
        };
        match line {
            documents::Example::Text { text, .. } => {
                let (a, b) = (trained.encode(text)?, exported.tokenizer.encode(text)?);
                if a != b {
                    return differs("vocabulary", format!("{a:?}"), format!("{b:?}"));
                }
            }
            documents::Example::Chat { messages, .. } => {
                let messages = turns(messages);
                let Some(wanted) = rendered(trained, &messages)? else { continue };
                let found = rendered(&exported.tokenizer, &messages)?.unwrap_or_default();
                if found != wanted {
                    return differs("chat template", wanted, found);
                }
                let (a, b) = (trained.encode_rendered(&wanted)?, exported.tokenizer.encode_rendered(&found)?);
                if a != b {
                    return differs("vocabulary", format!("{a:?}"), format!("{b:?}"));
                }
                if let Some(modelfile) = &exported.modelfile
                    && let Some((wanted, found)) = by_ollama(trained, modelfile, &messages)?.filter(|(a, b)| a != b)
                {
                    return differs("Modelfile", wanted, found);
                }
            }
        }
    }
    Ok(())
}

/// `None` for a conversation that the template refuses: nobody was trained on it.
fn rendered(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Option<String>> {
    match tokenizer.chat_template().and_then(|template| template.render(messages, GenerationPrompt::Leave)) {
        Ok(text) => Ok(Some(text)),
        Err(ModelError::ChatTemplate { .. } | ModelError::NoChatTemplate) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A conversation as the trained model's template and as the `Modelfile` write it; contents without white space around them, which
/// a template may take away and Ollama leaves.
fn by_ollama(trained: &Tokenizer, modelfile: &Modelfile, messages: &[Message]) -> Result<Option<(String, String)>> {
    // Ollama's template has no place for the turns of tools and leaves them out
    if messages.iter().any(|message| !["system", "user", "assistant"].contains(&message.role.as_str())) {
        return Ok(None);
    }
    let trimmed: Vec<Message> = messages.iter().map(|m| Message::new(&m.role, m.content.trim())).collect();
    let wanted = rendered(trained, &trimmed)?;
    let found = modelfile.render(&trimmed, GenerationPrompt::Leave).unwrap_or_default();
    Ok(wanted.map(|wanted| (wanted, found)))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use safetensors::{Dtype, SafeTensors};
    use tunesmith_contract::{
        DocumentId,
        documents::{Message as Turn, Role},
    };
    use tunesmith_model::{AdapterConfig, rng::Rng};

    use super::*;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("base-model")
    }

    /// The embedded base model's tokenizer, changed.
    fn tokenizer(change: impl Fn(&mut serde_json::Value)) -> Arc<Tokenizer> {
        let (base, folder) = (folder(), tempfile::tempdir().unwrap());
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            let mut json = serde_json::from_str(&std::fs::read_to_string(base.join(name)).unwrap()).unwrap();
            change(&mut json);
            std::fs::write(folder.path().join(name), json.to_string()).unwrap();
        }
        Arc::new(Tokenizer::load(folder.path()).unwrap())
    }

    fn exported(tokenizer: Arc<Tokenizer>) -> Exported {
        let model = Arc::new(Decoder::load(&folder()).unwrap());
        let modelfile = Modelfile::new("model.gguf", &tokenizer, 64).ok();
        Exported { model, adapter: None, tokenizer, modelfile }
    }

    #[test]
    fn wrong_stop_wrong_template_and_wrong_vocabulary_are_found() {
        let trained = tokenizer(|_| {});
        let document = DocumentId::of(b"x");
        let turn = |role, content: &str| Turn { role, content: content.into() };
        let lines = [
            documents::Example::Text { text: "Room 12 is open.".into(), document: document.clone() },
            documents::Example::Chat {
                messages: vec![turn(Role::User, " Who? "), turn(Role::Assistant, "Zoë.")],
                document,
            },
        ];
        let format = ExportFormat::GgufQ8_0;
        let found = |exported: &Exported| {
            let error =
                stops(format, &trained, &exported.tokenizer).and_then(|()| reads(format, &trained, exported, &lines));
            error.err().map_or_else(String::new, |error| error.to_string())
        };
        assert_eq!(found(&exported(trained.clone())), "");
        let set = |key: &'static str, value: serde_json::Value| {
            found(&exported(tokenizer(|json| {
                if json.get(key).is_some() {
                    json[key] = value.clone();
                }
            })))
        };
        let stop = set("eos_token", "<|pad|>".into());
        assert!(stop.contains("stops at the tokens [2, 2], the trained model at [1, 1]"), "{stop}");
        let template = set("chat_template", "{% for m in messages %}{{ m['content'] }}{% endfor %}".into());
        assert!(template.contains("another chat template: example 1 is \" Who? Zoë.\""), "{template}");
        let digits = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let vocabulary = set("post_processor", digits);
        assert!(vocabulary.contains("another vocabulary: example 0"), "{vocabulary}");

        // everything as it was trained, but Ollama would be told another template
        let brackets = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}\
            {% if add_generation_prompt %}[assistant]{% endif %}";
        let other = tokenizer(|json| {
            if json.get("chat_template").is_some() {
                json["chat_template"] = brackets.into();
            }
        });
        let modelfile = Modelfile::new("model.gguf", &other, 64).unwrap();
        let with_tool = [Message::new("user", "Who?"), Message::new("tool", "Zoë.")];
        assert!(
            by_ollama(&trained, &modelfile, &with_tool).unwrap().is_none(),
            "nobody compares what Ollama leaves out"
        );
        let modelfile = Some(modelfile);
        let modelfile = found(&Exported { modelfile, ..exported(trained.clone()) });
        assert!(modelfile.contains("another Modelfile: example 1 is \"[user]Who?[assistant]Zoë.\""), "{modelfile}");
    }

    /// The embedded base model with one weight that is no number.
    fn broken() -> Decoder {
        let to = tempfile::tempdir().unwrap();
        std::fs::copy(folder().join("config.json"), to.path().join("config.json")).unwrap();
        let mut bytes = std::fs::read(folder().join("model.safetensors")).unwrap();
        let at = {
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let view = tensors.tensor("model.norm.weight").unwrap();
            assert_eq!(view.dtype(), Dtype::F16);
            view.data().as_ptr() as usize - bytes.as_ptr() as usize
        };
        bytes[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
        std::fs::write(to.path().join("model.safetensors"), bytes).unwrap();
        Decoder::load(to.path()).unwrap()
    }

    #[test]
    fn a_forgotten_adapter_and_a_weight_that_is_no_number_diverge() {
        let tokenizer = tokenizer(|_| {});
        let base = Base {
            name: "tunesmith-mini".parse().unwrap(),
            folder: folder(),
            model: Arc::new(Decoder::load(&folder()).unwrap()),
            tokenizer: tokenizer.clone(),
        };
        let mut trained = Adapter::new(AdapterConfig::lora(2, 4.0), &base.model, 1).unwrap();
        let mut rng = Rng::new(2, 2);
        trained.update(|_, values| values.iter_mut().for_each(|v| *v += (rng.uniform() - 0.5) * 0.2)).unwrap();
        let text = "Room 12 of the harbour office opens at 8 o'clock.".to_owned();
        let lines = [documents::Example::Text { text, document: DocumentId::of(b"x") }];
        let without = Exported { model: base.model.clone(), modelfile: None, ..exported(tokenizer.clone()) };
        let nan = Exported { model: Arc::new(broken()), modelfile: None, ..exported(tokenizer) };
        for format in [ExportFormat::GgufF16, ExportFormat::MergedSafetensors] {
            let diverged = |exported: &Exported| match check(format, &base, &trained, exported, &lines, 64) {
                Err(TrainerError::ExportDiverges { found, limit, tokens, .. }) if tokens > 5 => (found, limit),
                other => panic!("{other:?}"),
            };
            let (found, limit) = diverged(&without);
            assert!(found > limit, "{found} {limit}");
            assert!(diverged(&nan).0.is_nan());
        }
    }
}
