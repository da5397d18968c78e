//! Service Quotas: `GetServiceQuota`, with values from `settings.json`, so that quota 0 can be tried.

use axum::response::Response;
use http::HeaderMap;
use serde_json::{Value, json};

use super::{Room, identity::Need, response};
use crate::client::{ACCOUNT, REGION};

const JSON: &str = "application/x-amz-json-1.1";

/// Answers one action.
pub async fn answer(room: &Room, action: &str, headers: &HeaderMap, body: &[u8]) -> Response {
    let refuse = |status: u16, code: &str, message: String| {
        response(status, JSON, json!({"__type": code, "message": message}).to_string())
    };
    if !matches!(action, "GetServiceQuota" | "GetAWSDefaultServiceQuota") {
        return refuse(400, "InvalidAction", format!("the local cloud has no {action}; it has GetServiceQuota"));
    }
    let input: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let (service, code) =
        (input["ServiceCode"].as_str().unwrap_or_default(), input["QuotaCode"].as_str().unwrap_or_default());
    if service.is_empty() || code.is_empty() {
        return refuse(400, "IllegalArgumentException", "ServiceCode and QuotaCode are required".into());
    }
    let needed = if action == "GetServiceQuota" {
        "servicequotas:GetServiceQuota"
    } else {
        "servicequotas:GetAWSDefaultServiceQuota"
    };
    let arn = format!("arn:aws:servicequotas:{REGION}:{ACCOUNT}:{service}/{code}");
    if let Err(denied) = room.allow(headers, &[Need::new(needed, &arn)]).await {
        return refuse(400, "AccessDeniedException", denied.to_string());
    }
    let settings = match room.settings() {
        Ok(settings) => settings,
        Err(error) => return refuse(500, "ServiceException", error.to_string()),
    };
    let value = settings.quotas.get(code).copied().unwrap_or(settings.default_quota);
    let quota = json!({
        "ServiceCode": service,
        "ServiceName": service,
        "QuotaArn": arn,
        "QuotaCode": code,
        "QuotaName": code,
        "Value": value,
        "Unit": "None",
        "Adjustable": true,
        "GlobalQuota": false,
    });
    response(200, JSON, json!({"Quota": quota}).to_string())
}
