//! Batches of queue messages, answered item by item: what failed comes back, the others are done.
//!
//! Source: AWS Lambda Developer Guide, "Implementing partial batch responses" (`ReportBatchItemFailures`).

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use tunesmith_contract::error_name::Failure;

/// The event that Lambda makes from messages of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqsBatch {
    /// One or more messages.
    #[serde(rename = "Records")]
    pub records: Vec<SqsMessage>,
}

/// One message. Fields that nobody here reads are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SqsMessage {
    /// Names the message in the answer.
    pub message_id: String,
    /// What was sent.
    pub body: String,
    /// What the queue says about it.
    #[serde(default)]
    pub attributes: SqsAttributes,
}

/// What a queue says about a message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SqsAttributes {
    /// How often it was handed out, this time included. A number, as text.
    pub approximate_receive_count: String,
}

impl SqsMessage {
    /// How often it was handed out, this time included; 1 when the queue does not say.
    #[must_use]
    pub fn receives(&self) -> u32 {
        self.attributes.approximate_receive_count.parse().unwrap_or(1)
    }
}

/// Which messages must come back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchAnswer {
    /// Empty means: all are done.
    pub batch_item_failures: Vec<BatchItemFailure>,
}

/// A message that must come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchItemFailure {
    /// [`SqsMessage::message_id`].
    pub item_identifier: String,
}

/// Handles each message, one after the other. A failure (a panic too) is logged with its name and makes only that message
/// come back; after the queue's `maxReceiveCount` it lies in the dead-letter queue.
pub async fn each_message(batch: SqsBatch, handle: impl AsyncFn(&SqsMessage) -> Result<(), Failure>) -> BatchAnswer {
    let mut answer = BatchAnswer::default();
    for message in batch.records {
        let done = AssertUnwindSafe(handle(&message)).catch_unwind().await;
        let done = done.unwrap_or_else(|panic| Err(crate::run::panicked(panic.as_ref())));
        if let Err(failure) = done {
            tracing::error!(message = %message.message_id, error = %failure.name, cause = %failure.message, "message failed");
            answer.batch_item_failures.push(BatchItemFailure { item_identifier: message.message_id });
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::ErrorName;

    use super::*;

    #[tokio::test]
    async fn only_what_failed_comes_back() {
        let batch: SqsBatch = serde_json::from_str(
            r#"{"Records": [{"messageId": "a", "body": "good", "receiptHandle": "x",
                "attributes": {"ApproximateReceiveCount": "5", "SenderId": "x"}}, {"messageId": "b", "body": "bad"},
                {"messageId": "c", "body": "panic"}, {"messageId": "d", "body": "good"}]}"#,
        )
        .unwrap();
        assert_eq!(batch.records.iter().map(SqsMessage::receives).collect::<Vec<_>>(), [5, 1, 1, 1]);
        let answer = each_message(batch, async |message: &SqsMessage| match message.body.as_str() {
            "good" => Ok(()),
            "bad" => Err(Failure::new(ErrorName::InvalidInput, "bad")),
            other => panic!("{other}"),
        })
        .await;
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(text, r#"{"batchItemFailures":[{"itemIdentifier":"b"},{"itemIdentifier":"c"}]}"#);
    }
}
