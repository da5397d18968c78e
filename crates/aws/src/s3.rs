//! Objects in S3.
//!
//! A role without `s3:ListBucket` on the bucket gets 403 for an object that is not there: give it to every role that reads
//! something optional (Amazon S3 API Reference, GetObject, "Permissions").

use std::{path::Path, time::Duration};

use aws_sdk_s3::{Client, error::ProvideErrorMetadata, operation::get_object::GetObjectOutput, primitives::ByteStream};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::AsyncWriteExt;
use tunesmith_contract::{S3Uri, UnixTime};

use crate::{AwsError, Config, config, error::aws};

/// Largest JSON object that [`S3::get_json`] reads. Ours are small; anything larger is not ours.
const JSON_LIMIT: u64 = 64 << 20;
/// One try may move a whole checkpoint or weight file.
const TRANSFER: Duration = Duration::from_secs(600);

/// Client for S3. Cheap to clone.
#[derive(Debug, Clone)]
pub struct S3 {
    client: Client,
}

/// What a HEAD says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// Size in bytes.
    pub bytes: u64,
    /// Entity tag, without quotes.
    pub etag: String,
}

/// Answer to a read with a size limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The whole object.
    Bytes(Bytes),
    /// There is none.
    Missing,
    /// Larger than the limit; nothing was read.
    TooLarge {
        /// Its size in bytes.
        bytes: u64,
    },
}

/// Answer to a conditional write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOnce {
    /// Written now.
    Written,
    /// There was one already; it is unchanged.
    Existed,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Where it is.
    pub uri: S3Uri,
    /// Size in bytes.
    pub bytes: u64,
    /// When it was written; absent where the service does not say.
    pub modified: Option<UnixTime>,
}

