//! EC2's query protocol: what makes, shows and ends machines is answered here, everything else by the emulator.

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, Method, request::Parts};
use std::fmt::Write as _;

use super::{
    Room,
    identity::{Denied, Need},
    instance_xml::{escape, instant, reservation, state},
    instances::{Instance, Reason, Status},
    launch_request::{Form, Launch, Refusal},
    response,
};
use crate::client::{ACCOUNT, REGION};

const XML: &str = "text/xml;charset=UTF-8";
const NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";

type Answer = Result<String, Refusal>;

/// Answers one request.
pub async fn answer(room: &Room, head: Parts, body: Bytes) -> Response {
    let form = Form::parse(&body);
    let action = form.get("Action").unwrap_or_default().to_owned();
    let result = match action.as_str() {
        "RunInstances" => run_instances(room, &head.headers, &form).await,
        "DescribeInstances" => describe_instances(room, &head.headers, &form).await,
        "TerminateInstances" => terminate_instances(room, &head.headers, &form).await,
        "CreateTags" if only_instances(&form) => create_tags(room, &head.headers, &form).await,
        "DescribeSpotPriceHistory" => describe_spot_prices(room, &head.headers, &form).await,
        _ => return forward(room, &head, body).await,
    };
    match result {
        Ok(inner) => {
            let id = super::access::random_hex(16);
            let text = format!(
                "<{action}Response xmlns=\"{NAMESPACE}\"><requestId>{id}</requestId>{inner}</{action}Response>"
            );
            response(200, XML, text)
        }
        Err((code, message)) => refuse(code, &message),
    }
}

fn refuse(code: &str, message: &str) -> Response {
    let status = match code {
        "UnauthorizedOperation" => 403,
        "AuthFailure" => 401,
        "InternalError" => 500,
        _ => 400,
    };
    let id = super::access::random_hex(16);
    let message = escape(message);
    let text = format!(
        "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>{id}</RequestID></Response>"
    );
    response(status, XML, text)
}

fn denied(denied: Denied) -> Refusal {
    match denied {
        Denied::Unknown => ("AuthFailure", "AWS was not able to validate the provided access credentials".to_owned()),
        Denied::NotAllowed { .. } => {
            ("UnauthorizedOperation", format!("You are not authorized to perform this operation. {denied}"))
        }
        Denied::Unavailable(_) => ("InternalError", denied.to_string()),
    }
}

fn arn(kind: &str, id: &str) -> String {
    format!("arn:aws:ec2:{REGION}:{ACCOUNT}:{kind}/{id}")
}

/// Sends the request to the emulator as it came: its signature covers the host it was sent to, so that header stays.
async fn forward(room: &Room, head: &Parts, body: Bytes) -> Response {
    let Ok(emulator) = room.emulator() else { return refuse("InternalError", "the emulator has not been started yet") };
    let kept = head
        .headers
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "content-length" | "connection" | "transfer-encoding"));
    let headers: Vec<(&str, &str)> =
        kept.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect();
    match emulator.http().fetch(Method::POST, &format!("{}/", emulator.endpoint), &headers, body).await {
        Ok((status, bytes)) => response(status, XML, bytes),
        Err(error) => refuse("InternalError", &error.to_string()),
    }
}

