//! How text is cut before byte pairs are merged: llama.cpp knows the cuts of certain tokenizers by name (`tokenizer.ggml.pre`).
//!
//! Which name a tokenizer goes by is found by what it does: its own cuts of a probe are compared with those of llama.cpp's regular
//! expressions (`src/llama-vocab.cpp`, `llm_tokenizer_bpe`). llama.cpp's converter compares hashes of tokens of a probe instead,
//! which finds only vocabularies that somebody registered.

use serde_json::{Value, json};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

/// A name, the expressions that llama.cpp applies one after the other, and whether it takes a whole word that is in the vocabulary
/// without merging (`ignore_merges`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pre {
    /// `tokenizer.ggml.pre`.
    pub name: &'static str,
    expressions: &'static [&'static str],
    /// Whether a word of the vocabulary is taken whole.
    pub ignore_merges: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// Those of the families of [`crate::config`]: GPT-2; SmolLM and the embedded base model (digits apart); Llama 3 (up to three
/// digits); Qwen2, 2.5 and 3.
const KNOWN: [Pre; 4] = [
    Pre { name: "gpt-2", expressions: &[GPT2], ignore_merges: false },
    Pre { name: "smollm", expressions: &[r"\p{N}", GPT2], ignore_merges: false },
    Pre {
        name: "llama-bpe",
        expressions: &[
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignore_merges: true,
    },
    Pre {
        name: "qwen2",
        expressions: &[
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignore_merges: false,
    },
];

/// Words, contractions in both cases, numbers of every length, runs of white space and line breaks, punctuation beside words and
/// lines, other scripts, marks, emoji.
const PROBE: &str = "Hello world! It's I'LL they've we'd a1b22c333d4444 55555 3.14 1,000,000\n\n\nA  B   C\t\tD \r\n x=y; (z) [w] {v} \
    ...!? --- ''' \"q\" don't DON'T\n  indented\n\n    more  \n /path/to_file.rs:12 über naïve 東京は123円 Ελλάδα Привет שלום e\u{301} \
    👩‍🚀🚀🚀 ½ ² Ⅷ end   ";

impl Pre {
    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        KNOWN.into_iter().find(|pre| pre.name == name)
    }

    /// The one that cuts as `pre_tokenizer` does, if there is one.
    #[must_use]
    pub fn of(pre_tokenizer: &PreTokenizerWrapper) -> Option<Self> {
        let wanted = cuts(pre_tokenizer)?;
        let same =
            |pre: &Self| serde_json::from_value(pre.json()).ok().and_then(|pre| cuts(&pre)).as_ref() == Some(&wanted);
        KNOWN.into_iter().find(same)
    }

    /// Every name.
    #[must_use]
    pub fn names() -> String {
        KNOWN.map(|pre| pre.name).join(", ")
    }

    /// The same cuts as a `pre_tokenizer` of `tokenizer.json`.
    #[must_use]
    pub fn json(self) -> Value {
        let split = |expression: &&str| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
        let mut steps: Vec<Value> = self.expressions.iter().map(split).collect();
        steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// The pieces of the probe, as the merges see them.
fn cuts(pre_tokenizer: &PreTokenizerWrapper) -> Option<Vec<String>> {
    let mut probe = PreTokenizedString::from(PROBE);
    pre_tokenizer.pre_tokenize(&mut probe).ok()?;
    let pieces = probe.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Some(pieces.into_iter().map(|(piece, _, _)| piece.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(json: Value) -> Option<&'static str> {
        Pre::of(&serde_json::from_value(json).unwrap()).map(|pre| pre.name)
    }

    /// As the hub has them in `tokenizer.json`.
    #[test]
    fn tokenizers_are_known_by_how_they_cut() {
        let byte_level = |use_regex: bool, prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": use_regex});
        let split = |digits: &str| {
            let expression = format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false},
                byte_level(false, false)]})
        };
        let digits = |individual: bool| {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": individual}, byte_level(true, false)]})
        };
        assert_eq!(named(byte_level(true, false)), Some("gpt-2"));
        assert_eq!(named(digits(true)), Some("smollm"));
        assert_eq!(named(split("{1,3}")), Some("llama-bpe"));
        assert_eq!(named(split("")), Some("qwen2"));
        for other in [byte_level(true, true), byte_level(false, false), digits(false), json!({"type": "Whitespace"})] {
            assert_eq!(named(other.clone()), None, "{other}");
        }
        for pre in KNOWN {
            assert_eq!(named(pre.json()), Some(pre.name));
            assert_eq!(Pre::named(pre.name), Some(pre));
        }
    }
}
