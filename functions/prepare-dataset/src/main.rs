//! Lambda function `prepare-dataset`.

use prepare_dataset::{Clients, Settings};
use tunesmith_aws::{dynamodb::Table, s3::S3};
use tunesmith_lambda::{Environment, RunError, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let settings = Settings::from_environment(environment)?;
            let config = tunesmith_aws::config().await;
            Ok((Clients { s3: S3::new(&config), table: Table::new(&config, &settings.table) }, settings))
        },
        async |(clients, settings), input| prepare_dataset::handle(input, clients, settings, now()).await,
    )
    .await
}
