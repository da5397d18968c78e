//! Lambda function `deploy-endpoint`.

use deploy_endpoint::{Clients, Settings};
use tunesmith_aws::{dynamodb::Table, s3::S3, sagemaker::SageMaker};
use tunesmith_lambda::{Environment, RunError, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let config = tunesmith_aws::config().await;
            let clients = Clients {
                s3: S3::new(&config),
                table: Table::new(&config, environment.text("TABLE")?),
                sagemaker: SageMaker::new(&config),
            };
            let settings = Settings {
                workspace_bucket: environment.text("WORKSPACE_BUCKET")?,
                endpoint_role_arn: environment.text("ENDPOINT_ROLE_ARN")?,
                trainer_image: environment.text("TRAINER_IMAGE")?,
                region: environment.text("AWS_REGION")?,
            };
            Ok((clients, settings))
        },
        async |(clients, settings), input| deploy_endpoint::handle(input, clients, settings, now()).await,
    )
    .await
}
