//! Train, validation and test: by document, so that no document's sentences stand on both sides of the test.

use sha2::{Digest, Sha256};
use tunesmith_contract::documents::{ExtractedDocument, Section};

use crate::chunk::count_words;

/// Fewest documents that are split whole. Below, each document is split into runs of sections.
pub const MIN_DOCUMENTS: usize = 3;

/// Parts that a document is cut into where there are too few documents.
const PARTS: usize = 10;

/// A split takes whole documents up to this many times its share: one more would be less wrong than one less.
const OVERSHOOT: f64 = 1.25;

/// Three disjoint sets of documents (or of parts of documents, see [`MIN_DOCUMENTS`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Splits {
    /// To learn from.
    pub train: Vec<ExtractedDocument>,
    /// To choose the best checkpoint by.
    pub validation: Vec<ExtractedDocument>,
    /// To measure the result with; never trained on.
    pub test: Vec<ExtractedDocument>,
    /// Whether documents were cut, because there are too few of them: the test is then weaker.
    pub by_section: bool,
}

/// Shares of the words, and the seed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplitPlan {
    /// Share of the validation split.
    pub validation: f64,
    /// Share of the test split.
    pub test: f64,
    /// Which of the possible splits.
    pub seed: u64,
}

/// Splits documents in the order of `sha256(seed, content hash)`: the same documents always fall the same way, and their
/// order does not matter. Every split is non-empty from three documents on. Where whole documents would leave too little to
/// learn from (a few huge ones), documents are cut as if there were fewer than three.
#[must_use]
pub fn split(documents: Vec<ExtractedDocument>, plan: &SplitPlan) -> Splits {
    if documents.len() >= MIN_DOCUMENTS {
        let total: usize = documents.iter().map(words).sum();
        let splits = assign(documents.clone().into_iter().map(|d| (place(plan.seed, &d, 0), d)).collect(), plan, false);
        let learned: usize = splits.train.iter().map(words).sum();
        if learned as f64 >= MIN_TRAIN_SHARE * total as f64 {
            return splits;
        }
    }
    let parts = documents.into_iter().flat_map(|d| parts(d).into_iter().enumerate());
    assign(parts.map(|(index, part)| (place(plan.seed, &part, index), part)).collect(), plan, true)
}

/// Below this share of the words for training, whole documents make no sensible split.
const MIN_TRAIN_SHARE: f64 = 0.6;

/// Goes through the units in order and gives each to the emptier of test and validation where it fits, else to training.
fn assign(mut units: Vec<([u8; 32], ExtractedDocument)>, plan: &SplitPlan, by_section: bool) -> Splits {
    units.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.id.cmp(&b.1.id)));
    let total: usize = units.iter().map(|(_, unit)| words(unit)).sum();
    let targets = [plan.test * total as f64, plan.validation * total as f64];
    let mut sums = [0.0; 2];
    let mut held: [Vec<ExtractedDocument>; 2] = [Vec::new(), Vec::new()];
    let mut train: Vec<ExtractedDocument> = Vec::new();
    for (_, unit) in units {
        let words = words(&unit) as f64;
        let emptier = usize::from(sums[1] / targets[1] < sums[0] / targets[0]);
        let fits =
            |at: &usize| words > 0.0 && sums[*at] < targets[*at] && sums[*at] + words <= targets[*at] * OVERSHOOT;
        match [emptier, 1 - emptier].into_iter().find(fits) {
            Some(at) => {
                sums[at] += words;
                held[at].push(unit);
            }
            None => train.push(unit),
        }
    }
    for (held, target) in held.iter_mut().zip(targets) {
        // Nothing fitted: the document whose size comes closest. One always stays to be learned from.
        if held.is_empty() && train.len() > 1 {
            let off = |unit: &ExtractedDocument| (words(unit) as f64 - target).abs();
            let closest = (0..train.len()).min_by(|a, b| off(&train[*a]).total_cmp(&off(&train[*b])));
            held.extend(closest.map(|at| train.remove(at)));
        }
    }
    let [test, validation] = held;
    let mut splits = Splits { train, validation, test, by_section };
    for part in [&mut splits.train, &mut splits.validation, &mut splits.test] {
        // Parts of one document keep their order: the sort is stable.
        part.sort_by(|a, b| a.id.cmp(&b.id));
    }
    splits
}

fn place(seed: u64, document: &ExtractedDocument, part: usize) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(document.id.as_str());
    hash.update((part as u64).to_le_bytes());
    hash.finalize().into()
}

