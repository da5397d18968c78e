//! Service Quotas: what the account may use.

use aws_sdk_servicequotas::Client;

use crate::{AwsError, Config, error::aws};

/// Client for Service Quotas. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServiceQuotas {
    client: Client,
}

impl ServiceQuotas {
    /// A client.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { client: Client::new(config) }
    }

    /// The account's value of a quota, e.g. `("ec2", "L-3819A6DF")`; `None` where the service does not know the quota.
    ///
    /// A quota that was never raised has no applied value in some regions: the AWS default is asked for then.
    pub async fn value(&self, service_code: &str, quota_code: &str) -> Result<Option<f64>, AwsError> {
        let request = self.client.get_service_quota().service_code(service_code).quota_code(quota_code);
        match request.send().await {
            Ok(found) => return Ok(found.quota().and_then(|quota| quota.value())),
            Err(error) => {
                let error = aws!("servicequotas", "GetServiceQuota")(error);
                if error.code != "NoSuchResourceException" {
                    return Err(error);
                }
            }
        }
        let request = self.client.get_aws_default_service_quota().service_code(service_code).quota_code(quota_code);
        match request.send().await {
            Ok(found) => Ok(found.quota().and_then(|quota| quota.value())),
            Err(error) => {
                let error = aws!("servicequotas", "GetAWSDefaultServiceQuota")(error);
                if error.code == "NoSuchResourceException" { Ok(None) } else { Err(error) }
            }
        }
    }
}
