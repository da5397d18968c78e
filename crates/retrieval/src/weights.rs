//! Reading tensors by name and shape from a safetensors file.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// Why the weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Not a safetensors file, or a damaged one.
    #[error("not a whole safetensors file: {0}")]
    File(#[from] safetensors::SafeTensorError),
    /// A tensor is not there.
    #[error("tensor {0} is not there")]
    Missing(String),
    /// A tensor has another shape than `config.json` says.
    #[error("tensor {name} has shape {found:?}; config.json wants {wanted:?}")]
    Shape {
        /// Its name.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// By the configuration.
        wanted: Vec<usize>,
    },
    /// A number format that is not read.
    #[error("tensor {0} holds {1:?}; F32, F16 and BF16 are read")]
    Format(String, Dtype),
}

/// A place in a model: names below it are completed with its prefix.
#[derive(Clone, Debug)]
pub(crate) struct Weights<'a> {
    file: &'a SafeTensors<'a>,
    prefix: String,
}

impl<'a> Weights<'a> {
    /// The root of a file.
    pub fn new(file: &'a SafeTensors<'a>) -> Self {
        Self { file, prefix: String::new() }
    }

    /// The place `name` below this one.
    pub fn below(&self, name: &str) -> Self {
        Self { file: self.file, prefix: format!("{}{name}.", self.prefix) }
    }

    /// The numbers of a tensor, row-major.
    pub fn get(&self, shape: &[usize], name: &str) -> Result<Vec<f32>, WeightsError> {
        let name = format!("{}{name}", self.prefix);
        let view = self.file.tensor(&name).map_err(|_| WeightsError::Missing(name.clone()))?;
        if view.shape() != shape {
            return Err(WeightsError::Shape { name, found: view.shape().to_vec(), wanted: shape.to_vec() });
        }
        let (pairs, _) = view.data().as_chunks::<2>();
        let (quads, _) = view.data().as_chunks::<4>();
        match view.dtype() {
            Dtype::F32 => Ok(quads.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Ok(pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::BF16 => Ok(pairs.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
            other => Err(WeightsError::Format(name, other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use safetensors::{serialize, tensor::TensorView};

    use super::*;

    #[test]
    fn tensors_are_found_by_name_and_shape_and_what_is_wrong_is_named() {
        let numbers = [1.0_f32, -2.5];
        let (f32s, f16s, ints) = (
            numbers.map(f32::to_le_bytes).concat(),
            numbers.map(|x| f16::from_f32(x).to_le_bytes()).concat(),
            vec![0; 2],
        );
        let view = |dtype, bytes: &'static [u8]| TensorView::new(dtype, vec![2, 1], bytes).unwrap();
        let leak = |bytes: Vec<u8>| -> &'static [u8] { Box::leak(bytes.into_boxed_slice()) };
        let file = serialize(
            [
                ("a.f32", view(Dtype::F32, leak(f32s))),
                ("a.f16", view(Dtype::F16, leak(f16s))),
                ("a.int", view(Dtype::I8, leak(ints))),
            ],
            None,
        )
        .unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let at = Weights::new(&file).below("a");
        assert_eq!(at.get(&[2, 1], "f32").unwrap(), numbers);
        assert_eq!(at.get(&[2, 1], "f16").unwrap(), numbers);
        assert!(at.get(&[2, 1], "none").unwrap_err().to_string().contains("a.none is not there"));
        assert!(at.get(&[1, 2], "f32").unwrap_err().to_string().contains("[2, 1]; config.json wants [1, 2]"));
        assert!(at.get(&[2, 1], "int").unwrap_err().to_string().contains("I8"));
    }
}
