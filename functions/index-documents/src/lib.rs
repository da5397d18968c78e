//! Lambda function `index-documents`: the documents of a dataset become a retrieval index.
//!
//! Promise: the index's id is the hash of its chunks and its embedder, and its manifest is written last: an index with a
//! manifest is whole, and what was indexed before is not computed again.

use futures::{StreamExt as _, TryStreamExt as _};
use tunesmith_aws::s3::{Fetched, S3};
use tunesmith_contract::{
    ErrorName, ProjectId, S3Uri, UnixTime,
    documents::{Chunk, DatasetManifest, ExtractedDocument, IndexManifest},
    error_name::Failure,
    keys::workspace,
    tasks::{IndexDocumentsInput, IndexedDocuments},
};
use tunesmith_documents::{ChunkPlan, chunk_documents, clean_document};
use tunesmith_lambda::{Environment, Metric, SettingError, Unit, publish_metrics};
use tunesmith_retrieval::{
    CHUNKS_FILE, EMBEDDER_FILES, Embedder, EmbedderFiles, MANIFEST_FILE, NewIndex, VECTORS_FILE, build_index,
    chunk_text, index_id,
};

/// Documents read from S3 at the same time.
const READERS: usize = 16;
/// The embedding model's weights have 91 MB.
const MODEL_LIMIT: u64 = 512 << 20;

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Documents, the embedding model, indexes.
    pub s3: S3,
}

/// What the CDK sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Bucket of what the system makes.
    pub workspace_bucket: String,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`SettingError`] with the variable's name.
    pub fn from_environment(environment: &Environment) -> Result<Self, SettingError> {
        Ok(Self { workspace_bucket: environment.text("WORKSPACE_BUCKET")? })
    }
}

/// Indexes the documents that the dataset's manifest names.
///
/// # Errors
/// `NotFound` (manifest, document or embedding model), `Internal` (a model or document that cannot be used), AWS errors.
pub async fn handle(
    input: IndexDocumentsInput,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<IndexedDocuments, Failure> {
    let bucket = settings.workspace_bucket.as_str();
    let dataset = S3Uri::new(bucket, workspace::dataset(&input.project, &input.dataset));
    let manifest: DatasetManifest = required(&dataset.join("manifest.json"), clients).await?;
    let documents = documents(&input.project, &manifest, bucket, clients).await?;
    let chunks = compute(move || {
        let cleaned: Vec<ExtractedDocument> = documents.into_iter().map(clean_document).collect();
        Ok(chunk_documents(&cleaned, &ChunkPlan::default()))
    })
    .await?;

    let index = index_id(&chunks).map_err(|error| internal(&error))?;
    let folder = S3Uri::new(bucket, workspace::index(&input.project, &index));
    if let Some(there) = clients.s3.get_json::<IndexManifest>(&folder.join(MANIFEST_FILE)).await? {
        tracing::info!(index = %index, chunks = there.chunks, "indexed before");
        return Ok(IndexedDocuments { index, chunks: there.chunks });
    }

    let model = embedder_files(bucket, clients).await?;
    let NewIndex { manifest, files } = compute(move || embed(input, &chunks, model)).await?;
    clients.s3.put(&folder.join(CHUNKS_FILE), files.chunks, "application/zstd").await?;
    clients.s3.put(&folder.join(VECTORS_FILE), files.vectors, "application/octet-stream").await?;
    clients.s3.put(&folder.join(MANIFEST_FILE), files.manifest, "application/json").await?;
    tracing::info!(index = %manifest.index, chunks = manifest.chunks, "indexed");
    publish_metrics(now, &[Metric { name: "IndexedChunks", unit: Unit::Count, value: manifest.chunks as f64 }]);
    Ok(IndexedDocuments { index: manifest.index, chunks: manifest.chunks })
}

fn embed(input: IndexDocumentsInput, chunks: &[Chunk], model: EmbedderFiles) -> Result<NewIndex, Failure> {
    let embedder = Embedder::load(model).map_err(|error| internal(&error))?;
    let texts: Vec<String> = chunks.iter().map(chunk_text).collect();
    let vectors = embedder.embed(&texts).map_err(|error| internal(&error))?;
    build_index(input.dataset, chunks, &vectors).map_err(|error| internal(&error))
}

async fn documents(
    project: &ProjectId,
    manifest: &DatasetManifest,
    bucket: &str,
    clients: &Clients,
) -> Result<Vec<ExtractedDocument>, Failure> {
    let uris: Vec<S3Uri> =
        manifest.documents.iter().map(|id| S3Uri::new(bucket, workspace::document(project, id))).collect();
    futures::stream::iter(uris).map(async |uri| required(&uri, clients).await).buffered(READERS).try_collect().await
}

async fn embedder_files(bucket: &str, clients: &Clients) -> Result<EmbedderFiles, Failure> {
    let folder = S3Uri::new(bucket, workspace::EMBEDDER);
    let fetch = async |name: &str| {
        let uri = folder.join(name);
        match clients.s3.get(&uri, MODEL_LIMIT).await? {
            Fetched::Bytes(bytes) => Ok(bytes.to_vec()),
            Fetched::Missing => Err(Failure::new(
                ErrorName::NotFound,
                format!(
                    "the embedding model is missing: {uri}; upload config.json, tokenizer.json and model.safetensors of all-MiniLM-L6-v2 there"
                ),
            )),
            Fetched::TooLarge { bytes } => {
                Err(Failure::new(ErrorName::Internal, format!("{uri} has {bytes} bytes, the limit is {MODEL_LIMIT}")))
            }
        }
    };
    let [config, tokenizer, weights] = EMBEDDER_FILES;
    Ok(EmbedderFiles {
        config: fetch(config).await?,
        tokenizer: fetch(tokenizer).await?,
        weights: fetch(weights).await?,
    })
}

async fn required<T: serde::de::DeserializeOwned>(uri: &S3Uri, clients: &Clients) -> Result<T, Failure> {
    clients
        .s3
        .get_json(uri)
        .await?
        .ok_or_else(|| Failure::new(ErrorName::NotFound, format!("{uri} is missing; start the pipeline again")))
}

/// Runs what keeps cores busy beside the runtime's own work.
async fn compute<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::new(ErrorName::Internal, format!("indexing stopped: {error}"))))
}

fn internal(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorName::Internal, error.to_string())
}
