//! SageMaker's control plane: models, endpoint configurations, endpoints.
//! Source: Amazon SageMaker API Reference (JSON 1.1); only what real-time and serverless endpoints need.

use std::collections::BTreeMap;

use axum::response::Response;
use http::HeaderMap;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Room, endpoints,
    identity::{Denied, Need},
    response,
};
use crate::client::{ACCOUNT, REGION};

const JSON: &str = "application/x-amz-json-1.1";

/// A model: an image, its environment, its role.
#[derive(Debug, Clone)]
pub struct Model {
    /// As it was created, and shown again.
    pub definition: Value,
    /// Environment of its container.
    pub environment: BTreeMap<String, String>,
    /// Role its container runs under.
    pub role_arn: String,
    created: OffsetDateTime,
}

/// An endpoint configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// As it was created, and shown again.
    pub definition: Value,
    /// Its variants.
    pub variants: Vec<VariantConfig>,
    created: OffsetDateTime,
}

/// A production variant.
#[derive(Debug, Clone)]
pub struct VariantConfig {
    /// Its name.
    pub name: String,
    /// Its model.
    pub model: String,
    /// Its share of the traffic.
    pub weight: f64,
    /// Most concurrent requests, of a serverless variant.
    pub max_concurrency: Option<u32>,
}

/// Why a request is refused.
#[derive(Debug)]
pub enum Refusal {
    /// The request is wrong, or names something that is not there.
    Validation(String),
    /// IAM.
    Denied(Denied),
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

type Answer = Result<Value, Refusal>;

fn validation<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Validation(message.into()))
}

/// ARN of a resource: SageMaker writes names in lower case.
#[must_use]
pub fn arn(kind: &str, name: &str) -> String {
    format!("arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{}", name.to_lowercase())
}

/// An instant as JSON 1.1 carries it: seconds since 1970.
#[must_use]
pub fn seconds(at: OffsetDateTime) -> Value {
    json!(at.unix_timestamp_nanos() as f64 / 1e9)
}

/// Answers one action.
pub async fn answer(room: &Room, action: &str, headers: &HeaderMap, body: &[u8]) -> Response {
    let input: Value = match serde_json::from_slice(body) {
        Ok(input) => input,
        Err(error) => return refuse(Refusal::Validation(format!("the body is not JSON: {error}"))),
    };
    let result = match action {
        "CreateModel" => create_model(room, headers, input).await,
        "DescribeModel" => describe(room, headers, &input, "model").await,
        "DeleteModel" => delete(room, headers, &input, "model").await,
        "ListModels" => list(room, headers, &input, "model").await,
        "CreateEndpointConfig" => create_config(room, headers, input).await,
        "DescribeEndpointConfig" => describe(room, headers, &input, "endpoint-config").await,
        "DeleteEndpointConfig" => delete(room, headers, &input, "endpoint-config").await,
        "ListEndpointConfigs" => list(room, headers, &input, "endpoint-config").await,
        "CreateEndpoint" => create_endpoint(room, headers, &input).await,
        "DescribeEndpoint" => describe(room, headers, &input, "endpoint").await,
        "DeleteEndpoint" => delete(room, headers, &input, "endpoint").await,
        "ListEndpoints" => list(room, headers, &input, "endpoint").await,
        "AddTags" | "ListTags" => tags(room, headers, &input, action).await,
        _ => validation(format!("the local cloud has no sagemaker:{action}")),
    };
    match result {
        Ok(value) => response(200, JSON, if value.is_null() { String::new() } else { value.to_string() }),
        Err(refusal) => refuse(refusal),
    }
}

fn refuse(refusal: Refusal) -> Response {
    let (code, message) = match refusal {
        Refusal::Validation(message) => ("ValidationException", message),
        Refusal::Denied(Denied::Unknown) => {
            ("UnrecognizedClientException", "The security token included in the request is invalid.".to_owned())
        }
        Refusal::Denied(denied @ Denied::NotAllowed { .. }) => ("AccessDeniedException", denied.to_string()),
        Refusal::Denied(denied) => ("ServiceUnavailable", denied.to_string()),
    };
    response(400, JSON, json!({"__type": code, "message": message}).to_string())
}

fn text<'a>(input: &'a Value, key: &str) -> Result<&'a str, Refusal> {
    let value = input[key].as_str().unwrap_or_default();
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if value.is_empty() {
        return validation(format!(
            "1 validation error detected: Value at '{key}' failed to satisfy constraint: Member must not be null"
        ));
    }
    if key.ends_with("Name") && (value.len() > 63 || !value.chars().all(legal) || value.starts_with('-')) {
        return validation(format!(
            "1 validation error detected: Value '{value}' at '{key}' failed to satisfy constraint: at most 63 letters, digits and hyphens"
        ));
    }
    Ok(value)
}

