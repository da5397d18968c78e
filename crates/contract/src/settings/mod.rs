//! `project.toml`: what a project's owner may set. Unknown keys are refused with the key, the line and the remedy.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::{
    error_name::{ErrorName, Failure},
    ids::BaseModel,
    money::Usd,
    time::Seconds,
};

/// A `project.toml` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not TOML, an unknown key, or a wrong type.
    #[error("project.toml, line {line}: {message}")]
    Parse {
        /// Counted from 1.
        line: usize,
        /// What is wrong, with the key, and what is allowed.
        message: String,
    },
    /// A value that cannot be.
    #[error("project.toml, {key} = {value}: {remedy}")]
    Value {
        /// The key, with its table.
        key: &'static str,
        /// What was written.
        value: String,
        /// What to write instead.
        remedy: &'static str,
    },
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::new(ErrorName::SettingsInvalid, error.to_string())
    }
}

macro_rules! settings {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

// below the macro, which it uses
mod training;
pub use training::{
    AdaLoraSettings, Method, Optimizer, Quantization, Recompute, Schedule, TARGET_MODULES, TrainingSettings,
};

settings! {
    /// Everything a project's owner may set. Every key has a default except the budget.
    ProjectSettings {
        /// The model to start from: a folder under `models/` of the workspace bucket, or a Hugging Face id `owner/name`.
        base_model: String = "tunesmith-mini".to_owned(),
        /// How documents become a dataset.
        data: DataSettings = DataSettings::default(),
        /// How the model is trained.
        training: TrainingSettings = TrainingSettings::default(),
        /// On which machines.
        machines: MachineSettings = MachineSettings::default(),
        /// What it may cost.
        budget: BudgetSettings = BudgetSettings::default(),
        /// When a model is good enough to be shown to the approver.
        gate: GateSettings = GateSettings::default(),
        /// How it is served.
        serving: ServingSettings = ServingSettings::default(),
    }
}

settings! {
    /// `[data]`
    DataSettings {
        /// Fewest words, after cleaning and deduplication, that training may start with.
        minimum_words: u64 = 2_000,
        /// Minutes without a new upload after which training starts by itself; 0 means only `_TRAIN` starts it.
        quiet_minutes: u32 = 15,
        /// Share of the documents kept for choosing the best checkpoint.
        validation_fraction: f64 = 0.1,
        /// Share of the documents kept untouched for the final test.
        test_fraction: f64 = 0.1,
        /// Whether questions are made from headings, so that the model learns to answer.
        questions_from_headings: bool = true,
    }
}

/// Spot machines cost a third and may be taken back; on-demand machines may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Market {
    /// Cheap, interruptible.
    Spot,
    /// Full price.
    OnDemand,
}

settings! {
    /// `[machines]`
    MachineSettings {
        /// `spot` or `on-demand`.
        market: Market = Market::Spot,
        /// Instance types that may be used; empty means: any without a GPU that fits. With a GPU: methods lora and rslora, quantization none and nf4.
        allowed: Vec<String> = Vec::new(),
        /// After this many interruptions the run continues on demand.
        interruptions_before_on_demand: u32 = 2,
    }
}

settings! {
    /// `[budget]`: dollars as numbers, e.g. `monthly_limit_usd = 25.0`.
    BudgetSettings {
        /// What the project may spend in a calendar month (UTC). Without it nothing is started.
        monthly_limit_usd: Option<f64> = None,
        /// What one run may spend at the most.
        max_run_usd: f64 = 5.0,
        /// Longest time one run may take on a machine, in hours.
        max_run_hours: f64 = 6.0,
    }
}

settings! {
    /// `[gate]`
    GateSettings {
        /// By how many per cent the test perplexity must lie below the base model's (lower bound of the confidence interval).
        min_improvement_percent: f64 = 2.0,
        /// By how many per cent the test perplexity may lie above the live model's.
        max_regression_percent: f64 = 1.0,
        /// Fewest test tokens for a decision.
        min_test_tokens: u64 = 500,
    }
}

/// How a model is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ServingMode {
    /// SageMaker serverless inference: CPU, no cost while nobody asks.
    Serverless,
    /// SageMaker instances: billed by the hour while the endpoint exists.
    Instance,
}

settings! {
    /// `[serving]`
    ServingSettings {
        /// `serverless` or `instance`.
        mode: ServingMode = ServingMode::Serverless,
        /// Memory of a serverless endpoint: 1024, 2048, 3072, 4096, 5120 or 6144 MB. New AWS accounts have a limit of 3072.
        memory_mb: u32 = 3072,
        /// Most concurrent requests of a serverless endpoint.
        max_concurrency: u32 = 5,
        /// Instance type in mode `instance`.
        instance_type: String = "ml.g5.xlarge".to_owned(),
        /// Number of source passages put before a question; 0 turns retrieval off.
        retrieved_passages: u32 = 3,
        /// Requests per minute for each API key.
        requests_per_minute: u32 = 60,
        /// Tokens per day for each API key.
        tokens_per_day: u64 = 1_000_000,
    }
}

