//! Hybrid search: vectors and keywords, fused by rank.
//!
//! The fusion is reciprocal rank fusion with one change: what a rank among the keywords adds is weighted by the square of
//! how much of the question the text covers. Unweighted, the best of many texts that share only "what" and "the" with a question counted as
//! much as the text that means the same (seen in `tests/hybrid_search.rs`: recall@3 of 16 questions: 12 unweighted, 13 weighted by the share itself, 16 by its
//! square).

use tunesmith_contract::documents::{Chunk, IndexManifest};

use crate::{
    index::{IndexError, IndexFiles, chunk_text, read_index},
    keywords::Keywords,
    vectors::{Vectors, dot},
};

/// Constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).
const K: f32 = 60.0;

/// Ranks deeper than this in one list do not count: there a rank is noise.
const DEPTH: usize = 100;

/// Each further chunk of the same document counts this much less than the one before: three
/// passages of one page answer less than passages of three. Close to 1, because often one document has the answer.
const REPETITION: f32 = 0.98;

/// One chunk that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit<'a> {
    /// The chunk.
    pub chunk: &'a Chunk,
    /// Fused score from 0 to 1; 1 means first in both lists.
    pub score: f32,
    /// Cosine between question and chunk, -1 to 1.
    pub similarity: f32,
    /// Rank by cosine among all chunks, counted from 1.
    pub dense_rank: usize,
    /// Rank by keywords, counted from 1; `None` when the chunk shares no word with the question.
    pub keyword_rank: Option<usize>,
}

/// An opened index.
pub struct SearchIndex {
    manifest: IndexManifest,
    chunks: Vec<Chunk>,
    vectors: Vectors,
    keywords: Keywords,
}

impl SearchIndex {
    /// Opens an index and checks all of it.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] with the name of the file that is truncated, altered or belongs to another index.
    pub fn open(files: IndexFiles) -> Result<Self, IndexError> {
        let (manifest, chunks, vectors) = read_index(files)?;
        let keywords = Keywords::new(chunks.iter().map(chunk_text));
        Ok(Self { manifest, chunks, vectors, keywords })
    }

    /// What the index says of itself.
    #[must_use]
    pub const fn manifest(&self) -> &IndexManifest {
        &self.manifest
    }

    /// The best chunks for a question whose vector (length 1) is given, best first, at most `limit`.
    ///
    /// All chunks are compared: exact, and fast enough up to some hundred thousand. Ties keep the order of the chunks, so
    /// the same question always finds the same.
    ///
    /// # Errors
    /// [`IndexError::OtherDimensions`] when the vector comes from another embedder.
    pub fn search(&self, question: &str, vector: &[f32], limit: usize) -> Result<Vec<Hit<'_>>, IndexError> {
        let expected = self.vectors.dimensions();
        if vector.len() != expected {
            let embedder = self.manifest.embedder.clone();
            return Err(IndexError::OtherDimensions { found: vector.len(), expected, embedder });
        }
        let similarities: Vec<f32> = self.vectors.iter().map(|row| dot(row, vector)).collect();
        let dense_ranks = ranks(similarities.iter().copied().enumerate().collect(), self.chunks.len());
        let keyword_scores = self.keywords.score(question);
        let keyword_ranks =
            ranks(keyword_scores.iter().map(|(&i, score)| (i as usize, score.bm25)).collect(), self.chunks.len());

        let mut hits: Vec<Hit<'_>> = self
            .chunks
            .iter()
            .zip(similarities)
            .zip(dense_ranks.iter().zip(&keyword_ranks))
            .zip(0u32..)
            .filter_map(|(((chunk, similarity), (&dense, &keyword_rank)), number)| {
                let dense_rank = dense?;
                let coverage = keyword_scores.get(&number).map_or(0.0, |score| score.coverage.powi(2));
                let score = (share(Some(dense_rank)) + coverage * share(keyword_rank)) / 2.0;
                (score > 0.0).then_some(Hit { chunk, score, similarity, dense_rank, keyword_rank })
            })
            .collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score));
        diversify(&mut hits, limit);
        Ok(hits)
    }
}

/// The rank, from 1, of each of `n` items in a list of items with scores; `None` for those not in it.
fn ranks(mut scored: Vec<(usize, f32)>, n: usize) -> Vec<Option<usize>> {
    scored.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut ranks = vec![None; n];
    for (rank, (item, _)) in (1..).zip(scored) {
        if let Some(place) = ranks.get_mut(item) {
            *place = Some(rank);
        }
    }
    ranks
}

/// What a rank in one list adds, scaled so that the first place adds 1.
fn share(rank: Option<usize>) -> f32 {
    rank.filter(|&rank| rank <= DEPTH).map_or(0.0, |rank| (K + 1.0) / (K + rank as f32))
}

/// Keeps the best `limit` hits, where each further chunk of a document counts a little less. `hits` come best first.
fn diversify(hits: &mut Vec<Hit<'_>>, limit: usize) {
    let mut kept: Vec<Hit<'_>> = Vec::with_capacity(limit.min(hits.len()));
    while kept.len() < limit && !hits.is_empty() {
        let worth = |hit: &Hit<'_>| {
            let repetitions = kept.iter().filter(|k| k.chunk.document == hit.chunk.document).count();
            hit.score * REPETITION.powi(i32::try_from(repetitions).unwrap_or(i32::MAX))
        };
        // max_by takes the last of equals; walking backwards that is the first
        let best = (0..hits.len()).rev().max_by(|&a, &b| worth(&hits[a]).total_cmp(&worth(&hits[b]))).unwrap_or(0);
        kept.push(hits.remove(best));
    }
    *hits = kept;
}
