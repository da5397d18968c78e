//! Names, order and form of the tensors: where each lies in Hugging Face layout, and what llama.cpp wants done to it.
//!
//! - `llama` rotates neighbouring values `(2i, 2i+1)` where Hugging Face rotates halves `(i, i + d/2)`: rows of query and key are
//!   reordered within each head, so that row `2i + s` of a head is its row `i + s · d/2`, biases too. The other architectures
//!   rotate halves and keep their order.
//! - `gemma2` multiplies by the stored norm, Hugging Face by `1 + w`: 1 is added.
//! - GPT-2's `[in, out]` matrices are transposed to `[out, in]`.

use super::architecture::Architecture;
use crate::adapters::Module;
use crate::config::{Layout, ModelConfig, NormKind, Positions, RopeScaling};
use crate::ops::rope_scaling::frequencies;

/// What a tensor is for, as far as its block format depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The matrix that logits come from: the head, or the embedding that is the head too.
    Head,
    /// Any other matrix.
    Matrix,
    /// Norms, biases, positions, rotary factors: few values that everything passes through.
    Exact,
}

/// Where the values come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// A tensor in Hugging Face layout, by its name there.
    Stored(String),
    /// Made from the configuration.
    Made(Vec<f32>),
}

/// What is done to the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// 1 is added.
    PlusOne,
    /// Rows become columns.
    Transpose,
    /// Rows of so many heads are reordered for neighbouring pairs.
    Interleave {
        /// Number of heads.
        heads: usize,
    },
}

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Its name in GGUF.
    pub name: String,
    /// Its values.
    pub values: Values,
    /// Its shape in GGUF, rows first.
    pub shape: Vec<usize>,
    /// What is done to the values on the way.
    pub change: Change,
    /// What it is for.
    pub role: Role,
}

impl Planned {
    /// Shape in Hugging Face layout.
    #[must_use]
    pub fn stored_shape(&self) -> Vec<usize> {
        match (self.change, self.shape.as_slice()) {
            (Change::Transpose, [out, width]) => vec![*width, *out],
            _ => self.shape.clone(),
        }
    }

    /// Length of a row.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Change {
    /// From Hugging Face to GGUF; `columns` is the length of a row before the change.
    #[must_use]
    pub fn apply(self, values: Vec<f32>, columns: usize) -> Vec<f32> {
        match self {
            Self::Nothing => values,
            Self::PlusOne => values.into_iter().map(|value| value + 1.0).collect(),
            Self::Transpose => transposed(&values, columns),
            Self::Interleave { heads } => reordered(&values, heads, columns, |half, row| {
                let (pair, side) = (row / 2, row % 2);
                side * half + pair
            }),
        }
    }

    /// From GGUF to Hugging Face; `columns` is the length of a row before this.
    #[must_use]
    pub fn undo(self, values: Vec<f32>, columns: usize) -> Vec<f32> {
        match self {
            Self::Nothing => values,
            Self::PlusOne => values.into_iter().map(|value| value - 1.0).collect(),
            Self::Transpose => transposed(&values, columns),
            Self::Interleave { heads } => reordered(&values, heads, columns, |half, row| {
                let (side, pair) = (row / half, row % half);
                2 * pair + side
            }),
        }
    }
}

fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

/// Row `row` of each head becomes what was its row `from(half, row)`.
fn reordered(values: &[f32], heads: usize, columns: usize, from: impl Fn(usize, usize) -> usize) -> Vec<f32> {
    let head = values.len() / heads.max(1);
    let (rows, half) = (head / columns, head / columns / 2);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head) {
        for row in 0..rows {
            let from = from(half, row) * columns;
            out.extend_from_slice(&head[from..from + columns]);
        }
    }
    out
}

/// Every tensor of the file, in its order.
#[must_use]
pub fn plan(config: &ModelConfig, architecture: Architecture) -> Vec<Planned> {
    let mut plan = Plan { config, architecture, tensors: Vec::new() };
    let (h, vocabulary) = (config.hidden_size, config.vocab_size);
    let gpt2 = config.layout == Layout::Gpt2;
    let (embedding, last) =
        if gpt2 { ("transformer.wte", "transformer.ln_f") } else { ("model.embed_tokens", "model.norm") };
    let role = if config.tie_word_embeddings { Role::Head } else { Role::Matrix };
    plan.stored("token_embd.weight", &format!("{embedding}.weight"), vec![vocabulary, h], Change::Nothing, role);
    if config.positions == Positions::Learned {
        let shape = vec![config.max_position_embeddings, h];
        plan.stored("position_embd.weight", "transformer.wpe.weight", shape, Change::Nothing, Role::Exact);
    }
    plan.rotary_factors();
    (0..config.num_hidden_layers).for_each(|layer| plan.layer(layer));
    plan.norm("output_norm", last);
    if !config.tie_word_embeddings {
        plan.stored("output.weight", "lm_head.weight", vec![vocabulary, h], Change::Nothing, Role::Head);
    }
    plan.tensors
}

/// A projection's name in a layer, and which it is.
type Named = (&'static str, Module);

struct Plan<'a> {
    config: &'a ModelConfig,
    architecture: Architecture,
    tensors: Vec<Planned>,
}

