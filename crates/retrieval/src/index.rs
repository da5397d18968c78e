//! The index as it lies in S3: `indexes/{index}/manifest.json`, `chunks.jsonl.zst`, `vectors.bin`.
//!
//! `vectors.bin`: 8 bytes `TSVECT01`, dimensions (u32), count (u64), 12 bytes of zeros, SHA-256 of what follows; then
//! `count` × `dimensions` numbers (f32). Little endian. The keyword index is made again when the files are opened: that
//! takes milliseconds for thousands of chunks, and two files can disagree.

use std::io::{Read, Write};

use sha2::{Digest, Sha256};
use tunesmith_contract::{
    DatasetId, IndexId,
    documents::{Chunk, IndexManifest},
};

use crate::{embedder::EMBEDDER_NAME, vectors::Vectors};

/// Name of the manifest; written last, so that an index with a manifest is complete.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the chunks, one JSON object a line.
pub const CHUNKS_FILE: &str = "chunks.jsonl.zst";
/// Name of the vectors, in the order of the chunks.
pub const VECTORS_FILE: &str = "vectors.bin";

const MAGIC: &[u8; 8] = b"TSVECT01";
const HEADER: usize = 64;
/// Part of every index id: a change of the format or of [`chunk_text`] makes new indexes.
const FORMAT: &[u8] = b"tunesmith-index-1";
/// Level 9: the chunks are written once and fetched at every cold start.
const ZSTD_LEVEL: i32 = 9;
/// Unpacked chunks beyond this are refused: the gateway's memory is 2 GB. About 800,000 chunks of 180 words.
const MAX_CHUNK_BYTES: u64 = 1 << 30;

/// Why an index could not be made or opened. No variant gets better by trying again: run the pipeline again, which
/// writes the index anew.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A file is not what it should be.
    #[error("index file {file} is damaged: {detail}; run the pipeline again, it writes the index anew")]
    Damaged {
        /// Which file.
        file: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// There is nothing to find anything in.
    #[error("there is no chunk to index; upload documents with text")]
    Empty,
    /// Not one vector for each chunk.
    #[error("{chunks} chunks but {vectors} vectors: embed every chunk once, in order")]
    CountsDiffer {
        /// Number of chunks.
        chunks: usize,
        /// Number of vectors.
        vectors: usize,
    },
    /// A question's vector of another length than the index's.
    #[error(
        "the question's vector has {found} numbers, those of the index have {expected}: use the embedder {embedder}"
    )]
    OtherDimensions {
        /// Length of the question's vector.
        found: usize,
        /// Length of the index's vectors.
        expected: usize,
        /// The embedder of the index.
        embedder: String,
    },
    /// The data could not be written as JSON or compressed.
    #[error("the index could not be written: {0}")]
    Write(#[from] std::io::Error),
}

fn damaged(file: &'static str, detail: impl ToString) -> IndexError {
    IndexError::Damaged { file, detail: detail.to_string() }
}

/// An index's files, by content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexFiles {
    /// [`MANIFEST_FILE`].
    pub manifest: Vec<u8>,
    /// [`CHUNKS_FILE`].
    pub chunks: Vec<u8>,
    /// [`VECTORS_FILE`].
    pub vectors: Vec<u8>,
}

/// An index to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewIndex {
    /// What the manifest says.
    pub manifest: IndexManifest,
    /// The files, the manifest among them.
    pub files: IndexFiles,
}

/// What is embedded and searched of a chunk: its headings, then its text. A section's text often does not repeat the
/// words of its headings.
#[must_use]
pub fn chunk_text(chunk: &Chunk) -> String {
    let mut text = chunk.headings.join(" – ");
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&chunk.text);
    text
}

/// The id of the index over these chunks: known before anything is embedded.
///
/// # Errors
/// [`IndexError::Write`] when a chunk cannot be written as JSON.
pub fn index_id(chunks: &[Chunk]) -> Result<IndexId, IndexError> {
    Ok(id_of(&lines(chunks)?, EMBEDDER_NAME))
}

/// The files of an index over `chunks`, whose vectors are given in the same order. The same input gives the same bytes.
///
/// # Errors
/// [`IndexError::Empty`] and [`IndexError::CountsDiffer`].
pub fn build_index(dataset: DatasetId, chunks: &[Chunk], vectors: &Vectors) -> Result<NewIndex, IndexError> {
    if chunks.is_empty() {
        return Err(IndexError::Empty);
    }
    if chunks.len() != vectors.rows() {
        return Err(IndexError::CountsDiffer { chunks: chunks.len(), vectors: vectors.rows() });
    }
    let lines = lines(chunks)?;
    let dimensions = u32::try_from(vectors.dimensions()).map_err(std::io::Error::other)?;
    let manifest = IndexManifest {
        index: id_of(&lines, EMBEDDER_NAME),
        dataset,
        embedder: EMBEDDER_NAME.into(),
        dimensions,
        chunks: chunks.len() as u64,
    };
    let files = IndexFiles {
        manifest: serde_json::to_vec_pretty(&manifest).map_err(std::io::Error::other)?,
        chunks: compress(&lines)?,
        vectors: encode_vectors(dimensions, vectors),
    };
    Ok(NewIndex { manifest, files })
}

