//! Checkpoints: everything a run needs to go on, in one folder per step.
//!
//! ```text
//! {folder}/{step}/adapter/adapter_config.json, adapter/adapter_model.safetensors   as Python `peft` reads them
//!                 optimizer.safetensors    exp_avg.{n}, exp_avg_sq.{n}: moments, in the order of the adapter's tensors;
//!                                          in 8 bits code indices, with exp_avg.{n}.absmax, exp_avg_sq.{n}.absmax
//!                 rank-allocator.safetensors   AdaLoRA only: exp_avg_ipt.{n}, exp_avg_unc.{n}: importance, alive.{n}: ranks (1, 0)
//!                 gradients.safetensors    gradient.{n}: only in the middle of accumulation, the sums so far
//!                 state.json               step, settings, position in the data, fingerprints
//!                 manifest.json            size and SHA-256 of the files above
//!                 DONE                     empty, written last
//! ```
//! Files are written under a temporary name, the folder is renamed, then `DONE` appears: a reader that ignores folders without
//! `DONE` never sees half a checkpoint, on a disk as in a bucket. The schedule needs no state beyond the step, random numbers
//! none beyond the position.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tunesmith_model::{Adapter, ModelConfig, Quantization, RankAllocator, peft};

use crate::adamw::{AdamW, Moments};
use crate::config::TrainingConfig;
use crate::divergence::LossWatch;
use crate::error::{Result, TrainingError};
use crate::sampler::Position;
use crate::tensor_file::{Outgoing, Tensors, write_tensors};

/// The marker that makes a checkpoint count.
pub const DONE: &str = "DONE";
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const RANKS: &str = "rank-allocator.safetensors";
const GRADIENTS: &str = "gradients.safetensors";
const ADAPTER: &str = "adapter";

/// Counts up when a position, a setting or a tensor changes its meaning.
const FORMAT: u32 = 2;

/// What `state.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of this layout; that of [`State::current_format`] in new checkpoints.
    #[serde(default)]
    pub format: u32,
    /// Steps completed.
    pub step: usize,
    /// Steps of the run.
    pub total: usize,
    /// Settings of the run.
    pub config: TrainingConfig,
    /// Position in the data, which is also the random state; before the step that `window` is in the middle of.
    pub position: Position,
    /// The unfinished step, when some of its batches are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// What is remembered of the losses.
    #[serde(default)]
    pub watch: LossWatch,
    /// Fingerprint of the dataset.
    pub dataset: String,
    /// Some logits of the base model.
    pub base_probe: Vec<f32>,
}

impl State {
    /// What this version writes and reads.
    #[must_use]
    pub const fn current_format() -> u32 {
        FORMAT
    }
}

/// A step in the middle of accumulation; its gradients are in `gradients.safetensors`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Rows of the step that went through the model.
    pub rows_done: usize,
    /// Their negative log-likelihood, in nats.
    pub nll: f64,
}

/// Size and hash of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// What `manifest.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Steps completed.
    pub step: usize,
    /// Updates of the optimizer.
    pub num_updates: u64,
    /// Every file but this one and `DONE`, by its path inside the checkpoint.
    pub files: BTreeMap<String, FileEntry>,
}

/// What a checkpoint is made of.
pub struct Parts<'a> {
    /// `state.json`.
    pub state: &'a State,
    /// The adapter.
    pub adapter: &'a Adapter,
    /// The optimizer's state.
    pub optimizer: &'a AdamW,
    /// AdaLoRA's budget.
    pub ranks: Option<&'a RankAllocator>,
    /// Sums of an unfinished step; empty between steps.
    pub gradients: &'a [Vec<f32>],
}

/// A checkpoint that was read and verified.
pub struct Stored {
    /// `state.json`.
    pub state: State,
    /// The adapter.
    pub adapter: Adapter,
    /// The optimizer's state.
    pub optimizer: AdamW,
    /// AdaLoRA's budget.
    pub ranks: Option<RankAllocator>,
    /// Sums of an unfinished step; empty between steps.
    pub gradients: Vec<Vec<f32>>,
}

/// Writes `{folder}/{step}`; a checkpoint of the same step is replaced. When it fails, nothing of it is left and the one of the
/// same step is still there.
pub fn save(folder: &Path, parts: &Parts<'_>) -> Result<PathBuf> {
    let step = parts.state.step;
    fs::create_dir_all(folder).map_err(TrainingError::io(folder))?;
    let temporary = folder.join(format!(".writing-{step}"));
    remove(&temporary)?;
    if let Err(error) = write(&temporary, parts) {
        // the first error says what is wrong; a folder under this name never counts
        let _ = fs::remove_dir_all(&temporary);
        return Err(error);
    }
    let target = folder.join(step.to_string());
    remove(&target)?;
    fs::rename(&temporary, &target).map_err(TrainingError::io(&target))?;
    let done = target.join(DONE);
    File::create(&done).and_then(|file| file.sync_all()).map_err(TrainingError::io(&done))?;
    Ok(target)
}

