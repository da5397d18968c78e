//! Named flat tensors in a safetensors file: moments, gradient sums and AdaLoRA's importance of a checkpoint.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::blockwise::{BLOCK, Blockwise};
use crate::checkpoint::corrupt;
use crate::error::{Result, TrainingError};

/// A tensor on its way to a file.
#[derive(Clone)]
pub(crate) struct Outgoing {
    pub name: String,
    pub dtype: Dtype,
    pub bytes: Vec<u8>,
}

impl Outgoing {
    pub fn new(name: String, values: &[f32]) -> Self {
        Self { name, dtype: Dtype::F32, bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }
}

pub(crate) fn write_tensors(tensors: &[Outgoing], path: &Path) -> Result<()> {
    let broken = |error: safetensors::SafeTensorError| corrupt(path, &error.to_string());
    let mut views = Vec::with_capacity(tensors.len());
    for Outgoing { name, dtype, bytes } in tensors {
        let length = bytes.len() * 8 / dtype.bitsize();
        views.push((name.as_str(), TensorView::new(*dtype, vec![length], bytes).map_err(broken)?));
    }
    // to memory first: a full disk is then an I/O error with its own words
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>).map_err(broken)?;
    fs::write(path, bytes).map_err(TrainingError::io(path))
}

/// The bytes of a safetensors file.
pub(crate) struct Tensors {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// The tensors in them.
pub(crate) struct Parsed<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
}

impl Tensors {
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|error| corrupt(path, &error.to_string()))?;
        Ok(Self { path: path.to_path_buf(), bytes })
    }

    pub fn all<T>(&self, count: usize, read: impl Fn(&Parsed<'_>, usize) -> Result<T>) -> Result<Vec<T>> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| corrupt(&self.path, &error.to_string()))?;
        let parsed = Parsed { path: &self.path, tensors };
        (0..count).map(|index| read(&parsed, index)).collect()
    }

    /// `{kind}.0`, `{kind}.1` and so on, as many as there are.
    pub fn every(&self, kind: &str) -> Result<Vec<Vec<f32>>> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| corrupt(&self.path, &error.to_string()))?;
        let parsed = Parsed { path: &self.path, tensors };
        let names = (0..).map(|index| format!("{kind}.{index}"));
        names.take_while(|name| parsed.tensors.tensor(name).is_ok()).map(|name| parsed.f32(&name)).collect()
    }
}

impl Parsed<'_> {
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        self.tensors.tensor(name).map_err(|error| corrupt(self.path, &error.to_string()))
    }

    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        let view = self.view(name)?;
        if view.dtype() != Dtype::F32 {
            return Err(corrupt(self.path, &format!("{name} is stored as {:?}, wanted F32", view.dtype())));
        }
        Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    pub fn blockwise(&self, name: &str) -> Result<Blockwise> {
        let stored =
            Blockwise { codes: self.view(name)?.data().to_vec(), absmax: self.f32(&format!("{name}.absmax"))? };
        let blocks = stored.codes.len().div_ceil(BLOCK);
        if stored.absmax.len() != blocks {
            return Err(corrupt(self.path, &format!("{name} has {blocks} blocks and {} scales", stored.absmax.len())));
        }
        Ok(stored)
    }
}
