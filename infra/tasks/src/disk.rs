//! Room for a build, looked at before it and not found missing after twenty minutes.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result};

/// Bytes that `target/` holds after `cargo verify`: 9 GB, and 5 more of incremental compilation (measured, README).
const WHOLE: u64 = 14_000_000_000;
const WITHOUT_INCREMENTAL: u64 = 9_000_000_000;

/// A warning with both numbers and what to do, when the disk that `target` is on has less room than the build still needs.
///
/// # Errors
/// When the folder or its file system cannot be looked at.
pub fn warning(target: &Path) -> Result<Option<String>> {
    let whole =
        if std::env::var("CARGO_INCREMENTAL").is_ok_and(|value| value == "0") { WITHOUT_INCREMENTAL } else { WHOLE };
    let existing = target.ancestors().find(|parent| parent.exists()).unwrap_or(Path::new("."));
    let disk = rustix::fs::statvfs(existing).with_context(|| format!("looking at {}", existing.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(told(whole.saturating_sub(size(target)?), free))
}

fn told(needed: u64, free: u64) -> Option<String> {
    let gigabytes = |bytes: u64| format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10);
    (free < needed).then(|| {
        format!(
            "the build needs about {} more on this disk, and {} are free: if it ends with \"No space left on device\" or a bus \
             error of the linker, make room (`cargo clean` in old checkouts), set CARGO_TARGET_DIR to another disk, or \
             CARGO_INCREMENTAL=0, which needs 5 GB less",
            gigabytes(needed),
            gigabytes(free)
        )
    })
}

/// Bytes of all files below `folder`. A file with two names, as Cargo's programs have, counts half at each.
fn size(folder: &Path) -> Result<u64> {
    let (mut folders, mut sum) = (vec![folder.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => sum += metadata.len() / metadata.nlink().max(1),
                Err(_) => {} // gone meanwhile
            }
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_told_with_both_numbers_and_a_remedy() {
        let warning = told(8_510_000_000, 1_240_000_000).unwrap();
        for part in ["8.5 GB", "1.2 GB", "CARGO_TARGET_DIR"] {
            assert!(warning.contains(part), "{part} in {warning}");
        }
        assert_eq!(told(8_510_000_000, 8_510_000_000), None);
    }

    #[test]
    fn a_folder_is_as_large_as_its_files() {
        let folder = std::env::temp_dir().join(format!("tunesmith-tasks-size-{}", std::process::id()));
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/one"), [0; 7]).unwrap();
        fs::write(folder.join("a/b/two"), [0; 5]).unwrap();
        assert_eq!(size(&folder).unwrap(), 12);
        assert_eq!(size(&folder.join("missing")).unwrap(), 0);
        fs::remove_dir_all(&folder).unwrap();
    }
}
