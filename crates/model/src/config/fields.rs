//! Reading `config.json` so that no setting is overlooked: what a family reads is remembered, the rest must be harmless.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::{ModelError, Result};

/// Keys that do not touch the forward pass: names, tokens, generation, initialisation, dropout (training runs without).
const HARMLESS: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "do_sample",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "num_beams",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// The keys of `config.json`, and which of them were read.
pub(crate) struct Fields<'a> {
    json: &'a Map<String, Value>,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Fields<'a> {
    pub fn new(json: &'a Map<String, Value>) -> Self {
        Self { json, read: RefCell::default() }
    }

    /// The value; `None` when absent or null.
    pub fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key);
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// What `read` reads, null included; `default` only where the key is absent.
    pub fn if_written<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Self, &'static str) -> Result<T>,
    ) -> Result<T> {
        if self.json.contains_key(key) { read(self, key) } else { Ok(default) }
    }

    /// A required positive whole number.
    pub fn size(&self, key: &'static str) -> Result<usize> {
        let found = self.size_opt(key)?;
        found.ok_or_else(|| unsupported(key, &Value::Null, "a positive whole number"))
    }

    /// A positive whole number, or the default.
    pub fn size_or(&self, key: &'static str, default: usize) -> Result<usize> {
        Ok(self.size_opt(key)?.unwrap_or(default))
    }

    /// A positive whole number, or nothing.
    pub fn size_opt(&self, key: &'static str) -> Result<Option<usize>> {
        let parse = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
        let read = |value: &Value| parse(value).ok_or_else(|| unsupported(key, value, "a positive whole number"));
        self.get(key).map(read).transpose()
    }

    /// A positive number, or nothing.
    pub fn number_opt(&self, key: &'static str) -> Result<Option<f64>> {
        let parse = |value: &Value| value.as_f64().filter(|number| *number > 0.0 && number.is_finite());
        let read = |value: &Value| parse(value).ok_or_else(|| unsupported(key, value, "a positive number"));
        self.get(key).map(read).transpose()
    }

    /// A positive number, or the default.
    pub fn number_or(&self, key: &'static str, default: f64) -> Result<f64> {
        Ok(self.number_opt(key)?.unwrap_or(default))
    }

    /// True or false, or the default.
    pub fn flag_or(&self, key: &'static str, default: bool) -> Result<bool> {
        let read = |value: &Value| value.as_bool().ok_or_else(|| unsupported(key, value, "true or false"));
        Ok(self.get(key).map(read).transpose()?.unwrap_or(default))
    }

    /// Refuses any value but `accepted`; absent or null stands for the family's default, which must be `accepted`.
    pub fn demand(&self, key: &'static str, accepted: &Value, supported: &'static str) -> Result<()> {
        match self.get(key) {
            Some(value) if value != accepted => Err(unsupported(key, value, supported)),
            _ => Ok(()),
        }
    }

    /// These have no part in the forward pass of this family.
    pub fn harmless(&self, keys: &[&'static str]) {
        self.read.borrow_mut().extend(keys);
    }

    /// Refuses what nobody read and nobody knows to be harmless.
    pub fn finish(self) -> Result<()> {
        let read = self.read.into_inner();
        for (key, value) in self.json {
            let neutral = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                _ => false,
            };
            if !neutral && !read.contains(key.as_str()) && !HARMLESS.contains(&key.as_str()) {
                let supported = "an unknown setting may change the mathematics: only null or false";
                return Err(unsupported(key, value, supported));
            }
        }
        Ok(())
    }
}

/// `eos_token_id`: absent, one id or several.
pub(crate) fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

pub(crate) fn unsupported(key: &str, value: &Value, supported: &'static str) -> ModelError {
    ModelError::UnsupportedConfig { key: key.to_owned(), value: value.to_string(), supported }
}
