//! SageMaker: models, endpoint configurations, endpoints. Creating what exists and deleting what does not are no errors.

use std::collections::BTreeMap;

use aws_sdk_sagemaker::{
    Client,
    types::{
        ContainerDefinition, ProductionVariant, ProductionVariantInstanceType, ProductionVariantServerlessConfig, Tag,
    },
};

use crate::{AwsError, Config, error::aws};

/// Name of the one production variant of every configuration.
pub const VARIANT: &str = "all";

/// Client for SageMaker. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SageMaker {
    client: Client,
}

/// A model: a container image with its environment. The container downloads its own weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewModel {
    /// `tunesmith-{project}-{run}`.
    pub name: String,
    /// ECR address of the image, with tag.
    pub image: String,
    /// Role that the container has.
    pub role_arn: String,
    /// Environment of the container.
    pub environment: BTreeMap<String, String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

/// On what an endpoint runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosting {
    /// No cost while nobody asks.
    Serverless {
        /// 1024 to 6144 in steps of 1024.
        memory_mb: u32,
        /// At most 200.
        max_concurrency: u32,
    },
    /// Billed by the hour while it exists.
    Instances {
        /// `ml.…`
        instance_type: String,
        /// How many.
        count: u32,
    },
}

/// An endpoint configuration with one variant, [`VARIANT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEndpointConfig {
    /// Its name.
    pub name: String,
    /// Name of the model.
    pub model: String,
    /// On what.
    pub hosting: Hosting,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

/// Result of a creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// Now.
    New,
    /// There was one of this name; it is unchanged.
    Existed,
}

/// Where an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointStatus {
    /// It answers.
    InService,
    /// It is being created, or maintained by SageMaker itself.
    Changing,
    /// It is being deleted.
    Deleting,
    /// It could not be created.
    Failed,
}

/// An endpoint as SageMaker describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// SageMaker's word for where it stands, e.g. `InService`.
    pub word: String,
    /// The same, sorted.
    pub status: EndpointStatus,
    /// Why it failed; may be empty.
    pub failure_reason: String,
}

impl SageMaker {
    /// A client.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { client: Client::new(config) }
    }

    /// Creates a model.
    pub async fn create_model(&self, model: &NewModel) -> Result<Created, AwsError> {
        let environment = model.environment.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let container = ContainerDefinition::builder().image(&model.image).set_environment(Some(environment)).build();
        let sent = self
            .client
            .create_model()
            .model_name(&model.name)
            .primary_container(container)
            .execution_role_arn(&model.role_arn)
            .set_tags(Some(tags(&model.tags)))
            .send()
            .await;
        created(sent.map(drop).map_err(aws!("sagemaker", "CreateModel")))
    }

    /// Creates an endpoint configuration.
    pub async fn create_endpoint_config(&self, config: &NewEndpointConfig) -> Result<Created, AwsError> {
        let variant = ProductionVariant::builder().variant_name(VARIANT).model_name(&config.model);
        let variant = match &config.hosting {
            Hosting::Serverless { memory_mb, max_concurrency } => variant.serverless_config(
                ProductionVariantServerlessConfig::builder()
                    .memory_size_in_mb(number(*memory_mb))
                    .max_concurrency(number(*max_concurrency))
                    .build(),
            ),
            Hosting::Instances { instance_type, count } => variant
                .instance_type(ProductionVariantInstanceType::from(instance_type.as_str()))
                .initial_instance_count(number(*count))
                .initial_variant_weight(1.0),
        };
        let sent = self
            .client
            .create_endpoint_config()
            .endpoint_config_name(&config.name)
            .production_variants(variant.build())
            .set_tags(Some(tags(&config.tags)))
            .send()
            .await;
        created(sent.map(drop).map_err(aws!("sagemaker", "CreateEndpointConfig")))
    }

    /// Creates an endpoint; it is ready when [`SageMaker::describe_endpoint`] says `InService`.
    pub async fn create_endpoint(
        &self,
        name: &str,
        config: &str,
        tag: &BTreeMap<String, String>,
    ) -> Result<Created, AwsError> {
        let request = self.client.create_endpoint().endpoint_name(name).endpoint_config_name(config);
        let sent = request.set_tags(Some(tags(tag))).send().await;
        created(sent.map(drop).map_err(aws!("sagemaker", "CreateEndpoint")))
    }

    /// The endpoint, or `None`.
    pub async fn describe_endpoint(&self, name: &str) -> Result<Option<Endpoint>, AwsError> {
        match self.client.describe_endpoint().endpoint_name(name).send().await {
            Ok(found) => {
                let word = found.endpoint_status().map(|status| status.as_str()).unwrap_or_default().to_owned();
                Ok(Some(Endpoint {
                    name: name.to_owned(),
                    status: status(&word),
                    word,
                    failure_reason: found.failure_reason().unwrap_or_default().to_owned(),
                }))
            }
            Err(error) => absent(aws!("sagemaker", "DescribeEndpoint")(error)),
        }
    }

    /// Deletes an endpoint.
    pub async fn delete_endpoint(&self, name: &str) -> Result<(), AwsError> {
        let sent = self.client.delete_endpoint().endpoint_name(name).send().await;
        deleted(sent.map(drop).map_err(aws!("sagemaker", "DeleteEndpoint")))
    }

    /// Deletes an endpoint configuration.
    pub async fn delete_endpoint_config(&self, name: &str) -> Result<(), AwsError> {
        let sent = self.client.delete_endpoint_config().endpoint_config_name(name).send().await;
        deleted(sent.map(drop).map_err(aws!("sagemaker", "DeleteEndpointConfig")))
    }

    /// Deletes a model; its files in S3 stay.
    pub async fn delete_model(&self, name: &str) -> Result<(), AwsError> {
        let sent = self.client.delete_model().model_name(name).send().await;
        deleted(sent.map(drop).map_err(aws!("sagemaker", "DeleteModel")))
    }
}

