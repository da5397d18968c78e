//! Lambda function `ingest-document`: every upload is read or refused, once.
//!
//! Promise: the newest upload of a path wins, in whatever order its events arrive and however often; a file that cannot be used
//! has a quarantine record and a mail with reason and remedy ([`refusal`]), and stops no other; so has one that kills the reader
//! ([`reading`]); a file over the size limit is refused without being read. The `SOURCE` item is written after everything that
//! it speaks of: an event that was cut off half-way is done again as a whole. It says whether a mail is still owed.

pub mod event;
pub mod mail;
mod reading;
pub mod refusal;

use tunesmith_aws::{
    dynamodb::{Conditional, Expression, Table},
    s3::{Fetched, S3},
    scheduler::{OneTime, Scheduler},
    sfn::StepFunctions,
    sns::Topic,
};
use tunesmith_contract::{
    DocumentId, ErrorName, ObjectKey, ProjectId, ProjectSettings, S3Uri, Seconds, UnixTime,
    documents::{ExtractedDocument, QuarantineReason, QuarantineRecord, SourceRecord, SourceStatus},
    error_name::Failure,
    keys::{uploads, workspace},
    ledger::ItemKey,
    settings::SettingsError,
    tasks::PipelineInput,
};
use tunesmith_documents::{Limits, quarantine_record, read_document};
use tunesmith_lambda::{
    BatchAnswer, Environment, Metric, SettingError, SqsBatch, SqsMessage, Storage, Unit, each_message, publish_metrics,
};

use crate::{
    event::{Subject, Task},
    mail::Mail,
};

/// What the function calls.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Uploads and texts.
    pub s3: S3,
    /// Sources.
    pub table: Table,
    /// Mails to owners.
    pub notifications: Topic,
    /// The quiet period.
    pub scheduler: Scheduler,
    /// The pipeline.
    pub step_functions: StepFunctions,
}

/// What the CDK sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Table and buckets.
    pub storage: Storage,
    /// Topic of mails to owners.
    pub notifications_topic_arn: String,
    /// The state machine `training-pipeline`.
    pub training_pipeline_arn: String,
    /// Role with which the schedule starts it.
    pub scheduler_role_arn: String,
    /// Group of the schedules.
    pub schedule_group: String,
    /// Queue of schedules that could not start the pipeline.
    pub schedule_dead_letters_arn: String,
    /// How often a message is handed out before it is a dead letter.
    pub max_receives: u32,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`SettingError`] with the variable's name.
    pub fn from_environment(environment: &Environment) -> Result<Self, SettingError> {
        Ok(Self {
            storage: Storage::from_environment(environment)?,
            notifications_topic_arn: environment.text("NOTIFICATIONS_TOPIC_ARN")?,
            training_pipeline_arn: environment.text("TRAINING_PIPELINE_ARN")?,
            scheduler_role_arn: environment.text("SCHEDULER_ROLE_ARN")?,
            schedule_group: environment.text("SCHEDULE_GROUP")?,
            schedule_dead_letters_arn: environment.text("SCHEDULE_DEAD_LETTERS_ARN")?,
            max_receives: environment.parsed("MAX_RECEIVES")?,
        })
    }
}

/// Handles a batch; only the messages that failed come back.
pub async fn handle(batch: SqsBatch, clients: &Clients, settings: &Settings, now: UnixTime) -> BatchAnswer {
    each_message(batch, async |message: &SqsMessage| match event::task(&message.body)? {
        Task::Read(subject) => {
            let is_last = message.receives() >= settings.max_receives;
            read(&subject, is_last, clients, settings, now).await
        }
        Task::Forget(subject) => forget(&subject, clients, settings, now).await,
        Task::CheckSettings(subject) => check_settings(&subject, clients).await,
        Task::Train(subject) => train(&subject, clients, settings).await,
        Task::Misplaced { error } => {
            tracing::warn!(%error, "misplaced");
            send(clients, &mail::misplaced(&error)).await
        }
        Task::Nothing => Ok(()),
    })
    .await
}

/// What became of a document.
enum Outcome {
    Extracted(ExtractedDocument),
    Refused(QuarantineRecord),
    /// Deleted or overwritten since: another event tells.
    Gone,
}