fn write(folder: &Path, parts: &Parts<'_>) -> Result<()> {
    fs::create_dir_all(folder).map_err(TrainingError::io(folder))?;
    peft::save(parts.adapter, &folder.join(ADAPTER), "")?;
    write_tensors(&moments(parts.optimizer), &folder.join(OPTIMIZER))?;
    write_json(&folder.join(STATE), parts.state)?;
    let mut names = vec![
        format!("{ADAPTER}/{}", peft::CONFIG_FILE),
        format!("{ADAPTER}/{}", peft::WEIGHTS_FILE),
        OPTIMIZER.to_owned(),
        STATE.to_owned(),
    ];
    if parts.adapter.base_quantization() != Quantization::None {
        names.push(format!("{ADAPTER}/{}", peft::QUANTIZATION_FILE));
    }
    if parts.adapter.base_fingerprint().is_some() {
        names.push(format!("{ADAPTER}/{}", peft::FINGERPRINT_FILE));
    }
    if !parts.gradients.is_empty() {
        write_tensors(&outgoing("gradient", parts.gradients), &folder.join(GRADIENTS))?;
        names.push(GRADIENTS.to_owned());
    }
    if let Some(ranks) = parts.ranks {
        write_ranks(ranks, &folder.join(RANKS))?;
        names.push(RANKS.to_owned());
    }
    let mut files = BTreeMap::new();
    for name in names {
        let entry = seal(&folder.join(&name))?;
        files.insert(name, entry);
    }
    let num_updates = parts.optimizer.num_updates;
    write_json(&folder.join(MANIFEST), &Manifest { step: parts.state.step, num_updates, files })
}

/// Reads a checkpoint and verifies every file against the manifest.
pub fn load(folder: &Path, model: &ModelConfig) -> Result<Stored> {
    if !folder.join(DONE).exists() {
        return Err(corrupt(&folder.join(DONE), "it is missing, so the checkpoint was not finished"));
    }
    let manifest: Manifest = read_json(&folder.join(MANIFEST))?;
    for (name, wanted) in &manifest.files {
        let path = folder.join(name);
        let bytes = fs::read(&path).map_err(|error| corrupt(&path, &error.to_string()))?;
        if entry(&bytes) != *wanted {
            return Err(corrupt(&path, &format!("{} bytes with another SHA-256 than the manifest's", bytes.len())));
        }
    }
    let state: State = read_json(&folder.join(STATE))?;
    if state.format != FORMAT {
        return Err(TrainingError::CheckpointFormat {
            path: folder.to_path_buf(),
            found: state.format,
            wanted: FORMAT,
        });
    }
    let adapter = peft::load(&folder.join(ADAPTER), model)?;
    let count = adapter.parameters().len();
    let optimizer = read_moments(&folder.join(OPTIMIZER), count, manifest.num_updates)?;
    let gradients = match state.window {
        Some(_) => {
            Tensors::open(&folder.join(GRADIENTS))?.all(count, |all, index| all.f32(&format!("gradient.{index}")))?
        }
        None => Vec::new(),
    };
    let ranks = RankAllocator::new(&adapter).map(|fresh| read_ranks(fresh, &folder.join(RANKS))).transpose()?;
    Ok(Stored { state, adapter, optimizer, ranks, gradients })
}

