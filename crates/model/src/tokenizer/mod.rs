//! `tokenizer.json` with what surrounds it: special tokens, chat template, the tokens that end an answer.

mod belongs;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::chat::ChatTemplate;
use crate::config::token_ids;
use crate::error::{ModelError, Result};
pub use belongs::Foreign;

/// Text to tokens and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    bos_opt: Option<u32>,
    eos_opt: Option<u32>,
    terminators: BTreeSet<u32>,
    template_opt: Option<ChatTemplate>,
    named: Named,
}

/// What the files around `tokenizer.json` say about it.
#[derive(Default)]
struct Named {
    /// `bos_token` and `eos_token`, spelled.
    specials: [(&'static str, Option<String>); 2],
    /// `pad_token`, spelled.
    pad: Option<String>,
    /// Ends of texts by `config.json` and `generation_config.json`.
    eos_ids: BTreeSet<u32>,
}

/// Tokens of a text and the bytes of the text that each stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Byte range of each token; empty for tokens that stand for nothing in the text.
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and where they exist `tokenizer_config.json`, `chat_template.jinja`, `generation_config.json`
    /// and `config.json` of a model folder. Fails when no file names a token that ends a text: a model trained without one
    /// never stops.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let refused =
            |reason: tokenizers::Error| ModelError::Tokenizer { path: path.clone(), reason: reason.to_string() };
        let mut inner = tokenizers::Tokenizer::from_file(&path).map_err(refused)?;
        // a truncation or padding stored in the file would silently change texts
        inner.with_truncation(None).map_err(refused)?;
        inner.with_padding(None);
        let settings = optional_json(&folder.join("tokenizer_config.json"))?;
        let (bos, eos) = (special(&settings, "bos_token"), special(&settings, "eos_token"));
        let id = |token: &Option<String>| token.as_ref().and_then(|token| inner.token_to_id(token));
        let (bos_opt, mut eos_opt) = (id(&bos), id(&eos));
        let mut eos_ids = BTreeSet::new();
        for name in ["generation_config.json", "config.json"] {
            let ids = token_ids(optional_json(&folder.join(name))?.get("eos_token_id"));
            eos_opt = eos_opt.or(ids.first().copied());
            eos_ids.extend(ids);
        }
        let terminators: BTreeSet<u32> = id(&eos).into_iter().chain(eos_ids.iter().copied()).collect();
        let template_opt = match template_source(folder, &settings)? {
            Some(source) => {
                Some(ChatTemplate::new(&source, bos.as_deref().unwrap_or(""), eos.as_deref().unwrap_or(""))?)
            }
            None => None,
        };
        let pad = special(&settings, "pad_token");
        let named = Named { pad, specials: [("bos_token", bos), ("eos_token", eos)], eos_ids };
        let read = Self::from_parts(inner, &path, bos_opt, eos_opt, terminators, template_opt)?;
        Ok(Self { named, ..read })
    }

    /// From what another kind of file says.
    pub(crate) fn from_parts(
        inner: tokenizers::Tokenizer,
        path: &Path,
        bos_opt: Option<u32>,
        eos_opt: Option<u32>,
        terminators: BTreeSet<u32>,
        template_opt: Option<ChatTemplate>,
    ) -> Result<Self> {
        if terminators.is_empty() {
            return Err(ModelError::NoTerminator);
        }
        let (path, named) = (path.to_path_buf(), Named::default());
        Ok(Self { inner, path, bos_opt, eos_opt, terminators, template_opt, named })
    }