async fn read(
    subject: &Subject,
    is_last: bool,
    clients: &Clients,
    settings: &Settings,
    now: UnixTime,
) -> Result<(), Failure> {
    let ObjectKey { project, path } = &subject.key;
    if let Some(known) = known(subject, clients).await?.filter(|known| known.sequencer >= subject.sequencer) {
        tracing::info!(%project, path, "a repeated or older event: nothing to read");
        if known.sequencer > subject.sequencer {
            return Ok(()); // whoever receives the later event tells
        }
        return refusal::tell(project, known, clients, settings, now).await;
    }
    let (document, status) = match reading::extract(subject, is_last, clients, now).await? {
        Outcome::Gone => {
            tracing::info!(%project, path, "deleted or replaced before it was read");
            return Ok(());
        }
        Outcome::Extracted(document) => {
            let uri = S3Uri::new(&settings.storage.workspace_bucket, workspace::document(project, &document.id));
            clients.s3.put_json(&uri, &document).await?;
            let sections = document.sections.len();
            tracing::info!(%project, path, document = %document.id, kind = ?document.kind, sections, "read");
            (document.id, SourceStatus::Extracted)
        }
        Outcome::Refused(record) => {
            let uri = S3Uri::new(&settings.storage.workspace_bucket, workspace::quarantine(project, &record.id));
            clients.s3.put_json(&uri, &record).await?;
            tracing::warn!(%project, path, document = %record.id, reason = record.reason.name(), "refused");
            (record.id, SourceStatus::Quarantined)
        }
    };
    schedule(project, clients, settings, now).await?;
    let count = |name, of| Metric { name, unit: Unit::Count, value: f64::from(u8::from(status == of)) };
    let counts =
        [count("DocumentsRead", SourceStatus::Extracted), count("DocumentsRefused", SourceStatus::Quarantined)];
    if let Some(record) = record_source(subject, document, status, clients, now).await? {
        refusal::tell(project, record, clients, settings, now).await?;
    }
    publish_metrics(now, &counts);
    Ok(())
}

/// A refusal of what was never read, so it is named by what it is called: key and version.
fn unread(subject: &Subject, reason: QuarantineReason) -> Outcome {
    let ObjectKey { project, path } = &subject.key;
    let name = format!("{}\n{}\n{}", subject.key, subject.version.as_deref().unwrap_or_default(), reason.message());
    Outcome::Refused(quarantine_record(DocumentId::of(name.as_bytes()), project.clone(), path, reason))
}

async fn extract(subject: &Subject, clients: &Clients) -> Result<Outcome, Failure> {
    let limits = Limits::default();
    if let Some(Err(reason)) = subject.bytes.map(|bytes| limits.check_size(bytes)) {
        return Ok(unread(subject, reason));
    }
    let uri = S3Uri::new(&subject.bucket, subject.key.to_string());
    let bytes = match clients.s3.get(&uri, limits.object_bytes).await? {
        Fetched::Missing => return Ok(Outcome::Gone),
        // replaced by a larger file since the event
        Fetched::TooLarge { bytes } => {
            return Ok(unread(subject, QuarantineReason::TooLarge { bytes, limit: limits.object_bytes }));
        }
        Fetched::Bytes(bytes) => bytes,
    };
    let ObjectKey { project, path } = subject.key.clone();
    let work = move || match read_document(&path, &bytes, &limits) {
        Ok(document) => Outcome::Extracted(document),
        Err(reason) => Outcome::Refused(quarantine_record(DocumentId::of(&bytes), project, &path, reason)),
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => Ok(outcome),
        // the same bytes would panic again
        Err(error) if error.is_panic() => {
            tracing::error!(key = %subject.key, %error, "a document made the reader panic: a defect");
            Ok(unread(subject, QuarantineReason::CrashedReader { tries: 1 }))
        }
        Err(error) => Err(Failure::new(ErrorName::Internal, format!("reading {} stopped: {error}", subject.key))),
    }
}

/// A deleted document is forgotten, unless the object is there again: a deleted old version says nothing about the newest.
async fn forget(subject: &Subject, clients: &Clients, settings: &Settings, now: UnixTime) -> Result<(), Failure> {
    let ObjectKey { project, path } = &subject.key;
    let uri = S3Uri::new(&subject.bucket, subject.key.to_string());
    let is_superseded = known(subject, clients).await?.is_some_and(|known| known.sequencer >= subject.sequencer);
    if is_superseded || clients.s3.head(&uri).await?.is_some() {
        return Ok(());
    }
    schedule(project, clients, settings, now).await?;
    tracing::info!(%project, path, "deleted");
    record_source(subject, DocumentId::of(b""), SourceStatus::Deleted, clients, now).await.map(drop)
}

