//! The plug: what the adapted linear layer asks of an adapter, answered by each method's own file.
//!
//! Every method is up to three changes of `y = x Wᵀ`: a factor on the input, a term of low rank, a factor on the output. The
//! layer calls them in this order and hands each gradient back in the reverse one ([`crate::ops::linear`]).

use candle_core::Tensor;

use super::Module;
use super::adalora::AdaLora;
use super::config::{AdapterConfig, Method};
use super::dora::Dora;
use super::gradient::TensorGradient;
use super::ia3::{Ia3, Scales};
use super::lora::Lora;
use super::start::Make;
use crate::error::Result;
use crate::ops::attention::Segments;
use crate::ops::gemm::View;
use crate::ops::linear::Site;

/// The adapter of one module.
#[derive(Debug, Clone)]
pub enum ModuleAdapter {
    /// LoRA and rsLoRA.
    Lora(Lora),
    /// DoRA.
    Dora(Dora),
    /// AdaLoRA.
    AdaLora(AdaLora),
    /// IA³.
    Ia3(Ia3),
}

impl ModuleAdapter {
    /// The adapter of `module`, `[out, in]`, with tensors that `make` gives. `rank` replaces AdaLoRA's initial one.
    pub(crate) fn build(
        config: &AdapterConfig,
        module: Module,
        shape: [usize; 2],
        rank_opt: Option<usize>,
        make: Make<'_>,
    ) -> Result<Self> {
        Ok(match &config.method {
            Method::Lora(lora) if lora.use_dora => Self::Dora(Dora::build(lora.rank, lora.scale(), shape, make)?),
            Method::Lora(lora) => Self::Lora(Lora::build(lora.rank, lora.scale(), shape, make)?),
            Method::AdaLora(ada) => {
                Self::AdaLora(AdaLora::build(rank_opt.unwrap_or(ada.init_r), ada.scale(), shape, make)?)
            }
            Method::Ia3(ia3) => {
                let inputs = ia3.feedforward_modules.contains(&module);
                Self::Ia3(Ia3::build(if inputs { Scales::Inputs } else { Scales::Outputs }, shape, make)?)
            }
        })
    }

