//! Lambda function `ingest-document`.

use ingest_document::{Clients, Settings};
use tunesmith_aws::{dynamodb::Table, s3::S3, scheduler::Scheduler, sfn::StepFunctions, sns::Topic};
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
                notifications: Topic::new(&config, &settings.notifications_topic_arn),
                scheduler: Scheduler::new(&config),
                step_functions: StepFunctions::new(&config),
            };
            Ok((clients, settings))
        },
        async |(clients, settings), batch| Ok(ingest_document::handle(batch, clients, settings, now()).await),
    )
    .await
}