impl ProjectSettings {
    /// The settings of a project: those of the `project.toml` that was uploaded, or the defaults without one.
    ///
    /// # Errors
    /// As [`ProjectSettings::from_toml`].
    pub fn of_upload(text_opt: Option<&str>) -> Result<Self, SettingsError> {
        text_opt.map_or_else(|| Ok(Self::default()), Self::from_toml)
    }

    /// Parses and checks a `project.toml`.
    ///
    /// # Errors
    /// [`SettingsError`] with the key, the line where it is known, and the remedy.
    pub fn from_toml(text: &str) -> Result<Self, SettingsError> {
        let settings: Self = toml::from_str(text).map_err(|error| SettingsError::Parse {
            line: error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count()),
            message: error.message().to_owned(),
        })?;
        settings.check()?;
        Ok(settings)
    }

    /// The base model, parsed.
    ///
    /// # Errors
    /// [`SettingsError::Value`] when it is neither a folder name nor a Hugging Face id.
    pub fn base(&self) -> Result<BaseModel, SettingsError> {
        self.base_model.parse().map_err(|_| SettingsError::Value {
            key: "base_model",
            value: self.base_model.clone(),
            remedy: "write a folder name under models/, or a Hugging Face id owner/name",
        })
    }

    /// The monthly limit.
    #[must_use]
    pub fn monthly_limit(&self) -> Option<Usd> {
        self.budget.monthly_limit_usd.and_then(Usd::from_dollars)
    }

    /// The most one run may spend.
    #[must_use]
    pub fn max_run(&self) -> Usd {
        Usd::from_dollars(self.budget.max_run_usd).unwrap_or(Usd::ZERO)
    }

    /// The longest one run may take on machines.
    #[must_use]
    pub fn max_run_time(&self) -> Seconds {
        Seconds((self.budget.max_run_hours * 3600.0) as u64)
    }

    fn check(&self) -> Result<(), SettingsError> {
        self.base()?;
        let fraction = |v: f64| v > 0.0 && v < 0.5;
        if !fraction(self.data.test_fraction) {
            return bad("data.test_fraction", &self.data.test_fraction, "write a number above 0 and below 0.5");
        }
        if !fraction(self.data.validation_fraction) {
            return bad(
                "data.validation_fraction",
                &self.data.validation_fraction,
                "write a number above 0 and below 0.5",
            );
        }
        self.training.check()?;
        let positive =
            [("budget.max_run_usd", self.budget.max_run_usd), ("budget.max_run_hours", self.budget.max_run_hours)];
        if let Some((key, value)) = positive.iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            return bad(key, value, "write a number above 0");
        }
        if let Some(limit) = self.budget.monthly_limit_usd
            && !(0.0..1e9).contains(&limit)
        {
            return bad("budget.monthly_limit_usd", &limit, "write dollars as a number, e.g. 25.0");
        }
        if !matches!(self.serving.memory_mb, 1024 | 2048 | 3072 | 4096 | 5120 | 6144) {
            return bad("serving.memory_mb", &self.serving.memory_mb, "write 1024, 2048, 3072, 4096, 5120 or 6144");
        }
        if !(1..=200).contains(&self.serving.max_concurrency) {
            return bad("serving.max_concurrency", &self.serving.max_concurrency, "write a whole number from 1 to 200");
        }
        Ok(())
    }
}

fn bad(key: &'static str, value: &dyn Display, remedy: &'static str) -> Result<(), SettingsError> {
    Err(SettingsError::Value { key, value: value.to_string(), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(ProjectSettings::from_toml("").unwrap(), ProjectSettings::default());
        assert_eq!(ProjectSettings::of_upload(None).unwrap(), ProjectSettings::default());
    }

    #[test]
    fn a_wrong_upload_is_the_failure_settings_invalid() {
        let failure = Failure::from(ProjectSettings::of_upload(Some("budget = 3")).unwrap_err());
        assert_eq!(failure.name, ErrorName::SettingsInvalid);
        assert!(failure.message.contains("line 1"), "{}", failure.message);
    }

    #[test]
    fn a_wrong_file_is_answered_with_key_line_and_remedy() {
        let error = ProjectSettings::from_toml("base_model = \"x\"\n\n[training]\nrnak = 8\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 4") && text.contains("rnak") && text.contains("rank"), "{text}");

        for (toml, wants) in [
            ("[data]\ntest_fraction = 0.9", "data.test_fraction = 0.9"),
            ("[budget]\nmonthly_limit_usd = -1.0", "budget.monthly_limit_usd = -1"),
            ("base_model = \"../../x\"", "base_model"),
            ("[serving]\nmemory_mb = 100", "serving.memory_mb = 100"),
            ("[budget]\nmonthly_limit_usd = \"ten\"", "line 2"),
        ] {
            let text = ProjectSettings::from_toml(toml).unwrap_err().to_string();
            assert!(text.contains(wants), "{toml}: {text}");
        }
    }

    #[test]
    fn no_budget_is_not_a_budget_of_zero() {
        assert_eq!(ProjectSettings::default().monthly_limit(), None);
        let zero = ProjectSettings::from_toml("[budget]\nmonthly_limit_usd = 0.0").unwrap();
        assert_eq!(zero.monthly_limit(), Some(Usd::ZERO));
    }
}