fn request_tags(input: &Value) -> Vec<(String, String)> {
    let tags = input["Tags"].as_array().into_iter().flatten();
    tags.filter_map(|tag| Some((format!("aws:RequestTag/{}", tag["Key"].as_str()?), tag["Value"].as_str()?.to_owned())))
        .collect()
}

async fn create_model(room: &Room, headers: &HeaderMap, input: Value) -> Answer {
    let name = text(&input, "ModelName")?.to_owned();
    let role_arn = text(&input, "ExecutionRoleArn")?.to_owned();
    let container =
        if input["PrimaryContainer"].is_object() { &input["PrimaryContainer"] } else { &input["Containers"][0] };
    text(container, "Image")?;
    if container["ModelDataUrl"].is_string() || container["ModelDataSource"].is_object() {
        return validation(
            "the local cloud does not unpack model data: let the container fetch it, by its environment",
        );
    }
    let environment: BTreeMap<String, String> =
        serde_json::from_value(container["Environment"].clone()).unwrap_or_default();
    let pass = vec![("iam:PassedToService".to_owned(), "sagemaker.amazonaws.com".to_owned())];
    let needs = [
        Need { action: "sagemaker:CreateModel", resource: arn("model", &name), context: request_tags(&input) },
        Need { action: "iam:PassRole", resource: role_arn.clone(), context: pass },
    ];
    room.allow(headers, &needs).await?;
    let mut tables = room.tables();
    if tables.models.contains_key(&name) {
        return validation(format!("Cannot create already existing model \"{}\".", arn("model", &name)));
    }
    let model = Model { definition: input, environment, role_arn, created: OffsetDateTime::now_utc() };
    tables.models.insert(name.clone(), model);
    Ok(json!({"ModelArn": arn("model", &name)}))
}

async fn create_config(room: &Room, headers: &HeaderMap, input: Value) -> Answer {
    let name = text(&input, "EndpointConfigName")?.to_owned();
    let mut variants = Vec::new();
    for variant in input["ProductionVariants"].as_array().into_iter().flatten() {
        let serverless = &variant["ServerlessConfig"];
        if !serverless.is_object() && variant["InstanceType"].as_str().is_none() {
            return validation("a production variant needs either ServerlessConfig or InstanceType");
        }
        if serverless.is_object()
            && !matches!(serverless["MemorySizeInMB"].as_u64(), Some(1024 | 2048 | 3072 | 4096 | 5120 | 6144))
        {
            return validation("ServerlessConfig.MemorySizeInMB must be 1024, 2048, 3072, 4096, 5120 or 6144");
        }
        variants.push(VariantConfig {
            name: text(variant, "VariantName")?.to_owned(),
            model: text(variant, "ModelName")?.to_owned(),
            weight: variant["InitialVariantWeight"].as_f64().unwrap_or(1.0),
            max_concurrency: serverless["MaxConcurrency"].as_u64().and_then(|n| u32::try_from(n).ok()),
        });
    }
    if variants.is_empty() {
        return validation("ProductionVariants must have at least one member");
    }
    let context = request_tags(&input);
    let need = Need { action: "sagemaker:CreateEndpointConfig", resource: arn("endpoint-config", &name), context };
    room.allow(headers, &[need]).await?;
    let mut tables = room.tables();
    if let Some(missing) = variants.iter().find(|variant| !tables.models.contains_key(&variant.model)) {
        return validation(format!("Could not find model \"{}\".", arn("model", &missing.model)));
    }
    if tables.configs.contains_key(&name) {
        return validation(format!(
            "Cannot create already existing endpoint configuration \"{}\".",
            arn("endpoint-config", &name)
        ));
    }
    tables.configs.insert(name.clone(), Config { definition: input, variants, created: OffsetDateTime::now_utc() });
    Ok(json!({"EndpointConfigArn": arn("endpoint-config", &name)}))
}

async fn create_endpoint(room: &Room, headers: &HeaderMap, input: &Value) -> Answer {
    let name = text(input, "EndpointName")?.to_owned();
    let config = text(input, "EndpointConfigName")?.to_owned();
    let action = "sagemaker:CreateEndpoint";
    let context = request_tags(input);
    let needs = [
        Need { action, resource: arn("endpoint", &name), context: context.clone() },
        Need { action, resource: arn("endpoint-config", &config), context },
    ];
    room.allow(headers, &needs).await?;
    let tags = input["Tags"].as_array().cloned().unwrap_or_default();
    endpoints::begin(room, &name, &config, tags).map_err(Refusal::Validation)?;
    Ok(json!({"EndpointArn": arn("endpoint", &name)}))
}

