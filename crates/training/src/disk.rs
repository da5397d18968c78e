//! Room on the disk, asked for before the first step and not found missing at the first checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Result, TrainingError};

/// Fails with [`TrainingError::DiskFull`] when the file system that `folder` is or will be on has fewer than `bytes` free for
/// this user.
pub fn require(folder: &Path, bytes: u64) -> Result<()> {
    let existing = existing(folder);
    let room = rustix::fs::statvfs(existing).map_err(|error| TrainingError::io(existing)(error.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free >= bytes {
        return Ok(());
    }
    Err(TrainingError::DiskFull { folder: folder.to_path_buf(), needed: bytes, free })
}

/// The same for several folders at once: what comes to lie on one file system is added up.
pub fn require_all(needs: &[(&Path, u64)]) -> Result<()> {
    let mut by_device: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
    for &(folder, bytes) in needs {
        let existing = existing(folder);
        let device = fs::metadata(existing).map_err(TrainingError::io(existing))?.dev();
        let (_, sum) = by_device.entry(device).or_insert((folder, 0));
        *sum = sum.saturating_add(bytes);
    }
    by_device.into_values().try_for_each(|(folder, bytes)| require(folder, bytes))
}

/// The folder, or the first above it that is there.
fn existing(folder: &Path) -> &Path {
    folder.ancestors().find(|parent| parent.exists()).unwrap_or(Path::new("."))
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

    #[test]
    fn what_lies_on_one_disk_is_added_up() {
        let folder = tempfile::tempdir().unwrap();
        let folders = ["first", "second"].map(|name| folder.path().join(name));
        let [first, second] = [folders[0].as_path(), folders[1].as_path()];
        require_all(&[(first, 1), (second, 1)]).unwrap();
        let half = 1 << 62;
        let error = require_all(&[(first, half), (second, half + 3)]).unwrap_err();
        assert!(matches!(error, TrainingError::DiskFull { needed, .. } if needed == 2 * half + 3), "{error}");
    }
}