    /// Tokens of `text`, with the special tokens that the tokenizer itself adds (usually one at the start).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_with_offsets(text, SpecialTokens::Add)?.ids)
    }

    /// Tokens of a text that already contains its special tokens, such as a rendered conversation.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_with_offsets(text, SpecialTokens::Leave)?.ids)
    }

    /// Tokens with their byte ranges.
    pub fn encode_with_offsets(&self, text: &str, special: SpecialTokens) -> Result<Encoded> {
        let encoding =
            self.inner.encode(text, special == SpecialTokens::Add).map_err(|reason| self.refused(&reason))?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// Text of the tokens, without special ones.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|reason| self.refused(&reason))
    }

    fn refused(&self, reason: &tokenizers::Error) -> ModelError {
        ModelError::Tokenizer { path: self.path.clone(), reason: reason.to_string() }
    }

    /// Decodes a growing answer piece by piece.
    #[must_use]
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), settled: 0, shown: 0 }
    }

    /// The token that starts a text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos_opt
    }

    /// The token that ends a text.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.eos_opt
    }

    /// Every token at which generation stops; never empty.
    #[must_use]
    pub fn terminators(&self) -> &BTreeSet<u32> {
        &self.terminators
    }

    /// How conversations are written for this model.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.template_opt.as_ref().ok_or(ModelError::NoChatTemplate)
    }

    /// How it cuts text before it merges.
    pub(crate) fn pre_tokenizer(&self) -> Option<&tokenizers::PreTokenizerWrapper> {
        self.inner.get_pre_tokenizer()
    }

    /// What it adds around a text: the token that starts one, the token that ends one.
    ///
    /// # Errors
    /// [`ModelError::NotInGguf`] when it adds anything else.
    pub(crate) fn added_around(&self) -> Result<Special> {
        let (plain, whole) = (self.encode_rendered("a")?, self.encode("a")?);
        let at = (!plain.is_empty()).then(|| whole.windows(plain.len()).position(|ids| ids == plain)).flatten();
        let (before, after) = at.map_or((&whole[..], &[][..]), |at| (&whole[..at], &whole[at + plain.len()..]));
        let is = |ids: &[u32], id: Option<u32>| ids.iter().copied().eq(id);
        let (bos, eos) = (is(before, self.bos_opt), is(after, self.eos_opt));
        if (bos || before.is_empty()) && (eos || after.is_empty()) {
            return Ok(Special { bos: bos && !before.is_empty(), eos: eos && !after.is_empty() });
        }
        let remedy = "only the tokens that start and end a text can be added: correct the post_processor";
        crate::gguf::refuse("tokens that tokenizer.json adds", format!("{before:?} before and {after:?} after"), remedy)
    }

    /// Spelling of a token.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of tokens, added ones included.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of a token by its spelling.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

/// Whether the tokenizer adds its special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// As for plain text.
    Add,
    /// The text has them.
    Leave,
}

/// Decodes a growing answer: a piece is handed out only when it is certain, so that no half character is ever sent.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    settled: usize,
    shown: usize,
}

impl TextStream<'_> {
    /// Adds a token; returns the text that is now certain (empty while a character is incomplete).
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        // a token's text can depend on the one before (leading spaces), so decoding starts one piece earlier
        let before = self.tokenizer.decode(&self.ids[self.settled..self.shown])?;
        let now = self.tokenizer.decode(&self.ids[self.settled..])?;
        if now.ends_with('\u{FFFD}') || now.len() <= before.len() {
            return Ok(String::new());
        }
        let piece = now.get(before.len()..).unwrap_or_default().to_owned();
        self.settled = self.shown;
        self.shown = self.ids.len();
        Ok(piece)
    }

    /// Whatever is left when generation ends, replacement characters included.
    pub fn finish(&mut self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.settled..self.shown])?;
        let now = self.tokenizer.decode(&self.ids[self.settled..])?;
        (self.settled, self.shown) = (self.ids.len(), self.ids.len());
        Ok(now.get(before.len()..).unwrap_or_default().to_owned())
    }
}

/// What a tokenizer adds around a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Special {
    pub bos: bool,
    pub eos: bool,
}

/// A special token of `tokenizer_config.json`: a string, or an object with its spelling.
pub(crate) fn special(settings: &Map<String, Value>, key: &str) -> Option<String> {
    match settings.get(key) {
        Some(Value::String(token)) => Some(token.clone()),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    }
}

pub(crate) fn optional_json(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let text = fs::read_to_string(path).map_err(ModelError::io(path))?;
    serde_json::from_str(&text).map_err(ModelError::json(path))
}

/// A file of its own (transformers 5), a string, or a list of named templates of which `default` counts.
pub(crate) fn template_source(folder: &Path, settings: &Map<String, Value>) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        return Ok(Some(fs::read_to_string(&path).map_err(ModelError::io(&path))?));
    }
    Ok(match settings.get("chat_template") {
        Some(Value::String(source)) => Some(source.clone()),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            default.and_then(|entry| entry["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    })
}