fn names(kind: &str) -> (&'static str, &'static str, &'static str, &'static str, &'static str) {
    match kind {
        "model" => ("ModelName", "sagemaker:DescribeModel", "sagemaker:DeleteModel", "ModelArn", "model"),
        "endpoint" => {
            ("EndpointName", "sagemaker:DescribeEndpoint", "sagemaker:DeleteEndpoint", "EndpointArn", "endpoint")
        }
        _ => (
            "EndpointConfigName",
            "sagemaker:DescribeEndpointConfig",
            "sagemaker:DeleteEndpointConfig",
            "EndpointConfigArn",
            "endpoint configuration",
        ),
    }
}

async fn describe(room: &Room, headers: &HeaderMap, input: &Value, kind: &str) -> Answer {
    let (key, action, _, arn_key, words) = names(kind);
    let name = text(input, key)?;
    room.allow(headers, &[Need::new(action, arn(kind, name))]).await?;
    let tables = room.tables();
    let found = match kind {
        "model" => tables.models.get(name).map(|model| (model.definition.clone(), model.created)),
        "endpoint" => tables.endpoints.get(name).map(|endpoint| (endpoint.describe(name), endpoint.created)),
        _ => tables.configs.get(name).map(|config| (config.definition.clone(), config.created)),
    };
    let Some((mut value, created)) = found else {
        return validation(format!("Could not find {words} \"{}\".", arn(kind, name)));
    };
    value[arn_key] = json!(arn(kind, name));
    value["CreationTime"] = seconds(created);
    if let Some(fields) = value.as_object_mut() {
        fields.remove("Tags");
    }
    Ok(value)
}

async fn delete(room: &Room, headers: &HeaderMap, input: &Value, kind: &str) -> Answer {
    let (key, _, action, _, words) = names(kind);
    let name = text(input, key)?;
    room.allow(headers, &[Need::new(action, arn(kind, name))]).await?;
    let gone = match kind {
        "model" => room.tables().models.remove(name).is_some(),
        "endpoint" => room.remove_endpoint(name),
        _ => room.tables().configs.remove(name).is_some(),
    };
    if gone { Ok(Value::Null) } else { validation(format!("Could not find {words} \"{}\".", arn(kind, name))) }
}

async fn list(room: &Room, headers: &HeaderMap, input: &Value, kind: &str) -> Answer {
    let (key, _, _, arn_key, _) = names(kind);
    let (action, list_key) = match kind {
        "model" => ("sagemaker:ListModels", "Models"),
        "endpoint" => ("sagemaker:ListEndpoints", "Endpoints"),
        _ => ("sagemaker:ListEndpointConfigs", "EndpointConfigs"),
    };
    room.allow(headers, &[Need::new(action, "*")]).await?;
    let part = input["NameContains"].as_str().unwrap_or_default().to_lowercase();
    let tables = room.tables();
    let all: Vec<(String, OffsetDateTime, Option<String>)> = match kind {
        "model" => tables.models.iter().map(|(name, model)| (name.clone(), model.created, None)).collect(),
        "endpoint" => tables
            .endpoints
            .iter()
            .map(|(name, e)| (name.clone(), e.created, Some(e.status.name().to_owned())))
            .collect(),
        _ => tables.configs.iter().map(|(name, config)| (name.clone(), config.created, None)).collect(),
    };
    let items: Vec<Value> = all
        .into_iter()
        .filter(|(name, ..)| name.to_lowercase().contains(&part))
        .map(|(name, created, status)| {
            let mut item = json!({arn_key: arn(kind, &name), key: name, "CreationTime": seconds(created)});
            if let Some(status) = status {
                item["EndpointStatus"] = json!(status);
                item["LastModifiedTime"] = seconds(created);
            }
            item
        })
        .collect();
    Ok(json!({list_key: items}))
}

async fn tags(room: &Room, headers: &HeaderMap, input: &Value, action: &str) -> Answer {
    let resource = input["ResourceArn"].as_str().unwrap_or_default();
    let needed = if action == "AddTags" { "sagemaker:AddTags" } else { "sagemaker:ListTags" };
    room.allow(headers, &[Need::new(needed, resource)]).await?;
    let mut tables = room.tables();
    let found = tables.endpoints.iter_mut().find(|(name, _)| arn("endpoint", name) == resource);
    let Some((_, endpoint)) = found else {
        return validation(format!("the local cloud keeps tags of endpoints only; there is no {resource}"));
    };
    for tag in input["Tags"].as_array().into_iter().flatten() {
        endpoint.tags.retain(|old| old["Key"] != tag["Key"]);
        endpoint.tags.push(tag.clone());
    }
    Ok(json!({"Tags": endpoint.tags}))
}
