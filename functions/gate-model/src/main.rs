//! Lambda function `gate-model`.

use tunesmith_aws::s3::S3;
use tunesmith_lambda::{Environment, RunError};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let config = tunesmith_aws::config().await;
            Ok((S3::new(&config), environment.text("WORKSPACE_BUCKET")?))
        },
        async |(s3, workspace_bucket), input| gate_model::handle(input, s3, workspace_bucket).await,
    )
    .await
}