impl Plan<'_> {
    fn stored(&mut self, name: &str, from: &str, shape: Vec<usize>, change: Change, role: Role) {
        let values = Values::Stored(from.to_owned());
        self.tensors.push(Planned { name: name.to_owned(), values, shape, change, role });
    }

    fn norm(&mut self, name: &str, from: &str) {
        let shape = vec![self.config.hidden_size];
        let change = if self.config.norm == NormKind::RmsPlusOne { Change::PlusOne } else { Change::Nothing };
        self.stored(&format!("{name}.weight"), &format!("{from}.weight"), shape.clone(), change, Role::Exact);
        if self.config.norm == NormKind::Layer {
            self.stored(&format!("{name}.bias"), &format!("{from}.bias"), shape, Change::Nothing, Role::Exact);
        }
    }

    fn linear(&mut self, layer: usize, name: &str, module: Module) {
        let [out, width] = self.config.module_shape(module);
        let heads = match module {
            Module::Q => Some(self.config.num_attention_heads),
            Module::K => Some(self.config.num_key_value_heads),
            _ => None,
        };
        let of_rows = match heads.filter(|_| self.architecture.rotates_neighbours()) {
            Some(heads) => Change::Interleave { heads },
            None => Change::Nothing,
        };
        let change = if module.is_transposed() { Change::Transpose } else { of_rows };
        let (name, from) = (format!("blk.{layer}.{name}"), module.path_in(layer));
        self.stored(&format!("{name}.weight"), &format!("{from}.weight"), vec![out, width], change, Role::Matrix);
        if self.config.has_bias(module) {
            self.stored(&format!("{name}.bias"), &format!("{from}.bias"), vec![out], of_rows, Role::Exact);
        }
    }

    fn layer(&mut self, layer: usize) {
        let (config, gguf) = (self.config, format!("blk.{layer}"));
        let gpt2 = config.layout == Layout::Gpt2;
        let path = if gpt2 { format!("transformer.h.{layer}") } else { format!("model.layers.{layer}") };
        let first = if gpt2 { "ln_1" } else { "input_layernorm" };
        self.norm(&format!("{gguf}.attn_norm"), &format!("{path}.{first}"));
        let (attention, feed_forward): (&[Named], &[Named]) = match config.layout {
            Layout::Llama => (
                &[("attn_q", Module::Q), ("attn_k", Module::K), ("attn_v", Module::V), ("attn_output", Module::O)],
                &[("ffn_gate", Module::Gate), ("ffn_up", Module::Up), ("ffn_down", Module::Down)],
            ),
            // llama.cpp keeps gate and up in one matrix, gate first, as here
            Layout::Phi3 => (
                &[("attn_qkv", Module::Qkv), ("attn_output", Module::O)],
                &[("ffn_up", Module::GateUp), ("ffn_down", Module::Down)],
            ),
            Layout::Gpt2 => (
                &[("attn_qkv", Module::CAttn), ("attn_output", Module::AttnCProj)],
                &[("ffn_up", Module::CFc), ("ffn_down", Module::MlpCProj)],
            ),
        };
        attention.iter().for_each(|(name, module)| self.linear(layer, name, *module));
        if config.qk_norm {
            for side in ["q", "k"] {
                let (name, from) =
                    (format!("{gguf}.attn_{side}_norm.weight"), format!("{path}.self_attn.{side}_norm.weight"));
                self.stored(&name, &from, vec![config.head_dim], Change::Nothing, Role::Exact);
            }
        }
        if config.post_norms {
            self.norm(&format!("{gguf}.post_attention_norm"), &format!("{path}.post_attention_layernorm"));
            self.norm(&format!("{gguf}.ffn_norm"), &format!("{path}.pre_feedforward_layernorm"));
            self.norm(&format!("{gguf}.post_ffw_norm"), &format!("{path}.post_feedforward_layernorm"));
        } else {
            let second = if gpt2 { "ln_2" } else { "post_attention_layernorm" };
            self.norm(&format!("{gguf}.ffn_norm"), &format!("{path}.{second}"));
        }
        feed_forward.iter().for_each(|(name, module)| self.linear(layer, name, *module));
    }

    /// Divisors of the rotary frequencies where a scaling is no single number. LongRoPE's long factors are for texts beyond the
    /// context that is written, so the short ones stand in both places.
    fn rotary_factors(&mut self) {
        let Positions::Rotary(rotary) = &self.config.positions else { return };
        let (names, factors): (&[&str], Vec<f32>) = match &rotary.scaling {
            RopeScaling::Llama3 { .. } => {
                let plain = crate::config::Rotary { theta: rotary.theta, scaling: RopeScaling::Default };
                let (plain, scaled) =
                    (frequencies(self.config.head_dim, &plain), frequencies(self.config.head_dim, rotary));
                (&["rope_freqs.weight"], plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect())
            }
            RopeScaling::LongRope { short_factor, .. } => (
                &["rope_factors_long.weight", "rope_factors_short.weight"],
                short_factor.iter().map(|factor| *factor as f32).collect(),
            ),
            _ => return,
        };
        for name in names {
            self.tensors.push(Planned {
                name: (*name).to_owned(),
                values: Values::Made(factors.clone()),
                shape: vec![factors.len()],
                change: Change::Nothing,
                role: Role::Exact,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaving_puts_the_halves_of_a_head_side_by_side_and_back() {
        // two heads of six rows of one value
        let values: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let change = Change::Interleave { heads: 2 };
        let interleaved = change.apply(values.clone(), 1);
        assert_eq!(interleaved, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
        assert_eq!(change.undo(interleaved, 1), values);
        for change in [Change::Nothing, Change::PlusOne, Change::Transpose] {
            let changed = change.apply(values.clone(), 4);
            let columns = if change == Change::Transpose { 3 } else { 4 };
            assert_eq!(change.undo(changed, columns), values, "{change:?}");
        }
    }
}
