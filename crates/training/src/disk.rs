//! Room on the disk, asked for before the first step and not found missing at the first checkpoint.

use std::path::Path;

use crate::error::{Result, TrainingError};

/// Fails with [`TrainingError::DiskFull`] when the file system that `folder` is or will be on has fewer than `bytes` free for
/// this user.
pub fn require(folder: &Path, bytes: u64) -> Result<()> {
    let existing = folder.ancestors().find(|parent| parent.exists()).unwrap_or(Path::new("."));
    let room = rustix::fs::statvfs(existing).map_err(|error| TrainingError::io(existing)(error.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free >= bytes {
        return Ok(());
    }
    Err(TrainingError::DiskFull { folder: folder.to_path_buf(), needed: bytes, free })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_refused_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        require(folder.path(), 1).unwrap();
        require(&folder.path().join("not/yet/there"), 1).unwrap();
        require(Path::new("run"), 1).unwrap();
        let error = require(folder.path(), u64::MAX).unwrap_err();
        assert!(matches!(error, TrainingError::DiskFull { needed: u64::MAX, free, .. } if free > 0), "{error}");
    }
}
