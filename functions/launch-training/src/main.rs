//! Lambda function `launch-training`.

use launch_training::{Clients, Settings};
use tunesmith_aws::{dynamodb::Table, ec2::Ec2, s3::S3};
use tunesmith_lambda::{Environment, RunError, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let config = tunesmith_aws::config().await;
            let table = environment.text("TABLE")?;
            let clients = Clients { s3: S3::new(&config), table: Table::new(&config, &table), ec2: Ec2::new(&config) };
            let settings = Settings {
                workspace_bucket: environment.text("WORKSPACE_BUCKET")?,
                table,
                launch_template_id: environment.text("LAUNCH_TEMPLATE_ID")?,
                subnet_ids: environment.list("SUBNET_IDS")?,
                trainer_image: environment.text("TRAINER_IMAGE")?,
                region: environment.text("AWS_REGION")?,
            };
            Ok((clients, settings))
        },
        async |(clients, settings), input| launch_training::handle(input, clients, settings, now()).await,
    )
    .await
}