async fn run_instances(room: &Room, headers: &HeaderMap, form: &Form) -> Answer {
    let launch = room.launch_request(form).await?;
    let mut needs = vec![Need {
        action: "ec2:RunInstances",
        resource: arn("instance", "*"),
        context: launch
            .tags
            .iter()
            .map(|(key, value)| (format!("aws:RequestTag/{key}"), value.clone()))
            .chain([
                ("ec2:InstanceType".to_owned(), launch.instance_type.clone()),
                ("ec2:InstanceMarketType".to_owned(), if launch.spot { "spot" } else { "on-demand" }.to_owned()),
            ])
            .chain(launch.template.iter().map(|id| ("ec2:LaunchTemplate".to_owned(), arn("launch-template", id))))
            .collect(),
    }];
    if let Some(template) = &launch.template {
        needs.push(Need::new("ec2:RunInstances", arn("launch-template", template)));
    }
    if !launch.tags.is_empty() {
        let mut context: Vec<_> =
            launch.tags.iter().map(|(key, value)| (format!("aws:RequestTag/{key}"), value.clone())).collect();
        context.push(("ec2:CreateAction".to_owned(), "RunInstances".to_owned()));
        needs.push(Need { action: "ec2:CreateTags", resource: arn("instance", "*"), context });
    }
    if let Some(profile) = &launch.profile_arn {
        let role = room.profile_role(profile).await.map_err(|e| ("InvalidParameterValue", e.to_string()))?;
        let context = vec![("iam:PassedToService".to_owned(), "ec2.amazonaws.com".to_owned())];
        needs.push(Need { action: "iam:PassRole", resource: role, context });
    }
    room.allow(headers, &needs).await.map_err(denied)?;
    if form.get("DryRun") == Some("true") {
        return Err(("DryRunOperation", "Request would have succeeded, but DryRun flag is set.".to_owned()));
    }
    let fingerprint = format!("{launch:?}");
    if let Some(token) = &launch.client_token {
        let known = room.tables().client_tokens.get(token).cloned();
        if let Some((same, ids)) = known {
            if same != fingerprint {
                return Err((
                    "IdempotentParameterMismatch",
                    format!("The parameters of client token {token} differ from those of its first request"),
                ));
            }
            return Ok(show(room, &ids));
        }
    }
    check_capacity(room, &launch)?;
    let ids = room.launch(&launch);
    if let Some(token) = launch.client_token {
        room.tables().client_tokens.insert(token, (fingerprint, ids.clone()));
    }
    Ok(show(room, &ids))
}

fn check_capacity(room: &Room, launch: &Launch) -> Result<(), Refusal> {
    if !room.0.prices.knows(&launch.instance_type) {
        return Err(("InvalidParameterValue", format!("Invalid value '{}' for InstanceType.", launch.instance_type)));
    }
    let settings = room.settings().map_err(|e| ("InternalError", e.to_string()))?;
    if settings.no_capacity.contains(&launch.instance_type) {
        return Err((
            "InsufficientInstanceCapacity",
            format!(
                "We currently do not have sufficient {} capacity in the Availability Zone you requested.",
                launch.instance_type
            ),
        ));
    }
    let zone: Vec<String> = launch.zone.iter().cloned().collect();
    let price = room.0.prices.history(std::slice::from_ref(&launch.instance_type), &zone).into_iter().next();
    let price = price.and_then(|price| price.dollars.parse::<f64>().ok()).unwrap_or_default();
    match launch.max_price {
        Some(most) if launch.spot && most < price => Err((
            "SpotMaxPriceTooLow",
            format!(
                "Your Spot request price of {most} is lower than the minimum required Spot request fulfillment price of {price}."
            ),
        )),
        _ => Ok(()),
    }
}

fn show(room: &Room, ids: &[String]) -> String {
    let tables = room.tables();
    let instances: Vec<&Instance> = ids.iter().filter_map(|id| tables.instances.get(id)).collect();
    instances.first().map_or_else(String::new, |first| reservation(&first.reservation, &instances))
}

async fn describe_instances(room: &Room, headers: &HeaderMap, form: &Form) -> Answer {
    room.allow(headers, &[Need::new("ec2:DescribeInstances", "*")]).await.map_err(denied)?;
    let (wanted, filters) = (form.list("InstanceId"), form.filters());
    let tables = room.tables();
    if let Some(unknown) = wanted.iter().find(|id| !tables.instances.contains_key(*id)) {
        return Err(("InvalidInstanceID.NotFound", format!("The instance ID '{unknown}' does not exist")));
    }
    let mut items = String::new();
    for instance in tables.instances.values() {
        if (wanted.is_empty() || wanted.contains(&instance.id))
            && filters.iter().all(|(name, values)| matches(instance, name, values))
        {
            let _ = write!(items, "<item>{}</item>", reservation(&instance.reservation, &[instance]));
        }
    }
    Ok(format!("<reservationSet>{items}</reservationSet>"))
}

/// Whether an instance passes a filter. Values may hold `*`, as in EC2.
fn matches(instance: &Instance, name: &str, values: &[String]) -> bool {
    let found: Vec<String> = match name {
        "instance-id" => vec![instance.id.clone()],
        "instance-state-name" => vec![instance.status.name().to_owned()],
        "instance-state-code" => vec![instance.status.code().to_string()],
        "instance-type" => vec![instance.launch.instance_type.clone()],
        "instance-lifecycle" => vec![if instance.launch.spot { "spot" } else { "on-demand" }.to_owned()],
        "client-token" => instance.launch.client_token.iter().cloned().collect(),
        "availability-zone" => vec![instance.zone.clone()],
        "tag-key" => instance.launch.tags.keys().cloned().collect(),
        other => match other.strip_prefix("tag:") {
            Some(key) => instance.launch.tags.get(key).into_iter().cloned().collect(),
            None => return false,
        },
    };
    found.iter().any(|value| values.iter().any(|pattern| glob(pattern, value)))
}

