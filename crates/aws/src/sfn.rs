//! Step Functions: starting pipelines and answering tasks that wait for a token.

use aws_sdk_sfn::Client;
use serde::Serialize;
use tunesmith_contract::error_name::Failure;

use crate::{AwsError, Config, error::aws};

/// Client for Step Functions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StepFunctions {
    client: Client,
}

/// Result of starting an execution by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// Started now, or running already under this name with this input.
    Running {
        /// ARN of the execution.
        execution: String,
    },
    /// There was an execution of this name before: the start was a repetition.
    Existed,
}

/// Result of answering a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// The state machine goes on.
    Delivered,
    /// Nobody waits any more: the task timed out, or its execution ended.
    TimedOut,
}

/// Where an execution stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutionState {
    /// It is at work (or waits for a redrive that was asked for).
    Running,
    /// It succeeded, failed, timed out or was aborted.
    Ended,
    /// There is none of this ARN: it is over 90 days old, or never was.
    Unknown,
}

impl StepFunctions {
    /// A client.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { client: Client::new(config) }
    }

    /// Starts an execution. The name makes it happen once: StartExecution is idempotent by name for 90 days.
    pub async fn start_execution<T: Serialize>(
        &self,
        state_machine_arn: &str,
        name: &str,
        input: &T,
    ) -> Result<Started, AwsError> {
        let sent = self
            .client
            .start_execution()
            .state_machine_arn(state_machine_arn)
            .name(name)
            .input(json("StartExecution", input)?)
            .send()
            .await;
        match sent {
            Ok(started) => Ok(Started::Running { execution: started.execution_arn().to_owned() }),
            Err(error) => {
                let error = aws!("sfn", "StartExecution")(error);
                if error.code == "ExecutionAlreadyExists" { Ok(Started::Existed) } else { Err(error) }
            }
        }
    }

    /// Where an execution stands.
    pub async fn describe_execution(&self, arn: &str) -> Result<ExecutionState, AwsError> {
        use aws_sdk_sfn::types::ExecutionStatus::{PendingRedrive, Running};
        match self.client.describe_execution().execution_arn(arn).send().await {
            Ok(found) if matches!(found.status(), Running | PendingRedrive) => Ok(ExecutionState::Running),
            Ok(_) => Ok(ExecutionState::Ended),
            Err(error) => {
                let error = aws!("sfn", "DescribeExecution")(error);
                match error.code.as_str() {
                    "ExecutionDoesNotExist" | "InvalidArn" => Ok(ExecutionState::Unknown),
                    _ => Err(error),
                }
            }
        }
    }

    /// Ends a waiting task with its output.
    pub async fn send_task_success<T: Serialize>(&self, token: &str, output: &T) -> Result<Answered, AwsError> {
        let output = json("SendTaskSuccess", output)?;
        let sent = self.client.send_task_success().task_token(token).output(output).send().await;
        answered(sent.map(drop).map_err(aws!("sfn", "SendTaskSuccess")))
    }

    /// Ends a waiting task with a failure, whose name the state machine matches.
    pub async fn send_task_failure(&self, token: &str, failure: &Failure) -> Result<Answered, AwsError> {
        // limits of the API, in characters: error 256, cause 32,768
        let cause: String = failure.message.chars().take(32_768).collect();
        let request = self.client.send_task_failure().task_token(token).error(failure.name.as_str()).cause(cause);
        answered(request.send().await.map(drop).map_err(aws!("sfn", "SendTaskFailure")))
    }

    /// Tells that a waiting task is still worked on.
    pub async fn send_task_heartbeat(&self, token: &str) -> Result<Answered, AwsError> {
        let sent = self.client.send_task_heartbeat().task_token(token).send().await;
        answered(sent.map(drop).map_err(aws!("sfn", "SendTaskHeartbeat")))
    }
}

fn answered(sent: Result<(), AwsError>) -> Result<Answered, AwsError> {
    match sent {
        Ok(()) => Ok(Answered::Delivered),
        Err(error) if matches!(error.code.as_str(), "TaskTimedOut" | "TaskDoesNotExist") => Ok(Answered::TimedOut),
        Err(error) => Err(error),
    }
}

fn json<T: Serialize>(operation: &'static str, value: &T) -> Result<String, AwsError> {
    serde_json::to_string(value).map_err(|error| AwsError::malformed("sfn", operation, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_no_longer_waits_is_a_value() {
        let error = |code: &str| AwsError {
            service: "sfn",
            operation: "SendTaskSuccess",
            code: code.into(),
            message: String::new(),
            retryable: false,
        };
        assert_eq!(answered(Err(error("TaskTimedOut"))), Ok(Answered::TimedOut));
        assert!(answered(Err(error("InvalidToken"))).is_err());
    }
}
