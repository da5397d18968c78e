//! Lambda function `index-documents`.

use index_documents::{Clients, Settings};
use tunesmith_aws::s3::S3;
use tunesmith_lambda::{Environment, RunError, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let settings = Settings::from_environment(environment)?;
            let config = tunesmith_aws::config().await;
            Ok((Clients { s3: S3::new(&config) }, settings))
        },
        async |(clients, settings), input| index_documents::handle(input, clients, settings, now()).await,
    )
    .await
}
