//! Where things lie: the repository, and the local cloud's own folders under `target/`.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Folders of a checkout.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
}

impl Paths {
    /// The checkout this binary was built in; `CARGO_TARGET_DIR` is honoured as Cargo does.
    #[must_use]
    pub fn of_this_checkout() -> Self {
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = built_in.canonicalize().unwrap_or(built_in);
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Self { root, target }
    }

    /// State, logs, mails and caches of the local cloud.
    #[must_use]
    pub fn local_cloud(&self) -> PathBuf {
        env::var_os("TUNESMITH_LOCAL_STATE").map_or_else(|| self.target.join("local-cloud"), PathBuf::from)
    }

    /// The virtual environment of the emulator: shared by all local clouds of this checkout.
    #[must_use]
    pub fn venv(&self) -> PathBuf {
        self.target.join("local-cloud").join("venv")
    }

    /// What the demo leaves behind: `demo` beside the state folder.
    #[must_use]
    pub fn demo(&self) -> PathBuf {
        self.local_cloud().with_file_name("demo")
    }

    /// Files of this crate: requirements, prices, stand-ins.
    #[must_use]
    pub fn infra_local(&self) -> PathBuf {
        self.root.join("infra/local")
    }
}
