//! JSON lines, compressed with zstd: the form of splits and indexes. The same items give the same bytes.

use std::io::{BufRead, BufReader, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

use crate::dataset::DatasetError;

/// zstd's level: 9 costs little time on a few megabytes and saves a third against the default.
const LEVEL: i32 = 9;

/// One JSON object a line, uncompressed: what dataset ids are hashed over, so that a new zstd changes no id.
///
/// # Errors
/// [`DatasetError::Json`] when an item cannot be written as JSON.
pub fn write_jsonl<T: Serialize>(items: &[T]) -> Result<Vec<u8>, DatasetError> {
    let mut out = Vec::new();
    for item in items {
        serde_json::to_writer(&mut out, item).map_err(|source| DatasetError::Json { line: 0, source })?;
        out.push(b'\n');
    }
    Ok(out)
}

/// Compresses bytes; single-threaded, with a checksum, without a dictionary: deterministic for one version of zstd.
///
/// # Errors
/// [`DatasetError::Zstd`] when zstd refuses, which it does only when memory runs out.
pub fn compress(bytes: &[u8]) -> Result<Vec<u8>, DatasetError> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL).map_err(DatasetError::Zstd)?;
    encoder.include_checksum(true).map_err(DatasetError::Zstd)?;
    encoder.write_all(bytes).map_err(DatasetError::Zstd)?;
    encoder.finish().map_err(DatasetError::Zstd)
}

/// Items as compressed JSON lines.
///
/// # Errors
/// See [`write_jsonl`] and [`compress`].
pub fn write_jsonl_zst<T: Serialize>(items: &[T]) -> Result<Vec<u8>, DatasetError> {
    compress(&write_jsonl(items)?)
}

/// Reads compressed JSON lines; unpacks at most `max_bytes`.
///
/// # Errors
/// [`DatasetError::Zstd`] when the data is damaged or cut, [`DatasetError::TooLarge`], [`DatasetError::Json`] with the line.
pub fn read_jsonl_zst<T: DeserializeOwned>(bytes: &[u8], max_bytes: u64) -> Result<Vec<T>, DatasetError> {
    let decoder = zstd::Decoder::new(bytes).map_err(DatasetError::Zstd)?;
    let mut reader = BufReader::new(decoder.take(max_bytes.saturating_add(1)));
    let (mut items, mut line, mut number, mut read) = (Vec::new(), Vec::new(), 0, 0u64);
    loop {
        line.clear();
        number += 1;
        let length = reader.read_until(b'\n', &mut line).map_err(DatasetError::Zstd)?;
        read += length as u64;
        if read > max_bytes {
            return Err(DatasetError::TooLarge { limit: max_bytes });
        }
        if length == 0 {
            return Ok(items);
        }
        items.push(serde_json::from_slice(&line).map_err(|source| DatasetError::Json { line: number, source })?);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let items = vec!["a\nb".to_owned(), "ü".to_owned()];
        let bytes = write_jsonl_zst(&items).unwrap();
        assert_eq!(bytes, write_jsonl_zst(&items).unwrap());
        assert_eq!(read_jsonl_zst::<String>(&bytes, 100).unwrap(), items);
    }

    #[test]
    fn cut_damaged_and_oversized_data_is_refused() {
        let bytes = write_jsonl_zst(&vec!["x".repeat(1000); 100]).unwrap();
        assert!(matches!(read_jsonl_zst::<String>(&bytes[..bytes.len() - 4], 1_000_000), Err(DatasetError::Zstd(_))));
        assert!(matches!(read_jsonl_zst::<String>(&bytes, 5_000), Err(DatasetError::TooLarge { limit: 5_000 })));
        assert!(matches!(read_jsonl_zst::<u32>(&bytes, 1_000_000), Err(DatasetError::Json { line: 1, .. })));
    }
}
