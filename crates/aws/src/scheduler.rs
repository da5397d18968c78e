//! EventBridge Scheduler: one-time schedules that start a state machine and then delete themselves.

use aws_sdk_scheduler::{
    Client,
    primitives::{DateTime, DateTimeFormat},
    types::{ActionAfterCompletion, DeadLetterConfig, FlexibleTimeWindow, FlexibleTimeWindowMode, RetryPolicy, Target},
};
use tunesmith_contract::UnixTime;

use crate::{AwsError, Config, error::aws};

/// Seconds that Scheduler tries before it gives up and people are told. Its own default of a day would start work that
/// nobody waits for any more.
const TRY_FOR: i32 = 3600;

/// Client for EventBridge Scheduler. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Scheduler {
    client: Client,
}

/// Something to be done once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneTime {
    /// Name within the group: setting it again moves it.
    pub name: String,
    /// Schedule group.
    pub group: String,
    /// When.
    pub at: UnixTime,
    /// What to start: a state machine, a function, a queue.
    pub target_arn: String,
    /// The role that Scheduler does it with.
    pub role_arn: String,
    /// The target's input, JSON.
    pub input: String,
    /// The queue that gets the input when the target could not be started within an hour.
    pub dead_letters_arn: String,
}

impl Scheduler {
    /// A client.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { client: Client::new(config) }
    }

    /// Creates the schedule, or moves the one of this name.
    ///
    /// Update comes first: in the common case (many uploads in a row) the schedule is there.
    pub async fn set(&self, schedule: &OneTime) -> Result<(), AwsError> {
        match self.update(schedule).await {
            Err(error) if error.code == "ResourceNotFoundException" => {}
            other => return other,
        }
        match self.create(schedule).await {
            // two uploads at once: the other one created it meanwhile
            Err(error) if error.code == "ConflictException" => self.update(schedule).await,
            other => other,
        }
    }

    async fn update(&self, schedule: &OneTime) -> Result<(), AwsError> {
        self.client
            .update_schedule()
            .name(&schedule.name)
            .group_name(&schedule.group)
            .schedule_expression(at_expression("UpdateSchedule", schedule.at)?)
            .flexible_time_window(exactly("UpdateSchedule")?)
            .target(target("UpdateSchedule", schedule)?)
            .action_after_completion(ActionAfterCompletion::Delete)
            .send()
            .await
            .map_err(aws!("scheduler", "UpdateSchedule"))?;
        Ok(())
    }

    async fn create(&self, schedule: &OneTime) -> Result<(), AwsError> {
        self.client
            .create_schedule()
            .name(&schedule.name)
            .group_name(&schedule.group)
            .schedule_expression(at_expression("CreateSchedule", schedule.at)?)
            .flexible_time_window(exactly("CreateSchedule")?)
            .target(target("CreateSchedule", schedule)?)
            .action_after_completion(ActionAfterCompletion::Delete)
            .send()
            .await
            .map_err(aws!("scheduler", "CreateSchedule"))?;
        Ok(())
    }
}

/// `at(yyyy-mm-ddThh:mm:ss)`, in UTC, the default time zone of a schedule.
fn at_expression(operation: &'static str, at: UnixTime) -> Result<String, AwsError> {
    let text = DateTime::from_secs(at.0)
        .fmt(DateTimeFormat::DateTime)
        .map_err(|error| AwsError::malformed("scheduler", operation, error))?;
    Ok(format!("at({})", text.trim_end_matches('Z')))
}

fn exactly(operation: &'static str) -> Result<FlexibleTimeWindow, AwsError> {
    FlexibleTimeWindow::builder()
        .mode(FlexibleTimeWindowMode::Off)
        .build()
        .map_err(|error| AwsError::malformed("scheduler", operation, error))
}

fn target(operation: &'static str, schedule: &OneTime) -> Result<Target, AwsError> {
    Target::builder()
        .arn(&schedule.target_arn)
        .role_arn(&schedule.role_arn)
        .input(&schedule.input)
        .dead_letter_config(DeadLetterConfig::builder().arn(&schedule.dead_letters_arn).build())
        .retry_policy(RetryPolicy::builder().maximum_event_age_in_seconds(TRY_FOR).build())
        .build()
        .map_err(|error| AwsError::malformed("scheduler", operation, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_started_within_an_hour_lies_in_a_queue() {
        let schedule = OneTime {
            name: "quiet-handbook".into(),
            group: "g".into(),
            at: UnixTime(0),
            target_arn: "arn:pipeline".into(),
            role_arn: "arn:role".into(),
            input: "{}".into(),
            dead_letters_arn: "arn:queue".into(),
        };
        let target = target("x", &schedule).unwrap();
        assert_eq!(target.dead_letter_config().and_then(DeadLetterConfig::arn), Some("arn:queue"));
        assert_eq!(target.retry_policy().and_then(RetryPolicy::maximum_event_age_in_seconds), Some(TRY_FOR));
    }

    #[test]
    fn instants_are_written_as_the_scheduler_reads_them() {
        assert_eq!(at_expression("x", UnixTime(1_795_996_799)).unwrap(), "at(2026-11-29T23:59:59)");
    }
}
