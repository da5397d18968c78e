//! Documents that say the same: exactly, or nearly. Training on copies makes a model recite, and a copy of a test document
//! in the training split makes its test worthless.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};
use tunesmith_contract::documents::{Duplicate, ExtractedDocument};

/// Hash functions of a signature. The standard error of the estimated similarity is √(s(1−s)/128): 3.5 points at 0.8.
const HASHES: usize = 128;

/// Hashes in one band of the locality-sensitive index. 32 bands of 4 find a pair of similarity 0.7 with probability
/// 1 − (1 − 0.7⁴)³² > 0.9998 (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4.2).
const BAND: usize = 4;

/// Words of one shingle.
const SHINGLE: usize = 5;

/// From this estimated Jaccard similarity on, one of two documents is left out. The usual choice for web text, e.g. in
/// "Deduplicating Training Data Makes Language Models Better" (Lee et al. 2022, 0.8).
pub const NEAR: f64 = 0.8;

/// Words in a file's name that say it was replaced by another.
const SUPERSEDED: [&str; 10] =
    ["old", "copy", "backup", "bak", "draft", "archive", "archived", "superseded", "obsolete", "previous"];

/// Splits documents into kept ones and (near) copies of them. A file whose name says that it was replaced (`rules-old.md`)
/// yields to one whose name does not; else the one with more words is kept, of equals the one with the smaller id. So the
/// order of `documents` does not matter. Kept documents come back sorted by id.
#[must_use]
pub fn deduplicate(documents: Vec<ExtractedDocument>) -> (Vec<ExtractedDocument>, Vec<Duplicate>) {
    let mut candidates: Vec<(ExtractedDocument, Vec<String>)> =
        documents.into_iter().map(|d| (words(&d), d)).map(|(w, d)| (d, w)).collect();
    candidates.sort_by(|(a, aw), (b, bw)| {
        superseded(a).cmp(&superseded(b)).then(bw.len().cmp(&aw.len())).then_with(|| a.id.cmp(&b.id))
    });
    let mut kept: Vec<ExtractedDocument> = Vec::new();
    let mut signatures: Vec<[u64; HASHES]> = Vec::new();
    let mut exact: HashMap<[u8; 32], usize> = HashMap::new();
    let mut bands: HashMap<(usize, [u64; BAND]), Vec<usize>> = HashMap::new();
    let mut duplicates = Vec::new();
    for (document, words) in candidates {
        let hash: [u8; 32] = Sha256::digest(words.join(" ")).into();
        let signature = signature(&words);
        let found = exact.get(&hash).map(|at| (*at, 1.0)).or_else(|| {
            let near: HashSet<usize> = keys(&signature).filter_map(|key| bands.get(&key)).flatten().copied().collect();
            let best = near.into_iter().map(|at| (at, similarity(&signature, &signatures[at])));
            best.filter(|(_, s)| *s >= NEAR).max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
        });
        if let Some((at, similarity)) = found {
            let similarity_percent = (similarity * 100.0).round() as u8;
            duplicates.push(Duplicate { document: document.id, kept: kept[at].id.clone(), similarity_percent });
            continue;
        }
        let at = kept.len();
        exact.insert(hash, at);
        for key in keys(&signature) {
            bands.entry(key).or_default().push(at);
        }
        signatures.push(signature);
        kept.push(document);
    }
    kept.sort_by(|a, b| a.id.cmp(&b.id));
    duplicates.sort_by(|a, b| a.document.cmp(&b.document));
    (kept, duplicates)
}

fn superseded(document: &ExtractedDocument) -> bool {
    let name = document.path.rsplit('/').next().unwrap_or_default().to_lowercase();
    name.split(|c: char| !c.is_alphanumeric()).any(|word| SUPERSEDED.contains(&word))
}

