//! The programs that machines and endpoints run, as they were when the local cloud came up.
//!
//! They are copied to the state folder, because `cargo build` replaces those under `target/debug` while a local cloud is up.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::{LocalError, paths::Paths};

/// Copies that belong to one local cloud.
#[derive(Debug)]
pub struct Programs {
    /// This binary: what the stand-ins on a machine's `PATH` call.
    pub local_cloud: PathBuf,
    /// The trainer of the image.
    pub trainer: PathBuf,
}

impl Programs {
    /// Copies this binary and the trainer (the one Cargo built, or what `TUNESMITH_TRAINER` names) to `bin/` in the state folder.
    ///
    /// # Errors
    /// When the folder cannot be written or the trainer was not built.
    pub fn copy(paths: &Paths, state: &Path) -> Result<Self, LocalError> {
        let folder = state.join("bin");
        fs::create_dir_all(&folder).map_err(LocalError::io("make", &folder))?;
        let trainer = env::var_os("TUNESMITH_TRAINER")
            .map_or_else(|| paths.target.join("debug/tunesmith-trainer"), PathBuf::from);
        let copies = Self { local_cloud: folder.join("local-cloud"), trainer: folder.join("tunesmith-trainer") };
        // /proc/self/exe can be read even when the file has been replaced already
        for (from, to) in [(Path::new("/proc/self/exe"), &copies.local_cloud), (&trainer, &copies.trainer)] {
            fs::copy(from, to).map_err(LocalError::io("copy", from))?;
        }
        Ok(copies)
    }
}