/// The finished checkpoints of a folder, oldest first, with their steps.
pub fn list(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for item in fs::read_dir(folder).map_err(TrainingError::io(folder))? {
        let item = item.map_err(TrainingError::io(folder))?;
        let step = item.file_name().to_str().and_then(|name| name.parse::<usize>().ok());
        if let Some(step) = step.filter(|_| item.path().join(DONE).exists()) {
            found.push((step, item.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The newest finished checkpoint.
pub fn latest(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(list(folder)?.pop().map(|(_, path)| path))
}

/// Removes all but the newest `keep` finished checkpoints; returns what was removed. Each loses its `DONE` first.
pub fn prune(folder: &Path, keep: usize) -> Result<Vec<PathBuf>> {
    let mut finished = list(folder)?;
    finished.truncate(finished.len().saturating_sub(keep));
    for (_, path) in &finished {
        remove(path)?;
    }
    Ok(finished.into_iter().map(|(_, path)| path).collect())
}

fn remove(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let done = folder.join(DONE);
    if done.exists() {
        fs::remove_file(&done).map_err(TrainingError::io(&done))?;
    }
    fs::remove_dir_all(folder).map_err(TrainingError::io(folder))
}

fn entry(bytes: &[u8]) -> FileEntry {
    FileEntry { bytes: bytes.len() as u64, sha256: hex::encode(Sha256::digest(bytes)) }
}

/// Forces the file to the disk and describes it.
fn seal(path: &Path) -> Result<FileEntry> {
    File::open(path).and_then(|file| file.sync_all()).map_err(TrainingError::io(path))?;
    Ok(entry(&fs::read(path).map_err(TrainingError::io(path))?))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| corrupt(path, &error.to_string()))?;
    let write = |mut file: File| {
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    File::create(path).and_then(write).map_err(TrainingError::io(path))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|error| corrupt(path, &error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| corrupt(path, &error.to_string()))
}

pub(crate) fn corrupt(path: &Path, reason: &str) -> TrainingError {
    TrainingError::CheckpointCorrupt { path: path.to_path_buf(), reason: reason.to_owned() }
}

fn write_ranks(ranks: &RankAllocator, path: &Path) -> Result<()> {
    let as_number = |alive: &Vec<bool>| alive.iter().map(|alive| f32::from(u8::from(*alive))).collect();
    let alive: Vec<Vec<f32>> = ranks.alive.iter().map(as_number).collect();
    let kinds = [("exp_avg_ipt", &ranks.sensitivity), ("exp_avg_unc", &ranks.uncertainty), ("alive", &alive)];
    write_tensors(&kinds.map(|(kind, vectors)| outgoing(kind, vectors)).concat(), path)
}

fn read_ranks(mut ranks: RankAllocator, path: &Path) -> Result<RankAllocator> {
    let tensors = Tensors::open(path)?;
    (ranks.sensitivity, ranks.uncertainty) = (tensors.every("exp_avg_ipt")?, tensors.every("exp_avg_unc")?);
    let alive = tensors.every("alive")?;
    ranks.alive = alive.iter().map(|of_module| of_module.iter().map(|alive| *alive != 0.0).collect()).collect();
    Ok(ranks)
}

/// Vectors of one kind as `{kind}.{n}`.
fn outgoing(kind: &str, vectors: &[Vec<f32>]) -> Vec<Outgoing> {
    vectors.iter().enumerate().map(|(index, values)| Outgoing::new(format!("{kind}.{index}"), values)).collect()
}

fn moments(optimizer: &AdamW) -> Vec<Outgoing> {
    let mut tensors = Vec::new();
    for (index, moments) in optimizer.moments.iter().enumerate() {
        let names = [format!("exp_avg.{index}"), format!("exp_avg_sq.{index}")];
        match moments {
            Moments::Full { first, second } => {
                tensors
                    .extend(names.into_iter().zip([first, second]).map(|(name, values)| Outgoing::new(name, values)));
            }
            Moments::Blockwise { first, second } => {
                for (name, moment) in names.into_iter().zip([first, second]) {
                    tensors.push(Outgoing::new(format!("{name}.absmax"), &moment.absmax));
                    tensors.push(Outgoing { name, dtype: Dtype::U8, bytes: moment.codes.clone() });
                }
            }
        }
    }
    tensors
}

fn read_moments(path: &Path, count: usize, num_updates: u64) -> Result<AdamW> {
    let moments = Tensors::open(path)?.all(count, |tensors, index| {
        let names = [format!("exp_avg.{index}"), format!("exp_avg_sq.{index}")];
        let [first, second] = &names;
        if tensors.view(first)?.dtype() != Dtype::U8 {
            return Ok(Moments::Full { first: tensors.f32(first)?, second: tensors.f32(second)? });
        }
        Ok(Moments::Blockwise { first: tensors.blockwise(first)?, second: tensors.blockwise(second)? })
    })?;
    Ok(AdamW { moments, num_updates })
}

#[cfg(test)]
mod tests {
    use tunesmith_model::{AdapterConfig, Decoder};

    use super::*;
    use crate::adamw::Optimizer;

    /// A link in the place of a file that is to be written, to a device that is always full.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_and_nothing_half_written_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/parity/goldens/gqa-tied");
        let model = Decoder::load(Path::new(golden)).unwrap();
        let adapter = Adapter::new(AdapterConfig::default(), &model, 1).unwrap();
        let lengths: Vec<usize> = adapter.parameters().iter().map(|(_, tensor)| tensor.elem_count()).collect();
        let optimizer = AdamW::of(Optimizer::AdamW, &lengths);
        let full = folder.path().join(OPTIMIZER);
        std::os::unix::fs::symlink("/dev/full", &full).unwrap();
        let error = write_tensors(&moments(&optimizer), &full).unwrap_err();
        assert!(matches!(&error, TrainingError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));

        let state = State {
            format: FORMAT,
            step: 3,
            total: 9,
            config: TrainingConfig::default(),
            position: Position { seed: 0, epoch: 0, used: 0 },
            window: None,
            watch: LossWatch::default(),
            dataset: String::new(),
            base_probe: Vec::new(),
        };
        let parts = Parts { state: &state, adapter: &adapter, optimizer: &optimizer, ranks: None, gradients: &[] };
        let target = save(folder.path(), &parts).unwrap();
        // a folder in the place of the temporary one cannot be made: the checkpoint of the same step stays
        fs::write(folder.path().join(".writing-3"), "a file, not a folder").unwrap();
        assert!(save(folder.path(), &parts).is_err());
        assert!(load(&target, model.config()).is_ok());
    }
}
