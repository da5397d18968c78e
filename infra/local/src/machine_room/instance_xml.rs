//! EC2's XML for instances. Source: Amazon EC2 API Reference, data type Instance, API version 2016-11-15.

use std::fmt::Write as _;

use time::{OffsetDateTime, macros::format_description};

use super::instances::{Instance, Status};
use crate::client::ACCOUNT;

/// Text with the five characters that XML reserves escaped.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            c => out.push(c),
        }
    }
    out
}

/// An instant as EC2 writes it: milliseconds, `Z`.
#[must_use]
pub fn instant(at: OffsetDateTime) -> String {
    at.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"))
        .unwrap_or_default()
}

/// `<code>…</code><name>…</name>`
#[must_use]
pub fn state(status: Status) -> String {
    format!("<code>{}</code><name>{}</name>", status.code(), status.name())
}

/// One `<item>` of an `instancesSet`.
#[must_use]
pub fn instance(instance: &Instance) -> String {
    let launch = &instance.launch;
    let mut out = format!(
        "<item><instanceId>{}</instanceId><imageId>{}</imageId><instanceState>{}</instanceState>\
         <privateDnsName>ip-127-0-0-1.ec2.internal</privateDnsName><dnsName/><amiLaunchIndex>0</amiLaunchIndex><productCodes/>\
         <instanceType>{}</instanceType><launchTime>{}</launchTime>\
         <placement><availabilityZone>{}</availabilityZone><groupName/><tenancy>default</tenancy></placement>\
         <monitoring><state>disabled</state></monitoring><privateIpAddress>127.0.0.1</privateIpAddress>\
         <groupSet/><architecture>{}</architecture><rootDeviceType>ebs</rootDeviceType>\
         <rootDeviceName>/dev/xvda</rootDeviceName><blockDeviceMapping/><virtualizationType>hvm</virtualizationType>\
         <hypervisor>xen</hypervisor><ebsOptimized>false</ebsOptimized>",
        instance.id,
        escape(&launch.image),
        state(instance.status),
        escape(&launch.instance_type),
        instant(instance.launched),
        escape(&instance.zone),
        std::env::consts::ARCH,
    );
    if launch.spot {
        out.push_str("<instanceLifecycle>spot</instanceLifecycle>");
        let _ = write!(
            out,
            "<spotInstanceRequestId>sir-{}</spotInstanceRequestId>",
            instance.id.get(2..10).unwrap_or_default()
        );
    }
    if let Some(reason) = instance.reason {
        let (code, message) = reason.words();
        let when = instance.ended.map(|at| format!(" ({})", instant(at))).unwrap_or_default();
        let _ = write!(out, "<reason>{}{when}</reason>", escape(message));
        let _ = write!(out, "<stateReason><code>{code}</code><message>{}</message></stateReason>", escape(message));
    }
    for (name, value) in [("subnetId", &launch.subnet), ("clientToken", &launch.client_token)] {
        if let Some(value) = value {
            let _ = write!(out, "<{name}>{}</{name}>", escape(value));
        }
    }
    if let Some(arn) = &launch.profile_arn {
        let _ = write!(out, "<iamInstanceProfile><arn>{}</arn><id>AIPALOCAL</id></iamInstanceProfile>", escape(arn));
    }
    out.push_str("<tagSet>");
    for (key, value) in &launch.tags {
        let _ = write!(out, "<item><key>{}</key><value>{}</value></item>", escape(key), escape(value));
    }
    out.push_str("</tagSet><metadataOptions><state>applied</state><httpTokens>required</httpTokens>");
    out.push_str("<httpPutResponseHopLimit>1</httpPutResponseHopLimit><httpEndpoint>enabled</httpEndpoint></metadataOptions></item>");
    out
}

/// A reservation's fields around its instances.
#[must_use]
pub fn reservation(id: &str, instances: &[&Instance]) -> String {
    let items: String = instances.iter().map(|i| instance(i)).collect();
    format!(
        "<reservationId>{id}</reservationId><ownerId>{ACCOUNT}</ownerId><groupSet/><instancesSet>{items}</instancesSet>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_characters_are_escaped() {
        assert_eq!(escape("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&apos;");
    }

    #[test]
    fn instants_have_milliseconds() {
        assert_eq!(instant(OffsetDateTime::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
    }
}
