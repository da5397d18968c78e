//! EventBridge Scheduler: one-time schedules that start a state machine and then delete themselves.

use aws_sdk_scheduler::{
    Client,
    primitives::{DateTime, DateTimeFormat},
    types::{ActionAfterCompletion, FlexibleTimeWindow, FlexibleTimeWindowMode, Target},
};
use tunesmith_contract::UnixTime;

use crate::{AwsError, Config, error::aws};

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

    /// Deletes the schedule; one that is not there (it fired and deleted itself) is as good as deleted.
    pub async fn delete(&self, group: &str, name: &str) -> Result<(), AwsError> {
        match self.client.delete_schedule().group_name(group).name(name).send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = aws!("scheduler", "DeleteSchedule")(error);
                if error.code == "ResourceNotFoundException" { Ok(()) } else { Err(error) }
            }
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
        .build()
        .map_err(|error| AwsError::malformed("scheduler", operation, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_written_as_the_scheduler_reads_them() {
        assert_eq!(at_expression("x", UnixTime(1_795_996_799)).unwrap(), "at(2026-11-29T23:59:59)");
    }
}
