//! Lambda function `verify-endpoint`.

use tunesmith_aws::{s3::S3, sagemaker::SageMaker, sagemaker_runtime::SageMakerRuntime};
use tunesmith_lambda::{Environment, RunError};
use verify_endpoint::Clients;

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let config = tunesmith_aws::config().await;
            let clients = Clients {
                s3: S3::new(&config),
                sagemaker: SageMaker::new(&config),
                runtime: SageMakerRuntime::new(&config),
            };
            Ok((clients, environment.text("WORKSPACE_BUCKET")?))
        },
        async |(clients, workspace_bucket), input| verify_endpoint::handle(input, clients, workspace_bucket).await,
    )
    .await
}