    /// Its trainable tensors with the names that `peft` gives them in a file, in the order of their gradients.
    #[must_use]
    pub fn parameters(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Lora(lora) => lora.parameters(),
            Self::Dora(dora) => dora.parameters(),
            Self::AdaLora(ada) => ada.parameters(),
            Self::Ia3(ia3) => ia3.parameters(),
        }
    }

    /// Whether it can sit on a matrix `[out, in]`.
    #[must_use]
    pub fn fits(&self, [out, width]: [usize; 2]) -> bool {
        let low_rank = |a: &Tensor, b: &Tensor| a.dims().last() == Some(&width) && b.dims().first() == Some(&out);
        match self {
            Self::Lora(lora) => low_rank(&lora.a, &lora.b),
            Self::Dora(dora) => low_rank(&dora.lora.a, &dora.lora.b) && dora.magnitude.dims() == [out],
            Self::AdaLora(ada) => low_rank(&ada.a, &ada.b),
            Self::Ia3(ia3) => match ia3.scales {
                Scales::Outputs => ia3.l.dims() == [out, 1],
                Scales::Inputs => ia3.l.dims() == [1, width],
            },
        }
    }

    /// Writes the adapter into a copy of the frozen weight, `[out, in]` with rows of `width`. With
    /// [`ModuleAdapter::scales_bias`] the bias takes the factor, too.
    pub fn merge_into(&self, weight: &mut [f32], width: usize) -> Result<()> {
        match self {
            Self::Lora(lora) => lora.merge_into(weight),
            Self::Dora(dora) => dora.merge_into(weight),
            Self::AdaLora(ada) => ada.merge_into(weight),
            Self::Ia3(ia3) => ia3.merge_into(weight, width),
        }
    }

    /// The factor `[out]` that multiplies a bias of the frozen layer: IA³ multiplies outputs bias included, DoRA adds it after.
    #[must_use]
    pub fn scales_bias(&self) -> Option<&Tensor> {
        match self {
            Self::Ia3(ia3) if ia3.scales == Scales::Outputs => Some(&ia3.l),
            _ => None,
        }
    }

    /// What the frozen matrix gets instead of `x`; `None`: `x` itself.
    pub(crate) fn scaled_input(&self, x: &Tensor) -> Result<Option<Tensor>> {
        match self {
            Self::Ia3(ia3) if ia3.scales == Scales::Inputs => ia3.scaled_input(x).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether [`ModuleAdapter::scaled_input`] gives another input.
    pub(crate) fn scales_inputs(&self) -> bool {
        matches!(self, Self::Ia3(ia3) if ia3.scales == Scales::Inputs)
    }

    /// Whether [`ModuleAdapter::backward_outputs`] changes `dy`.
    pub(crate) fn scales_outputs(&self) -> bool {
        match self {
            Self::Lora(_) | Self::AdaLora(_) => false,
            Self::Dora(_) => true,
            Self::Ia3(ia3) => ia3.scales == Scales::Outputs,
        }
    }

    /// Turns the module's columns of `y` (rows `row_stride` apart), which hold the frozen product, into the module's output.
    /// Returns what the backward pass needs beyond `x`.
    pub(crate) fn forward(&self, site: Site<'_>, x: &Tensor, y: &mut [f32], row_stride: usize) -> Result<Vec<Tensor>> {
        match self {
            Self::Lora(lora) => Ok(vec![lora.forward(x, y, row_stride)?]),
            Self::Dora(dora) => dora.forward(site, x, y, row_stride),
            Self::AdaLora(ada) => Ok(vec![ada.forward(x, y, row_stride)?]),
            Self::Ia3(ia3) if ia3.scales == Scales::Outputs => Ok(vec![ia3.forward_outputs(y, row_stride)?]),
            Self::Ia3(_) => Ok(Vec::new()),
        }
    }

    /// Backward of the factor on the output: turns the columns of `dy` into the gradient of what was multiplied. `None` without
    /// such a factor.
    pub(crate) fn backward_outputs(
        &self,
        site: Site<'_>,
        dy: &mut [f32],
        row_stride: usize,
        kept: &[Tensor],
        examples: Option<&Segments>,
    ) -> Result<Option<TensorGradient>> {
        match (self, kept) {
            (Self::Dora(dora), [_, v]) => dora.backward_magnitude(site, dy, row_stride, v, examples).map(Some),
            (Self::Ia3(ia3), [v]) => ia3.backward_outputs(dy, row_stride, v, examples).map(Some),
            _ => Ok(None),
        }
    }

    /// Backward of the term of low rank: its gradients, in the order of [`ModuleAdapter::parameters`]; adds to `dx`.
    pub(crate) fn backward_low_rank(
        &self,
        dy: View<'_>,
        x: &Tensor,
        kept: &[Tensor],
        dx: Option<&mut [f32]>,
        examples: Option<&Segments>,
    ) -> Result<Vec<TensorGradient>> {
        match (self, kept) {
            (Self::Lora(lora), [u]) => lora.backward(dy, x, u, dx, examples),
            (Self::Dora(dora), [u, _]) => dora.lora.backward(dy, x, u, dx, examples),
            (Self::AdaLora(ada), [u]) => ada.backward(dy, x, u, dx, examples),
            _ => Ok(Vec::new()),
        }
    }

    /// Backward of the factor on the input: turns the gradient of the scaled input into that of `x`. `None` without such a
    /// factor.
    pub(crate) fn backward_inputs(
        &self,
        dx: &mut [f32],
        x: &Tensor,
        examples: Option<&Segments>,
    ) -> Result<Option<TensorGradient>> {
        match self {
            Self::Ia3(ia3) if ia3.scales == Scales::Inputs => ia3.backward_inputs(dx, x, examples).map(Some),
            _ => Ok(None),
        }
    }

    /// Must be called when tensors have changed in place.
    pub(crate) fn changed(&self) {
        if let Self::Dora(dora) = self {
            dora.forget_norms();
        }
    }

    /// The same adapter with tensors of its own.
    pub(crate) fn snapshot(&self) -> Result<Self> {
        let copy =
            |lora: &Lora| Ok::<_, candle_core::Error>(Lora { a: lora.a.copy()?, b: lora.b.copy()?, scale: lora.scale });
        Ok(match self {
            Self::Lora(lora) => Self::Lora(copy(lora)?),
            Self::Dora(dora) => Self::Dora(Dora::new(copy(&dora.lora)?, dora.magnitude.copy()?)),
            Self::AdaLora(ada) => {
                Self::AdaLora(AdaLora { a: ada.a.copy()?, b: ada.b.copy()?, e: ada.e.copy()?, scale: ada.scale })
            }
            Self::Ia3(ia3) => Self::Ia3(Ia3 { l: ia3.l.copy()?, scales: ia3.scales }),
        })
    }
}
