//! Files and folders at a [`Location`]: on this machine or in S3, with the same words.
//!
//! No AWS client is built before the first `s3://` location is touched. Local writes are atomic: a file appears under its name
//! when it is whole. S3 writes are atomic by themselves.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{fs, sync::OnceCell};
use tunesmith_aws::s3::{Fetched, S3};
use tunesmith_contract::{S3Uri, job::Location};

use crate::error::{Result, TrainerError};

/// Reads and writes locations. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Store {
    s3: Arc<OnceCell<S3>>,
}

/// A file below a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Path below the folder, with `/` between its parts.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
}

impl Store {
    async fn s3(&self) -> &S3 {
        self.s3.get_or_init(|| async { S3::new(&tunesmith_aws::config().await) }).await
    }

    /// The whole file, or `None` when there is none.
    ///
    /// # Errors
    /// Also when it has more than `limit` bytes; nothing is read then.
    pub async fn get_opt(&self, location: &Location, limit: u64) -> Result<Option<Vec<u8>>> {
        let too_large = |bytes| TrainerError::TooLarge { location: location.clone(), bytes, limit };
        match location {
            Location::Local(path) => {
                let Some(bytes) = found(fs::metadata(path).await, path)?.map(|meta| meta.len()) else {
                    return Ok(None);
                };
                if bytes > limit {
                    return Err(too_large(bytes));
                }
                fs::read(path).await.map(Some).map_err(TrainerError::io(path))
            }
            Location::S3(uri) => match self.s3().await.get(uri, limit).await? {
                Fetched::Bytes(bytes) => Ok(Some(bytes.to_vec())),
                Fetched::Missing => Ok(None),
                Fetched::TooLarge { bytes } => Err(too_large(bytes)),
            },
        }
    }

    /// The whole file; `what` names it when it is missing.
    pub async fn get(&self, location: &Location, what: &'static str, limit: u64) -> Result<Vec<u8>> {
        self.get_opt(location, limit).await?.ok_or_else(|| TrainerError::Missing { what, location: location.clone() })
    }

    /// The file, parsed; `what` names it when it is missing or wrong.
    pub async fn get_json<T: DeserializeOwned>(&self, location: &Location, what: &'static str) -> Result<T> {
        // jobs, plans and manifests have kilobytes; a larger file is another file
        let bytes = self.get(location, what, 64 << 20).await?;
        serde_json::from_slice(&bytes).map_err(TrainerError::json(location, what))
    }

    /// Whether there is a file.
    pub async fn exists(&self, location: &Location) -> Result<bool> {
        match location {
            Location::Local(path) => Ok(found(fs::metadata(path).await, path)?.is_some_and(|meta| meta.is_file())),
            Location::S3(uri) => Ok(self.s3().await.head(uri).await?.is_some()),
        }
    }

    /// The entity tag of an object, by which a change is seen; empty for a file of this machine.
    pub async fn tag(&self, location: &Location) -> Result<String> {
        match location {
            Location::Local(_) => Ok(String::new()),
            Location::S3(uri) => Ok(self.s3().await.head(uri).await?.map(|head| head.etag).unwrap_or_default()),
        }
    }

    /// Writes a file, whatever was there.
    pub async fn put(&self, location: &Location, bytes: Vec<u8>, content_type: &str) -> Result<()> {
        match location {
            Location::Local(path) => write_atomically(path, &bytes).await,
            Location::S3(uri) => Ok(self.s3().await.put(uri, bytes, content_type).await?),
        }
    }

    /// Writes a value as readable JSON.
    pub async fn put_json<T: Serialize>(&self, location: &Location, value: &T) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value).map_err(TrainerError::json(location, "value"))?;
        bytes.push(b'\n');
        self.put(location, bytes, "application/json").await
    }

    /// Every file below the folder, in order of their names; none when there is no folder.
    pub async fn list(&self, folder: &Location) -> Result<Vec<Entry>> {
        let mut entries = match folder {
            Location::Local(path) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || files_below(&path))
                    .await
                    .map_err(|error| TrainerError::Panicked { message: error.to_string() })??
            }
            Location::S3(uri) => {
                let prefix = prefix(uri);
                let listed = self.s3().await.list(&prefix).await?;
                let entry = |name: &str, bytes| Entry { name: name.to_owned(), bytes };
                listed.iter().filter_map(|o| o.uri.key.strip_prefix(&prefix.key).map(|n| entry(n, o.bytes))).collect()
            }
        };
        entries.retain(|entry| !entry.name.is_empty() && !entry.name.ends_with('/'));
        entries.sort();
        Ok(entries)
    }

    /// Brings one file to this machine, without holding it in memory. `false` when there is none.
    pub async fn download(&self, from: &Location, to: &Path) -> Result<bool> {
        match from {
            Location::Local(path) => {
                if found(fs::metadata(path).await, path)?.is_none() {
                    return Ok(false);
                }
                make_parent(to).await?;
                let part = to.with_added_extension("part");
                fs::copy(path, &part).await.map_err(TrainerError::io(path))?;
                fs::rename(&part, to).await.map_err(TrainerError::io(to))?;
                Ok(true)
            }
            Location::S3(uri) => Ok(self.s3().await.download(uri, to).await?.is_some()),
        }
    }

    /// Writes one file of this machine to a location, without holding it in memory.
    pub async fn upload(&self, from: &Path, to: &Location) -> Result<()> {
        match to {
            Location::Local(path) => {
                make_parent(path).await?;
                let part = path.with_added_extension("part");
                fs::copy(from, &part).await.map_err(TrainerError::io(from))?;
                fs::rename(&part, path).await.map_err(TrainerError::io(path))
            }
            Location::S3(uri) => Ok(self.s3().await.upload(from, uri).await?),
        }
    }

    /// Brings these files of a folder to a folder of this machine.
    ///
    /// # Errors
    /// [`TrainerError::Missing`] when one vanished meanwhile.
    pub async fn download_files(&self, from: &Location, entries: &[Entry], to: &Path) -> Result<()> {
        for entry in entries {
            let location = from.join(&entry.name);
            if !self.download(&location, &to.join(&entry.name)).await? {
                return Err(TrainerError::Missing { what: "file", location });
            }
        }
        Ok(())
    }

    /// Writes every file of a folder of this machine below a location.
    pub async fn upload_folder(&self, from: &Path, to: &Location) -> Result<()> {
        for entry in self.list(&Location::Local(from.to_path_buf())).await? {
            self.upload(&from.join(&entry.name), &to.join(&entry.name)).await?;
        }
        Ok(())
    }

    /// Deletes a file; one that is not there is as good as deleted.
    pub async fn delete(&self, location: &Location) -> Result<()> {
        match location {
            Location::Local(path) => found(fs::remove_file(path).await, path).map(drop),
            Location::S3(uri) => Ok(self.s3().await.delete(uri).await?),
        }
    }

    /// Deletes everything below a folder.
    pub async fn delete_folder(&self, folder: &Location) -> Result<()> {
        if let Location::Local(path) = folder {
            return found(fs::remove_dir_all(path).await, path).map(drop);
        }
        for entry in self.list(folder).await? {
            self.delete(&folder.join(&entry.name)).await?;
        }
        Ok(())
    }
}

