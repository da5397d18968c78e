//! The mailbox: a queue subscribed to every topic that mails people, and the mails as files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    LocalError,
    client::{ACCOUNT, Aws, REGION, SNS},
    state::localize,
};

const QUEUE: &str = "local-cloud-mailbox";

/// A mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// Where it lies.
    pub path: PathBuf,
    /// Its subject.
    pub subject: String,
    /// Its text; links to function URLs are those of this machine.
    pub text: String,
}

/// Subscribes the mailbox to these topics.
///
/// # Errors
/// When the emulator refuses.
pub async fn subscribe(aws: &Aws, topics: &[String]) -> Result<(), LocalError> {
    let queue_arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{QUEUE}");
    let statement = json!({
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
    });
    let policy = json!({"Version": "2012-10-17", "Statement": [statement]}).to_string();
    aws.json("AmazonSQS.CreateQueue", &json!({"QueueName": QUEUE, "Attributes": {"Policy": policy}})).await?;
    for topic in topics {
        let params = [("TopicArn", topic.as_str()), ("Protocol", "sqs"), ("Endpoint", queue_arn.as_str())];
        aws.query(SNS, "Subscribe", &params).await?;
    }
    Ok(())
}

/// Moves mails from the queue into files, for ever.
pub async fn collect(aws: Aws, folder: PathBuf) {
    let url = format!("{}/{ACCOUNT}/{QUEUE}", aws.endpoint);
    let receive = json!({"QueueUrl": url, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 1});
    let mut number = list(&folder, None).len();
    loop {
        match aws.json("AmazonSQS.ReceiveMessage", &receive).await {
            Ok(answer) => {
                for message in answer["Messages"].as_array().into_iter().flatten() {
                    number += 1;
                    if let Err(error) = keep(&aws, &folder, number, message) {
                        tracing::error!(%error, "a mail could not be kept");
                        continue;
                    }
                    let handle = json!({"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]});
                    if let Err(error) = aws.json("AmazonSQS.DeleteMessage", &handle).await {
                        tracing::error!(%error, "a mail could not be taken out of the queue");
                    }
                }
                if answer["Messages"].as_array().is_none_or(Vec::is_empty) {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the mailbox could not be read");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn keep(aws: &Aws, folder: &Path, number: usize, message: &Value) -> Result<(), LocalError> {
    let body: Value = serde_json::from_str(message["Body"].as_str().unwrap_or_default()).unwrap_or(Value::Null);
    let text = |key: &str| body[key].as_str().unwrap_or_default();
    let subject = text("Subject");
    let topic = text("TopicArn").rsplit(':').next().unwrap_or_default();
    let slug: String = subject
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(50)
        .collect();
    let slug = slug.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    let path = folder.join(format!("{number:04}-{slug}.txt"));
    fs::create_dir_all(folder).map_err(LocalError::io("make", folder))?;
    let mail = format!(
        "Topic: {topic}\nDate: {}\nSubject: {subject}\n\n{}\n",
        text("Timestamp"),
        localize(text("Message"), &aws.endpoint)
    );
    // Written under another name first: a reader never sees half a mail.
    let partial = path.with_extension("partial");
    fs::write(&partial, mail).map_err(LocalError::io("write", &partial))?;
    fs::rename(&partial, &path).map_err(LocalError::io("write", &path))
}

/// The mails, oldest first; those after `after`, when it is given.
#[must_use]
pub fn list(folder: &Path, after: Option<&Path>) -> Vec<Mail> {
    let mut paths: BTreeMap<PathBuf, String> = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "txt")
            && after.is_none_or(|after| path.as_path() > after)
            && let Ok(text) = fs::read_to_string(&path)
        {
            paths.insert(path, text);
        }
    }
    paths
        .into_iter()
        .map(|(path, text)| {
            let subject = text.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap_or_default().to_owned();
            Mail { path, subject, text }
        })
        .collect()
}
