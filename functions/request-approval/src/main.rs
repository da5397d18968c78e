//! Lambda function `request-approval`.

use request_approval::{Clients, Settings};
use tunesmith_aws::{dynamodb::Table, s3::S3, sns::Topic};
use tunesmith_lambda::{Environment, RunError, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let config = tunesmith_aws::config().await;
            let clients = Clients {
                s3: S3::new(&config),
                table: Table::new(&config, environment.text("TABLE")?),
                notifications: Topic::new(&config, environment.text("NOTIFICATIONS_TOPIC_ARN")?),
            };
            let settings = Settings {
                workspace_bucket: environment.text("WORKSPACE_BUCKET")?,
                answer_url: environment.text("ANSWER_URL")?,
                approve_deployment_arn: environment.text("APPROVE_DEPLOYMENT_ARN")?,
            };
            Ok((clients, settings))
        },
        async |(clients, settings), input| request_approval::handle(input, clients, settings, now()).await,
    )
    .await
}
