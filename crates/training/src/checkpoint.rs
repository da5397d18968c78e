//! Checkpoints: everything a run needs to go on, in one folder per step.
//!
//! ```text
//! {folder}/{step}/adapter/adapter_config.json, adapter/adapter_model.safetensors   as Python `peft` reads them
//!                 optimizer.safetensors    exp_avg.{n}, exp_avg_sq.{n}: moments, in the order of the adapter's tensors
//!                 rank-allocator.safetensors   AdaLoRA only: exp_avg_ipt.{n}, exp_avg_unc.{n}: importance, alive.{n}: ranks (1, 0)
//!                 state.json               step, settings, position in the data, fingerprints
//!                 manifest.json            size and SHA-256 of the files above
//!                 DONE                     empty, written last
//! ```
//! Files are written under a temporary name, the folder is renamed, then `DONE` appears: a reader that ignores folders without
//! `DONE` never sees half a checkpoint, on a disk as in a bucket. The schedule needs no state beyond the step, random numbers
//! none beyond the position.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tunesmith_model::{Adapter, ModelConfig, RankAllocator, peft};

use crate::adamw::AdamW;
use crate::config::TrainingConfig;
use crate::error::{Result, TrainingError};
use crate::sampler::Position;

/// The marker that makes a checkpoint count.
pub const DONE: &str = "DONE";
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const RANKS: &str = "rank-allocator.safetensors";
const ADAPTER: &str = "adapter";

/// What `state.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps completed.
    pub step: usize,
    /// Steps of the run.
    pub total: usize,
    /// Settings of the run.
    pub config: TrainingConfig,
    /// Position in the data, which is also the random state.
    pub position: Position,
    /// Fingerprint of the dataset.
    pub dataset: String,
    /// Some logits of the base model.
    pub base_probe: Vec<f32>,
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
}

/// Writes `{folder}/{step}`; a checkpoint of the same step is replaced.
pub fn save(folder: &Path, parts: &Parts<'_>) -> Result<PathBuf> {
    let Parts { state, adapter, optimizer, ranks } = *parts;
    fs::create_dir_all(folder).map_err(TrainingError::io(folder))?;
    let temporary = folder.join(format!(".writing-{}", state.step));
    remove(&temporary)?;
    fs::create_dir_all(&temporary).map_err(TrainingError::io(&temporary))?;
    peft::save(adapter, &temporary.join(ADAPTER), "")?;
    let moments = [("exp_avg", &optimizer.first), ("exp_avg_sq", &optimizer.second)];
    write_vectors(&moments, &temporary.join(OPTIMIZER))?;
    write_json(&temporary.join(STATE), state)?;
    let mut names = vec![
        format!("{ADAPTER}/{}", peft::CONFIG_FILE),
        format!("{ADAPTER}/{}", peft::WEIGHTS_FILE),
        OPTIMIZER.to_owned(),
        STATE.to_owned(),
    ];
    if let Some(ranks) = ranks {
        write_ranks(ranks, &temporary.join(RANKS))?;
        names.push(RANKS.to_owned());
    }
    let mut files = BTreeMap::new();
    for name in names {
        let entry = seal(&temporary.join(&name))?;
        files.insert(name, entry);
    }
    write_json(&temporary.join(MANIFEST), &Manifest { step: state.step, num_updates: optimizer.num_updates, files })?;
    let target = folder.join(state.step.to_string());
    remove(&target)?;
    fs::rename(&temporary, &target).map_err(TrainingError::io(&target))?;
    let done = target.join(DONE);
    File::create(&done).and_then(|file| file.sync_all()).map_err(TrainingError::io(&done))?;
    Ok(target)
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
    let adapter = peft::load(&folder.join(ADAPTER), model)?;
    let count = adapter.parameters().len();
    let [first, second] = read_vectors(&folder.join(OPTIMIZER), ["exp_avg", "exp_avg_sq"])?;
    if first.len() != count || second.len() != count {
        return Err(corrupt(&folder.join(OPTIMIZER), &format!("it has not the moments of {count} tensors")));
    }
    let optimizer = AdamW { first, second, num_updates: manifest.num_updates };
    let ranks = RankAllocator::new(&adapter).map(|fresh| read_ranks(fresh, &folder.join(RANKS))).transpose()?;
    Ok(Stored { state, adapter, optimizer, ranks })
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

fn corrupt(path: &Path, reason: &str) -> TrainingError {
    TrainingError::CheckpointCorrupt { path: path.to_path_buf(), reason: reason.to_owned() }
}

fn write_ranks(ranks: &RankAllocator, path: &Path) -> Result<()> {
    let as_number = |alive: &Vec<bool>| alive.iter().map(|alive| f32::from(u8::from(*alive))).collect();
    let alive: Vec<Vec<f32>> = ranks.alive.iter().map(as_number).collect();
    write_vectors(&[("exp_avg_ipt", &ranks.sensitivity), ("exp_avg_unc", &ranks.uncertainty), ("alive", &alive)], path)
}

fn read_ranks(mut ranks: RankAllocator, path: &Path) -> Result<RankAllocator> {
    let [sensitivity, uncertainty, alive] = read_vectors(path, ["exp_avg_ipt", "exp_avg_unc", "alive"])?;
    (ranks.sensitivity, ranks.uncertainty) = (sensitivity, uncertainty);
    ranks.alive = alive.iter().map(|of_module| of_module.iter().map(|alive| *alive != 0.0).collect()).collect();
    Ok(ranks)
}

/// Writes vectors of several kinds as `{kind}.{n}`.
fn write_vectors(kinds: &[(&str, &Vec<Vec<f32>>)], path: &Path) -> Result<()> {
    let broken = |error: safetensors::SafeTensorError| corrupt(path, &error.to_string());
    let mut tensors = Vec::new();
    for (kind, vectors) in kinds {
        for (index, values) in vectors.iter().enumerate() {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push((format!("{kind}.{index}"), values.len(), bytes));
        }
    }
    let mut views = Vec::with_capacity(tensors.len());
    for (name, len, bytes) in &tensors {
        views.push((name.as_str(), TensorView::new(Dtype::F32, vec![*len], bytes).map_err(broken)?));
    }
    safetensors::serialize_to_file(views, None::<HashMap<String, String>>, path).map_err(broken)
}

/// Every vector of these kinds, as many as there are.
fn read_vectors<const N: usize>(path: &Path, kinds: [&str; N]) -> Result<[Vec<Vec<f32>>; N]> {
    let bytes = fs::read(path).map_err(|error| corrupt(path, &error.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| corrupt(path, &error.to_string()))?;
    let values = |view: TensorView<'_>| {
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<f32>>()
    };
    Ok(kinds.map(|kind| {
        let one = |index: usize| tensors.tensor(&format!("{kind}.{index}")).ok().map(values);
        (0..).map_while(one).collect()
    }))
}