/// `*` stands for any text.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|tail| {
            tail.char_indices().map(|(i, _)| i).chain([tail.len()]).any(|i| glob(rest, &tail[i..]))
        }),
    }
}

async fn terminate_instances(room: &Room, headers: &HeaderMap, form: &Form) -> Answer {
    let ids = form.list("InstanceId");
    let mut needs = Vec::new();
    for id in &ids {
        let tables = room.tables();
        let Some(instance) = tables.instances.get(id) else {
            return Err(("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist")));
        };
        let tags = instance.launch.tags.iter();
        let context = tags
            .flat_map(|(key, value)| {
                [(format!("aws:ResourceTag/{key}"), value.clone()), (format!("ec2:ResourceTag/{key}"), value.clone())]
            })
            .collect();
        needs.push(Need { action: "ec2:TerminateInstances", resource: arn("instance", id), context });
    }
    room.allow(headers, &needs).await.map_err(denied)?;
    let mut items = String::new();
    for id in &ids {
        let change = room.end_instance(id, Reason::User).unwrap_or((Status::Terminated, Status::Terminated));
        let (before, now) = (state(change.0), state(change.1));
        let _ = write!(
            items,
            "<item><instanceId>{id}</instanceId><currentState>{now}</currentState><previousState>{before}</previousState></item>"
        );
    }
    Ok(format!("<instancesSet>{items}</instancesSet>"))
}

fn only_instances(form: &Form) -> bool {
    let ids = form.list("ResourceId");
    !ids.is_empty() && ids.iter().all(|id| id.starts_with("i-"))
}

async fn create_tags(room: &Room, headers: &HeaderMap, form: &Form) -> Answer {
    let (ids, tags) = (form.list("ResourceId"), form.tags("Tag"));
    let context: Vec<_> = tags.iter().map(|(key, value)| (format!("aws:RequestTag/{key}"), value.clone())).collect();
    let needs: Vec<Need> = ids
        .iter()
        .map(|id| Need { action: "ec2:CreateTags", resource: arn("instance", id), context: context.clone() })
        .collect();
    room.allow(headers, &needs).await.map_err(denied)?;
    let mut tables = room.tables();
    for id in &ids {
        let Some(instance) = tables.instances.get_mut(id) else {
            return Err(("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist")));
        };
        instance.launch.tags.extend(tags.iter().cloned());
    }
    Ok("<return>true</return>".to_owned())
}

async fn describe_spot_prices(room: &Room, headers: &HeaderMap, form: &Form) -> Answer {
    room.allow(headers, &[Need::new("ec2:DescribeSpotPriceHistory", "*")]).await.map_err(denied)?;
    let mut zones: Vec<String> = form.get("AvailabilityZone").map(str::to_owned).into_iter().collect();
    let mut types = form.list("InstanceType");
    let mut products = form.list("ProductDescription");
    for (name, values) in form.filters() {
        match name.as_str() {
            "availability-zone" => zones.extend(values),
            "instance-type" => types.extend(values),
            "product-description" => products.extend(values),
            _ => {}
        }
    }
    let linux = products.is_empty() || products.iter().any(|product| product.starts_with("Linux/UNIX"));
    let prices = if linux { room.0.prices.history(&types, &zones) } else { Vec::new() };
    let now = instant(time::OffsetDateTime::now_utc());
    let items: String = prices
        .iter()
        .map(|price| {
            format!(
                "<item><instanceType>{}</instanceType><productDescription>Linux/UNIX</productDescription><spotPrice>{}</spotPrice>\
                 <timestamp>{now}</timestamp><availabilityZone>{}</availabilityZone></item>",
                price.instance_type, price.dollars, price.zone
            )
        })
        .collect();
    Ok(format!("<spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken/>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_a_filter_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("run-*", "run-1", true),
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "abd", false),
            ("a", "ab", false),
            ("*é*", "caféx", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
