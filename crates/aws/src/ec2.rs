//! Training machines: launching from the launch template, finding by tag, ending, spot prices.

use std::collections::BTreeMap;

use aws_sdk_ec2::{
    Client,
    types::{
        Filter, InstanceInterruptionBehavior, InstanceMarketOptionsRequest, InstanceType, LaunchTemplateSpecification,
        MarketType, ResourceType, ShutdownBehavior, SpotInstanceType, SpotMarketOptions, Tag, TagSpecification,
    },
};
use base64::Engine as _;
use tunesmith_contract::{UnixTime, Usd, settings::Market};

use crate::{AwsError, Config, error::aws};

/// Client for EC2. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ec2 {
    client: Client,
}

/// One machine to launch. Image, security group and instance profile come from the launch template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchRequest {
    /// Makes repetition harmless: the same token gives the same machine (RunInstances, `ClientToken`, up to 64 characters).
    pub client_token: String,
    /// `lt-…`; its default version is used.
    pub launch_template_id: String,
    /// EC2 instance type.
    pub instance_type: String,
    /// Where.
    pub subnet_id: String,
    /// Spot or on demand.
    pub market: Market,
    /// User data as text; it is encoded here.
    pub user_data: String,
    /// Tags of instance and volume.
    pub tags: BTreeMap<String, String>,
}

/// Result of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launched {
    /// The machine starts, or had started under this client token.
    Started {
        /// `i-…`
        instance_id: String,
    },
    /// AWS has none free here now; another type, zone or market may work.
    NoCapacity {
        /// EC2's code and message.
        reason: String,
    },
    /// The account's quota for this family does not allow it.
    QuotaExceeded {
        /// EC2's code and message.
        reason: String,
    },
}

/// A machine as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// `i-…`
    pub instance_id: String,
    /// EC2 instance type.
    pub instance_type: String,
    /// `pending`, `running`, `shutting-down`, `terminated`, `stopping` or `stopped`.
    pub state: String,
    /// When it was launched.
    pub launched_at: UnixTime,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// EC2's reason for the last change of state, e.g. `Server.SpotInstanceTermination`; may be empty.
    pub state_reason: String,
    /// Spot or on demand.
    pub market: Market,
}

impl Machine {
    /// Whether it is still billed, or about to be.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.state.as_str(), "pending" | "running" | "stopping")
    }
}

/// Price of a spot machine at its last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpotPrice {
    /// EC2 instance type.
    pub instance_type: String,
    /// Availability zone.
    pub zone: String,
    /// For one hour.
    pub price_per_hour: Usd,
}

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// `subnet-…`
    pub id: String,
    /// Availability zone.
    pub zone: String,
}

