//! LoRA+ (Hayou et al. 2024): `B` learns `loraplus_lr_ratio` times as fast as `A`.
//!
//! The groups are those of `peft.optimizers.create_loraplus_optimizer`: `lora_B` and every tensor of one dimension (DoRA's
//! magnitudes) are fast, the others keep the learning rate. Weight decay is the same for both.

use tunesmith_model::Adapter;

/// For each tensor in the order of [`Adapter::parameters`] whether it learns fast.
#[must_use]
pub fn fast(adapter: &Adapter) -> Vec<bool> {
    let is_fast = |name: &str, dimensions: usize| name.contains("lora_B") || dimensions == 1;
    adapter.parameters().iter().map(|(name, tensor)| is_fast(name, tensor.dims().len())).collect()
}