impl S3 {
    /// A client. With an endpoint of one's own (`AWS_ENDPOINT_URL`), buckets go into the path instead of the host name.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let conf = aws_sdk_s3::config::Builder::from(config)
            .force_path_style(config.endpoint_url().is_some())
            .timeout_config(config::slow(TRANSFER))
            .build();
        Self { client: Client::from_conf(conf) }
    }

    /// Size and tag of an object; `None` when there is none.
    pub async fn head(&self, uri: &S3Uri) -> Result<Option<ObjectHead>, AwsError> {
        match self.client.head_object().bucket(&uri.bucket).key(&uri.key).send().await {
            Ok(found) => Ok(Some(ObjectHead {
                bytes: size(found.content_length()),
                etag: found.e_tag().unwrap_or_default().trim_matches('"').to_owned(),
            })),
            Err(error) => missing_is_none(aws!("s3", "HeadObject")(error)),
        }
    }

    /// The object, when it has at most `limit` bytes. The size is looked at before the body is read.
    pub async fn get(&self, uri: &S3Uri, limit: u64) -> Result<Fetched, AwsError> {
        let Some(found) = self.open(uri).await? else { return Ok(Fetched::Missing) };
        let bytes = size(found.content_length());
        if bytes > limit {
            return Ok(Fetched::TooLarge { bytes });
        }
        Ok(Fetched::Bytes(collect(found.body).await?))
    }

    /// The object as text; `None` when there is none.
    ///
    /// # Errors
    /// Also when it is no UTF-8 or larger than 64 MiB.
    pub async fn get_text(&self, uri: &S3Uri) -> Result<Option<String>, AwsError> {
        match self.get(uri, JSON_LIMIT).await? {
            Fetched::Missing => Ok(None),
            Fetched::Bytes(bytes) => String::from_utf8(bytes.to_vec())
                .map(Some)
                .map_err(|error| AwsError::malformed("s3", "GetObject", format_args!("{uri}: {error}"))),
            Fetched::TooLarge { bytes } => Err(AwsError::malformed(
                "s3",
                "GetObject",
                format_args!("{uri} has {bytes} bytes, the limit is {JSON_LIMIT}"),
            )),
        }
    }

    /// The object, parsed; `None` when there is none.
    ///
    /// # Errors
    /// Also when it is not JSON of this type or larger than 64 MiB.
    pub async fn get_json<T: DeserializeOwned>(&self, uri: &S3Uri) -> Result<Option<T>, AwsError> {
        let Some(text) = self.get_text(uri).await? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| AwsError::malformed("s3", "GetObject", format_args!("{uri}: {error}")))
    }

    /// Writes an object.
    pub async fn put(&self, uri: &S3Uri, bytes: impl Into<Bytes>, content_type: &str) -> Result<(), AwsError> {
        self.client
            .put_object()
            .bucket(&uri.bucket)
            .key(&uri.key)
            .content_type(content_type)
            .body(ByteStream::from(bytes.into()))
            .send()
            .await
            .map_err(aws!("s3", "PutObject"))?;
        Ok(())
    }

    /// Writes an object as JSON.
    pub async fn put_json<T: Serialize>(&self, uri: &S3Uri, value: &T) -> Result<(), AwsError> {
        self.put(uri, json(uri, value)?, "application/json").await
    }

    /// Writes an object unless there is one (`If-None-Match: *`): of many writers exactly one writes.
    pub async fn put_once(
        &self,
        uri: &S3Uri,
        bytes: impl Into<Bytes>,
        content_type: &str,
    ) -> Result<PutOnce, AwsError> {
        let sent = self
            .client
            .put_object()
            .bucket(&uri.bucket)
            .key(&uri.key)
            .content_type(content_type)
            .if_none_match("*")
            .body(ByteStream::from(bytes.into()))
            .send()
            .await;
        match sent {
            Ok(_) => Ok(PutOnce::Written),
            Err(error) if error.code() == Some("PreconditionFailed") => Ok(PutOnce::Existed),
            Err(error) => {
                let mut error = aws!("s3", "PutObject")(error);
                // another conditional write of the same key is under way: the next try sees its result
                error.retryable |= error.code == "ConditionalRequestConflict";
                if error.code == "PreconditionFailed" { Ok(PutOnce::Existed) } else { Err(error) }
            }
        }
    }

    /// [`S3::put_once`] of JSON.
    pub async fn put_json_once<T: Serialize>(&self, uri: &S3Uri, value: &T) -> Result<PutOnce, AwsError> {
        self.put_once(uri, json(uri, value)?, "application/json").await
    }

    /// Every object whose key begins with the prefix `uri.key`, in key order.
    pub async fn list(&self, uri: &S3Uri) -> Result<Vec<Listed>, AwsError> {
        let mut pages = self.client.list_objects_v2().bucket(&uri.bucket).prefix(&uri.key).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            for object in page.map_err(aws!("s3", "ListObjectsV2"))?.contents() {
                found.push(Listed {
                    uri: S3Uri::new(&uri.bucket, object.key().unwrap_or_default()),
                    bytes: size(object.size()),
                    modified: object.last_modified().map(|at| UnixTime(at.secs())),
                });
            }
        }
        Ok(found)
    }

    /// Deletes an object; one that is not there is as good as deleted.
    pub async fn delete(&self, uri: &S3Uri) -> Result<(), AwsError> {
        self.client
            .delete_object()
            .bucket(&uri.bucket)
            .key(&uri.key)
            .send()
            .await
            .map_err(aws!("s3", "DeleteObject"))?;
        Ok(())
    }

    /// Streams an object into a file, without holding it in memory. The file appears under its name only when it is whole.
    /// Returns its size; `None` when there is no object.
    pub async fn download(&self, uri: &S3Uri, to: &Path) -> Result<Option<u64>, AwsError> {
        let local = |error: std::io::Error| {
            AwsError::malformed("s3", "GetObject", format_args!("{uri} to {}: {error}", to.display()))
        };
        let Some(found) = self.open(uri).await? else { return Ok(None) };
        if let Some(folder) = to.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(local)?;
        }
        let part = to.with_added_extension("part");
        let mut file = tokio::fs::File::create(&part).await.map_err(local)?;
        let mut body = found.body;
        let mut written = 0;
        while let Some(bytes) = body.try_next().await.map_err(|error| interrupted(&error))? {
            file.write_all(&bytes).await.map_err(local)?;
            written += bytes.len() as u64;
        }
        file.flush().await.map_err(local)?;
        drop(file);
        tokio::fs::rename(&part, to).await.map_err(local)?;
        Ok(Some(written))
    }

    /// Streams a file into an object, without holding it in memory.
    ///
    /// # Errors
    /// Also when the file cannot be read. S3 takes at most 5 GiB in one request.
    pub async fn upload(&self, from: &Path, uri: &S3Uri) -> Result<(), AwsError> {
        let body = ByteStream::from_path(from).await.map_err(|error| {
            AwsError::malformed("s3", "PutObject", format_args!("{} to {uri}: {error}", from.display()))
        })?;
        self.client
            .put_object()
            .bucket(&uri.bucket)
            .key(&uri.key)
            .body(body)
            .send()
            .await
            .map_err(aws!("s3", "PutObject"))?;
        Ok(())
    }

    async fn open(&self, uri: &S3Uri) -> Result<Option<GetObjectOutput>, AwsError> {
        match self.client.get_object().bucket(&uri.bucket).key(&uri.key).send().await {
            Ok(found) => Ok(Some(found)),
            Err(error) => missing_is_none(aws!("s3", "GetObject")(error)),
        }
    }
}

fn missing_is_none<T>(error: AwsError) -> Result<Option<T>, AwsError> {
    if matches!(error.code.as_str(), "NoSuchKey" | "NotFound" | "NoSuchVersion") { Ok(None) } else { Err(error) }
}

fn size(length: Option<i64>) -> u64 {
    length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0)
}

fn json<T: Serialize>(uri: &S3Uri, value: &T) -> Result<Vec<u8>, AwsError> {
    serde_json::to_vec_pretty(value)
        .map_err(|error| AwsError::malformed("s3", "PutObject", format_args!("{uri}: {error}")))
}

async fn collect(body: ByteStream) -> Result<Bytes, AwsError> {
    body.collect().await.map(|all| all.into_bytes()).map_err(|error| interrupted(&error))
}

fn interrupted(error: &impl std::fmt::Display) -> AwsError {
    AwsError {
        service: "s3",
        operation: "GetObject",
        code: AwsError::DISPATCH.into(),
        message: format!("the body ended early: {error}"),
        retryable: true,
    }
}
