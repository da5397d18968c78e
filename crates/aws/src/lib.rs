//! The only crate that names the AWS SDK. One module and one cargo feature per service; no feature is on by default, so a
//! function links what it calls and nothing else.
//!
//! Every module gives one small client, built once from [`config()`], whose methods speak `contract` types and this
//! project's words. What a caller must decide on (an object that is missing, a condition that did not hold, a task that no
//! longer waits, no capacity) is a value; everything else is an [`AwsError`], which says whether a retry can help and turns
//! into a [`contract::error_name::Failure`](tunesmith_contract::error_name::Failure).
//!
//! Endpoints, region and credentials come from the standard SDK variables (`AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_EC2`, …):
//! no code of ours knows where it runs.

mod config;
mod error;

#[cfg(feature = "cloudformation")]
pub mod cloudformation;
#[cfg(feature = "dynamodb")]
pub mod dynamodb;
#[cfg(feature = "ec2")]
pub mod ec2;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(feature = "sagemaker")]
pub mod sagemaker;
#[cfg(feature = "sagemaker-runtime")]
pub mod sagemaker_runtime;
#[cfg(feature = "scheduler")]
pub mod scheduler;
#[cfg(feature = "service-quotas")]
pub mod service_quotas;
#[cfg(feature = "sfn")]
pub mod sfn;
#[cfg(feature = "sns")]
pub mod sns;
#[cfg(feature = "sqs")]
pub mod sqs;
#[cfg(feature = "sts")]
pub mod sts;

pub use config::{Config, config};
pub use error::AwsError;
