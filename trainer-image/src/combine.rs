//! `combine`: several adapters of one base model as one.
//!
//! Their changes are added by weight ([`tunesmith_model::adapters::combine`]) and may be cut to a smaller rank. No base model is
//! read: what adapters change is told by their own files, also which base that was. The result is plain LoRA in the layout of Python
//! `peft`, to be evaluated, served and exported like any other; how good it is nobody has measured then.
//!
//! It appears under its name when it is whole. Until then it lies in a hidden folder beside, which the next attempt takes over when
//! this one was killed.

use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::ValueEnum;
use serde::Serialize;
use tunesmith_contract::job::Location;
use tunesmith_model::{
    Adapter, Method, ModelError,
    adapters::combine::{Combination, Kept, Truncated, combine, truncated},
    peft::{self, Label},
};

use crate::{
    blocking::blocking,
    context::Context,
    error::{CombineError, Result, TrainerError},
    halt::Halt,
};

/// What is read of an adapter's folder.
const FILES: [&str; 4] = [peft::CONFIG_FILE, peft::WEIGHTS_FILE, peft::QUANTIZATION_FILE, peft::FINGERPRINT_FILE];

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct CombinePlan {
    /// What is added.
    pub adapters: Vec<Weighted>,
    /// How it is added.
    pub sum: Sum,
    /// The rank that the sum is cut to, when it is.
    pub rank_opt: Option<usize>,
    /// The folder that is made.
    pub to: Location,
}

/// An adapter and its weight in the sum.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighted {
    /// Its folder.
    pub adapter: Location,
    /// A number, also a negative one.
    pub weight: f32,
}

/// How adapters are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sum {
    /// Ranks side by side: exact, and the ranks add up.
    Cat,
    /// Matrices, each for itself: keeps the rank, which all must share. Only for adapters that began alike.
    Linear,
}

/// What the command says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The new folder.
    pub output: PathBuf,
    /// Its rank.
    pub rank: usize,
    /// How many matrices of the base it changes.
    pub num_modules: usize,
    /// Share of the squared norm of the sum's change that this rank keeps, in the module that loses most; 1 when nothing was cut.
    pub kept: f64,
    /// That module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_module: Option<String>,
}

impl FromStr for Weighted {
    type Err = CombineError;

    /// `runs/a/adapter:0.7` or `s3://bucket/runs/a/adapter:0.7`; without a weight it is 1.
    fn from_str(text: &str) -> Result<Self, CombineError> {
        let (adapter, weight) = match text.rsplit_once(':') {
            // the colon is that of `s3://`, or of a folder above
            Some((_, below)) if below.contains('/') => (text, "1"),
            Some(parts) => parts,
            None => (text, "1"),
        };
        let parsed: Option<f32> = weight.parse().ok();
        let weight = parsed
            .filter(|weight| weight.is_finite())
            .ok_or_else(|| CombineError::Weight { adapter: adapter.to_owned(), weight: weight.to_owned() })?;
        Ok(Self { adapter: Location::from(adapter.to_owned()), weight })
    }
}

/// Writes the adapter and says what it is.
///
/// # Errors
/// [`CombineError`] for what does not go together and for a folder that exists; nothing is written then.
pub async fn run(plan: CombinePlan, context: &Context) -> Result<Report, Halt> {
    let to = match &plan.to {
        Location::Local(folder) => folder.clone(),
        Location::S3(_) => return Err(CombineError::OutputInS3 { output: plan.to.clone() }.into()),
    };
    require_free(&to)?;
    let folders = context.stop.or(fetch(&plan.adapters, context)).await??;
    let combined = context.stop.or(blocking(move || compute(&plan, &folders))).await??;
    // seconds at the most: a write that has begun is not given up
    let report = blocking(move || combined.write(to)).await?;
    tracing::info!(to = %report.output.display(), rank = report.rank, num_modules = report.num_modules,
        kept = report.kept, "combined");
    Ok(report)
}

/// The adapters' folders on this machine; what lies in S3 is brought here.
async fn fetch(adapters: &[Weighted], context: &Context) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::with_capacity(adapters.len());
    for (index, Weighted { adapter, .. }) in adapters.iter().enumerate() {
        let mut entries = context.store.list(adapter).await?;
        entries.retain(|entry| FILES.contains(&entry.name.as_str()));
        for name in [peft::CONFIG_FILE, peft::WEIGHTS_FILE] {
            if !entries.iter().any(|entry| entry.name == name) {
                return Err(CombineError::NoAdapter { adapter: adapter.clone(), name }.into());
            }
        }
        folders.push(match adapter {
            Location::Local(folder) => folder.clone(),
            Location::S3(_) => {
                let folder = context.scratch.join(format!("adapter-{index}"));
                context.store.download_files(adapter, &entries, &folder).await?;
                folder
            }
        });
    }
    Ok(folders)
}

/// The result before it is written.
struct Combined {
    adapter: Adapter,
    base_model: String,
    worst: Option<Kept>,
}

