//! The embedder and the projects' indexes, fetched from S3 once and kept as long as the container lives.

use std::sync::Arc;

use tokio::sync::{Mutex, OnceCell};
use tunesmith_aws::{
    AwsError,
    s3::{Fetched, S3},
};
use tunesmith_contract::{IndexId, ProjectId, S3Uri, documents::Chunk, keys::workspace};
use tunesmith_retrieval::{
    CHUNKS_FILE, EMBEDDER_FILES, EmbedError, Embedder, EmbedderFiles, IndexError, IndexFiles, MANIFEST_FILE,
    SearchIndex, VECTORS_FILE,
};

/// Indexes kept at once; the one unused for longest goes first.
const KEPT_INDEXES: usize = 4;
/// Larger files do not fit into the function's memory beside the others.
const MAX_FILE: u64 = 512 << 20;

/// Why no passages could be found. Answering without them would be a wrong answer that looks like a right one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    #[error(transparent)]
    Aws(#[from] AwsError),
    #[error("{0} is missing or too large; start the pipeline again")]
    Unusable(S3Uri),
    #[error(transparent)]
    Embedder(#[from] EmbedError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("the search was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// A passage that was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Passage {
    pub chunk: Chunk,
    pub score: f32,
}

pub(crate) struct Library {
    s3: S3,
    bucket: String,
    embedder: OnceCell<Arc<Embedder>>,
    indexes: Mutex<Vec<Arc<SearchIndex>>>,
}

impl Library {
    pub fn new(s3: S3, bucket: String) -> Self {
        Self { s3, bucket, embedder: OnceCell::new(), indexes: Mutex::default() }
    }

    /// The best `limit` passages for a question.
    pub async fn find(
        &self,
        project: &ProjectId,
        index: &IndexId,
        question: String,
        limit: usize,
    ) -> Result<Vec<Passage>, LibraryError> {
        let (embedder, index) = tokio::try_join!(self.embedder(), self.index(project, index))?;
        let found = move || {
            let vectors = embedder.embed(&[&question])?;
            let hits = index.search(&question, vectors.row(0), limit)?;
            Ok(hits.iter().map(|hit| Passage { chunk: hit.chunk.clone(), score: hit.score }).collect())
        };
        tokio::task::spawn_blocking(found).await?
    }

    async fn embedder(&self) -> Result<Arc<Embedder>, LibraryError> {
        let load = async || {
            let [config, tokenizer, weights] =
                EMBEDDER_FILES.map(|name| self.file(format!("{}{name}", workspace::EMBEDDER)));
            let (config, tokenizer, weights) = tokio::try_join!(config, tokenizer, weights)?;
            let files = EmbedderFiles { config, tokenizer, weights };
            Ok(Arc::new(tokio::task::spawn_blocking(|| Embedder::load(files)).await??))
        };
        self.embedder.get_or_try_init(load).await.map(Arc::clone)
    }

    async fn index(&self, project: &ProjectId, id: &IndexId) -> Result<Arc<SearchIndex>, LibraryError> {
        // held while loading: two requests for one index fetch it once
        let mut kept = self.indexes.lock().await;
        let index = match kept.iter().position(|index| index.manifest().index == *id) {
            Some(place) => kept.remove(place),
            None => Arc::new(self.load_index(project, id).await?),
        };
        kept.push(Arc::clone(&index));
        if kept.len() > KEPT_INDEXES {
            kept.remove(0);
        }
        Ok(index)
    }

    async fn load_index(&self, project: &ProjectId, id: &IndexId) -> Result<SearchIndex, LibraryError> {
        let folder = workspace::index(project, id);
        let [manifest, chunks, vectors] =
            [MANIFEST_FILE, CHUNKS_FILE, VECTORS_FILE].map(|name| self.file(format!("{folder}{name}")));
        let (manifest, chunks, vectors) = tokio::try_join!(manifest, chunks, vectors)?;
        let files = IndexFiles { manifest, chunks, vectors };
        Ok(tokio::task::spawn_blocking(|| SearchIndex::open(files)).await??)
    }

    async fn file(&self, key: String) -> Result<Vec<u8>, LibraryError> {
        let uri = S3Uri::new(&self.bucket, key);
        match self.s3.get(&uri, MAX_FILE).await? {
            Fetched::Bytes(bytes) => Ok(bytes.into()),
            Fetched::Missing | Fetched::TooLarge { .. } => Err(LibraryError::Unusable(uri)),
        }
    }
}
