//! Lambda function `answer-approval`.

use answer_approval::Clients;
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
            Ok((clients, environment.text("WORKSPACE_BUCKET")?))
        },
        async |(clients, workspace_bucket), event| {
            answer_approval::handle(event, clients, workspace_bucket, now()).await
        },
    )
    .await
}
