//! The least that a training step must compute: floating-point operations, a multiplication and an addition each counted.
//!
//! Per token: `4 N` for the frozen matrices (product and gradient of the input; `N` their values, the head included, the
//! embedding not), `6 P` for the adapter (product, gradient of the input, gradient of the weights; `P` its values), and per
//! layer `12 · H d` for every key that a query sees (two products forward, four backward). What an engine computes twice to save
//! memory, be it a layer or the scores of attention, is not useful work and not counted.

use tunesmith_model::ModelConfig;

/// Operations of one step over sequences of these lengths with `num_parameters` trained values.
pub fn of_step(model: &ModelConfig, num_parameters: usize, lengths: &[usize]) -> f64 {
    let shapes = model.modules().iter().map(|module| model.module_shape(*module));
    let per_layer: usize = shapes.map(|[out, width]| out * width).sum();
    let frozen = model.num_hidden_layers * per_layer + model.vocab_size * model.hidden_size;
    let tokens: usize = lengths.iter().sum();
    let seen: usize = lengths.iter().map(|length| length * (length + 1) / 2).sum();
    let attention = 12 * model.num_hidden_layers * model.num_attention_heads * model.head_dim * seen;
    ((4 * frozen + 6 * num_parameters) * tokens + attention) as f64
}
