//! Modules side by side whose inputs differ: IA³ multiplies that of a feed-forward module and leaves its neighbour's alone. Then
//! they share no product: each has one of its own, forward and backward.

use candle_core::Tensor;

use super::{AdaptedLinear, Wants, adapter};
use crate::adapters::gradient::TensorGradient;
use crate::adapters::{LayerAdapters, ModuleAdapter};
use crate::error::Result;
use crate::ops::gemm::{View, ViewMut, Write};
use crate::ops::host;

impl AdaptedLinear {
    /// Whether one of the modules has another input than `x`.
    pub(super) fn has_own_inputs(&self, adapters: Option<&LayerAdapters>) -> bool {
        self.parts.iter().any(|part| adapter(adapters, part).is_some_and(ModuleAdapter::scales_inputs))
    }

    /// `y` when modules have different inputs: one product each.
    pub(super) fn product_by_part(&self, x: &Tensor, adapters: Option<&LayerAdapters>) -> Result<Vec<f32>> {
        let ((n, width), [out, _]) = (x.dims2()?, self.weight.shape());
        let mut y = vec![0.0; n * out];
        for part in &self.parts {
            let scaled = adapter(adapters, part).map(|adapter| adapter.scaled_input(x)).transpose()?.flatten();
            let xs = host(scaled.as_ref().unwrap_or(x))?;
            let y = ViewMut::new(&mut y[part.start..], n, part.len, out);
            self.weight.product(y, View::new(&xs, n, width, width), part.start..part.start + part.len)?;
        }
        Ok(y)
    }

    /// `dx` and the gradients of the factors on inputs, part by part.
    pub(super) fn backward_by_part(
        &self,
        dy: &[f32],
        x: &Tensor,
        adapters: Option<&LayerAdapters>,
        wants: Wants<'_>,
    ) -> Result<(Vec<f32>, Vec<TensorGradient>)> {
        let ((n, width), [out, _]) = (x.dims2()?, self.weight.shape());
        let (mut dx, mut gradients) = (vec![0.0; n * width], Vec::new());
        for part in &self.parts {
            let dy = View::new(&dy[part.start..], n, part.len, out);
            let rows = part.start..part.start + part.len;
            let Some(adapter) = adapter(adapters, part).filter(|adapter| adapter.scales_inputs()) else {
                self.weight.input_gradient(ViewMut::new(&mut dx, n, width, width), Write::Add, dy, rows)?;
                continue;
            };
            let mut own = vec![0.0; n * width];
            self.weight.input_gradient(ViewMut::new(&mut own, n, width, width), Write::Replace, dy, rows)?;
            gradients.extend(adapter.backward_inputs(&mut own, x, wants.norms_of)?);
            dx.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        Ok((dx, gradients))
    }
}
