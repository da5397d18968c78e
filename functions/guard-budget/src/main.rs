//! Lambda function `guard-budget`.

use guard_budget::{Clients, Settings};
use tunesmith_aws::{dynamodb::Table, s3::S3, sfn::StepFunctions, sns::Topic};
use tunesmith_lambda::{Environment, RunError, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let settings = Settings::from_environment(environment)?;
            let config = tunesmith_aws::config().await;
            let clients = Clients {
                s3: S3::new(&config),
                table: Table::new(&config, &settings.storage.table),
                step_functions: StepFunctions::new(&config),
                notifications: Topic::new(&config, &settings.notifications_topic_arn),
            };
            Ok((clients, settings))
        },
        async |(clients, settings), event| guard_budget::handle(event, clients, settings, now()).await,
    )
    .await
}
