//! Settings of a function: the variables that the CDK sets. A function asks for what it needs and gets typed values.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use tunesmith_contract::error_name::{ErrorName, Failure};

/// A setting that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Not set, or empty.
    #[error(
        "environment variable {name} is not set; deploy the stack again, or set it in the function's configuration"
    )]
    Missing {
        /// The variable.
        name: &'static str,
    },
    /// Set to something else than its type.
    #[error("environment variable {name} = {value:?}: {reason}; deploy the stack again, or correct it")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: String,
    },
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        Self::new(ErrorName::Internal, error.to_string())
    }
}

/// The environment variables of a process, or of a test.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// Those of this process. Variables that are not UTF-8 are as good as not set.
    #[must_use]
    pub fn of_process() -> Self {
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self { variables: variables.collect() }
    }

    /// These.
    #[must_use]
    pub fn of<const N: usize>(variables: [(&str, &str); N]) -> Self {
        Self { variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into() }
    }

    /// A text that must be there and not be empty.
    ///
    /// # Errors
    /// [`SettingError::Missing`] with the variable's name.
    pub fn text(&self, name: &'static str) -> Result<String, SettingError> {
        self.text_opt(name).ok_or(SettingError::Missing { name })
    }

    /// A text that may be absent; empty is absent.
    #[must_use]
    pub fn text_opt(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// A comma-separated list that must hold something.
    ///
    /// # Errors
    /// [`SettingError::Missing`] when it is absent or holds nothing.
    pub fn list(&self, name: &'static str) -> Result<Vec<String>, SettingError> {
        let parts: Vec<String> =
            self.text(name)?.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        if parts.is_empty() { Err(SettingError::Missing { name }) } else { Ok(parts) }
    }

    /// A value of a type that parses, which must be there.
    ///
    /// # Errors
    /// [`SettingError`] when it is absent or does not parse.
    pub fn parsed<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T, SettingError> {
        let value = self.text(name)?;
        value.parse().map_err(|error: T::Err| SettingError::Invalid { name, value, reason: error.to_string() })
    }

    /// A value of a type that parses, or `default` when it is absent.
    ///
    /// # Errors
    /// [`SettingError::Invalid`] when it is set and does not parse.
    pub fn parsed_or<T: FromStr<Err: Display>>(&self, name: &'static str, default: T) -> Result<T, SettingError> {
        match self.text_opt(name) {
            None => Ok(default),
            Some(_) => self.parsed(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_variable_is_named() {
        let environment = Environment::of([("TABLE", " "), ("SUBNET_IDS", "subnet-1, subnet-2,")]);
        let error = environment.text("TABLE").unwrap_err();
        assert_eq!(error, SettingError::Missing { name: "TABLE" });
        assert!(error.to_string().contains("TABLE") && error.to_string().contains("deploy"));
        assert_eq!(environment.list("SUBNET_IDS").unwrap(), ["subnet-1", "subnet-2"]);
    }

    #[test]
    fn a_wrong_value_is_shown() {
        let environment = Environment::of([("ACCOUNT_MONTHLY_CAP_MICROS", "500 dollars")]);
        let error = environment.parsed_or("ACCOUNT_MONTHLY_CAP_MICROS", 5_i64).unwrap_err();
        assert!(error.to_string().contains("\"500 dollars\": invalid digit"), "{error}");
        assert_eq!(Environment::default().parsed_or("ACCOUNT_MONTHLY_CAP_MICROS", 5_i64), Ok(5));
    }
}
