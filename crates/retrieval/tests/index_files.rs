//! The index's files: the same input gives the same bytes; what is damaged is refused with the file's name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use tunesmith_contract::{DatasetId, DocumentId, documents::Chunk};
use tunesmith_retrieval::{IndexError, IndexFiles, SearchIndex, Vectors, build_index, index_id};

fn chunks() -> Vec<Chunk> {
    (0u8..3)
        .map(|i| Chunk {
            document: DocumentId::of(&[i]),
            path: format!("größe {i}.md"),
            headings: vec!["Handbook".into(), format!("Part {i}")],
            page: (i == 1).then_some(7),
            text: format!("text number {i}"),
        })
        .collect()
}

fn dataset() -> DatasetId {
    DatasetId::of(&[b"dataset"])
}

fn files() -> IndexFiles {
    let vectors = Vectors::new(2, vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8]).unwrap();
    build_index(dataset(), &chunks(), &vectors).unwrap().files
}

fn refusal(change: impl FnOnce(&mut IndexFiles)) -> String {
    let mut files = files();
    change(&mut files);
    match SearchIndex::open(files) {
        Err(error @ IndexError::Damaged { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a damaged index was opened"),
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    assert_eq!(files(), files());
    // the format on disk: whoever changes it must change the version in the index id, or old indexes break
    let bytes = files().vectors;
    assert_eq!((&bytes[..8], bytes.len()), (&b"TSVECT01"[..], 64 + 3 * 2 * 4));
    assert_eq!(bytes[64..68], 1.0f32.to_le_bytes());
}

#[test]
fn what_was_written_is_found_again() {
    let index = SearchIndex::open(files()).unwrap();
    assert_eq!(index.manifest().index, index_id(&chunks()).unwrap());
    assert_eq!((index.manifest().chunks, index.manifest().dimensions), (3, 2));
    let hits = index.search("number 1", &[0.0, 1.0], 9).unwrap();
    assert_eq!(hits.len(), 3);
    assert_eq!(hits[0].chunk, &chunks()[1]);
    assert_eq!((hits[0].dense_rank, hits[0].keyword_rank), (1, Some(1)));
    assert!((hits[0].score - 1.0).abs() < 1e-6 && (hits[0].similarity - 1.0).abs() < 1e-6);
}

#[test]
fn every_truncation_is_refused() {
    for n in 0..files().vectors.len() {
        let message = refusal(|files| files.vectors.truncate(n));
        assert!(message.contains("vectors.bin"), "{message}");
    }
    for n in 0..files().chunks.len() {
        let message = refusal(|files| files.chunks.truncate(n));
        assert!(message.contains("chunks.jsonl.zst"), "{message}");
    }
    for n in 0..files().manifest.len() {
        let message = refusal(|files| files.manifest.truncate(n));
        assert!(message.contains("manifest.json"), "{message}");
    }
}

/// A flipped byte is refused, or changes nothing: a few bits of a zstd header (its window size) do not touch the content.
#[test]
fn no_flipped_byte_changes_what_is_found() {
    for n in (0..files().vectors.len()).filter(|n| !(20..32).contains(n)) {
        refusal(|files| files.vectors[n] ^= 0x10);
    }
    let mut harmless = 0;
    for n in 0..files().chunks.len() {
        let mut changed = files();
        changed.chunks[n] ^= 0x10;
        if let Ok(index) = SearchIndex::open(changed) {
            harmless += 1;
            let found: Vec<Chunk> =
                index.search("text", &[1.0, 0.0], 9).unwrap().iter().map(|hit| hit.chunk.clone()).collect();
            assert!(found.len() == 3 && chunks().iter().all(|chunk| found.contains(chunk)), "byte {n}");
        }
    }
    assert!(harmless <= 4, "{harmless} of {} bytes are not protected", files().chunks.len());
}

#[test]
fn files_of_two_indexes_do_not_mix() {
    let other = build_index(dataset(), &chunks()[..2], &Vectors::new(2, vec![1.0; 4]).unwrap()).unwrap().files;
    assert!(refusal(|files| files.chunks = other.chunks.clone()).contains("belongs to"));
    assert!(refusal(|files| files.vectors = other.vectors.clone()).contains("promises 3 chunks"));
}

#[test]
fn impossible_input_is_refused() {
    let none = Vectors::new(2, vec![]).unwrap();
    assert!(matches!(build_index(dataset(), &[], &none), Err(IndexError::Empty)));
    assert!(matches!(
        build_index(dataset(), &chunks(), &none),
        Err(IndexError::CountsDiffer { chunks: 3, vectors: 0 })
    ));
    let index = SearchIndex::open(files()).unwrap();
    let error = index.search("x", &[1.0; 3], 3).unwrap_err();
    assert!(matches!(error, IndexError::OtherDimensions { found: 3, expected: 2, .. }));
}
