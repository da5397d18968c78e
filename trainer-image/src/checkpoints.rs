//! Checkpoints of a run in its output folder, `checkpoints/{step}/`: what the training crate wrote, `run.json` and `best/`.
//!
//! A checkpoint counts when it holds `DONE`, which is written last and removed first. On a disk the folder appears under its
//! name when it is whole; S3 cannot rename, so there it is `DONE` alone that makes it count.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tunesmith_contract::job::{Location, MetricLine};
use tunesmith_training::{EarlyStopping, checkpoint::DONE};

use crate::{
    error::{Result, TrainerError},
    store::Store,
};

/// How many are kept: the newest, and one before it in case the newest is damaged.
pub const KEEP: usize = 2;
/// File beside the training crate's own with [`RunState`].
const RUN_FILE: &str = "run.json";
/// Folder of the best adapter so far.
pub const BEST: &str = "best";

/// What the trainer must remember beside the state of training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// The step after which the validation split was scored last.
    #[serde(default)]
    pub validated: Option<u32>,
    /// The best score so far; its adapter lies in `best/`.
    #[serde(default)]
    pub best: Option<Best>,
    /// The evaluations so far, as early stopping sees them.
    #[serde(default)]
    pub early_stopping: EarlyStopping,
    /// Whether early stopping has ended the run.
    #[serde(default)]
    pub stopped_early: bool,
    /// The last step's line of metrics.
    #[serde(default)]
    pub last: Option<MetricLine>,
}

/// The best adapter so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// After this step.
    pub step: u32,
    /// Validation loss in nats per token.
    pub loss: f64,
}

/// The checkpoints of one run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    store: Store,
    folder: Location,
    scratch: PathBuf,
}

impl Checkpoints {
    /// Those below `output`; `scratch` is a folder of this machine for copies.
    #[must_use]
    pub fn new(store: Store, output: &Location, scratch: &Path) -> Self {
        Self { store, folder: output.join("checkpoints"), scratch: scratch.join("checkpoints") }
    }

    /// The folder of this machine that the training crate writes to.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Where the checkpoint of a step is.
    #[must_use]
    pub fn location(&self, step: u32) -> Location {
        self.folder.join(&step.to_string())
    }

    /// Steps of the finished checkpoints, newest first.
    pub async fn finished(&self) -> Result<Vec<u32>> {
        let entries = self.store.list(&self.folder).await?;
        let step = |name: &str| name.strip_suffix(DONE)?.strip_suffix('/')?.parse().ok();
        let mut steps: Vec<u32> = entries.iter().filter_map(|entry| step(&entry.name)).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    /// Brings a checkpoint to this machine; returns its folder and what the trainer remembered.
    pub async fn fetch(&self, step: u32) -> Result<(PathBuf, RunState)> {
        let (from, to) = (self.location(step), self.scratch.join(step.to_string()));
        let entries = self.store.list(&from).await?;
        self.store.download_files(&from, &entries, &to).await?;
        let state = self.store.get_json(&Location::Local(to.join(RUN_FILE)), "state of the run").await?;
        Ok((to, state))
    }

    /// Publishes the checkpoint that the training crate wrote for this step, with `state` and the best adapter, if there is one.
    /// Older ones are removed afterwards.
    pub async fn publish(&self, step: u32, state: &RunState, best: Option<&Path>) -> Result<()> {
        let local = self.scratch.join(step.to_string());
        self.store.put_json(&Location::Local(local.join(RUN_FILE)), state).await?;
        if let Some(best) = best {
            self.store.upload_folder(best, &Location::Local(local.join(BEST))).await?;
        }
        let done = local.join(DONE);
        if done.exists() {
            std::fs::remove_file(&done).map_err(TrainerError::io(&done))?;
        }
        let target = self.location(step);
        // one of the same step that was found damaged
        self.remove(step).await?;
        match &target {
            Location::Local(path) => {
                let part = self.folder.join(&format!(".writing-{step}"));
                self.store.delete_folder(&part).await?;
                self.store.upload_folder(&local, &part).await?;
                if let Location::Local(part) = part {
                    std::fs::rename(part, path).map_err(TrainerError::io(path))?;
                }
            }
            Location::S3(_) => self.store.upload_folder(&local, &target).await?,
        }
        self.store.put(&target.join(DONE), Vec::new(), "text/plain").await?;
        for old in self.finished().await?.into_iter().skip(KEEP) {
            self.remove(old).await?;
        }
        std::fs::remove_dir_all(&local).map_err(TrainerError::io(&local))
    }

    async fn remove(&self, step: u32) -> Result<()> {
        let folder = self.location(step);
        self.store.delete(&folder.join(DONE)).await?;
        self.store.delete_folder(&folder).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(checkpoints: &Checkpoints, step: u32) {
        let folder = checkpoints.scratch().join(step.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("state.json"), step.to_string()).unwrap();
        std::fs::write(folder.join(DONE), "").unwrap();
    }

    #[tokio::test]
    async fn the_newest_two_are_kept_and_unfinished_ones_do_not_count() {
        let (output, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let output = Location::Local(output.path().to_path_buf());
        let checkpoints = Checkpoints::new(Store::default(), &output, scratch.path());
        assert!(checkpoints.finished().await.unwrap().is_empty());
        let state = RunState { best: Some(Best { step: 20, loss: 1.5 }), ..RunState::default() };
        let best = scratch.path().join("anything");
        std::fs::create_dir_all(&best).unwrap();
        std::fs::write(best.join("adapter.bin"), "weights").unwrap();
        for step in [10, 20, 100] {
            written(&checkpoints, step);
            checkpoints.publish(step, &state, Some(&best)).await.unwrap();
        }
        assert_eq!(checkpoints.finished().await.unwrap(), [100, 20]);
        let Location::Local(newest) = checkpoints.location(100) else { unreachable!() };
        let (copy, read) = checkpoints.fetch(100).await.unwrap();
        assert_eq!(read, state);
        assert_eq!(std::fs::read_to_string(copy.join("best/adapter.bin")).unwrap(), "weights");
        std::fs::remove_file(newest.join(DONE)).unwrap();
        assert_eq!(checkpoints.finished().await.unwrap(), [20], "a reader ignores anything without DONE");
    }
}