/// Takes the files apart again and checks each against the manifest.
pub(crate) fn read_index(files: IndexFiles) -> Result<(IndexManifest, Vec<Chunk>, Vectors), IndexError> {
    let manifest: IndexManifest = serde_json::from_slice(&files.manifest).map_err(|e| damaged(MANIFEST_FILE, e))?;
    let lines = decompress(&files.chunks)?;
    let found = id_of(&lines, &manifest.embedder);
    if found != manifest.index {
        return Err(damaged(CHUNKS_FILE, format!("its content belongs to {found}, not to {}", manifest.index)));
    }
    let chunks = serde_json::Deserializer::from_slice(&lines)
        .into_iter()
        .collect::<Result<Vec<Chunk>, _>>()
        .map_err(|e| damaged(CHUNKS_FILE, e))?;
    let vectors = decode_vectors(&files.vectors)?;
    let expected = (manifest.chunks, manifest.dimensions as usize);
    if (chunks.len() as u64, vectors.dimensions()) != expected || chunks.len() != vectors.rows() {
        let detail = format!(
            "it promises {} chunks of {} numbers, the files hold {} chunks and {} vectors of {}",
            expected.0,
            expected.1,
            chunks.len(),
            vectors.rows(),
            vectors.dimensions()
        );
        return Err(damaged(MANIFEST_FILE, detail));
    }
    Ok((manifest, chunks, vectors))
}

fn id_of(lines: &[u8], embedder: &str) -> IndexId {
    IndexId::of(&[FORMAT, embedder.as_bytes(), lines])
}

fn lines(chunks: &[Chunk]) -> Result<Vec<u8>, IndexError> {
    let mut lines = Vec::new();
    for chunk in chunks {
        serde_json::to_writer(&mut lines, chunk).map_err(std::io::Error::other)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

fn compress(lines: &[u8]) -> Result<Vec<u8>, IndexError> {
    let mut encoder = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.write_all(lines)?;
    Ok(encoder.finish()?)
}

fn decompress(bytes: &[u8]) -> Result<Vec<u8>, IndexError> {
    let mut lines = Vec::new();
    zstd::Decoder::new(bytes)
        .and_then(|decoder| decoder.take(MAX_CHUNK_BYTES + 1).read_to_end(&mut lines))
        .map_err(|e| damaged(CHUNKS_FILE, e))?;
    if lines.len() as u64 > MAX_CHUNK_BYTES {
        return Err(damaged(CHUNKS_FILE, format!("it unpacks to more than {MAX_CHUNK_BYTES} bytes")));
    }
    Ok(lines)
}

fn encode_vectors(dimensions: u32, vectors: &Vectors) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + vectors.as_slice().len() * 4);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&dimensions.to_le_bytes());
    bytes.extend_from_slice(&(vectors.rows() as u64).to_le_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend(vectors.as_slice().iter().flat_map(|number| number.to_le_bytes()));
    let checksum = Sha256::digest(&bytes[HEADER..]);
    bytes[HEADER - 32..HEADER].copy_from_slice(&checksum);
    bytes
}

fn decode_vectors(bytes: &[u8]) -> Result<Vectors, IndexError> {
    let bad = |detail: String| damaged(VECTORS_FILE, detail);
    let (header, body) =
        bytes.split_at_checked(HEADER).ok_or_else(|| bad(format!("it ends after {} bytes", bytes.len())))?;
    let (magic, header) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(bad("it does not begin with TSVECT01".into()));
    }
    let dimensions = u64::from(header.first_chunk().map_or(0, |b| u32::from_le_bytes(*b)));
    let count = header[4..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    let needed = dimensions.checked_mul(count).and_then(|n| n.checked_mul(4));
    if needed != Some(body.len() as u64) {
        return Err(bad(format!("{count} vectors of {dimensions} numbers do not fill {} bytes", body.len())));
    }
    if Sha256::digest(body)[..] != header[header.len() - 32..] {
        return Err(bad("its checksum is wrong".into()));
    }
    let numbers: Vec<f32> = body.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if let Some(place) = numbers.iter().position(|number| !number.is_finite()) {
        return Err(bad(format!("number {place} is not finite")));
    }
    Vectors::new(dimensions as usize, numbers).ok_or_else(|| bad(format!("{dimensions} dimensions")))
}
