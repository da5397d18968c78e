//! `target/local-cloud/settings.json`: what a person (or a test) may change about the simulated account while it runs.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::LocalError;

/// Settings of the machine room. Read anew for each request, so that a change takes effect at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoomSettings {
    /// Service quotas by code, e.g. `{"L-3819A6DF": 0}` for "All G and VT Spot Instance Requests" (vCPUs).
    pub quotas: BTreeMap<String, f64>,
    /// The value of every quota that is not named.
    pub default_quota: f64,
    /// Seconds between a spot notice and the end of the machine. AWS gives 120.
    pub spot_notice_seconds: u64,
    /// Instance types for which no spot capacity is there: `RunInstances` answers `InsufficientInstanceCapacity`.
    pub no_capacity: Vec<String>,
    /// Seconds an endpoint may take until its container answers `/ping`.
    pub endpoint_start_seconds: u64,
}

impl Default for RoomSettings {
    fn default() -> Self {
        Self {
            quotas: BTreeMap::new(),
            default_quota: 64.0,
            spot_notice_seconds: 120,
            no_capacity: Vec::new(),
            endpoint_start_seconds: 180,
        }
    }
}

impl RoomSettings {
    /// Reads the file; without one, the defaults.
    ///
    /// # Errors
    /// [`LocalError::BadFile`] with the key and what is allowed.
    pub fn read(folder: &Path) -> Result<Self, LocalError> {
        let path = folder.join("settings.json");
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| LocalError::BadFile {
                path,
                detail: e.to_string(),
                remedy: "correct or delete the file",
            }),
            Err(_) => Ok(Self::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let folder = std::env::temp_dir().join(format!("tunesmith-room-settings-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("settings.json"), r#"{"quota": {}}"#).unwrap();
        let error = RoomSettings::read(&folder).unwrap_err().to_string();
        assert!(error.contains("`quota`") && error.contains("quotas"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(RoomSettings::read(&folder).unwrap(), RoomSettings::default());
    }
}
