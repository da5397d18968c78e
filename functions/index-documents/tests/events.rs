//! The fixtures in `events/index-documents` are what this function gets and gives.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use tunesmith_contract::tasks::{IndexDocumentsInput, IndexedDocuments};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/index-documents")
}

fn fixtures(folder: &Path, prefix: &str) -> Vec<(String, String)> {
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file() && path.file_name().unwrap().to_string_lossy().starts_with(prefix))
        .map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no {prefix}* in {}", folder.display());
    found
}

/// Parses, and writes the same again: nothing in the fixture is ignored.
fn round_trip<T: DeserializeOwned + Serialize>(name: &str, text: &str) {
    let value: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let before: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_value(value).unwrap(), before, "{name}");
}

#[test]
fn inputs_and_outputs_have_their_shapes() {
    for (name, text) in fixtures(&folder(), "input") {
        round_trip::<IndexDocumentsInput>(&name, &text);
    }
    for (name, text) in fixtures(&folder(), "output") {
        round_trip::<IndexedDocuments>(&name, &text);
    }
}

#[test]
fn wrong_inputs_are_refused() {
    for (name, text) in fixtures(&folder().join("invalid"), "") {
        assert!(serde_json::from_str::<IndexDocumentsInput>(&text).is_err(), "{name}");
    }
}
