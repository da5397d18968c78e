//! Lambda function `prepare-dataset`: a project's documents become train, validation and test split.
//!
//! Promise: the dataset's id is the hash of its content, so the same documents give the same dataset, however often and in
//! whatever order they were uploaded; the manifest is written last, so a dataset with a manifest is whole. Uploads that are
//! still being read are waited for ([`patience`]); what was not read in time is named in manifest, report and answer.

pub mod patience;
pub mod sources;

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use tunesmith_aws::{dynamodb::Table, s3::S3};
use tunesmith_contract::{
    DocumentId, ErrorName, ProjectId, ProjectSettings, S3Uri, UnixTime,
    documents::{DatasetManifest, ExtractedDocument, QuarantineRecord, SourceRecord, UnreadUploads},
    error_name::Failure,
    keys::{uploads, workspace},
    ledger::ItemKey,
    tasks::{PrepareDatasetInput, PreparedDataset},
};
use tunesmith_documents::{DatasetError, DatasetPlan, DatasetReport, build_dataset, dataset_report};
use tunesmith_lambda::{Metric, Storage, Unit, publish_metrics};

use crate::patience::Patience;

/// Time between looks.
const LOOK: Duration = Duration::from_secs(2);
/// Documents read from S3 at the same time.
const READERS: usize = 16;

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Documents and datasets.
    pub s3: S3,
    /// Sources.
    pub table: Table,
}

/// Prepares the dataset of everything the project holds now.
///
/// # Errors
/// `NotEnoughText` with the counts, `SettingsInvalid`, `NotFound` (a document's text is gone), AWS errors.
pub async fn handle(
    input: PrepareDatasetInput,
    clients: &Clients,
    storage: &Storage,
    now: UnixTime,
) -> Result<PreparedDataset, Failure> {
    let project = input.project;
    let uploaded = S3Uri::new(&storage.documents_bucket, uploads::settings(&project));
    let rules = ProjectSettings::of_upload(clients.s3.get_text(&uploaded).await?.as_deref())?;
    let (sources, unread) = settled_sources(&project, clients, storage).await?;
    let chosen = sources::choose(&sources);
    let documents: Vec<ExtractedDocument> =
        read(&chosen.documents, |id| workspace::document(&project, id), clients, storage).await?;
    let quarantine: Vec<QuarantineRecord> =
        read(&chosen.quarantined, |id| workspace::quarantine(&project, id), clients, storage).await?;

    let plan = DatasetPlan::new(&rules.data, &rules.training);
    let (name, left_out) = (project.clone(), unread.count);
    let made = tokio::task::spawn_blocking(move || {
        let dataset = build_dataset(documents, &plan)?;
        let files = dataset.files()?;
        let manifest = dataset.manifest(&files.id, &name, quarantine.len() as u64);
        let manifest = DatasetManifest { unread, ..manifest };
        let report = dataset_report(&DatasetReport { manifest: &manifest, dataset: &dataset, quarantine: &quarantine });
        Ok((files, manifest, report))
    });
    let (files, manifest, report) = made
        .await
        .map_err(|error| Failure::new(ErrorName::Internal, format!("building the dataset: {error}")))?
        .map_err(|error| failure(&error, left_out))?;

    let folder = S3Uri::new(&storage.workspace_bucket, workspace::dataset(&project, &files.id));
    for (name, bytes) in
        [("train.jsonl.zst", files.train), ("validation.jsonl.zst", files.validation), ("test.jsonl.zst", files.test)]
    {
        clients.s3.put(&folder.join(name), bytes, "application/zstd").await?;
    }
    clients.s3.put(&folder.join("report.html"), report.into_bytes(), "text/html; charset=utf-8").await?;
    clients.s3.put_json(&folder.join("manifest.json"), &manifest).await?;

    let documents = manifest.documents.len() as u64;
    tracing::info!(
        dataset = %manifest.dataset, documents, quarantined = manifest.quarantined,
        unread = manifest.unread.count, duplicates = manifest.duplicates.len(), train_words = manifest.train.words, test_words = manifest.test.words,
        "dataset prepared"
    );
    let count = |name, value: u64| Metric { name, unit: Unit::Count, value: value as f64 };
    publish_metrics(now, &[count("DatasetDocuments", documents), count("TrainingWords", manifest.train.words)]);
    let DatasetManifest { dataset, train, test, unread, .. } = manifest;
    Ok(PreparedDataset { dataset, documents, train, test, unread })
}

/// What is known of every upload, once every upload is known, and what is left out. `_TRAIN` may arrive before the last
/// document was read.
async fn settled_sources(
    project: &ProjectId,
    clients: &Clients,
    storage: &Storage,
) -> Result<(Vec<SourceRecord>, UnreadUploads), Failure> {
    let folder = S3Uri::new(&storage.documents_bucket, format!("{project}/"));
    let (began, mut patience) = (Instant::now(), Patience::default());
    loop {
        let uploads = clients.s3.list(&folder).await?;
        let sources: Vec<SourceRecord> = clients.table.query(&ItemKey::project(project), "SOURCE#").await?;
        let pending = sources::pending(&uploads, &sources);
        if pending.is_empty() {
            return Ok((sources, UnreadUploads::default()));
        }
        if !patience.waits_for(pending.len(), began.elapsed()) {
            // going on without them is better than a project that one unreadable file blocks for ever
            tracing::warn!(?pending, "uploads that were not read in time are left out; see the dead-letter queue");
            return Ok((sources, UnreadUploads::new(&pending)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn read<T: serde::de::DeserializeOwned>(
    ids: &[DocumentId],
    key: impl Fn(&DocumentId) -> String,
    clients: &Clients,
    storage: &Storage,
) -> Result<Vec<T>, Failure> {
    let uris: Vec<S3Uri> = ids.iter().map(|id| S3Uri::new(&storage.workspace_bucket, key(id))).collect();
    futures::stream::iter(uris)
        .map(async |uri| {
            clients.s3.get_json(&uri).await?.ok_or_else(|| {
                let message = format!("{uri} is missing; upload the document again, or restore the object's version");
                Failure::new(ErrorName::NotFound, message)
            })
        })
        .buffered(READERS)
        .try_collect()
        .await
}

fn failure(error: &DatasetError, left_out: u64) -> Failure {
    let name = match error {
        DatasetError::NotEnoughText { .. } | DatasetError::CannotSplit { .. } => ErrorName::NotEnoughText,
        _ => ErrorName::Internal,
    };
    let message = match left_out {
        0 => error.to_string(),
        files => {
            format!("{error}; {files} uploaded file(s) had not been read in time: start again when they have been")
        }
    };
    Failure::new(name, message)
}