/// Words of a document's sections and chats.
#[must_use]
pub fn words(document: &ExtractedDocument) -> usize {
    let sections: usize = document.sections.iter().map(|s| count_words(&s.text)).sum();
    let chats: usize = document.chats.iter().flatten().map(|m| count_words(&m.content)).sum();
    sections + chats
}

/// A document as up to ten runs of neighbouring sections (or chats) of about equal length.
fn parts(document: ExtractedDocument) -> Vec<ExtractedDocument> {
    let target = words(&document).div_ceil(PARTS).max(1);
    let empty = ExtractedDocument { sections: vec![], chats: vec![], ..document.clone() };
    let mut parts = vec![empty.clone()];
    let mut filled = 0;
    let pieces = document.sections.into_iter().flat_map(|section| paragraphs(section, target));
    for piece in pieces {
        let count = count_words(&piece.text);
        if filled > 0 && filled + count / 2 > target {
            parts.push(empty.clone());
            filled = 0;
        }
        filled += count;
        if let Some(part) = parts.last_mut() {
            part.sections.push(piece);
        }
    }
    for chat in document.chats {
        let count: usize = chat.iter().map(|m| count_words(&m.content)).sum();
        if filled > 0 && filled + count / 2 > target {
            parts.push(empty.clone());
            filled = 0;
        }
        filled += count;
        if let Some(part) = parts.last_mut() {
            part.chats.push(chat);
        }
    }
    parts
}

/// A section, or its paragraphs when it is longer than a part.
fn paragraphs(section: Section, target: usize) -> Vec<Section> {
    if count_words(&section.text) <= target {
        return vec![section];
    }
    section.text.split("\n\n").map(|text| Section { text: text.to_owned(), ..section.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{documents::DocumentKind, ids::DocumentId};

    use super::*;

    const PLAN: SplitPlan = SplitPlan { validation: 0.1, test: 0.1, seed: 7 };

    fn document(number: usize, words: usize) -> ExtractedDocument {
        let text = format!("d{number} ").repeat(words);
        ExtractedDocument {
            id: DocumentId::of(number.to_string().as_bytes()),
            path: format!("{number}.txt"),
            kind: DocumentKind::Text,
            title: String::new(),
            bytes: 1,
            sections: vec![Section {
                headings: vec![],
                page: None,
                text: text
                    .trim()
                    .replace(&format!("d{number} d{number} d{number} "), &format!("d{number} d{number} d{number}\n\n")),
            }],
            chats: vec![],
            skipped_lines: vec![],
        }
    }

    #[test]
    fn shares_are_kept_and_the_order_does_not_matter() {
        let documents: Vec<_> = (0..40).map(|n| document(n, 100)).collect();
        let splits = split(documents.clone(), &PLAN);
        assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (32, 4, 4));
        let mut turned = documents.clone();
        turned.reverse();
        assert_eq!(split(turned, &PLAN), splits);
        assert_ne!(split(documents, &SplitPlan { seed: 8, ..PLAN }).test, splits.test);
    }

    #[test]
    fn every_split_is_filled_from_three_documents_on_and_the_largest_is_trained_on() {
        for sizes in [&[5000, 40, 60][..], &[10, 10_000, 20, 30]] {
            let splits = split(sizes.iter().enumerate().map(|(n, words)| document(n, *words)).collect(), &PLAN);
            assert!(
                !splits.by_section && [&splits.train, &splits.validation, &splits.test].iter().all(|s| !s.is_empty())
            );
            let most = sizes.iter().max().copied().unwrap();
            assert!(splits.train.iter().any(|d| words(d) == most), "{sizes:?}");
        }
    }

    #[test]
    fn a_few_huge_documents_are_cut_rather_than_lost_to_the_test() {
        let splits = split(
            [9_600, 11_900, 900, 800, 20].iter().enumerate().map(|(n, words)| document(n, *words)).collect(),
            &PLAN,
        );
        assert!(!splits.by_section, "two small ones are held back");
        let splits = split((0..3).map(|n| document(n, 5_000)).collect(), &PLAN);
        let count = |s: &[ExtractedDocument]| s.iter().map(words).sum::<usize>();
        assert!(
            splits.by_section && count(&splits.train) > 11_000 && count(&splits.test) > 900,
            "{}",
            count(&splits.train)
        );
    }

    #[test]
    fn a_single_document_is_split_by_its_parts_without_losing_any() {
        let splits = split(vec![document(1, 1000)], &PLAN);
        let count = |s: &[ExtractedDocument]| s.iter().map(words).sum::<usize>();
        assert!(splits.by_section);
        assert_eq!(count(&splits.train) + count(&splits.validation) + count(&splits.test), 1000);
        assert!((80..=130).contains(&count(&splits.test)), "{}", count(&splits.test));
    }
}
