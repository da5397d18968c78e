//! `W + s · B A`, written in the number format and the files of the base model.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use serde_json::Value;
use tunesmith_model::{LoraAdapter, ModelError, Module};

use crate::error::{Result, TrainerError};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Merged {
    /// Relative rounding error of the coarsest format among the merged tensors; 0 for f32.
    pub epsilon: f32,
}

/// Writes every weight file of `base` to `to`, with the adapter merged in. One file is in memory at a time.
pub fn write(base: &Path, adapter: &LoraAdapter, to: &Path) -> Result<Merged> {
    let deltas = deltas(adapter)?;
    let mut left: BTreeSet<&str> = deltas.keys().map(String::as_str).collect();
    let mut epsilon = 0.0f32;
    for name in files(base)? {
        let (from, target) = (base.join(&name), to.join(&name));
        let file = File::open(&from).map_err(TrainerError::io(&from))?;
        // SAFETY: the map is read-only and lives for this file only; as with every memory-mapped model, nobody may truncate it
        // meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(TrainerError::io(&from))?;
        let bad = |error: SafeTensorError| bad(&from, &error);
        let tensors = SafeTensors::deserialize(&map).map_err(bad)?;
        let (_, header) = SafeTensors::read_metadata(&map).map_err(bad)?;
        let mut changed: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        let mut same = Vec::new();
        for (tensor, view) in tensors.tensors() {
            let Some(delta) = deltas.get(&tensor) else {
                same.push((tensor, view));
                continue;
            };
            left.remove(tensor.as_str());
            epsilon = epsilon.max(rounding(view.dtype()));
            changed.push((
                tensor.clone(),
                view.dtype(),
                view.shape().to_vec(),
                added(&tensor, &view, &delta.multiply())?,
            ));
        }
        let mut views: Vec<(String, TensorView<'_>)> = same;
        for (tensor, dtype, shape, bytes) in &changed {
            views.push((tensor.clone(), TensorView::new(*dtype, shape.clone(), bytes).map_err(bad)?));
        }
        // sorted, so that the same model gives the same bytes
        views.sort_by(|a, b| a.0.cmp(&b.0));
        safetensors::serialize_to_file(views, header.metadata().clone(), &target)
            .map_err(|error| self::bad(&target, &error))?;
    }
    if let Some(name) = left.first() {
        let reason = "the base model has no such weight".to_owned();
        return Err(ModelError::AdapterMismatch { name: (*name).to_owned(), reason }.into());
    }
    let index = base.join(INDEX);
    if index.exists() && !base.join(SINGLE).exists() {
        fs::copy(&index, to.join(INDEX)).map_err(TrainerError::io(&index))?;
    }
    Ok(Merged { epsilon })
}

/// One projection's change, not yet multiplied out.
struct Delta {
    a: Vec<Vec<f32>>,
    b: Vec<Vec<f32>>,
    scale: f32,
}

impl Delta {
    /// `s · B A`, row by row; sums in f64, so that the order does not matter at the precision of the result.
    fn multiply(&self) -> Vec<f32> {
        let width = self.a.first().map_or(0, Vec::len);
        let mut out = Vec::with_capacity(self.b.len() * width);
        let mut sums = vec![0.0f64; width];
        for row in &self.b {
            sums.fill(0.0);
            for (factor, a) in row.iter().zip(&self.a) {
                sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += f64::from(*factor) * f64::from(*a));
            }
            out.extend(sums.iter().map(|sum| (*sum * f64::from(self.scale)) as f32));
        }
        out
    }
}

/// By the name of the weight it changes.
fn deltas(adapter: &LoraAdapter) -> Result<BTreeMap<String, Delta>> {
    let mut deltas = BTreeMap::new();
    for index in 0..adapter.num_layers() {
        let Some(layer) = adapter.layer(index) else { continue };
        for module in Module::ALL {
            let Some(pair) = layer.get(module) else { continue };
            let a = pair.a.to_vec2::<f32>().map_err(ModelError::from)?;
            let b = pair.b.to_vec2::<f32>().map_err(ModelError::from)?;
            let name = format!("model.layers.{index}.{}.weight", module.path());
            deltas.insert(name, Delta { a, b, scale: layer.scale() });
        }
    }
    Ok(deltas)
}