/// A listing of `a/b` must not show `a/bc`.
fn prefix(uri: &S3Uri) -> S3Uri {
    let key = uri.key.trim_end_matches('/');
    S3Uri::new(&uri.bucket, if key.is_empty() { String::new() } else { format!("{key}/") })
}

fn found<T>(result: std::io::Result<T>, path: &Path) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TrainerError::io(path)(error)),
    }
}

async fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).await.map_err(TrainerError::io(parent)),
        None => Ok(()),
    }
}

async fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    make_parent(path).await?;
    let part = path.with_added_extension("part");
    fs::write(&part, bytes).await.map_err(TrainerError::io(&part))?;
    fs::rename(&part, path).await.map_err(TrainerError::io(path))
}

fn files_below(root: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut waiting: Vec<PathBuf> = vec![root.to_path_buf()];
    while let Some(folder) = waiting.pop() {
        let Some(items) = found(std::fs::read_dir(&folder), &folder)? else { continue };
        for item in items {
            let path = item.map_err(TrainerError::io(&folder))?.path();
            // follows links: caches of downloaded models consist of them
            let meta = std::fs::metadata(&path).map_err(TrainerError::io(&path))?;
            if meta.is_dir() {
                waiting.push(path);
            } else if let Ok(below) = path.strip_prefix(root) {
                let parts: Vec<_> = below.components().map(|part| part.as_os_str().to_string_lossy()).collect();
                entries.push(Entry { name: parts.join("/"), bytes: meta.len() });
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(folder: &Path) -> Location {
        Location::Local(folder.to_path_buf())
    }

    #[tokio::test]
    async fn folders_are_copied_whole_and_listed_in_order() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::default();
        store.put(&local(from.path()).join("b/c.txt"), b"cc".to_vec(), "text/plain").await.unwrap();
        store.put(&local(from.path()).join("a.txt"), b"a".to_vec(), "text/plain").await.unwrap();
        store.upload_folder(from.path(), &local(to.path()).join("x")).await.unwrap();
        let listed = store.list(&local(to.path())).await.unwrap();
        let names: Vec<_> = listed.iter().map(|e| (e.name.as_str(), e.bytes)).collect();
        assert_eq!(names, [("x/a.txt", 1), ("x/b/c.txt", 2)], "and no part files");
        store.delete_folder(&local(to.path()).join("x")).await.unwrap();
        assert_eq!(store.list(&local(to.path())).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_missing_is_a_value_and_what_is_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::default();
        let file = local(folder.path()).join("x");
        assert_eq!(store.get_opt(&file, 10).await.unwrap(), None);
        assert!(!store.exists(&file).await.unwrap());
        assert!(matches!(store.get(&file, "job", 10).await, Err(TrainerError::Missing { what: "job", .. })));
        store.delete(&file).await.unwrap();
        store.put(&file, vec![0; 11], "text/plain").await.unwrap();
        assert!(matches!(store.get_opt(&file, 10).await, Err(TrainerError::TooLarge { bytes: 11, limit: 10, .. })));
    }

    #[tokio::test]
    async fn no_client_is_built_for_local_paths() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::default();
        store.put_json(&local(folder.path()).join("x.json"), &1).await.unwrap();
        assert_eq!(store.get_json::<u32>(&local(folder.path()).join("x.json"), "number").await.unwrap(), 1);
        assert!(store.s3.get().is_none());
    }

    #[test]
    fn a_prefix_ends_with_a_slash() {
        for (key, wanted) in [("a/b", "a/b/"), ("a/b/", "a/b/"), ("", "")] {
            assert_eq!(prefix(&S3Uri::new("x", key)).key, wanted);
        }
    }
}