/// Lower-case words without punctuation: two exports of one text differ in those.
fn words(document: &ExtractedDocument) -> Vec<String> {
    let sections = document.sections.iter().map(|s| s.text.as_str());
    let chats = document.chats.iter().flatten().map(|m| m.content.as_str());
    let texts = sections.chain(chats).flat_map(|text| text.split(|c: char| !c.is_alphanumeric()));
    texts.filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

/// MinHash over word 5-grams (Broder 1997). A shorter text is one shingle.
fn signature(words: &[String]) -> [u64; HASHES] {
    let mut signature = [u64::MAX; HASHES];
    let seeds: Vec<u64> = (0..HASHES as u64).map(|i| mix(i + 1)).collect();
    for shingle in words.windows(SHINGLE.min(words.len().max(1))) {
        let hash = shingle.iter().fold(0xCBF2_9CE4_8422_2325, |hash, word| mix(fnv(hash, word.as_bytes())));
        for (least, seed) in signature.iter_mut().zip(&seeds) {
            *least = (*least).min(mix(hash ^ seed));
        }
    }
    signature
}

fn keys(signature: &[u64; HASHES]) -> impl Iterator<Item = (usize, [u64; BAND])> + '_ {
    signature.as_chunks::<BAND>().0.iter().copied().enumerate()
}

fn similarity(a: &[u64; HASHES], b: &[u64; HASHES]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / HASHES as f64
}

/// FNV-1a, 64 bit.
fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{
        documents::{DocumentKind, Section},
        ids::DocumentId,
    };

    use super::*;

    fn document(text: &str) -> ExtractedDocument {
        let section = Section { headings: vec![], page: None, text: text.into() };
        ExtractedDocument {
            id: DocumentId::of(text.as_bytes()),
            path: "a.txt".into(),
            kind: DocumentKind::Text,
            title: "a".into(),
            bytes: text.len() as u64,
            sections: vec![section],
            chats: vec![],
            skipped_lines: vec![],
        }
    }

    fn prose(seed: u64, words: u64) -> String {
        (0..words).map(|i| format!("w{}", mix(seed * 100_000 + i) % 5000)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn copies_are_left_out_and_the_longer_one_is_kept() {
        let long = prose(1, 400);
        let near = long.replacen("w1", "changed", 2);
        let shorter = &near[..near.len() - 60];
        let documents =
            vec![document(shorter), document(&long), document(&long.to_uppercase()), document(&prose(2, 400))];
        let (kept, duplicates) = deduplicate(documents.clone());
        assert_eq!(kept.len(), 2);
        assert_eq!(duplicates.len(), 2);
        let exact = duplicates.iter().find(|d| d.similarity_percent == 100).unwrap();
        assert!(kept.iter().any(|k| k.id == exact.kept));
        assert!(duplicates.iter().all(|d| d.kept == exact.kept && d.similarity_percent >= 80), "{duplicates:?}");

        let mut turned = documents;
        turned.reverse();
        assert_eq!(deduplicate(turned), (kept, duplicates));
    }

    #[test]
    fn the_old_edition_yields_to_the_new_one() {
        let text = prose(5, 300);
        let old =
            ExtractedDocument { path: "rules/Weather-old.md".into(), ..document(&format!("{text} and more words")) };
        let new = ExtractedDocument { path: "rules/weather.md".into(), ..document(&text) };
        let (kept, duplicates) = deduplicate(vec![old.clone(), new.clone()]);
        assert_eq!(kept, std::slice::from_ref(&new));
        assert_eq!((&duplicates[0].document, &duplicates[0].kept), (&old.id, &new.id));
    }

    #[test]
    fn half_of_a_document_is_no_copy() {
        let text = prose(3, 600);
        let (kept, duplicates) =
            deduplicate(vec![document(&text), document(&format!("{} {}", &text[..text.len() / 2], prose(4, 300)))]);
        assert_eq!((kept.len(), duplicates.len()), (2, 0));
    }

    #[test]
    fn tiny_and_empty_documents_are_compared_whole() {
        let (kept, duplicates) =
            deduplicate(vec![document("one two"), document("One, two!"), document(""), document("two one")]);
        assert_eq!((kept.len(), duplicates.len()), (3, 1));
    }
}