/// SageMaker says both "exists" and "does not exist" as `ValidationException`; only its words tell them apart:
/// "Cannot create already existing endpoint …", "Could not find endpoint …".
fn created(sent: Result<(), AwsError>) -> Result<Created, AwsError> {
    match sent {
        Ok(()) => Ok(Created::New),
        Err(error) if error.code == "ValidationException" && error.message.contains("already existing") => {
            Ok(Created::Existed)
        }
        Err(error) => Err(error),
    }
}

fn is_absent(error: &AwsError) -> bool {
    matches!(error.code.as_str(), "ResourceNotFound")
        || error.code == "ValidationException"
            && (error.message.contains("Could not find") || error.message.contains("does not exist"))
}

fn absent<T>(error: AwsError) -> Result<Option<T>, AwsError> {
    if is_absent(&error) { Ok(None) } else { Err(error) }
}

fn deleted(sent: Result<(), AwsError>) -> Result<(), AwsError> {
    match sent {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}

fn status(word: &str) -> EndpointStatus {
    match word {
        "InService" => EndpointStatus::InService,
        "Deleting" => EndpointStatus::Deleting,
        "Failed" | "OutOfService" | "UpdateRollbackFailed" => EndpointStatus::Failed,
        _ => EndpointStatus::Changing,
    }
}

fn tags(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

fn number(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validation(message: &str) -> AwsError {
        AwsError {
            service: "sagemaker",
            operation: "x",
            code: "ValidationException".into(),
            message: message.into(),
            retryable: false,
        }
    }

    #[test]
    fn repetition_is_told_from_refusal_by_sagemakers_words() {
        let exists = "Cannot create already existing endpoint \"arn:aws:sagemaker:us-east-1:1:endpoint/x\".";
        assert_eq!(created(Err(validation(exists))), Ok(Created::Existed));
        assert!(created(Err(validation("1 validation error detected"))).is_err());
        let gone = "Could not find endpoint \"arn:aws:sagemaker:us-east-1:1:endpoint/x\".";
        assert_eq!(absent::<()>(validation(gone)), Ok(None));
        assert_eq!(deleted(Err(validation(gone))), Ok(()));
        assert!(deleted(Err(validation("Cannot delete in-progress endpoint"))).is_err());
    }

    #[test]
    fn every_word_of_sagemaker_has_a_meaning() {
        assert_eq!(status("RollingBack"), EndpointStatus::Changing);
        assert_eq!(status("UpdateRollbackFailed"), EndpointStatus::Failed);
        assert_eq!(status("InService"), EndpointStatus::InService);
        assert_eq!(status("Deleting"), EndpointStatus::Deleting);
    }
}