async fn check_settings(subject: &Subject, clients: &Clients) -> Result<(), Failure> {
    let project = &subject.key.project;
    match project_settings(project, &subject.bucket, clients).await? {
        Ok(_) => {
            tracing::info!(%project, "project.toml is right");
            Ok(())
        }
        Err(error) => {
            tracing::warn!(%project, %error, "project.toml is wrong");
            send(clients, &mail::settings_invalid(project, &error)).await
        }
    }
}

async fn train(subject: &Subject, clients: &Clients, settings: &Settings) -> Result<(), Failure> {
    let input = PipelineInput { project: subject.key.project.clone() };
    let name = event::execution_name(subject);
    let started = clients.step_functions.start_execution(&settings.training_pipeline_arn, &name, &input).await?;
    tracing::info!(project = %subject.key.project, execution = name, ?started, "training asked for");
    Ok(())
}

/// Training starts when the project has been quiet for as long as its settings say: each upload moves the start.
async fn schedule(project: &ProjectId, clients: &Clients, settings: &Settings, now: UnixTime) -> Result<(), Failure> {
    let minutes = match project_settings(project, &settings.storage.documents_bucket, clients).await? {
        Ok(parsed) => parsed.data.quiet_minutes,
        // its owner was told when it was uploaded; a pipeline would stop at once
        Err(_) => 0,
    };
    if minutes == 0 {
        return Ok(());
    }
    let input = serde_json::to_string(&PipelineInput { project: project.clone() })
        .map_err(|error| Failure::new(ErrorName::Internal, error.to_string()))?;
    let start = OneTime {
        name: format!("quiet-{project}"),
        group: settings.schedule_group.clone(),
        at: now.after(Seconds(u64::from(minutes) * 60)),
        target_arn: settings.training_pipeline_arn.clone(),
        role_arn: settings.scheduler_role_arn.clone(),
        input,
        dead_letters_arn: settings.schedule_dead_letters_arn.clone(),
    };
    Ok(clients.scheduler.set(&start).await?)
}

/// The project's settings, or what is wrong with them; defaults without a file.
async fn project_settings(
    project: &ProjectId,
    bucket: &str,
    clients: &Clients,
) -> Result<Result<ProjectSettings, SettingsError>, Failure> {
    let uri = S3Uri::new(bucket, uploads::settings(project));
    Ok(ProjectSettings::of_upload(clients.s3.get_text(&uri).await?.as_deref()))
}

/// What is known of this path: this very event, or an earlier or later one, was dealt with before.
async fn known(subject: &Subject, clients: &Clients) -> Result<Option<SourceRecord>, Failure> {
    Ok(clients.table.get(&ItemKey::source(&subject.key.project, &subject.key.path)).await?)
}

/// Writes what became of an upload, unless a later event was faster; then there is no record.
async fn record_source(
    subject: &Subject,
    document: DocumentId,
    status: SourceStatus,
    clients: &Clients,
    now: UnixTime,
) -> Result<Option<SourceRecord>, Failure> {
    let ObjectKey { project, path } = &subject.key;
    let mail_due = status == SourceStatus::Quarantined;
    let sequencer = subject.sequencer.clone();
    let record = SourceRecord { path: path.clone(), document, sequencer, status, at: now, mail_due };
    let newest = Expression::new("attribute_not_exists(pk) OR #sequencer < :sequencer")
        .name("#sequencer", "sequencer")
        .value(":sequencer", &subject.sequencer);
    match clients.table.put_if(&ItemKey::source(project, path), &record, newest).await? {
        Conditional::Done(()) => Ok(Some(record)),
        Conditional::ConditionFailed => {
            tracing::info!(%project, path, "a later event was faster");
            Ok(None)
        }
    }
}

async fn send(clients: &Clients, mail: &Mail) -> Result<(), Failure> {
    Ok(clients.notifications.publish(&mail.subject, &mail.body).await?)
}
