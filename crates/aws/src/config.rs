//! How every client reaches AWS: HTTPS stack, time limits, retries.

use std::time::Duration;

use aws_config::{BehaviorVersion, retry::RetryConfig, timeout::TimeoutConfig};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};

/// What every client of this crate is built from.
pub type Config = aws_config::SdkConfig;

/// Time for a connection; AWS's own default.
const CONNECT: Duration = Duration::from_millis(3_100);
/// Time until the first byte of an answer.
const READ: Duration = Duration::from_secs(30);
/// Time of one try. Services that move much data or run a model set their own (see `s3`, `sagemaker_runtime`).
const ATTEMPT: Duration = Duration::from_secs(45);
/// First try included. Throttling and 5xx are retried with jittered exponential backoff ("standard" mode).
const ATTEMPTS: u32 = 5;

/// Reads region, credentials and endpoints from the standard chain, once per process.
///
/// TLS is rustls with ring: aws-lc needs CMake and a C++ compiler, and doubles a function's size.
pub async fn config() -> Config {
    let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT).read_timeout(READ).operation_attempt_timeout(ATTEMPT).build();
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .load()
        .await
}

/// Time limits for calls that may take this long from request to answer.
#[cfg(any(feature = "s3", feature = "sagemaker-runtime"))]
pub(crate) fn slow(limit: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT).read_timeout(limit).operation_attempt_timeout(limit).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_configuration_states_its_limits() {
        let config = config().await;
        assert_eq!(config.retry_config().map(RetryConfig::max_attempts), Some(ATTEMPTS));
        assert_eq!(config.timeout_config().and_then(TimeoutConfig::read_timeout), Some(READ));
    }
}
