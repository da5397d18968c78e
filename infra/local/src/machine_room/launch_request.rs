//! `RunInstances` as it was sent, completed from its launch template.
//! Source: Amazon EC2 API Reference, RunInstances; what the request says wins over the template.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::Room;
use crate::{
    LocalError,
    client::{EC2, Xml},
};

/// A form of the EC2 query protocol.
#[derive(Debug, Clone, Default)]
pub struct Form(BTreeMap<String, String>);

impl Form {
    /// Parses `a=b&c=d`.
    #[must_use]
    pub fn parse(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body).replace('+', " ");
        let decode = |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// A value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The values `{name}.1`, `{name}.2`, …
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<String> {
        (1..).map_while(|n| self.get(&format!("{name}.{n}")).map(str::to_owned)).collect()
    }

    /// Filters: name → accepted values.
    #[must_use]
    pub fn filters(&self) -> Vec<(String, Vec<String>)> {
        (1..)
            .map_while(|n| {
                let name = self.get(&format!("Filter.{n}.Name"))?;
                Some((name.to_owned(), self.list(&format!("Filter.{n}.Value"))))
            })
            .collect()
    }

    /// Tags `{prefix}.{n}.Key|Value`.
    #[must_use]
    pub fn tags(&self, prefix: &str) -> Vec<(String, String)> {
        (1..)
            .map_while(|n| {
                let key = self.get(&format!("{prefix}.{n}.Key"))?;
                Some((key.to_owned(), self.get(&format!("{prefix}.{n}.Value")).unwrap_or_default().to_owned()))
            })
            .collect()
    }
}

/// What is to be launched.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// Instance type.
    pub instance_type: String,
    /// Image id.
    pub image: String,
    /// User data, decoded.
    pub user_data: Vec<u8>,
    /// ARN of the instance profile.
    pub profile_arn: Option<String>,
    /// Whether it is a spot machine.
    pub spot: bool,
    /// Highest spot price in dollars.
    pub max_price: Option<f64>,
    /// Tags of the instance.
    pub tags: BTreeMap<String, String>,
    /// Whether `shutdown` terminates it (else it stops).
    pub terminate_on_shutdown: bool,
    /// Idempotency token.
    pub client_token: Option<String>,
    /// Launch template id or name.
    pub template: Option<String>,
    /// Subnet.
    pub subnet: Option<String>,
    /// Availability zone asked for.
    pub zone: Option<String>,
    /// Number of machines.
    pub count: u32,
}

