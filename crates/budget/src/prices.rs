//! The price table: machines for training, instances for serving, and the quotas that limit them.

use serde::Deserialize;
use tunesmith_contract::{Usd, settings::Market};

/// `prices.json` of this crate, which says where each figure comes from.
const TABLE: &str = include_str!("../prices.json");

/// Prices on demand, and what the machines can do.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PriceTable {
    /// Region of the prices.
    pub region: String,
    /// Machines that can train.
    pub machines: Vec<Machine>,
    quotas: Vec<FamilyQuotas>,
    serving: Vec<ServingPrice>,
    serverless_micros_per_gb_hour: i64,
}

/// A machine that can train.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Machine {
    /// EC2 instance type.
    pub instance_type: String,
    /// Which of the account's quotas limits it.
    pub family: String,
    /// Virtual CPUs: what quotas count.
    pub vcpus: u32,
    /// Main memory.
    pub memory_gib: u32,
    /// Memory of one GPU; absent without a GPU.
    #[serde(default)]
    pub gpu_memory_gib: Option<u32>,
    #[serde(rename = "on_demand_micros")]
    on_demand: i64,
    /// Sustained floating-point operations per second in training (see `throughput_source` in the table).
    pub flops: f64,
}

impl Machine {
    /// Price of one hour on demand.
    #[must_use]
    pub fn on_demand(&self) -> Usd {
        Usd::from_micros(self.on_demand)
    }
}

/// Service Quotas codes of a family of machines; the service is `ec2`, the unit vCPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaCodes {
    /// "Running On-Demand … instances".
    pub on_demand: String,
    /// "All … Spot Instance Requests".
    pub spot: String,
}

impl QuotaCodes {
    /// The code that limits this market.
    #[must_use]
    pub fn of(&self, market: Market) -> &str {
        match market {
            Market::Spot => &self.spot,
            Market::OnDemand => &self.on_demand,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct FamilyQuotas {
    family: String,
    on_demand: String,
    spot: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct ServingPrice {
    instance_type: String,
    micros_per_hour: i64,
}

impl PriceTable {
    /// The table that this crate carries.
    ///
    /// # Errors
    /// Never with the committed table: a test parses it.
    pub fn embedded() -> Result<Self, serde_json::Error> {
        serde_json::from_str(TABLE)
    }

    /// The machine of this type.
    #[must_use]
    pub fn machine(&self, instance_type: &str) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.instance_type == instance_type)
    }

    /// The quotas that limit a machine.
    #[must_use]
    pub fn quotas(&self, machine: &Machine) -> Option<QuotaCodes> {
        let found = self.quotas.iter().find(|quotas| quotas.family == machine.family)?;
        Some(QuotaCodes { on_demand: found.on_demand.clone(), spot: found.spot.clone() })
    }

    /// Price of one hour of a SageMaker instance; `None` when the table does not know it.
    #[must_use]
    pub fn serving_instance(&self, instance_type: &str) -> Option<Usd> {
        let found = self.serving.iter().find(|price| price.instance_type == instance_type)?;
        Some(Usd::from_micros(found.micros_per_hour))
    }

    /// SageMaker instance types whose price is known.
    #[must_use]
    pub fn serving_types(&self) -> Vec<String> {
        self.serving.iter().map(|price| price.instance_type.clone()).collect()
    }

    /// Price of one hour of answering on a serverless endpoint of this memory; idle time is free.
    #[must_use]
    pub fn serverless_hour(&self, memory_mb: u32) -> Usd {
        Usd::from_micros(self.serverless_micros_per_gb_hour.saturating_mul(i64::from(memory_mb)) / 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_table_is_whole() {
        let table = PriceTable::embedded().unwrap();
        assert!(table.machines.len() >= 12);
        for machine in &table.machines {
            assert!(machine.on_demand() > Usd::ZERO && machine.flops > 1e10 && machine.vcpus > 0, "{machine:?}");
            let codes = table.quotas(machine).expect(&machine.instance_type);
            assert!(codes.spot.starts_with("L-") && codes.on_demand.starts_with("L-") && codes.spot != codes.on_demand);
        }
        assert_eq!(table.machine("g5.xlarge").unwrap().on_demand(), Usd::from_micros(1_006_000));
        assert_eq!(table.serving_instance("ml.g5.xlarge"), Some(Usd::from_micros(1_408_000)));
        assert_eq!(table.serverless_hour(2048), Usd::from_micros(144_000));
    }
}
