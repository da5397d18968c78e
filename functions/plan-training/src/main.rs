//! Lambda function `plan-training`.

use plan_training::{Clients, Settings};
use tunesmith_aws::{dynamodb::Table, ec2::Ec2, s3::S3, service_quotas::ServiceQuotas};
use tunesmith_lambda::{Environment, RunError, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let settings = Settings::from_environment(environment)?;
            let config = tunesmith_aws::config().await;
            let clients = Clients {
                s3: S3::new(&config),
                table: Table::new(&config, &settings.table),
                ec2: Ec2::new(&config),
                service_quotas: ServiceQuotas::new(&config),
            };
            Ok((clients, settings))
        },
        async |(clients, settings), input| plan_training::handle(input, clients, settings, now()).await,
    )
    .await
}
