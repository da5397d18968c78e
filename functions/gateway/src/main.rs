//! Lambda function `gateway`.

use std::sync::Arc;

use gateway::Clients;
use tunesmith_lambda::{Environment, RunError};

#[tokio::main]
async fn main() -> Result<(), RunError> {
    tunesmith_lambda::run(
        async |environment: &Environment| {
            let (table, bucket) = (environment.text("TABLE")?, environment.text("WORKSPACE_BUCKET")?);
            Ok(Arc::new(Clients::new(&tunesmith_aws::config().await, table, bucket)))
        },
        async |clients, event| Ok(gateway::handle(event, clients, tunesmith_lambda::now()).await),
    )
    .await
}
