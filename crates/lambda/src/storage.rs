//! Where everything is kept: one table, two buckets.

use crate::{Environment, SettingError};

/// Names that the CDK sets for every function that works with both buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Name of the table.
    pub table: String,
    /// Bucket of uploads.
    pub documents_bucket: String,
    /// Bucket of what the system makes.
    pub workspace_bucket: String,
}

impl Storage {
    /// Reads `TABLE`, `DOCUMENTS_BUCKET` and `WORKSPACE_BUCKET`.
    ///
    /// # Errors
    /// [`SettingError`] with the variable's name.
    pub fn from_environment(environment: &Environment) -> Result<Self, SettingError> {
        Ok(Self {
            table: environment.text("TABLE")?,
            documents_bucket: environment.text("DOCUMENTS_BUCKET")?,
            workspace_bucket: environment.text("WORKSPACE_BUCKET")?,
        })
    }
}
