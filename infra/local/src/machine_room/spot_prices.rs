//! Spot prices from `infra/local/spot-prices.json`: fixed figures, not a market.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

use crate::LocalError;

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Where the figures come from; for people.
    #[allow(dead_code)]
    source: String,
    /// Zones, each with a factor on the price: zones differ, so that a planner has something to choose.
    zones: BTreeMap<String, f64>,
    /// Dollars per hour by instance type.
    dollars_per_hour: BTreeMap<String, f64>,
}

/// One entry of a price history.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    /// Instance type.
    pub instance_type: String,
    /// Availability zone.
    pub zone: String,
    /// Dollars per hour, with six decimals as EC2 writes them.
    pub dollars: String,
}

impl Prices {
    /// Reads the file.
    ///
    /// # Errors
    /// [`LocalError::BadFile`].
    pub fn read(path: &Path) -> Result<Self, LocalError> {
        let text = fs::read_to_string(path).map_err(LocalError::io("read", path))?;
        serde_json::from_str(&text).map_err(|e| LocalError::BadFile {
            path: path.to_owned(),
            detail: e.to_string(),
            remedy: "restore it from the repository",
        })
    }

    /// The prices of these types (all, when empty) in these zones (all, when empty).
    #[must_use]
    pub fn history(&self, types: &[String], zones: &[String]) -> Vec<Price> {
        let wanted = |list: &[String], value: &String| list.is_empty() || list.contains(value);
        let types = self.dollars_per_hour.iter().filter(|(name, _)| wanted(types, name));
        types
            .flat_map(|(name, dollars)| {
                let zones = self.zones.iter().filter(|(zone, _)| wanted(zones, zone));
                zones.map(move |(zone, factor)| Price {
                    instance_type: name.clone(),
                    zone: zone.clone(),
                    dollars: format!("{:.6}", dollars * factor),
                })
            })
            .collect()
    }

    /// Whether this machine room can make such a machine.
    #[must_use]
    pub fn knows(&self, instance_type: &str) -> bool {
        self.dollars_per_hour.contains_key(instance_type)
    }

    /// The cheapest zone.
    #[must_use]
    pub fn default_zone(&self) -> String {
        let cheapest = self.zones.iter().min_by(|a, b| a.1.total_cmp(b.1));
        cheapest.map_or_else(|| "us-east-1a".to_owned(), |(zone, _)| zone.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_prices_can_be_read_and_filtered() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("spot-prices.json");
        let prices = Prices::read(&path).unwrap();
        let found = prices.history(&["g6.xlarge".into()], &["us-east-1a".into()]);
        assert_eq!(found.len(), 1);
        assert!(found[0].dollars.parse::<f64>().unwrap() > 0.0);
        assert!(prices.history(&["x9.huge".into()], &[]).is_empty());
        assert!(prices.history(&[], &[]).len() > 20);
    }
}
