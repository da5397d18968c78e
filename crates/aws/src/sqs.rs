//! Queues: reading the mailbox and dead letters.

use aws_sdk_sqs::Client;

use crate::{AwsError, Config, error::aws};

/// Client for one queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Queue {
    client: Client,
    url: String,
}

/// A message taken from a queue; it comes back after the visibility timeout unless it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// What it says.
    pub body: String,
    /// What [`Queue::delete`] needs.
    pub receipt: String,
}

impl Queue {
    /// A client for the queue of this URL.
    #[must_use]
    pub fn new(config: &Config, url: impl Into<String>) -> Self {
        Self { client: Client::new(config), url: url.into() }
    }

    /// Creates the queue of this name, or finds it, with default attributes.
    pub async fn create(config: &Config, name: &str) -> Result<Self, AwsError> {
        let client = Client::new(config);
        let made = client.create_queue().queue_name(name).send().await.map_err(aws!("sqs", "CreateQueue"))?;
        let url = made.queue_url().unwrap_or_default().to_owned();
        Ok(Self { client, url })
    }

    /// The queue's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The queue's ARN.
    pub async fn arn(&self) -> Result<String, AwsError> {
        use aws_sdk_sqs::types::QueueAttributeName::QueueArn;
        let found = self
            .client
            .get_queue_attributes()
            .queue_url(&self.url)
            .attribute_names(QueueArn)
            .send()
            .await
            .map_err(aws!("sqs", "GetQueueAttributes"))?;
        found
            .attributes()
            .and_then(|all| all.get(&QueueArn))
            .cloned()
            .ok_or_else(|| AwsError::malformed("sqs", "GetQueueAttributes", "the answer names no ARN"))
    }

    /// Sends a message.
    pub async fn send(&self, body: &str) -> Result<(), AwsError> {
        let request = self.client.send_message().queue_url(&self.url).message_body(body);
        request.send().await.map_err(aws!("sqs", "SendMessage"))?;
        Ok(())
    }

    /// Takes up to ten messages, waiting up to `wait_seconds` (at most 20) for the first.
    pub async fn receive(&self, wait_seconds: u8) -> Result<Vec<Received>, AwsError> {
        let found = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(10)
            .wait_time_seconds(i32::from(wait_seconds.min(20)))
            .send()
            .await
            .map_err(aws!("sqs", "ReceiveMessage"))?;
        Ok(found
            .messages
            .unwrap_or_default()
            .into_iter()
            .map(|message| Received {
                body: message.body.unwrap_or_default(),
                receipt: message.receipt_handle.unwrap_or_default(),
            })
            .collect())
    }

    /// Deletes a message that was dealt with.
    pub async fn delete(&self, message: &Received) -> Result<(), AwsError> {
        self.client
            .delete_message()
            .queue_url(&self.url)
            .receipt_handle(&message.receipt)
            .send()
            .await
            .map_err(aws!("sqs", "DeleteMessage"))?;
        Ok(())
    }
}