/// Why a request is refused: EC2's code and message.
pub type Refusal = (&'static str, String);

impl Room {
    /// Reads a request.
    ///
    /// # Errors
    /// EC2's code with a message.
    pub(super) async fn launch_request(&self, form: &Form) -> Result<Launch, Refusal> {
        let template = form.get("LaunchTemplate.LaunchTemplateId").or(form.get("LaunchTemplate.LaunchTemplateName"));
        let data = match template {
            Some(_) => self.template_data(form).await?,
            None => Xml::default(),
        };
        let own = |name: &str, in_template: &str| {
            form.get(name).map(str::to_owned).or_else(|| data.below("launchTemplateData", in_template))
        };
        let missing = |name: &str| ("MissingParameter", format!("The request must contain the parameter {name}"));
        let encoded = own("UserData", "userData").unwrap_or_default();
        let user_data = STANDARD
            .decode(encoded.trim())
            .map_err(|_| ("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.".to_owned()))?;
        if user_data.len() > 16_384 {
            return Err(("InvalidParameterValue", "User data is limited to 16384 bytes".to_owned()));
        }
        let profile = form
            .get("IamInstanceProfile.Arn")
            .or(form.get("IamInstanceProfile.Name"))
            .map(str::to_owned)
            .or_else(|| data.below("iamInstanceProfile", "arn"))
            .or_else(|| data.below("iamInstanceProfile", "name"));
        let market = form.get("InstanceMarketOptions.MarketType").map(str::to_owned);
        let market = market.or_else(|| data.below("instanceMarketOptions", "marketType"));
        let instance_tags = (1..)
            .map_while(|n| form.get(&format!("TagSpecification.{n}.ResourceType")).map(|kind| (n, kind.to_owned())))
            .filter(|(_, kind)| kind == "instance")
            .flat_map(|(n, _)| form.tags(&format!("TagSpecification.{n}.Tag")));
        let subnet = form.get("SubnetId").or(form.get("NetworkInterface.1.SubnetId")).map(str::to_owned);
        let zone = match &subnet {
            Some(subnet) => Some(self.zone_of(subnet).await?),
            None => form.get("Placement.AvailabilityZone").map(str::to_owned),
        };
        let number = |name: &str| form.get(name).and_then(|value| value.parse::<u32>().ok());
        let (least, most) = (number("MinCount"), number("MaxCount"));
        Ok(Launch {
            instance_type: own("InstanceType", "instanceType").ok_or_else(|| missing("InstanceType"))?,
            image: own("ImageId", "imageId").ok_or_else(|| missing("ImageId"))?,
            user_data,
            profile_arn: match profile {
                Some(name) => Some(self.profile_arn(&name).await?),
                None => None,
            },
            spot: market.as_deref() == Some("spot"),
            max_price: form.get("InstanceMarketOptions.SpotOptions.MaxPrice").and_then(|price| price.parse().ok()),
            tags: instance_tags.collect(),
            terminate_on_shutdown: own("InstanceInitiatedShutdownBehavior", "instanceInitiatedShutdownBehavior")
                .as_deref()
                == Some("terminate"),
            client_token: form.get("ClientToken").map(str::to_owned),
            template: template.map(str::to_owned),
            subnet,
            zone,
            count: most.or(least).ok_or_else(|| missing("MaxCount"))?,
        })
    }

    async fn template_data(&self, form: &Form) -> Result<Xml, Refusal> {
        let unavailable = |e: LocalError| ("InternalError", e.to_string());
        let version = form.get("LaunchTemplate.Version").unwrap_or("$Default");
        let mut params = vec![("LaunchTemplateVersion.1", version)];
        for name in ["LaunchTemplateId", "LaunchTemplateName"] {
            if let Some(value) = form.get(&format!("LaunchTemplate.{name}")) {
                params.push((name, value));
            }
        }
        let found = self.emulator().map_err(unavailable)?.query(EC2, "DescribeLaunchTemplateVersions", &params).await;
        match found {
            Ok(xml) if xml.text("launchTemplateData").is_some() => Ok(xml),
            Ok(_) | Err(LocalError::Refused { .. }) => Err((
                "InvalidLaunchTemplateId.NotFound",
                "The specified launch template, with its version, does not exist.".to_owned(),
            )),
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn zone_of(&self, subnet: &str) -> Result<String, Refusal> {
        let emulator = self.emulator().map_err(|e| ("InternalError", e.to_string()))?;
        let answer = emulator.query(EC2, "DescribeSubnets", &[("SubnetId.1", subnet)]).await;
        answer
            .ok()
            .and_then(|xml| xml.text("availabilityZone"))
            .ok_or_else(|| ("InvalidSubnetID.NotFound", format!("The subnet ID '{subnet}' does not exist")))
    }

    async fn profile_arn(&self, name_or_arn: &str) -> Result<String, Refusal> {
        let name = name_or_arn.rsplit('/').next().unwrap_or(name_or_arn);
        let params = [("InstanceProfileName", name)];
        let emulator = self.emulator().map_err(|e| ("InternalError", e.to_string()))?;
        let answer = emulator.query(crate::client::IAM, "GetInstanceProfile", &params).await;
        answer.ok().and_then(|xml| xml.below("InstanceProfile", "Arn")).ok_or_else(|| {
            ("InvalidParameterValue", format!("Value ({name_or_arn}) for parameter iamInstanceProfile is invalid"))
        })
    }

    /// The role of an instance profile.
    ///
    /// # Errors
    /// When the profile has none.
    pub(super) async fn profile_role(&self, profile_arn: &str) -> Result<String, LocalError> {
        let name = profile_arn.rsplit('/').next().unwrap_or(profile_arn);
        let xml =
            self.emulator()?.query(crate::client::IAM, "GetInstanceProfile", &[("InstanceProfileName", name)]).await?;
        let arns = xml.texts("Arn");
        arns.into_iter()
            .find(|arn| arn.contains(":role/"))
            .ok_or_else(|| LocalError::bad_answer("GetInstanceProfile", format!("{name} has no role")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_decoded_with_its_lists_filters_and_tags() {
        let body = b"Action=X&InstanceId.1=i-1&InstanceId.2=i-2&Filter.1.Name=tag%3Aa&Filter.1.Value.1=b+c&Tag.1.Key=k&Tag.1.Value=v%2B";
        let form = Form::parse(body);
        assert_eq!(form.list("InstanceId"), ["i-1", "i-2"]);
        assert_eq!(form.filters(), [("tag:a".to_owned(), vec!["b c".to_owned()])]);
        assert_eq!(form.tags("Tag"), [("k".to_owned(), "v+".to_owned())]);
    }
}
