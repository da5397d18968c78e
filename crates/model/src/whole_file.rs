//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Writes `bytes` under another name beside `path`, forces them to the disk and renames. When it fails, `path` is what it was
/// and nothing else is left.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.part"));
    let fill = |mut file: File| {
        file.write_all(bytes)?;
        file.sync_all()
    };
    let written = File::create(&part).and_then(fill).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        // the first error says what is wrong
        let _ = fs::remove_file(&part);
    }
    written
}