fn compute(plan: &CombinePlan, folders: &[PathBuf]) -> Result<Combined> {
    let mut labels = Vec::with_capacity(folders.len());
    for (Weighted { adapter, .. }, folder) in plan.adapters.iter().zip(folders) {
        let label = peft::label(folder)?;
        if let Some(method) = label.multiplies {
            return Err(CombineError::Multiplies { adapter: adapter.clone(), method }.into());
        }
        labels.push((adapter, label));
    }
    require_one_base(&labels)?;
    let (sites, adapters) = peft::load_together(folders)?;
    let weighted: Vec<(&Adapter, f32)> =
        adapters.iter().zip(&plan.adapters).map(|(adapter, of)| (adapter, of.weight)).collect();
    let ranks = adapters.iter().map(rank_of);
    let available = match plan.sum {
        Sum::Cat => ranks.sum::<usize>(),
        Sum::Linear => ranks.max().unwrap_or_default(),
    };
    if let Some(rank) = plan.rank_opt.filter(|rank| !(1..=available).contains(rank)) {
        return Err(CombineError::Rank { rank, available }.into());
    }
    let Truncated { adapter, kept } = match (plan.sum, plan.rank_opt) {
        (Sum::Cat, Some(rank)) => truncated(&weighted, rank, sites)?,
        (Sum::Cat, None) => whole(combine(&weighted, Combination::Cat, sites)?),
        (Sum::Linear, None) => whole(combine(&weighted, Combination::Linear, sites)?),
        (Sum::Linear, Some(rank)) => {
            let sum = combine(&weighted, Combination::Linear, sites.clone())?;
            truncated(&[(&sum, 1.0)], rank, sites)?
        }
    };
    require_numbers(&adapter)?;
    let worst = kept.into_iter().min_by(|a, b| a.share.total_cmp(&b.share)).filter(|worst| worst.share < 1.0);
    let named = labels.into_iter().map(|(_, label)| label.base_model).find(|name| !name.is_empty());
    Ok(Combined { adapter, base_model: named.unwrap_or_default(), worst })
}

fn whole(adapter: Adapter) -> Truncated {
    Truncated { adapter, kept: Vec::new() }
}

/// What the evidence allows: fingerprints where both have one, else the names that the adapters give their base. Shapes are compared
/// when tensors are read.
fn require_one_base(labels: &[(&Location, Label)]) -> Result<(), CombineError> {
    for (index, (adapter, label)) in labels.iter().enumerate() {
        for (earlier, other) in &labels[..index] {
            let quantizations = (other.base_quantization, label.base_quantization);
            let (what, values, remedy) = match (&other.base_fingerprint, &label.base_fingerprint) {
                (Some(first), Some(second)) if first != second => {
                    ("fingerprint", (first.to_string(), second.to_string()), "combine adapters of one base model")
                }
                _ if quantizations.0 != quantizations.1 => (
                    "quantization",
                    (quantizations.0.name().to_owned(), quantizations.1.name().to_owned()),
                    "combine adapters of one quantization",
                ),
                (Some(_), Some(_)) => continue,
                // nobody knows more: one that was made elsewhere has no fingerprint
                _ if other.base_model != label.base_model => (
                    "base_model_name_or_path",
                    (other.base_model.clone(), label.base_model.clone()),
                    "if both are the same model, write the same name into both adapter_config.json",
                ),
                _ => continue,
            };
            let first = Box::new(((*earlier).clone(), values.0));
            let second = Box::new(((*adapter).clone(), values.1));
            return Err(CombineError::OtherBase { what, first, second, remedy });
        }
    }
    Ok(())
}

/// How many ranks the adapter can add.
fn rank_of(adapter: &Adapter) -> usize {
    match &adapter.config().method {
        Method::Lora(lora) => lora.rank,
        Method::AdaLora(ada) => ada.init_r,
        Method::Ia3(_) => 0,
    }
}

/// Finite weights can still make numbers that f32 cannot hold.
fn require_numbers(adapter: &Adapter) -> Result<()> {
    for (name, tensor) in adapter.parameters() {
        let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1::<f32>()).map_err(ModelError::from)?;
        if let Some(value) = values.into_iter().find(|value| !value.is_finite()) {
            return Err(CombineError::NotFinite { tensor: name, value }.into());
        }
    }
    Ok(())
}

impl Combined {
    fn write(self, to: PathBuf) -> Result<Report> {
        write_new(&to, |folder| Ok(peft::save(&self.adapter, folder, &self.base_model)?))?;
        Ok(Report {
            output: to,
            rank: rank_of(&self.adapter),
            num_modules: self.adapter.modules().count(),
            kept: self.worst.as_ref().map_or(1.0, |worst| worst.share),
            worst_module: self.worst.map(|worst| worst.path),
        })
    }
}

