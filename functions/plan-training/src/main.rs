//! Lambda function `plan-training`.

use plan_training::Clients;
use tunesmith_aws::{dynamodb::Table, ec2::Ec2, s3::S3, service_quotas::ServiceQuotas};
use tunesmith_lambda::{Environment, RunError, Storage, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let storage = Storage::from_environment(environment)?;
            let config = tunesmith_aws::config().await;
            let clients = Clients {
                s3: S3::new(&config),
                table: Table::new(&config, &storage.table),
                ec2: Ec2::new(&config),
                service_quotas: ServiceQuotas::new(&config),
            };
            Ok((clients, storage))
        },
        async |(clients, storage), input| plan_training::handle(input, clients, storage, now()).await,
    )
    .await
}
