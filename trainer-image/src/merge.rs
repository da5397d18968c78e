//! The adapter written into the weights, in the number format and the files of the base model.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use tunesmith_model::{
    Adapter, ModelError,
    adapters::Merge,
    weights::{INDEX, SINGLE, files},
};

use crate::error::{Result, TrainerError};

/// Writes every weight file of `base` to `to`, with the adapter merged in. One file is in memory at a time; each has its name when
/// it is whole, and one that is there is not written again. `progress` hears of each file how many there are and how many are
/// written.
///
/// # Errors
/// [`ModelError::AdapterMismatch`] when the adapter is for another base; [`TrainerError::Io`] when the disk is full: the file that
/// was being written is removed then.
pub fn write(base: &Path, adapter: &Adapter, to: &Path, mut progress: impl FnMut(usize, usize)) -> Result<()> {
    let mut merges = adapter.merges();
    let names = files(base)?;
    for (index, name) in names.iter().enumerate() {
        progress(index, names.len());
        let (from, target) = (base.join(name), to.join(name));
        let file = File::open(&from).map_err(TrainerError::io(&from))?;
        // SAFETY: the map is read-only and lives for this file only; as with every memory-mapped model, nobody may truncate it
        // meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(TrainerError::io(&from))?;
        let bad = |error: SafeTensorError| bad(&from, error);
        let tensors = SafeTensors::deserialize(&map).map_err(bad)?;
        if target.exists() {
            tensors.names().into_iter().for_each(|tensor| drop(merges.take(tensor)));
            continue;
        }
        let (_, header) = SafeTensors::read_metadata(&map).map_err(bad)?;
        let mut changed: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        let mut same = Vec::new();
        for (tensor, view) in tensors.tensors() {
            let Some(merge) = merges.take(&tensor) else {
                same.push((tensor, view));
                continue;
            };
            let bytes = merged(&tensor, &view, &merge)?;
            changed.push((tensor.clone(), view.dtype(), view.shape().to_vec(), bytes));
        }
        let mut views: Vec<(String, TensorView<'_>)> = same;
        for (tensor, dtype, shape, bytes) in &changed {
            views.push((tensor.clone(), TensorView::new(*dtype, shape.clone(), bytes).map_err(bad)?));
        }
        // sorted, so that the same model gives the same bytes
        views.sort_by(|a, b| a.0.cmp(&b.0));
        let part = target.with_added_extension("part");
        let written = safetensors::serialize_to_file(views, header.metadata().clone(), &part)
            .map_err(|error| self::bad(&part, error))
            // on the disk before it has its name: a file that is there is taken for whole
            .and_then(|()| File::open(&part).and_then(|file| file.sync_all()).map_err(TrainerError::io(&part)))
            .and_then(|()| fs::rename(&part, &target).map_err(TrainerError::io(&target)));
        if written.is_err() {
            // the first error says what is wrong
            let _ = fs::remove_file(&part);
        }
        written?;
    }
    merges.finish()?;
    progress(names.len(), names.len());
    let index = base.join(INDEX);
    if index.exists() && !base.join(SINGLE).exists() {
        fs::copy(&index, to.join(INDEX)).map_err(TrainerError::io(&index))?;
    }
    Ok(())
}

/// The tensor with the adapter in it, computed in f32 and rounded to the tensor's own format.
fn merged(name: &str, view: &TensorView<'_>, merge: &Merge<'_>) -> Result<Vec<u8>> {
    let mut weight = Vec::with_capacity(view.data().len() / 2);
    for value in view.data().chunks_exact(if view.dtype() == Dtype::F32 { 4 } else { 2 }) {
        weight.push(match (view.dtype(), value) {
            (Dtype::F32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
            (Dtype::F16, [a, b]) => f16::from_le_bytes([*a, *b]).to_f32(),
            (Dtype::BF16, [a, b]) => bf16::from_le_bytes([*a, *b]).to_f32(),
            (other, _) => {
                return Err(ModelError::WrongDtype { name: name.to_owned(), found: format!("{other:?}") }.into());
            }
        });
    }
    merge.apply(view.shape(), &mut weight)?;
    Ok(match view.dtype() {
        Dtype::F16 => weight.into_iter().flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
        Dtype::BF16 => weight.into_iter().flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
        _ => weight.into_iter().flat_map(f32::to_le_bytes).collect(),
    })
}

fn bad(path: &Path, error: SafeTensorError) -> TrainerError {
    match error {
        // the file is not wrong, it cannot be written
        SafeTensorError::IoError(source) => TrainerError::io(path)(source),
        error => ModelError::BadSafetensors { path: PathBuf::from(path), reason: error.to_string() }.into(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use tunesmith_model::{
        AdapterConfig, Decoder, Module,
        adapters::{ModuleAdapter, Place, lora::Lora},
    };

    use super::*;

    /// Adds `[0.5, -1.0]` to a row of two.
    fn adapter() -> ModuleAdapter {
        let tensor = |values: &[f32], shape: (usize, usize)| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        ModuleAdapter::Lora(Lora { a: tensor(&[1.0, -2.0], (1, 2)), b: tensor(&[0.25], (1, 1)), scale: 2.0 })
    }

    fn place() -> Place {
        Place { layer: 0, module: Module::Q, path: Module::Q.path_in(0), shape: [1, 2] }
    }

    /// A link in the place of the file that is being written, to a device that is always full.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_from_a_damaged_file_and_nothing_half_written_is_left() {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("base-model");
        let model = Decoder::load(&base).unwrap();
        let adapter = Adapter::new(AdapterConfig::lora(1, 2.0), &model, 1).unwrap();
        let to = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", to.path().join("model.safetensors.part")).unwrap();
        let error = write(&base, &adapter, to.path(), |_, _| {}).unwrap_err();
        let TrainerError::Io { path, source } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        assert!(path.ends_with("model.safetensors.part") && error.to_string().contains("the disk has room"), "{error}");
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0, "nothing half-written");
        write(&base, &adapter, to.path(), |_, _| {}).unwrap();
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
    }

    #[test]
    fn each_format_is_rounded_to_itself_and_others_are_refused() {
        let merge = |dtype, bytes: &[u8]| {
            let view = TensorView::new(dtype, vec![1, 2], bytes).unwrap();
            merged("w", &view, &Merge::of_weight(place(), &adapter()))
        };
        let f32s: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let wanted: Vec<u8> = [1.5f32, 1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(merge(Dtype::F32, &f32s).unwrap(), wanted);
        let bf16s: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let wanted: Vec<u8> = [1.5f32, 1.0].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(merge(Dtype::BF16, &bf16s).unwrap(), wanted);
        assert!(merge(Dtype::I16, &bf16s).is_err());
        let short = TensorView::new(Dtype::F32, vec![1, 1], &f32s[..4]).unwrap();
        assert!(
            merged("w", &short, &Merge::of_weight(place(), &adapter()))
                .unwrap_err()
                .to_string()
                .contains("tensor [1, 1]")
        );
    }
}