/// Makes the folder `to`, whole or not at all, out of the files that `fill` writes into the folder it is given.
fn write_new(to: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = to.file_name().ok_or_else(|| CombineError::OutputExists { folder: to.to_path_buf() })?;
    let part = to.with_file_name(format!(".{}.part", name.to_string_lossy()));
    fs::create_dir_all(&part).map_err(TrainerError::io(&part))?;
    // the lock of a process that was killed is gone, and what it left is nobody's
    let held = File::open(&part).map_err(TrainerError::io(&part))?;
    held.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => CombineError::OutputBusy { folder: to.to_path_buf() }.into(),
        TryLockError::Error(error) => TrainerError::io(&part)(error),
    })?;
    // whoever held it before may have removed the folder, or given it its name
    let is_held = |of_name: fs::Metadata| held.metadata().is_ok_and(|of_held| of_held.ino() == of_name.ino());
    if !fs::metadata(&part).is_ok_and(is_held) {
        return Err(CombineError::OutputBusy { folder: to.to_path_buf() }.into());
    }
    let done = require_free(to).and_then(|()| clear(&part)).and_then(|()| fill(&part)).and_then(|()| {
        // its entries are on the disk before it has its name
        held.sync_all().map_err(TrainerError::io(&part))?;
        fs::rename(&part, to).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => {
                CombineError::OutputExists { folder: to.to_path_buf() }.into()
            }
            _ => TrainerError::io(to)(error),
        })
    });
    if done.is_err() {
        // the first error says what is wrong
        let _ = fs::remove_dir_all(&part);
    }
    done
}

/// Deletes the files of an attempt that was killed.
fn clear(folder: &Path) -> Result<()> {
    for item in fs::read_dir(folder).map_err(TrainerError::io(folder))? {
        let path = item.map_err(TrainerError::io(folder))?.path();
        fs::remove_file(&path).map_err(TrainerError::io(&path))?;
    }
    Ok(())
}

/// Nothing is overwritten, an empty folder neither.
fn require_free(to: &Path) -> Result<()> {
    match fs::symlink_metadata(to) {
        Ok(_) => Err(CombineError::OutputExists { folder: to.to_path_buf() }.into()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(TrainerError::io(to)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_stands_behind_the_last_colon_and_colons_of_paths_are_left_alone() {
        for (text, adapter, weight) in [
            ("runs/a/adapter:0.7", "runs/a/adapter", 0.7),
            ("runs/a/adapter", "runs/a/adapter", 1.0),
            ("a:-1.5e-1", "a", -0.15),
            ("s3://bucket/runs/a/adapter", "s3://bucket/runs/a/adapter", 1.0),
            ("s3://bucket/runs/a/adapter/:2", "s3://bucket/runs/a/adapter/", 2.0),
            ("runs:old/a", "runs:old/a", 1.0),
            ("run:1:3", "run:1", 3.0),
        ] {
            let parsed: Weighted = text.parse().unwrap();
            assert_eq!((parsed.adapter.to_string().as_str(), parsed.weight), (adapter, weight), "{text}");
        }
        for text in ["a:", "a:half", "a:nan", "a:inf", "a:1e39", "s3://bucket/a:-inf"] {
            let error = text.parse::<Weighted>().unwrap_err().to_string();
            let weight = text.rsplit(':').next().unwrap();
            assert!(error.contains(&format!("weight {weight:?}")) && error.contains(":0.7"), "{error}");
        }
    }

    #[test]
    fn a_folder_is_there_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let to = parent.path().join("new");
        let names =
            || -> Vec<_> { fs::read_dir(parent.path()).unwrap().map(|item| item.unwrap().file_name()).collect() };
        let half = |folder: &Path| fs::write(folder.join("half"), "x").map_err(TrainerError::io(folder));
        let error = write_new(&to, |folder| {
            half(folder)?;
            Err(TrainerError::io(folder)(ErrorKind::StorageFull.into()))
        });
        assert!(matches!(error, Err(TrainerError::Io { .. })) && names().is_empty(), "nothing is left: {:?}", names());
        let error = write_new(&to, |folder| {
            half(folder)?;
            // somebody else was faster
            fs::create_dir(&to).unwrap();
            fs::write(to.join("theirs"), "y").map_err(TrainerError::io(&to))
        });
        assert!(matches!(error, Err(TrainerError::Combine(CombineError::OutputExists { .. }))), "{error:?}");
        assert_eq!((names(), fs::read_dir(&to).unwrap().count()), (vec!["new".into()], 1));
    }

    #[test]
    fn of_two_writers_of_one_folder_the_second_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let to = parent.path().join("new");
        write_new(&to, |folder| {
            let error = write_new(&to, |_| Ok(())).unwrap_err();
            assert!(matches!(error, TrainerError::Combine(CombineError::OutputBusy { .. })), "{error}");
            fs::write(folder.join("mine"), "x").map_err(TrainerError::io(folder))
        })
        .unwrap();
        assert!(to.join("mine").exists());
    }
}
