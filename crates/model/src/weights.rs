//! Weights of a model folder: one `model.safetensors`, or shards named by `model.safetensors.index.json`.
//!
//! Files are memory-mapped; each tensor is converted once to f32 (from F32, F16 or BF16) when it is asked for, so the peak is
//! the f32 model and not twice that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::error::{ModelError, Result};
use crate::ops::tensor;

/// Mapped files and where each tensor lies.
pub struct Weights {
    folder: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Maps the files of `folder` and reads their headers.
    pub fn open(folder: &Path) -> Result<Self> {
        let index_path = folder.join("model.safetensors.index.json");
        let single = folder.join("model.safetensors");
        let paths: Vec<PathBuf> = if !single.exists() && index_path.exists() {
            let text = fs::read_to_string(&index_path).map_err(ModelError::io(&index_path))?;
            let index: Index = serde_json::from_str(&text).map_err(ModelError::json(&index_path))?;
            // only the last part of a name: an index must not reach outside its folder
            let names: BTreeSet<&str> = index.weight_map.values().filter_map(|name| name.rsplit('/').next()).collect();
            let paths: Vec<PathBuf> = names.into_iter().map(|name| folder.join(name)).collect();
            if let Some(missing) = paths.iter().find(|path| !path.exists()) {
                return Err(ModelError::MissingShard { path: missing.clone(), index: index_path });
            }
            paths
        } else {
            vec![single]
        };
        Self::open_files(folder, paths)
    }

    /// Maps these files; `folder` is what error messages name.
    pub fn open_files(folder: &Path, paths: Vec<PathBuf>) -> Result<Self> {
        let mut weights = Self { folder: folder.to_path_buf(), files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            let file = File::open(&path).map_err(ModelError::io(&path))?;
            // SAFETY: the map is read-only; as with every memory-mapped model file, nobody may truncate it while it is in use.
            let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io(&path))?;
            let names: Vec<String> = parse(&path, &map)?.names().into_iter().map(str::to_owned).collect();
            for name in names {
                weights.tensors.insert(name, weights.files.len());
            }
            weights.files.push((path, map));
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
        let (path, map) = self.tensors.get(name).and_then(|index| self.files.get(*index)).ok_or_else(missing)?;
        let parsed = parse(path, map)?;
        let view = parsed.tensor(name).map_err(|_| missing())?;
        if view.shape() != wanted {
            let found = view.shape().to_vec();
            return Err(ModelError::WrongShape { name: name.to_owned(), wanted: wanted.to_vec(), found });
        }
        let bytes = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => bytes.par_chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => bytes.par_chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => bytes.par_chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => return Err(ModelError::WrongDtype { name: name.to_owned(), found: format!("{other:?}") }),
        };
        tensor(values, wanted)
    }
}

fn parse<'a>(path: &Path, map: &'a Mmap) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(map)
        .map_err(|error| ModelError::BadSafetensors { path: path.to_path_buf(), reason: error.to_string() })
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
