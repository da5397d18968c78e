//! What an endpoint costs, so that people see it before it is there.

use tunesmith_contract::{
    ErrorName, Seconds, Usd,
    error_name::Failure,
    settings::{ServingMode, ServingSettings},
};

use crate::PriceTable;

/// Hours of a month: 365 days of 24 hours in twelve parts, as AWS's own pricing pages count.
const MONTH: Seconds = Seconds(730 * 3600);

/// What an endpoint costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointPrice {
    /// Billed while it answers, and not while it is idle.
    Serverless {
        /// One hour of answering.
        answering_hour: Usd,
    },
    /// Billed by the hour from creation to deletion, asked or not.
    Instances {
        /// SageMaker instance type.
        instance_type: String,
        /// How many of them.
        count: u32,
        /// One hour of one of them.
        hour: Usd,
    },
}

/// The type of instance is not in the price table. What cannot be metered is not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "project.toml, serving.instance_type = {instance_type:?}: its price is not known; choose one of {}, or \
     serving.mode = \"serverless\"", .known.join(", ")
)]
pub struct UnknownPrice {
    /// What the settings ask for.
    pub instance_type: String,
    /// Types whose price is known.
    pub known: Vec<String>,
}

impl From<UnknownPrice> for Failure {
    fn from(error: UnknownPrice) -> Self {
        Self::new(ErrorName::SettingsInvalid, error.to_string())
    }
}

impl EndpointPrice {
    /// The price of the endpoint that these settings ask for.
    ///
    /// # Errors
    /// [`UnknownPrice`].
    pub fn of(serving: &ServingSettings, table: &PriceTable) -> Result<Self, UnknownPrice> {
        match serving.mode {
            ServingMode::Serverless => {
                Ok(Self::Serverless { answering_hour: table.serverless_hour(serving.memory_mb) })
            }
            ServingMode::Instance => {
                let instance_type = serving.instance_type.clone();
                match table.serving_instance(&instance_type) {
                    Some(hour) => Ok(Self::Instances { instance_type, count: 1, hour }),
                    None => Err(UnknownPrice { instance_type, known: table.serving_types() }),
                }
            }
        }
    }

    /// What a month costs in which nobody asks anything.
    #[must_use]
    pub fn idle_month(&self) -> Usd {
        match self {
            Self::Serverless { .. } => Usd::ZERO,
            Self::Instances { count, hour, .. } => {
                Usd::from_micros(hour.per_hour_for(MONTH).micros().saturating_mul(i64::from(*count)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mode: ServingMode, instance_type: &str) -> ServingSettings {
        ServingSettings { mode, instance_type: instance_type.into(), memory_mb: 2048, ..ServingSettings::default() }
    }

    #[test]
    fn an_instance_is_billed_all_month_and_a_serverless_endpoint_only_while_it_answers() {
        let table = PriceTable::embedded().unwrap();
        let instance = EndpointPrice::of(&settings(ServingMode::Instance, "ml.g5.xlarge"), &table).unwrap();
        let hour = Usd::from_micros(1_408_000);
        assert_eq!(instance, EndpointPrice::Instances { instance_type: "ml.g5.xlarge".into(), count: 1, hour });
        assert_eq!(instance.idle_month(), Usd::from_micros(1_027_840_000));
        let serverless = EndpointPrice::of(&settings(ServingMode::Serverless, "ml.g5.xlarge"), &table).unwrap();
        assert_eq!(serverless, EndpointPrice::Serverless { answering_hour: Usd::from_micros(144_000) });
        assert_eq!(serverless.idle_month(), Usd::ZERO);
    }

    #[test]
    fn an_instance_without_a_known_price_is_refused_with_those_that_have_one() {
        let table = PriceTable::embedded().unwrap();
        let failure = Failure::from(EndpointPrice::of(&settings(ServingMode::Instance, "ml.x"), &table).unwrap_err());
        assert_eq!(failure.name, ErrorName::SettingsInvalid);
        for part in ["serving.instance_type = \"ml.x\"", "ml.g5.xlarge", "serverless"] {
            assert!(failure.message.contains(part), "{}", failure.message);
        }
    }
}
