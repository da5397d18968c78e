//! Room on the disks for an export, asked for before its first byte.

use std::{fs, path::Path};

use tunesmith_contract::job::Location;
use tunesmith_training::disk;

use crate::error::{Result, TrainerError};

/// Asks for room for the rest of an export of so many bytes in `to`, where some of it may lie from an earlier attempt, and for the
/// copy at an output of this machine, which may be on the same disk.
///
/// # Errors
/// [`tunesmith_training::TrainingError::DiskFull`].
pub fn require(to: &Path, bytes: u64, output: &Location) -> Result<()> {
    Ok(disk::require_all(&needs(to, bytes, output)?)?)
}

/// Bytes of these files of a folder; one that is not there has none.
pub fn bytes_of<'a>(folder: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<u64> {
    let mut bytes = 0;
    for path in names.into_iter().map(|name| folder.join(name)).filter(|path| path.exists()) {
        bytes += fs::metadata(&path).map_err(TrainerError::io(&path))?.len();
    }
    Ok(bytes)
}

fn needs<'a>(to: &'a Path, bytes: u64, output: &'a Location) -> Result<Vec<(&'a Path, u64)>> {
    // an unfinished file is continued or written over
    let mut there = 0;
    for item in fs::read_dir(to).map_err(TrainerError::io(to))? {
        there += item.and_then(|item| item.metadata()).map_err(TrainerError::io(to))?.len();
    }
    let mut needs = vec![(to, bytes.saturating_sub(there))];
    if let Location::Local(folder) = output {
        needs.push((folder.as_path(), bytes));
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_asked_for_again_and_only_an_output_of_this_machine_takes_a_copy() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model-1.safetensors"), vec![0; 300]).unwrap();
        fs::write(folder.path().join("model-2.safetensors.part"), vec![0; 50]).unwrap();
        let of = |bytes, output: &str| {
            let output = Location::from(output.to_owned());
            let asked = needs(folder.path(), bytes, &output).unwrap();
            asked.into_iter().map(|(path, bytes)| (path.to_path_buf(), bytes)).collect::<Vec<_>>()
        };
        let to = folder.path().to_path_buf();
        assert_eq!(of(1000, "/out"), [(to.clone(), 650), ("/out".into(), 1000)]);
        assert_eq!(of(1000, "s3://bucket/out"), [(to.clone(), 650)]);
        assert_eq!(of(200, "s3://bucket/out"), [(to, 0)]);
        assert_eq!(bytes_of(folder.path(), ["model-1.safetensors", "not there"]).unwrap(), 300);
    }

    #[test]
    fn a_disk_without_room_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let output = Location::Local(folder.path().join("out"));
        require(folder.path(), 1, &output).unwrap();
        let error = require(folder.path(), u64::MAX, &output).unwrap_err().to_string();
        assert!(error.contains("bytes free") && error.contains("choose another disk"), "{error}");
    }
}
