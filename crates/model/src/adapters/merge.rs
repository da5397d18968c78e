//! An adapter written into the tensors of its base, as files name and store them.

use std::collections::BTreeMap;

use super::adapter::Adapter;
use super::module_adapter::ModuleAdapter;
use super::sites::Place;
use crate::error::{ModelError, Result};
use crate::ops::host;

/// What is left to be merged, by the names of the base's tensors.
#[derive(Debug)]
pub struct Merges<'a>(BTreeMap<String, Merge<'a>>);

/// The change of one tensor.
#[derive(Debug)]
pub struct Merge<'a> {
    place: Place,
    adapter: &'a ModuleAdapter,
    tensor: Stored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Weight,
    /// Not every base has it.
    Bias,
}

impl Adapter {
    /// Every tensor of the base that merging changes.
    #[must_use]
    pub fn merges(&self) -> Merges<'_> {
        let mut merges = BTreeMap::new();
        for (place, adapter) in self.modules() {
            if adapter.scales_bias().is_some() {
                let bias = Merge { place: place.clone(), adapter, tensor: Stored::Bias };
                merges.insert(format!("{}.bias", place.path), bias);
            }
            merges.insert(format!("{}.weight", place.path), Merge::of_weight(place, adapter));
        }
        Merges(merges)
    }
}

impl<'a> Merges<'a> {
    /// The change of the tensor that a file of the base calls `name`. GPT-2 on the hub was saved without `transformer.`.
    pub fn take(&mut self, name: &str) -> Option<Merge<'a>> {
        self.0.remove(name).or_else(|| self.0.remove(&format!("transformer.{name}")))
    }

    /// To be called when every tensor of the base was seen: [`ModelError::AdapterMismatch`] when a weight was not among them.
    pub fn finish(self) -> Result<()> {
        match self.0.into_iter().find(|(_, merge)| merge.tensor == Stored::Weight) {
            None => Ok(()),
            Some((name, _)) => mismatch(name, "the base model has no such weight".to_owned()),
        }
    }
}

impl<'a> Merge<'a> {
    /// The change of the module's matrix.
    #[must_use]
    pub fn of_weight(place: Place, adapter: &'a ModuleAdapter) -> Self {
        Self { place, adapter, tensor: Stored::Weight }
    }

    /// Changes `values`, stored in `shape`. A matrix that the base stores transposed stays so.
    pub fn apply(&self, shape: &[usize], values: &mut [f32]) -> Result<()> {
        match (self.tensor, shape, self.place.module.is_transposed()) {
            (Stored::Weight, [out, width], false) if self.adapter.fits([*out, *width]) => {
                self.adapter.merge_into(values, *width)
            }
            (Stored::Weight, [width, out], true) if self.adapter.fits([*out, *width]) => {
                let mut weight = transposed(values, *width, *out);
                self.adapter.merge_into(&mut weight, *width)?;
                values.copy_from_slice(&transposed(&weight, *out, *width));
                Ok(())
            }
            (Stored::Bias, [out], _) => match self.adapter.scales_bias() {
                Some(factors) if factors.elem_count() == *out => {
                    values.iter_mut().zip(host(factors)?.iter()).for_each(|(b, factor)| *b *= factor);
                    Ok(())
                }
                _ => self.other_shape(shape),
            },
            _ => self.other_shape(shape),
        }
    }

    fn other_shape(&self, shape: &[usize]) -> Result<()> {
        let name = if self.tensor == Stored::Weight { "weight" } else { "bias" };
        let reason = format!("the base has a tensor {shape:?}, the adapter is for another");
        mismatch(format!("{}.{name}", self.place.path), reason)
    }
}

fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

fn mismatch(name: String, reason: String) -> Result<()> {
    Err(ModelError::AdapterMismatch { name, reason })
}