impl Ec2 {
    /// A client.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { client: Client::new(config) }
    }

    /// Launches one machine. A spot machine is asked for once, at up to the on-demand price, and terminated when AWS takes
    /// it back; a machine that powers itself off is terminated.
    pub async fn run_instance(&self, launch: &LaunchRequest) -> Result<Launched, AwsError> {
        let tags: Vec<Tag> =
            launch.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let tagged = |kind| TagSpecification::builder().resource_type(kind).set_tags(Some(tags.clone())).build();
        let spot = (launch.market == Market::Spot).then(|| {
            InstanceMarketOptionsRequest::builder()
                .market_type(MarketType::Spot)
                .spot_options(
                    SpotMarketOptions::builder()
                        .spot_instance_type(SpotInstanceType::OneTime)
                        .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate)
                        .build(),
                )
                .build()
        });
        let sent = self
            .client
            .run_instances()
            .client_token(&launch.client_token)
            .launch_template(
                LaunchTemplateSpecification::builder()
                    .launch_template_id(&launch.launch_template_id)
                    .version("$Default")
                    .build(),
            )
            .instance_type(InstanceType::from(launch.instance_type.as_str()))
            .subnet_id(&launch.subnet_id)
            .set_instance_market_options(spot)
            .user_data(base64::engine::general_purpose::STANDARD.encode(&launch.user_data))
            .tag_specifications(tagged(ResourceType::Instance))
            .tag_specifications(tagged(ResourceType::Volume))
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .min_count(1)
            .max_count(1)
            .send()
            .await;
        match sent {
            Ok(started) => started
                .instances()
                .first()
                .and_then(|instance| instance.instance_id())
                .map(|id| Launched::Started { instance_id: id.to_owned() })
                .ok_or_else(|| AwsError::malformed("ec2", "RunInstances", "the answer names no instance")),
            Err(error) => refusal(aws!("ec2", "RunInstances")(error)),
        }
    }

    /// Machines that carry the tag (with this value, or any), in every state EC2 still knows (terminated ones for an hour).
    pub async fn machines_tagged(&self, key: &str, value: Option<&str>) -> Result<Vec<Machine>, AwsError> {
        let filter = match value {
            Some(value) => Filter::builder().name(format!("tag:{key}")).values(value).build(),
            None => Filter::builder().name("tag-key").values(key).build(),
        };
        let mut pages = self.client.describe_instances().filters(filter).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(aws!("ec2", "DescribeInstances"))?;
            for instance in page.reservations().iter().flat_map(|reservation| reservation.instances()) {
                found.push(machine(instance));
            }
        }
        Ok(found)
    }

    /// Ends machines. Ending one that has ended is no error; one that EC2 has forgotten is not asked for again.
    pub async fn terminate(&self, instance_ids: &[String]) -> Result<(), AwsError> {
        if instance_ids.is_empty() {
            return Ok(());
        }
        let sent = self.client.terminate_instances().set_instance_ids(Some(instance_ids.to_vec())).send().await;
        let error = match sent {
            Ok(_) => return Ok(()),
            Err(error) => aws!("ec2", "TerminateInstances")(error),
        };
        match (error.code.as_str(), instance_ids) {
            ("InvalidInstanceID.NotFound", [_]) => Ok(()),
            // one forgotten id fails the whole call: end the others one by one
            ("InvalidInstanceID.NotFound", many) => {
                for id in many {
                    Box::pin(self.terminate(std::slice::from_ref(id))).await?;
                }
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Today's Linux spot prices of these types, in every zone that has them.
    pub async fn spot_prices(&self, instance_types: &[String], now: UnixTime) -> Result<Vec<SpotPrice>, AwsError> {
        // a start time of now gives, for each type and zone, the price that holds (DescribeSpotPriceHistory, `StartTime`)
        let mut pages = self
            .client
            .describe_spot_price_history()
            .set_instance_types(Some(instance_types.iter().map(|t| InstanceType::from(t.as_str())).collect()))
            .product_descriptions("Linux/UNIX")
            .start_time(aws_sdk_ec2::primitives::DateTime::from_secs(now.0))
            .into_paginator()
            .send();
        let mut latest: BTreeMap<(String, String), (i64, Usd)> = BTreeMap::new();
        while let Some(page) = pages.next().await {
            for price in page.map_err(aws!("ec2", "DescribeSpotPriceHistory"))?.spot_price_history() {
                let (Some(kind), Some(zone), Some(text)) =
                    (price.instance_type(), price.availability_zone(), price.spot_price())
                else {
                    continue;
                };
                let dollars = text.parse().ok().and_then(Usd::from_dollars).ok_or_else(|| {
                    AwsError::malformed("ec2", "DescribeSpotPriceHistory", format_args!("{text:?} is no price"))
                })?;
                let at = price.timestamp().map_or(0, |at| at.secs());
                let entry = latest.entry((kind.as_str().to_owned(), zone.to_owned())).or_insert((at, dollars));
                if at >= entry.0 {
                    *entry = (at, dollars);
                }
            }
        }
        Ok(latest
            .into_iter()
            .map(|((instance_type, zone), (_, price_per_hour))| SpotPrice { instance_type, zone, price_per_hour })
            .collect())
    }

    /// Zones of these subnets.
    pub async fn subnets(&self, ids: &[String]) -> Result<Vec<Subnet>, AwsError> {
        let found = self
            .client
            .describe_subnets()
            .set_subnet_ids(Some(ids.to_vec()))
            .send()
            .await
            .map_err(aws!("ec2", "DescribeSubnets"))?;
        Ok(found
            .subnets()
            .iter()
            .map(|subnet| Subnet {
                id: subnet.subnet_id().unwrap_or_default().to_owned(),
                zone: subnet.availability_zone().unwrap_or_default().to_owned(),
            })
            .collect())
    }
}

/// Sorts refusals of RunInstances. Source: Amazon EC2 API Reference, "Error codes".
fn refusal(error: AwsError) -> Result<Launched, AwsError> {
    let reason = format!("{}: {}", error.code, error.message);
    match error.code.as_str() {
        "InsufficientInstanceCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientReservedInstanceCapacity"
        | "InsufficientFreeAddressesInSubnet"
        | "SpotMaxPriceTooLow"
        | "Unsupported"
        | "UnfulfillableCapacity" => Ok(Launched::NoCapacity { reason }),
        "VcpuLimitExceeded" | "MaxSpotInstanceCountExceeded" | "InstanceLimitExceeded" => {
            Ok(Launched::QuotaExceeded { reason })
        }
        _ => Err(error),
    }
}

fn machine(instance: &aws_sdk_ec2::types::Instance) -> Machine {
    Machine {
        instance_id: instance.instance_id().unwrap_or_default().to_owned(),
        instance_type: instance.instance_type().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        state: instance.state().and_then(|state| state.name()).map(|name| name.as_str().to_owned()).unwrap_or_default(),
        launched_at: UnixTime(instance.launch_time().map_or(0, |at| at.secs())),
        tags: instance
            .tags()
            .iter()
            .filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())))
            .collect(),
        state_reason: instance.state_reason().and_then(|reason| reason.code()).unwrap_or_default().to_owned(),
        market: if instance.instance_lifecycle().is_some_and(|kind| kind.as_str() == "spot") {
            Market::Spot
        } else {
            Market::OnDemand
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_launch_says_whether_another_machine_may_work() {
        let error = |code: &str| AwsError {
            service: "ec2",
            operation: "RunInstances",
            code: code.into(),
            message: "m".into(),
            retryable: false,
        };
        assert!(matches!(refusal(error("InsufficientInstanceCapacity")), Ok(Launched::NoCapacity { .. })));
        assert!(matches!(refusal(error("VcpuLimitExceeded")), Ok(Launched::QuotaExceeded { .. })));
        assert!(refusal(error("UnauthorizedOperation")).is_err());
    }
}
