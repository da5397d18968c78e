//! Block formats: how the values of a tensor become bytes.
//!
//! candle's own quantisation (`candle_core::quantized`) makes the blocks; 32 values share one scale in Q8_0 and Q5_0, 256 values
//! share scales of scales in Q4_K and Q6_K. Norms, biases, learned positions and rotary factors stay f32, as in llama.cpp.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::f16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::refuse;
use super::tensors::Role;
use crate::error::Result;

/// How matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// 16 bits a value.
    F16,
    /// 8.5 bits a value.
    #[serde(rename = "Q8_0")]
    Q8_0,
    /// 4.5 bits a value, 6.6 for the head: llama.cpp calls the mix `Q4_K_S`, less its exceptions for the first layers.
    #[serde(rename = "Q4_K")]
    Q4K,
}

/// Rows that one task encodes; fixed, so that the bytes do not depend on the number of threads.
const ROWS: usize = 64;

impl Encoding {
    /// `general.file_type`: `MOSTLY_F16`, `MOSTLY_Q8_0`, `MOSTLY_Q4_K_S`.
    #[must_use]
    pub fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4K => 14,
        }
    }

    /// The block format of a tensor with rows of `columns` values. A block lies within one row, so where blocks do not fit, the
    /// next best format is taken as in llama.cpp's `tensor_type_fallback`: Q4_K → Q5_0, Q6_K → Q8_0, and F16 where rows are no
    /// multiple of 32.
    #[must_use]
    pub fn block(self, role: Role, columns: usize) -> GgmlDType {
        let (wide, narrow) = match (self, role) {
            (_, Role::Exact) => return GgmlDType::F32,
            (Self::F16, _) => return GgmlDType::F16,
            (Self::Q8_0, _) => (GgmlDType::Q8_0, GgmlDType::Q8_0),
            (Self::Q4K, Role::Matrix) => (GgmlDType::Q4K, GgmlDType::Q5_0),
            (Self::Q4K, Role::Head) => (GgmlDType::Q6K, GgmlDType::Q8_0),
        };
        let fits = |block: &GgmlDType| columns.is_multiple_of(block.block_size());
        [wide, narrow].into_iter().find(fits).unwrap_or(GgmlDType::F16)
    }
}

/// Bytes of `count` values.
#[must_use]
pub fn size(block: GgmlDType, count: usize) -> usize {
    count / block.block_size() * block.type_size()
}

/// The id of a block format in a file (`enum ggml_type`).
pub(super) fn id(block: GgmlDType) -> u32 {
    match block {
        GgmlDType::F16 => 1,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q4K => 12,
        GgmlDType::Q6K => 14,
        _ => 0, // F32: no other is made by `Encoding::block`
    }
}

/// The bytes of `values`, rows of `columns`. K-quants search the best scale of each block by weighted squares (the search that
/// an importance matrix steers, here with equal importance).
pub(super) fn encode(name: &str, values: &[f32], columns: usize, block: GgmlDType) -> Result<Vec<u8>> {
    if values.iter().any(|value| !value.is_finite()) {
        return refuse(name, "a value that is no number", "train or fetch the model again");
    }
    let bytes: Vec<Vec<u8>> = values
        .par_chunks(ROWS * columns)
        .map(|values| match block {
            GgmlDType::F32 => Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            GgmlDType::F16 => Ok(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()),
            _ => quantised(values, columns, block),
        })
        .collect::<Result<_>>()?;
    if block == GgmlDType::F16 && values.iter().any(|value| !f16::from_f32(*value).is_finite()) {
        return refuse(name, "a value beyond the 65,504 of f16", "choose Q8_0, whose scales reach further");
    }
    Ok(bytes.concat())
}

fn quantised(values: &[f32], columns: usize, block: GgmlDType) -> Result<Vec<u8>> {
    let rows = Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu)?;
    let blocks = match block {
        GgmlDType::Q4K | GgmlDType::Q6K => QTensor::quantize_imatrix(&rows, &vec![1.0; columns], block)?,
        _ => QTensor::quantize(&rows, block)?,
    };
    Ok(blocks.data()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn noise(count: usize) -> Vec<f32> {
        let mut rng = Rng::new(3, 3);
        (0..count).map(|_| (0..6).map(|_| rng.uniform() - 0.5).sum()).collect()
    }

    /// Root mean square error relative to the root mean square of the values.
    fn error(block: GgmlDType, values: &[f32], columns: usize) -> f32 {
        let bytes = encode("x", values, columns, block).unwrap();
        assert_eq!(bytes.len(), size(block, values.len()));
        let storage = candle_core::quantized::QStorage::from_data(bytes.into(), &Device::Cpu, block).unwrap();
        let back = QTensor::new(storage, (values.len() / columns, columns)).unwrap().dequantize(&Device::Cpu).unwrap();
        let back = back.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
        (square(&mut values.iter().zip(&back).map(|(a, b)| a - b)) / square(&mut values.iter().copied())).sqrt()
    }

    #[test]
    fn each_format_loses_as_much_as_it_must() {
        // normal values: Q4_K has 15 steps over about six deviations, Q6_K 63, Q8_0 254
        let values = noise(150 * 512);
        for (block, limit) in [
            (GgmlDType::F32, 0.0),
            (GgmlDType::F16, 3e-4),
            (GgmlDType::Q8_0, 0.006),
            (GgmlDType::Q6K, 0.02),
            (GgmlDType::Q5_0, 0.045),
            (GgmlDType::Q4K, 0.085),
        ] {
            let error = error(block, &values, 512);
            println!("{block:?}: relative error {error:e}");
            assert!(error <= limit, "{block:?}: {error}");
        }
    }

    #[test]
    fn rows_that_blocks_do_not_fit_fall_back_as_in_llama_cpp() {
        for (columns, matrix, head) in [
            (512, GgmlDType::Q4K, GgmlDType::Q6K),
            (688 - 16, GgmlDType::Q5_0, GgmlDType::Q8_0),
            (688, GgmlDType::F16, GgmlDType::F16),
        ] {
            assert_eq!(Encoding::Q4K.block(Role::Matrix, columns), matrix);
            assert_eq!(Encoding::Q4K.block(Role::Head, columns), head);
        }
        assert_eq!(Encoding::Q8_0.block(Role::Matrix, 36), GgmlDType::F16);
        assert_eq!(Encoding::Q4K.block(Role::Exact, 512), GgmlDType::F32);
    }

    #[test]
    fn values_that_a_format_cannot_hold_are_refused() {
        let error = encode("blk.0.ffn_up.weight", &[1.0, 70_000.0], 2, GgmlDType::F16).unwrap_err().to_string();
        assert!(error.contains("blk.0.ffn_up.weight") && error.contains("65,504"), "{error}");
        assert!(encode("x", &[f32::NAN, 0.0], 2, GgmlDType::F32).is_err());
    }
}
