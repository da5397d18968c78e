//! Lambda function `answer-approval`.

use answer_approval::{Clients, Settings};
use tunesmith_aws::{dynamodb::Table, s3::S3, sfn::StepFunctions};
use tunesmith_lambda::{Environment, RunError, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let config = tunesmith_aws::config().await;
            let clients = Clients {
                s3: S3::new(&config),
                table: Table::new(&config, environment.text("TABLE")?),
                step_functions: StepFunctions::new(&config),
            };
            let settings = Settings {
                workspace_bucket: environment.text("WORKSPACE_BUCKET")?,
                training_pipeline_arn: environment.text("TRAINING_PIPELINE_ARN")?,
            };
            Ok((clients, settings))
        },
        async |(clients, settings), event| answer_approval::handle(event, clients, settings, now()).await,
    )
    .await
}
