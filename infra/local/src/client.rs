//! A small HTTP client for what the local cloud itself asks: the emulator, the machine room, the gateway.
//!
//! Loopback only, no TLS, no retries. Requests to the emulator are signed as the account's root user, which is what a deployer
//! is. The functions and machines use the AWS SDK with their own roles.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{client::legacy, client::legacy::connect::HttpConnector, rt::TokioExecutor};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::{
    LocalError,
    sigv4::{self, Credentials},
};

/// Unreserved characters of RFC 3986 stay as they are.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const PATH: &AsciiSet = &STRICT.remove(b'/');

/// Percent-encodes a value for a query or a form.
#[must_use]
pub fn encode(value: &str) -> String {
    utf8_percent_encode(value, STRICT).to_string()
}

/// A plain HTTP client.
#[derive(Clone, Debug)]
pub struct Http(legacy::Client<HttpConnector, Full<Bytes>>);

impl Default for Http {
    fn default() -> Self {
        Self(legacy::Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(20)).build_http())
    }
}

impl Http {
    /// Sends a request and returns as soon as the head of the answer is there.
    ///
    /// # Errors
    /// [`LocalError::Unreachable`].
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>, LocalError> {
        let failed =
            |detail: String| LocalError::Unreachable { method: method.to_string(), url: url.to_owned(), detail };
        let mut request = Request::builder().method(method.clone()).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).map_err(|e| failed(e.to_string()))?;
        self.0.request(request).await.map_err(|e| failed(error_chain(&e)))
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// [`LocalError::Unreachable`].
    pub async fn fetch(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<(u16, Bytes), LocalError> {
        let answer = self.send(method.clone(), url, headers, body).await?;
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.map_err(|e| LocalError::Unreachable {
            method: method.to_string(),
            url: url.to_owned(),
            detail: error_chain(&e),
        })?;
        Ok((status, bytes.to_bytes()))
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// The AWS APIs of the emulator, as root.
#[derive(Clone, Debug)]
pub struct Aws {
    http: Http,
    root: Credentials,
    /// `http://127.0.0.1:{port}`
    pub endpoint: String,
}

/// A parsed XML answer, reduced to what the local cloud asks of it: text of elements by name.
#[derive(Debug, Clone, Default)]
pub struct Xml(String);

impl Xml {
    /// Text of the first element with this local name.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        self.texts(name).into_iter().next()
    }

    /// Text of the first element `name` directly inside the first element `parent`.
    #[must_use]
    pub fn below(&self, parent: &str, name: &str) -> Option<String> {
        let document = roxmltree::Document::parse(&self.0).ok()?;
        let parents = document.descendants().filter(|node| node.tag_name().name() == parent);
        let mut found = parents.flat_map(|node| node.children()).filter(|node| node.tag_name().name() == name);
        found.next().map(|node| node.text().unwrap_or_default().to_owned())
    }

    /// Texts of all elements with this local name, in document order.
    #[must_use]
    pub fn texts(&self, name: &str) -> Vec<String> {
        let Ok(document) = roxmltree::Document::parse(&self.0) else { return Vec::new() };
        let found = document.descendants().filter(|node| node.tag_name().name() == name);
        found.map(|node| node.text().unwrap_or_default().to_owned()).collect()
    }

    /// For each element `name` (or `member`/`item` inside it): its direct children's names and texts.
    #[must_use]
    pub fn records(&self, list: &str) -> Vec<BTreeMap<String, String>> {
        let Ok(document) = roxmltree::Document::parse(&self.0) else { return Vec::new() };
        let lists = document.descendants().filter(|node| node.tag_name().name() == list);
        let members = lists.flat_map(|node| {
            node.children().filter(|child| matches!(child.tag_name().name(), "member" | "item")).collect::<Vec<_>>()
        });
        members
            .map(|member| {
                let fields = member.children().filter(roxmltree::Node::is_element);
                fields.map(|f| (f.tag_name().name().to_owned(), f.text().unwrap_or_default().to_owned())).collect()
            })
            .collect()
    }
}

impl Aws {
    /// A client of the emulator at `endpoint`.
    #[must_use]
    pub fn new(endpoint: impl Into<String>, root: Credentials) -> Self {
        Self { http: Http::default(), root, endpoint: endpoint.into() }
    }

    /// Sends a signed request; `path` may have a query, its parameters in the order of their names.
    async fn signed(
        &self,
        service: &str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(u16, Bytes), LocalError> {
        let (plain, query) = path.split_once('?').unwrap_or((path, ""));
        let host = self.endpoint.trim_start_matches("http://");
        let request =
            sigv4::Request { method: &method, host, path: plain, query, body: &body, service, region: REGION };
        let signature = sigv4::sign(request, &self.root, OffsetDateTime::now_utc());
        let mut all: Vec<(&str, &str)> = headers.to_vec();
        all.extend(signature.iter().map(|(name, value)| (*name, value.as_str())));
        self.http.fetch(method, &format!("{}{path}", self.endpoint), &all, body).await
    }

    /// The HTTP client below.
    #[must_use]
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// An action of a query-protocol service (CloudFormation, IAM, STS, SNS, EC2).
    ///
    /// # Errors
    /// [`LocalError::Refused`] with the service's code, or no answer.
    pub async fn query(&self, version: &str, action: &str, params: &[(&str, &str)]) -> Result<Xml, LocalError> {
        let mut form = format!("Action={}&Version={version}", encode(action));
        for (name, value) in params {
            form.push_str(&format!("&{}={}", encode(name), encode(value)));
        }
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let (status, body) = self.signed(service_of(version), Method::POST, "/", &headers, form.into()).await?;
        let xml = Xml(String::from_utf8_lossy(&body).into_owned());
        if status >= 300 {
            return Err(LocalError::Refused {
                action: action.to_owned(),
                status,
                code: xml.text("Code").unwrap_or_default(),
                message: xml.text("Message").unwrap_or_else(|| xml.0.chars().take(300).collect()),
            });
        }
        Ok(xml)
    }

    /// An action of a JSON-protocol service, by its target, e.g. `AWSStepFunctions.StartExecution`.
    ///
    /// # Errors
    /// [`LocalError::Refused`] with the service's code, or no answer.
    pub async fn json(&self, target: &str, input: &Value) -> Result<Value, LocalError> {
        let headers = [("content-type", "application/x-amz-json-1.0"), ("x-amz-target", target)];
        let service = match target.split('.').next().unwrap_or_default() {
            "DynamoDB_20120810" => "dynamodb",
            "AmazonSQS" => "sqs",
            "Logs_20140328" => "logs",
            _ => "states",
        };
        let (status, body) = self.signed(service, Method::POST, "/", &headers, input.to_string().into()).await?;
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if status >= 300 {
            let code = value["__type"].as_str().unwrap_or_default();
            let message = value["message"].as_str().or(value["Message"].as_str()).unwrap_or_default();
            return Err(LocalError::Refused {
                action: target.to_owned(),
                status,
                code: code.rsplit('#').next().unwrap_or(code).to_owned(),
                message: message.to_owned(),
            });
        }
        Ok(value)
    }

    /// Invokes a function and waits for its result; a failure of the function is a result too, with `errorType`.
    ///
    /// # Errors
    /// When the emulator refuses, e.g. because too many invocations are under way.
    pub async fn invoke(&self, function: &str, input: &Value) -> Result<Value, LocalError> {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let body = self.rest(Method::POST, &path, input.to_string()).await?;
        serde_json::from_slice(&body).map_err(|e| LocalError::bad_answer("Invoke", e.to_string()))
    }

    /// A REST call (Lambda, S3) with a plain body. A status of 300 and more is an error.
    async fn rest(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Bytes, LocalError> {
        let action = format!("{method} {path}");
        let service = if path.starts_with("/2015-03-31/") { "lambda" } else { "s3" };
        let (status, bytes) = self.signed(service, method, path, &[], body.into()).await?;
        if status >= 300 {
            let xml = Xml(String::from_utf8_lossy(&bytes).into_owned());
            return Err(LocalError::Refused {
                action,
                status,
                code: xml.text("Code").unwrap_or_default(),
                message: xml.text("Message").unwrap_or_else(|| xml.0.chars().take(300).collect()),
            });
        }
        Ok(bytes)
    }

    /// All functions: name → (ARN, role ARN).
    ///
    /// # Errors
    /// As [`Aws::query`].
    pub async fn functions(&self) -> Result<Vec<(String, String, String)>, LocalError> {
        let body = self.rest(Method::GET, "/2015-03-31/functions/", Bytes::new()).await?;
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let text = |f: &Value, key: &str| f[key].as_str().unwrap_or_default().to_owned();
        let list = value["Functions"].as_array().cloned().unwrap_or_default();
        Ok(list.iter().map(|f| (text(f, "FunctionName"), text(f, "FunctionArn"), text(f, "Role"))).collect())
    }

    /// Makes a bucket.
    ///
    /// # Errors
    /// As [`Aws::query`].
    pub async fn create_bucket(&self, bucket: &str) -> Result<(), LocalError> {
        self.rest(Method::PUT, &format!("/{bucket}"), Bytes::new()).await.map(drop)
    }

    /// Writes an object.
    ///
    /// # Errors
    /// As [`Aws::query`].
    pub async fn put_object(&self, bucket: &str, key: &str, body: impl Into<Bytes>) -> Result<(), LocalError> {
        let path = format!("/{bucket}/{}", utf8_percent_encode(key, PATH));
        self.rest(Method::PUT, &path, body).await.map(drop)
    }

    /// Reads an object; `None` when there is none.
    ///
    /// # Errors
    /// As [`Aws::query`].
    pub async fn get_object(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, LocalError> {
        let path = format!("/{bucket}/{}", utf8_percent_encode(key, PATH));
        match self.rest(Method::GET, &path, Bytes::new()).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(LocalError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads an object as JSON; `None` when there is none.
    ///
    /// # Errors
    /// As [`Aws::query`], and when it is not JSON of this form.
    pub async fn get_json<T: serde::de::DeserializeOwned>(
        &self,
        bucket: &str,
        key: &str,
    ) -> Result<Option<T>, LocalError> {
        let Some(bytes) = self.get_object(bucket, key).await? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| LocalError::bad_answer("GetObject", format!("s3://{bucket}/{key}: {e}")))
    }

    /// Keys below a prefix, all pages.
    ///
    /// # Errors
    /// As [`Aws::query`].
    pub async fn list_objects(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, LocalError> {
        let mut keys = Vec::new();
        let mut token = String::new();
        loop {
            let next = if token.is_empty() { String::new() } else { format!("continuation-token={}&", encode(&token)) };
            let path = format!("/{bucket}?{next}list-type=2&prefix={}", encode(prefix));
            let xml = Xml(String::from_utf8_lossy(&self.rest(Method::GET, &path, Bytes::new()).await?).into_owned());
            keys.extend(xml.texts("Key"));
            match xml.text("NextContinuationToken") {
                Some(more) if !more.is_empty() => token = more,
                _ => return Ok(keys),
            }
        }
    }

    /// Reads a table item as plain JSON; `None` when there is none.
    ///
    /// # Errors
    /// As [`Aws::json`].
    pub async fn get_item(&self, table: &str, pk: &str, sk: &str) -> Result<Option<Value>, LocalError> {
        let key = json!({"pk": {"S": pk}, "sk": {"S": sk}});
        let input = json!({"TableName": table, "Key": key, "ConsistentRead": true});
        let answer = self.json("DynamoDB_20120810.GetItem", &input).await?;
        Ok(answer.get("Item").map(plain_item))
    }

    /// All items of a partition whose sort key begins with `prefix`, as plain JSON.
    ///
    /// # Errors
    /// As [`Aws::json`].
    pub async fn query_items(&self, table: &str, pk: &str, prefix: &str) -> Result<Vec<Value>, LocalError> {
        let mut input = json!({
            "TableName": table,
            "KeyConditionExpression": "pk = :pk AND begins_with(sk, :sk)",
            "ExpressionAttributeValues": {":pk": {"S": pk}, ":sk": {"S": prefix}},
        });
        if prefix.is_empty() {
            input["KeyConditionExpression"] = json!("pk = :pk");
            input["ExpressionAttributeValues"] = json!({":pk": {"S": pk}});
        }
        let mut items = Vec::new();
        loop {
            let answer = self.json("DynamoDB_20120810.Query", &input).await?;
            items.extend(answer["Items"].as_array().into_iter().flatten().map(plain_item));
            match answer.get("LastEvaluatedKey") {
                Some(key) if key.is_object() => input["ExclusiveStartKey"] = key.clone(),
                _ => return Ok(items),
            }
        }
    }

    /// Writes a table item of strings, numbers, booleans.
    ///
    /// # Errors
    /// As [`Aws::json`].
    pub async fn put_item(&self, table: &str, pk: &str, sk: &str, item: &Value) -> Result<(), LocalError> {
        let mut fields = serde_json::Map::new();
        fields.insert("pk".into(), json!({"S": pk}));
        fields.insert("sk".into(), json!({"S": sk}));
        for (name, value) in item.as_object().into_iter().flatten() {
            let attribute = match value {
                Value::Bool(flag) => json!({"BOOL": flag}),
                Value::Number(number) => json!({"N": number.to_string()}),
                Value::String(text) => json!({"S": text}),
                other => return Err(LocalError::Usage(format!("attribute {name} of an item cannot be {other}"))),
            };
            fields.insert(name.clone(), attribute);
        }
        self.json("DynamoDB_20120810.PutItem", &json!({"TableName": table, "Item": fields})).await.map(drop)
    }
}

/// Region of the local cloud.
pub const REGION: &str = "us-east-1";
/// Account of the local cloud.
pub const ACCOUNT: &str = "123456789012";

fn service_of(version: &str) -> &'static str {
    match version {
        EC2 => "ec2",
        IAM => "iam",
        STS => "sts",
        SNS => "sns",
        _ => "cloudformation",
    }
}

/// API version of EC2.
pub const EC2: &str = "2016-11-15";
/// API version of IAM.
pub const IAM: &str = "2010-05-08";
/// API version of STS.
pub const STS: &str = "2011-06-15";
/// API version of SNS.
pub const SNS: &str = "2010-03-31";
/// API version of CloudFormation.
pub const CLOUDFORMATION: &str = "2010-05-15";

/// DynamoDB's typed attributes as plain JSON.
#[must_use]
pub fn plain_item(item: &Value) -> Value {
    let fields = item.as_object().into_iter().flatten();
    Value::Object(fields.map(|(name, value)| (name.clone(), plain_attribute(value))).collect())
}

fn plain_attribute(attribute: &Value) -> Value {
    let Some((kind, value)) = attribute.as_object().and_then(|object| object.iter().next()) else { return Value::Null };
    match kind.as_str() {
        "N" => value.as_str().and_then(|n| serde_json::from_str(n).ok()).unwrap_or(Value::Null),
        "M" => plain_item(value),
        "L" => Value::Array(value.as_array().into_iter().flatten().map(plain_attribute).collect()),
        "NULL" => Value::Null,
        _ => value.clone(),
    }
}

/// Base64 as AWS uses it.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_attributes_become_plain_json() {
        let item =
            json!({"a": {"N": "12"}, "b": {"L": [{"S": "x"}, {"BOOL": true}]}, "c": {"M": {"d": {"NULL": true}}}});
        assert_eq!(plain_item(&item), json!({"a": 12, "b": ["x", true], "c": {"d": null}}));
    }

    #[test]
    fn records_are_the_members_of_a_list() {
        let xml =
            Xml("<R><Outputs><member><OutputKey>A</OutputKey><OutputValue>1</OutputValue></member></Outputs></R>"
                .into());
        assert_eq!(xml.records("Outputs")[0]["OutputKey"], "A");
        assert_eq!(xml.text("OutputValue").as_deref(), Some("1"));
    }
}
