//! The BERT encoder (Devlin et al. 2018), post-norm, as the all-MiniLM models use it: forward only, one sequence at a time, on
//! one thread: many sequences are worked on side by side. (candle's elementwise operations wait for each other in one pool of
//! threads; under two sequences at a time that waiting was 43 % of the time.)
//!
//! Shapes: `n` tokens, `h` hidden size; matrices are row-major, `n` rows.

use serde::Deserialize;
use tunesmith_model::ops::gemm::{Threads, View, ViewMut, Write, gemm};

use crate::{
    kernels::{add_norm, gelu, norm, softmax},
    weights::{Weights, WeightsError},
};

/// The keys of a Hugging Face BERT `config.json` that decide the forward pass.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct BertConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    pub hidden_act: String,
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".into()
}

impl BertConfig {
    /// What this forward pass cannot do, in words; `None` when it can do everything the file asks for.
    pub fn unsupported(&self) -> Option<String> {
        if self.hidden_act != "gelu" {
            return Some(format!("hidden_act {:?} (only \"gelu\" is implemented)", self.hidden_act));
        }
        if self.position_embedding_type != "absolute" {
            return Some(format!("position_embedding_type {:?} (only \"absolute\")", self.position_embedding_type));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Some(format!(
                "hidden_size {} that {} heads do not divide",
                self.hidden_size, self.num_attention_heads
            ));
        }
        None
    }
}

/// The encoder's frozen weights.
pub(crate) struct Bert {
    hidden: usize,
    /// `[vocabulary, h]`
    words: Vec<f32>,
    /// Position and segment 0 added up once, `[positions, h]`: both depend on the position alone when there is only one segment.
    positions: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Takes the weights by their Hugging Face names; fails with the name of a tensor that is missing or misshapen.
    pub fn load(config: &BertConfig, weights: &Weights<'_>) -> Result<Self, WeightsError> {
        let at = weights.below("embeddings");
        let hidden = config.hidden_size;
        let mut positions = at.get(&[config.max_position_embeddings, hidden], "position_embeddings.weight")?;
        let segments = at.get(&[config.type_vocab_size, hidden], "token_type_embeddings.weight")?;
        for row in positions.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&segments).for_each(|(x, s)| *x += s);
        }
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(config, &weights.below(&format!("encoder.layer.{i}"))))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            hidden,
            words: at.get(&[config.vocab_size, hidden], "word_embeddings.weight")?,
            positions,
            norm: LayerNorm::load(config, &at.below("LayerNorm"))?,
            layers,
        })
    }

    /// Hidden states `[n, h]` of one sequence without padding; `None` when an id or the length is out of range.
    pub fn forward(&self, ids: &[u32]) -> Option<Vec<f32>> {
        let h = self.hidden;
        let mut states = self.positions.get(..ids.len() * h)?.to_vec();
        for (row, id) in states.chunks_exact_mut(h).zip(ids) {
            let start = *id as usize * h;
            let word = self.words.get(start..start + h)?;
            row.iter_mut().zip(word).for_each(|(x, w)| *x += w);
        }
        norm(&mut states, &self.norm.weight, &self.norm.bias, self.norm.eps);
        for layer in &self.layers {
            layer.forward(&mut states);
        }
        Some(states)
    }
}

/// `y = x Wᵀ + b`, `W` `[out, in]`.
struct Dense {
    weight: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
}

impl Dense {
    /// Layers side by side: their outputs follow each other in a row.
    fn load(inputs: usize, outputs: usize, at: &[Weights<'_>]) -> Result<Self, WeightsError> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for at in at {
            weight.extend(at.get(&[outputs, inputs], "weight")?);
            bias.extend(at.get(&[outputs], "bias")?);
        }
        Ok(Self { weight, bias, inputs })
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let (n, outputs) = (x.len() / self.inputs, self.bias.len());
        let mut y = self.bias.repeat(n);
        let weight = View::new(&self.weight, outputs, self.inputs, self.inputs).t();
        let x = View::new(x, n, self.inputs, self.inputs);
        gemm(ViewMut::new(&mut y, n, outputs, outputs), Write::Add, 1.0, x, weight, Threads::One);
        y
    }
}

struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl LayerNorm {
    fn load(config: &BertConfig, at: &Weights<'_>) -> Result<Self, WeightsError> {
        let get = |name: &str| at.get(&[config.hidden_size], name);
        Ok(Self { weight: get("weight")?, bias: get("bias")?, eps: config.layer_norm_eps as f32 })
    }

    /// `x = norm(x + y)`.
    fn add(&self, x: &mut [f32], y: &[f32]) {
        add_norm(x, y, &self.weight, &self.bias, self.eps);
    }
}

struct Layer {
    /// Query, key, value.
    qkv: Dense,
    output: Dense,
    attention_norm: LayerNorm,
    up: Dense,
    down: Dense,
    norm: LayerNorm,
    heads: usize,
}

impl Layer {
    fn load(config: &BertConfig, at: &Weights<'_>) -> Result<Self, WeightsError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let qkv = ["query", "key", "value"].map(|name| at.below(&format!("attention.self.{name}")));
        Ok(Self {
            qkv: Dense::load(hidden, hidden, &qkv)?,
            output: Dense::load(hidden, hidden, &[at.below("attention.output.dense")])?,
            attention_norm: LayerNorm::load(config, &at.below("attention.output.LayerNorm"))?,
            up: Dense::load(hidden, inner, &[at.below("intermediate.dense")])?,
            down: Dense::load(inner, hidden, &[at.below("output.dense")])?,
            norm: LayerNorm::load(config, &at.below("output.LayerNorm"))?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, states: &mut [f32]) {
        let attended = self.output.forward(&self.attend(states));
        self.attention_norm.add(states, &attended);
        // `gelu` of the configuration is the exact one, by the error function
        let mut inner = self.up.forward(states);
        gelu(&mut inner);
        let down = self.down.forward(&inner);
        self.norm.add(states, &down);
    }

    fn attend(&self, states: &[f32]) -> Vec<f32> {
        let hidden = self.qkv.inputs;
        let (n, size) = (states.len() / hidden, hidden / self.heads);
        let scale = 1.0 / (size as f32).sqrt();
        let qkv = self.qkv.forward(states);
        let mut attended = vec![0.0; n * hidden];
        let mut scores = vec![0.0; n * n];
        for head in 0..self.heads {
            let part = |which: usize| View::new(&qkv[which * hidden + head * size..], n, size, 3 * hidden);
            let to = ViewMut::new(&mut scores, n, n, n);
            gemm(to, Write::Replace, scale, part(0), part(1).t(), Threads::One);
            scores.chunks_exact_mut(n).for_each(softmax);
            let to = ViewMut::new(&mut attended[head * size..], n, size, hidden);
            gemm(to, Write::Replace, 1.0, View::new(&scores, n, n, n), part(2), Threads::One);
        }
        attended
    }
}

/// Mean over the tokens of `[n, h]`, scaled to length 1 (sentence-transformers' `Pooling` and `Normalize`).
pub(crate) fn mean_pool(states: &[f32], hidden: usize) -> Vec<f32> {
    let mut mean = vec![0.0; hidden];
    for row in states.chunks_exact(hidden) {
        mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    let count = (states.len() / hidden).max(1) as f32;
    mean.iter_mut().for_each(|x| *x /= count);
    let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    mean.iter_mut().for_each(|x| *x /= length);
    mean
}
