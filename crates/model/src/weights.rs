//! Weights of a model folder: one `model.safetensors`, or shards named by `model.safetensors.index.json`.
//!
//! Files are memory-mapped; each tensor is converted once to f32 (from F32, F16 or BF16) when it is asked for, so the peak is
//! the f32 model and not twice that; with quantised projections, the quantised model and one tensor in f32.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::error::{ModelError, Result};
use crate::ops::{filled, tensor};

/// The one file of a model that is not split.
pub const SINGLE: &str = "model.safetensors";
/// The file that names the shards of a model that is.
pub const INDEX: &str = "model.safetensors.index.json";

/// Mapped files and where each tensor lies.
pub struct Weights {
    folder: PathBuf,
    files: Vec<Mapped>,
    tensors: BTreeMap<String, usize>,
}

/// A file with its header, which is parsed once: a model has hundreds of tensors, and each is asked for.
struct Mapped {
    map: Mmap,
    header: Metadata,
    /// Where the values begin.
    start: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Names of the files with weights in a model folder, sorted.
///
/// # Errors
/// [`ModelError::MissingShard`] when one that the index names is not there.
pub fn files(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(INDEX);
    if folder.join(SINGLE).exists() || !path.exists() {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let text = fs::read_to_string(&path).map_err(ModelError::io(&path))?;
    let index: Index = serde_json::from_str(&text).map_err(ModelError::json(&path))?;
    // only the last part of a name: an index must not reach outside its folder
    let shards = || index.weight_map.values().filter_map(|name| name.rsplit('/').next());
    let names: BTreeSet<&str> = shards().collect();
    if let Some(missing) = names.iter().find(|name| !folder.join(name).exists()) {
        let num_tensors = shards().filter(|name| name == missing).count();
        return Err(ModelError::MissingShard { path: folder.join(missing), index: path, num_tensors });
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

impl Weights {
    /// Maps the files of `folder` and reads their headers.
    pub fn open(folder: &Path) -> Result<Self> {
        let paths = files(folder)?.into_iter().map(|name| folder.join(name)).collect();
        Self::open_files(folder, paths)
    }

    /// Maps these files; `folder` is what error messages name.
    pub fn open_files(folder: &Path, paths: Vec<PathBuf>) -> Result<Self> {
        let mut weights = Self { folder: folder.to_path_buf(), files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            let file = File::open(&path).map_err(ModelError::io(&path))?;
            // SAFETY: the map is read-only; as with every memory-mapped model file, nobody may truncate it while it is in use.
            let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io(&path))?;
            let (length, header) = SafeTensors::read_metadata(&map)
                .map_err(|error| ModelError::BadSafetensors { path: path.clone(), reason: error.to_string() })?;
            let index = weights.files.len();
            weights.tensors.extend(header.offset_keys().into_iter().map(|name| (name, index)));
            // the header follows its own length
            weights.files.push(Mapped { map, header, start: size_of::<u64>() + length });
        }
        Ok(weights)
    }

    /// Every name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor with this name exists.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor as f32; fails when it is absent or has another shape.
    pub fn get(&self, name: &str, wanted: &[usize]) -> Result<Tensor> {
        let missing = || ModelError::MissingTensor {
            name: name.to_owned(),
            wanted: wanted.to_vec(),
            folder: self.folder.clone(),
        };
        let file = self.tensors.get(name).and_then(|index| self.files.get(*index)).ok_or_else(missing)?;
        let info = file.header.info(name).ok_or_else(missing)?;
        if info.shape != wanted {
            let found = info.shape.clone();
            return Err(ModelError::WrongShape { name: name.to_owned(), wanted: wanted.to_vec(), found });
        }
        let (from, to) = info.data_offsets;
        let bytes = file.map.get(file.start + from..file.start + to).ok_or_else(missing)?;
        let values: Vec<f32> = match info.dtype {
            Dtype::F32 => widened(bytes, f32::from_le_bytes),
            Dtype::F16 => widened(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => widened(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            other => return Err(ModelError::WrongDtype { name: name.to_owned(), found: format!("{other:?}") }),
        };
        tensor(values, wanted)
    }
}

/// Values of `N` bytes each. In chunks, within which the conversion is a plain loop over memory.
fn widened<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    const CHUNK: usize = 256 << 10;
    let fill = |values: &mut [MaybeUninit<f32>]| {
        values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N)).for_each(|(values, bytes)| {
            for (to, from) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
                to.write(value(*from));
            }
        });
    };
    // SAFETY: there are as many values as whole groups of `N` bytes, and chunk by chunk each is written.
    unsafe { filled(bytes.len() / N, fill) }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn write(path: &Path, name: &str, dtype: Dtype, bytes: &[u8]) {
        let view = TensorView::new(dtype, vec![2, 2], bytes).unwrap();
        safetensors::serialize_to_file([(name, view)], None, path).unwrap();
    }

    #[test]
    fn reads_shards_in_three_formats() {
        let folder = tempfile::tempdir().unwrap();
        let values = [1.0f32, -2.0, 0.5, 3.0];
        let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        write(&folder.path().join("a.safetensors"), "x", Dtype::F32, &f32s);
        write(&folder.path().join("b.safetensors"), "y", Dtype::F16, &f16s);
        write(&folder.path().join("c.safetensors"), "z", Dtype::BF16, &bf16s);
        let index =
            r#"{"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "c.safetensors"}}"#;
        fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let weights = Weights::open(folder.path()).unwrap();
        for name in ["x", "y", "z"] {
            assert_eq!(weights.get(name, &[2, 2]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
        }
    }

    #[test]
    fn a_missing_and_a_truncated_shard_are_named_before_anything_is_computed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        write(&path("a.safetensors"), "x", Dtype::F32, &[0; 16]);
        write(&path("b.safetensors"), "y", Dtype::F32, &[0; 16]);
        let index = r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors"}}"#;
        fs::write(path("model.safetensors.index.json"), index).unwrap();
        assert!(Weights::open(folder.path()).is_ok());
        let bytes = fs::read(path("b.safetensors")).unwrap();
        for kept in [bytes.len() - 1, 40, 3, 0] {
            fs::write(path("b.safetensors"), &bytes[..kept]).unwrap();
            let text = Weights::open(folder.path()).err().unwrap().to_string();
            assert!(text.contains("b.safetensors") && text.contains("fetch it again"), "{kept} bytes: {text}");
        }
        fs::remove_file(path("b.safetensors")).unwrap();
        let text = Weights::open(folder.path()).err().unwrap().to_string();
        for part in ["b.safetensors is missing", "index.json wants 2 tensors", "fetch it again"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn errors_name_tensor_and_shapes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        write(&path, "x", Dtype::I32, &[0; 16]);
        let weights = Weights::open(folder.path()).unwrap();
        assert!(matches!(weights.get("y", &[2]), Err(ModelError::MissingTensor { .. })));
        assert!(matches!(weights.get("x", &[2, 2]), Err(ModelError::WrongDtype { .. })));
        let message = weights.get("x", &[4]).unwrap_err().to_string();
        assert!(message.contains("[2, 2]") && message.contains("[4]") && message.contains('x'), "{message}");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        assert!(matches!(Weights::open(folder.path()), Err(ModelError::BadSafetensors { .. })), "truncated");
    }
}