fn added(name: &str, view: &TensorView<'_>, delta: &[f32]) -> Result<Vec<u8>> {
    let bytes = view.data();
    let wrong =
        || TrainerError::from(ModelError::WrongDtype { name: name.to_owned(), found: format!("{:?}", view.dtype()) });
    let size = if view.dtype() == Dtype::F32 { 4 } else { 2 };
    if bytes.len() != delta.len() * size {
        let reason = format!("{} values in the base, {} in the adapter", bytes.len() / size, delta.len());
        return Err(ModelError::AdapterMismatch { name: name.to_owned(), reason }.into());
    }
    let mut out = Vec::with_capacity(bytes.len());
    for (old, delta) in bytes.chunks_exact(size).zip(delta) {
        match (view.dtype(), old) {
            (Dtype::F32, [a, b, c, d]) => out.extend((f32::from_le_bytes([*a, *b, *c, *d]) + delta).to_le_bytes()),
            (Dtype::F16, [a, b]) => {
                out.extend(f16::from_f32(f16::from_le_bytes([*a, *b]).to_f32() + delta).to_le_bytes())
            }
            (Dtype::BF16, [a, b]) => {
                out.extend(bf16::from_f32(bf16::from_le_bytes([*a, *b]).to_f32() + delta).to_le_bytes())
            }
            _ => return Err(wrong()),
        }
    }
    Ok(out)
}

/// Half the distance between 1 and its neighbour.
fn rounding(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => 1.0 / 2048.0,
        Dtype::BF16 => 1.0 / 256.0,
        _ => 0.0,
    }
}

fn files(base: &Path) -> Result<Vec<String>> {
    if base.join(SINGLE).exists() {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let path = base.join(INDEX);
    let text = fs::read_to_string(&path).map_err(TrainerError::io(&path))?;
    let location = tunesmith_contract::job::Location::Local(path);
    let index: Value = serde_json::from_str(&text).map_err(TrainerError::json(&location, "index of weights"))?;
    let names = index["weight_map"].as_object().into_iter().flat_map(|map| map.values()).filter_map(Value::as_str);
    // only the last part of a name: an index must not reach outside its folder
    let names: BTreeSet<String> = names.filter_map(|name| name.rsplit('/').next()).map(str::to_owned).collect();
    Ok(names.into_iter().collect())
}

fn bad(path: &Path, error: &SafeTensorError) -> TrainerError {
    ModelError::BadSafetensors { path: PathBuf::from(path), reason: error.to_string() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_change_is_scale_times_b_times_a() {
        let delta = Delta { a: vec![vec![1.0, 2.0, 3.0]], b: vec![vec![2.0], vec![-1.0]], scale: 0.5 };
        assert_eq!(delta.multiply(), [1.0, 2.0, 3.0, -0.5, -1.0, -1.5]);
    }

    #[test]
    fn each_format_is_rounded_to_itself_and_others_are_refused() {
        let merged = |dtype, bytes: &[u8]| {
            let view = TensorView::new(dtype, vec![1, 2], bytes).unwrap();
            added("w", &view, &[0.5, -1.0])
        };
        let f32s: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            merged(Dtype::F32, &f32s).unwrap(),
            [1.5f32, 1.0].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()
        );
        let bf16s: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let wanted: Vec<u8> = [1.5f32, 1.0].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(merged(Dtype::BF16, &bf16s).unwrap(), wanted);
        assert!(merged(Dtype::I16, &bf16s).is_err());
        let short = TensorView::new(Dtype::F32, vec![1], &f32s[..4]).unwrap();
        assert!(added("w", &short, &[0.5, -1.0]).unwrap_err().to_string().contains("1 values in the base, 2"));
    }
}
