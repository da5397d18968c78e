//! Conversations: the model's own Jinja template; [`mask`] says which tokens of a rendered conversation the loss counts.
//!
//! The template runs as in `transformers` (`apply_chat_template`: `trim_blocks`, `lstrip_blocks`, loop controls,
//! `raise_exception`, `tojson`, Python string methods, `{% generation %}` blocks).

pub mod mask;

use std::sync::Arc;

use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};
use crate::tokenizer::Tokenizer;
pub use mask::{MaskedTokens, encode_conversation};

/// Who speaks, as far as [`mask`] must tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// What a tool gave back.
    Tool,
}

impl Role {
    /// As templates name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// One of [`Role`], as far as the template knows them.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn.
    #[must_use]
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned() }
    }
}

/// Whether the rendered text ends with the header of an answer that is to be generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// For inference.
    Add,
    /// For complete conversations.
    Leave,
}

/// A parsed chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    bos: String,
    eos: String,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Parses `source`; `bos` and `eos` are what `bos_token` and `eos_token` stand for in it.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(failed)?;
        Ok(Self { environment: Arc::new(environment), bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The conversation as text, special tokens spelled out.
    pub fn render(&self, messages: &[Message], prompt: GenerationPrompt) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let rendered = template.render(context! {
            messages => messages,
            add_generation_prompt => prompt == GenerationPrompt::Add,
            bos_token => self.bos,
            eos_token => self.eos,
        });
        rendered.map_err(failed)
    }
}

/// Tokens of a prompt that ends where the assistant's answer begins.
pub fn encode_prompt(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
    let text = tokenizer.chat_template()?.render(messages, GenerationPrompt::Add)?;
    tokenizer.encode_rendered(&text)
}

fn failed(error: Error) -> ModelError {
    ModelError::ChatTemplate { reason: format!("{error:#}") }
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `json.dumps` as Python writes it, which differs from minijinja's filter: `", "` and `": "`, nothing escaped for HTML.
fn to_json(value: &Value, _positional: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    if let Some(width) = indent {
        let spaces = vec![b' '; width];
        let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
    } else {
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter)).map_err(failed)?;
    }
    String::from_utf8(out).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The template for engines other than that of `transformers`: `generation` only marks answers for its own mask. A condition that
/// is always true keeps the white space handling of the tag.
pub(crate) fn without_generation_tags(source: &str) -> String {
    rename_tag(&rename_tag(source, "endgeneration", "endif"), "generation", "if true")
}

/// Replaces the word of a `{% word %}` tag, with any of the white space controls.
fn rename_tag(source: &str, from: &str, to: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (inside, after) = tag.split_at(end);
        if inside.trim_matches(['-', '+']).trim() == from {
            out.push_str(&inside.replacen(from, to, 1));
        } else {
            out.push_str(inside);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{%- for message in messages %}\n{{- '<|im_start|>' + message.role + '\\n' + message.content.strip() }}\n\
        {%- if message.role == 'assistant' %}{% generation %}{{ '!' }}{% endgeneration %}{%- endif %}\n\
        {{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

    #[test]
    fn renders_with_python_methods_and_generation_tags() {
        let template = ChatTemplate::new(CHATML, "", "").unwrap();
        let messages = [Message::new("user", "  hi "), Message::new("assistant", "yo")];
        let text = template.render(&messages, GenerationPrompt::Leave).unwrap();
        assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo!<|im_end|>\n");
        let prompt = template.render(&messages[..1], GenerationPrompt::Add).unwrap();
        assert_eq!(prompt, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let template = ChatTemplate::new("{{ messages[0] | tojson }}", "", "").unwrap();
        let text = template.render(&[Message::new("user", "a < \"b\" é")], GenerationPrompt::Leave).unwrap();
        assert_eq!(text, r#"{"role": "user", "content": "a < \"b\" é"}"#);
    }

    #[test]
    fn the_templates_own_refusal_reaches_the_reader() {
        let template = ChatTemplate::new("{{ raise_exception('roles must alternate') }}", "", "").unwrap();
        let error = template.render(&[], GenerationPrompt::Add).unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
        assert!(matches!(ChatTemplate::new("{% if %}", "", ""), Err(ModelError::ChatTemplate { .. })));
    }
}
