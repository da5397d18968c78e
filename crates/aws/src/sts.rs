//! STS: who this process is.

use aws_sdk_sts::Client;

use crate::{AwsError, Config, error::aws};

/// Who a process acts as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Twelve digits.
    pub account: String,
    /// User or role.
    pub arn: String,
}

/// Asks STS who this process is: the cheapest proof that credentials work.
pub async fn caller(config: &Config) -> Result<Caller, AwsError> {
    let found = Client::new(config).get_caller_identity().send().await.map_err(aws!("sts", "GetCallerIdentity"))?;
    Ok(Caller {
        account: found.account().unwrap_or_default().to_owned(),
        arn: found.arn().unwrap_or_default().to_owned(),
    })
}
