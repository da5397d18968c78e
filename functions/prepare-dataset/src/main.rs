//! Lambda function `prepare-dataset`.

use prepare_dataset::Clients;
use tunesmith_aws::{dynamodb::Table, s3::S3};
use tunesmith_lambda::{Environment, RunError, Storage, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let storage = Storage::from_environment(environment)?;
            let config = tunesmith_aws::config().await;
            Ok((Clients { s3: S3::new(&config), table: Table::new(&config, &storage.table) }, storage))
        },
        async |(clients, storage), input| prepare_dataset::handle(input, clients, storage, now()).await,
    )
    .await
}
