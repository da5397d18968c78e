//! Parsed identifiers. A value of one of these types has been checked: code that holds it need not check again.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An identifier that does not have the form its kind asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: it must be {rule}")]
pub struct IdError {
    /// Which identifier was parsed.
    pub kind: &'static str,
    /// What was found.
    pub value: String,
    /// The rule, in plain words.
    pub rule: &'static str,
}

macro_rules! id {
    // `$schema`: the same rule for JSON Schema; a test in `generated` compares the two
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr, [$($schema:tt)*]) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(test, derive(schemars::JsonSchema), schemars(extend($($schema)*)))]
        pub struct $name(String);

        impl $name {
            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(value: &str) -> Result<Self, IdError> {
                let check: fn(&str) -> bool = $check;
                if check(value) {
                    Ok(Self(value.to_owned()))
                } else {
                    Err(IdError { kind: $kind, value: value.chars().take(80).collect(), rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(value: String) -> Result<Self, IdError> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_slug(value: &str) -> bool {
    (1..=40).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && value.starts_with(|c: char| c.is_ascii_lowercase())
        && !value.ends_with('-')
        && !value.contains("--")
}

fn is_hex(value: &str, prefix: &str, len: usize) -> bool {
    value
        .strip_prefix(prefix)
        .is_some_and(|hex| hex.len() == len && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn is_model_name(value: &str) -> bool {
    let part = |p: &str| {
        (1..=96).contains(&p.len())
            && !p.starts_with(['.', '-'])
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let mut parts = value.split('/');
    parts.next().is_some_and(part) && parts.next().is_none_or(part) && parts.next().is_none()
}

id!(
    /// A project: the first part of every upload's key. 40 characters leave room for `tunesmith-{project}-{12 digits}` in
    /// SageMaker's 63.
    ProjectId,
    "project",
    "1 to 40 lower-case letters, digits and single hyphens, beginning with a letter",
    is_slug,
    ["pattern" = "^[a-z][a-z0-9]*(-[a-z0-9]+)*$", "maxLength" = 40]
);
id!(
    /// A document: the SHA-256 of its bytes.
    DocumentId, "document", "64 hexadecimal digits", |v| is_hex(v, "", 64), ["pattern" = "^[0-9a-f]{64}$"]
);
id!(
    /// A dataset: the hash of its content.
    DatasetId, "dataset", "ds- and 16 hexadecimal digits", |v| is_hex(v, "ds-", 16), ["pattern" = "^ds-[0-9a-f]{16}$"]
);
id!(
    /// A retrieval index: the hash of its chunks and its embedder.
    IndexId, "index", "ix- and 16 hexadecimal digits", |v| is_hex(v, "ix-", 16), ["pattern" = "^ix-[0-9a-f]{16}$"]
);
id!(
    /// A run: the hash of everything that decides its result, so it is the same over retries and duplicate pipelines.
    RunId, "run", "run- and 12 hexadecimal digits", |v| is_hex(v, "run-", 12), ["pattern" = "^run-[0-9a-f]{12}$"]
);
id!(
    /// A base model: a folder name under `models/` of the workspace bucket, or a Hugging Face id `owner/name`.
    BaseModel, "base model", "a folder name under models/, or a Hugging Face id owner/name", is_model_name,
    ["pattern" = "^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?$"]
);

/// SHA-256 over length-prefixed parts, so that `["ab","c"]` and `["a","bc"]` differ.
fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

impl DocumentId {
    /// The id of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(bytes)))
    }
}

impl DatasetId {
    /// The id of a dataset with this content (serialized splits, in a fixed order).
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        Self(format!("ds-{}", &digest(parts)[..16]))
    }
}

impl IndexId {
    /// The id of an index over this content.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        Self(format!("ix-{}", &digest(parts)[..16]))
    }
}

impl RunId {
    /// The id of a run decided by these parts: project, dataset, base model, training settings.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        Self(format!("run-{}", &digest(parts)[..12]))
    }
}

impl BaseModel {
    /// The folder under `models/` that holds it: a Hugging Face id's slash becomes `--`.
    #[must_use]
    pub fn folder(&self) -> String {
        self.0.replace('/', "--")
    }

    /// Whether this is a Hugging Face id.
    #[must_use]
    pub fn is_hub_id(&self) -> bool {
        self.0.contains('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_ids_are_slugs() {
        for good in ["handbook", "a", "team-7-notes"] {
            assert!(good.parse::<ProjectId>().is_ok(), "{good}");
        }
        for bad in ["", "Handbook", "7up", "a--b", "a-", "a b", "ä", "../x", &"a".repeat(41)] {
            assert!(bad.parse::<ProjectId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_invalid_id_does_not_deserialize() {
        assert!(serde_json::from_str::<RunId>("\"run-0123456789ab\"").is_ok());
        let error = serde_json::from_str::<RunId>("\"../../etc\"").unwrap_err().to_string();
        assert!(error.contains("12 hexadecimal digits"), "{error}");
    }

    #[test]
    fn run_ids_depend_on_the_borders_between_parts() {
        assert_ne!(RunId::of(&[b"ab", b"c"]), RunId::of(&[b"a", b"bc"]));
        assert_eq!(RunId::of(&[b"ab", b"c"]), RunId::of(&[b"ab", b"c"]));
    }

    #[test]
    fn base_models_are_folders_or_hub_ids() {
        for good in ["tunesmith-mini", "HuggingFaceTB/SmolLM2-135M", "Qwen2.5_0.5B"] {
            assert!(good.parse::<BaseModel>().is_ok(), "{good}");
        }
        for bad in ["", "a/b/c", "../x", "/x", "x/", ".hidden"] {
            assert!(bad.parse::<BaseModel>().is_err(), "{bad}");
        }
        let hub: BaseModel = "a/b".parse().unwrap();
        assert_eq!(hub.folder(), "a--b");
    }
}
