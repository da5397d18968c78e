//! What every job works with.

use std::path::PathBuf;

use tempfile::TempDir;
use tunesmith_contract::{Usd, job::Control};

use crate::{
    base::cache_folder,
    clock::now,
    error::{Result, TrainerError},
    meter,
    stop::Stop,
    store::Store,
};

/// Tools and folders of one job.
#[derive(Debug)]
pub struct Context {
    /// Files here and in S3.
    pub store: Store,
    /// Being asked to stop.
    pub stop: Stop,
    /// Downloaded models, kept between jobs.
    pub cache: PathBuf,
    /// Copies and unfinished files of this job.
    pub scratch: PathBuf,
    /// What the machine costs, when it is paid for.
    pub control: Option<Control>,
    /// Deletes the scratch folder when the job ends.
    _scratch: TempDir,
}

impl Context {
    /// For one job.
    ///
    /// # Errors
    /// When the system's folder for temporary files cannot be written.
    pub fn new(stop: Stop, control: Option<Control>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tunesmith-").tempdir();
        let folder = folder.map_err(TrainerError::io(std::env::temp_dir()))?;
        let scratch = folder.path().to_path_buf();
        Ok(Self { store: Store::default(), stop, cache: cache_folder(), scratch, control, _scratch: folder })
    }

    /// What the machine has cost until now, when it is paid for.
    #[must_use]
    pub fn spent(&self) -> Option<Usd> {
        self.control.as_ref().map(|control| meter::metered(control, now()))
    }
}
