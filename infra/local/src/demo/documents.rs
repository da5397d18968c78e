//! Uploading the folder and waiting until each file was read or quarantined.

use std::{collections::BTreeMap, fs, time::Duration};

use tokio::time::{Instant, sleep};
use tunesmith_contract::{
    ObjectKey,
    documents::{QuarantineRecord, SourceRecord, SourceStatus},
    keys::{Upload, uploads, workspace},
    ledger::ItemKey,
};

use super::{
    Source,
    summary::{Documents, Quarantined},
};
use crate::{LocalError, models, stage::Stages, state::State};

/// Without any progress for so long, reading has failed.
const STALL: Duration = Duration::from_secs(180);

const SETTINGS: &str = "# Written by the demo, because the folder had no project.toml.\n\
    base_model = \"tunesmith-mini\"\n\n[data]\nquiet_minutes = 0  # only _TRAIN starts training\n\n[budget]\nmonthly_limit_usd = 25.0\n";

/// Uploads every file of the folder; what became of each is the result.
///
/// # Errors
/// When no file can be read here, the bucket refuses one, or `ingest-document` makes no progress.
pub async fn upload_and_wait(state: &State, source: &Source, stages: &Stages) -> Result<Documents, LocalError> {
    let files = models::files(&source.folder)?;
    let stage = stages.begin("upload", Some(files.len() as u64));
    let (aws, bucket) = (state.aws(), state.output("DocumentsBucket")?);
    if !source.folder.join("project.toml").exists() {
        aws.put_object(bucket, &uploads::settings(&source.project), SETTINGS).await?;
    }
    let (mut expected, mut unreadable) = (Vec::new(), Vec::new());
    for (number, (path, name)) in files.iter().enumerate() {
        let key = ObjectKey { project: source.project.clone(), path: name.clone() };
        stage.tick(name);
        match key.upload() {
            Upload::TrainNow | Upload::Ignored => continue,
            Upload::Document | Upload::Settings => {}
        }
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            // a folder like /usr/share/doc has such: the others go on
            Err(error) => {
                let reason = format!("not uploaded: it cannot be read on this machine ({error})");
                unreadable.push(Quarantined { file: name.clone(), reason });
                continue;
            }
        };
        if key.upload() == Upload::Document {
            expected.push(name.clone());
        }
        aws.put_object(bucket, &key.to_string(), bytes).await?;
        stage.at(number as u64 + 1);
    }
    stage.done(&format!("{} files to s3://{bucket}/{}/", expected.len(), source.project));
    if expected.is_empty() {
        return Err(LocalError::Usage(format!("{} holds no files that can be read", source.folder.display())));
    }
    let mut documents = wait(state, source, &expected, stages).await?;
    for file in &unreadable {
        stages.say(&format!("{:<22} {}: {}", "", file.file, file.reason));
    }
    documents.quarantined.append(&mut unreadable);
    Ok(documents)
}

async fn wait(state: &State, source: &Source, expected: &[String], stages: &Stages) -> Result<Documents, LocalError> {
    let stage = stages.begin("ingest", Some(expected.len() as u64));
    let (aws, table) = (state.aws(), state.output("Table")?);
    let (mut last, mut since) = (0, Instant::now());
    let records = loop {
        let items = aws.query_items(table, &ItemKey::project(&source.project), "SOURCE#").await?;
        let records: BTreeMap<String, SourceRecord> = items
            .into_iter()
            .filter_map(|item| serde_json::from_value::<SourceRecord>(item).ok())
            .map(|record| (record.path.clone(), record))
            .collect();
        let read = expected.iter().filter(|path| records.contains_key(*path)).count();
        stage.at(read as u64);
        if read == expected.len() {
            break records;
        }
        if read > last {
            (last, since) = (read, Instant::now());
        } else if since.elapsed() > STALL {
            let missing: Vec<&str> =
                expected.iter().filter(|p| !records.contains_key(*p)).map(String::as_str).take(5).collect();
            return Err(LocalError::TooLate {
                what: format!("reading the last {} files (among them {})", expected.len() - read, missing.join(", ")),
                seconds: STALL.as_secs(),
                remedy: "see `cargo local-cloud logs ingest-document`".into(),
            });
        }
        sleep(Duration::from_millis(250)).await;
    };
    let mut quarantined = Vec::new();
    for record in records.values().filter(|record| record.status == SourceStatus::Quarantined) {
        let key = workspace::quarantine(&source.project, &record.document);
        let found: Option<QuarantineRecord> = aws.get_json(state.output("WorkspaceBucket")?, &key).await?;
        let reason = found.map_or_else(|| "unknown".to_owned(), |found| found.message);
        quarantined.push(Quarantined { file: record.path.clone(), reason });
    }
    let ingested = records.values().filter(|record| record.status == SourceStatus::Extracted).count() as u64;
    stage.done(&format!("{ingested} read, {} quarantined", quarantined.len()));
    for file in &quarantined {
        stages.say(&format!("{:<22} quarantined {}: {}", "", file.file, file.reason));
    }
    Ok(Documents { ingested, quarantined })
}
