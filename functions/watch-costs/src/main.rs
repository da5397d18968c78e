//! Lambda function `watch-costs`.

use tunesmith_aws::{dynamodb::Table, sagemaker::SageMaker, sns::Topic};
use tunesmith_contract::{Usd, tasks::WatchCostsInput};
use tunesmith_lambda::{Environment, RunError, now};
use watch_costs::Clients;

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let config = tunesmith_aws::config().await;
            let clients = Clients {
                table: Table::new(&config, environment.text("TABLE")?),
                alarms: Topic::new(&config, environment.text("ALARMS_TOPIC_ARN")?),
                sagemaker: SageMaker::new(&config),
            };
            Ok((clients, Usd::from_micros(environment.parsed("ACCOUNT_MONTHLY_CAP_MICROS")?)))
        },
        async |(clients, account_cap), _: WatchCostsInput| watch_costs::handle(clients, *account_cap, now()).await,
    )
    .await
}
