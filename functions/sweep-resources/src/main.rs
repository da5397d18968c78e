//! Lambda function `sweep-resources`.

use sweep_resources::Clients;
use tunesmith_aws::{dynamodb::Table, ec2::Ec2, sagemaker::SageMaker, sfn::StepFunctions};
use tunesmith_lambda::{Environment, RunError, now};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let config = tunesmith_aws::config().await;
            Ok(Clients {
                table: Table::new(&config, environment.text("TABLE")?),
                ec2: Ec2::new(&config),
                sagemaker: SageMaker::new(&config),
                step_functions: StepFunctions::new(&config),
            })
        },
        async |clients, input| sweep_resources::handle(input, clients, now()).await,
    )
    .await
}
