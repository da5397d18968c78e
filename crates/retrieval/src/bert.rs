//! The BERT encoder (Devlin et al. 2018), post-norm, as the all-MiniLM models use it: forward only, one sequence at a time.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{
    Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear, ops::softmax_last_dim,
};
use serde::Deserialize;

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
    words: Embedding,
    /// Position and segment 0 added up once: both depend on the position alone when there is only one segment.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Takes the weights by their Hugging Face names; fails with the name of a tensor that is missing or misshapen.
    pub fn load(config: &BertConfig, weights: VarBuilder<'_>) -> Result<Self> {
        let at = weights.pp("embeddings");
        let hidden = config.hidden_size;
        let positions = at.get((config.max_position_embeddings, hidden), "position_embeddings.weight")?;
        let segments = at.get((config.type_vocab_size, hidden), "token_type_embeddings.weight")?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(config, weights.pp(format!("encoder.layer.{i}"))))
            .collect::<Result<_>>()?;
        Ok(Self {
            words: embedding(config.vocab_size, hidden, at.pp("word_embeddings"))?,
            positions: positions.broadcast_add(&segments.narrow(0, 0, 1)?)?,
            norm: layer_norm(hidden, config.layer_norm_eps, at.pp("LayerNorm"))?,
            layers,
        })
    }

    /// Hidden states `(tokens, hidden)` of one sequence without padding.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(ids, &Device::Cpu)?;
        let positions = self.positions.narrow(0, 0, ids.dim(0)?)?;
        let mut states = self.norm.forward(&(self.words.forward(&ids)? + positions)?)?;
        for layer in &self.layers {
            states = layer.forward(&states)?;
        }
        Ok(states)
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
    heads: usize,
}

impl Layer {
    fn load(config: &BertConfig, at: VarBuilder<'_>) -> Result<Self> {
        let (hidden, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        Ok(Self {
            query: linear(hidden, hidden, at.pp("attention.self.query"))?,
            key: linear(hidden, hidden, at.pp("attention.self.key"))?,
            value: linear(hidden, hidden, at.pp("attention.self.value"))?,
            output: linear(hidden, hidden, at.pp("attention.output.dense"))?,
            attention_norm: layer_norm(hidden, eps, at.pp("attention.output.LayerNorm"))?,
            up: linear(hidden, inner, at.pp("intermediate.dense"))?,
            down: linear(inner, hidden, at.pp("output.dense"))?,
            norm: layer_norm(hidden, eps, at.pp("output.LayerNorm"))?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, states: &Tensor) -> Result<Tensor> {
        let attended = self.output.forward(&self.attend(states)?)?;
        let states = self.attention_norm.forward(&(attended + states)?)?;
        // `gelu` of the configuration is the exact one, by the error function
        let inner = self.up.forward(&states)?.gelu_erf()?;
        self.norm.forward(&(self.down.forward(&inner)? + states)?)
    }

    fn attend(&self, states: &Tensor) -> Result<Tensor> {
        let (tokens, hidden) = states.dims2()?;
        let split = |x: Tensor| x.reshape((tokens, self.heads, hidden / self.heads))?.transpose(0, 1)?.contiguous();
        let query = split(self.query.forward(states)?)?;
        let key = split(self.key.forward(states)?)?;
        let value = split(self.value.forward(states)?)?;
        let scale = 1.0 / ((hidden / self.heads) as f64).sqrt();
        let scores = (query.matmul(&key.t()?)? * scale)?;
        softmax_last_dim(&scores)?.matmul(&value)?.transpose(0, 1)?.contiguous()?.reshape((tokens, hidden))
    }
}

/// Mean over the tokens `(tokens, hidden)`, scaled to length 1 (sentence-transformers' `Pooling` and `Normalize`).
pub(crate) fn mean_pool(states: &Tensor) -> Result<Vec<f32>> {
    let mean = states.to_dtype(DType::F32)?.mean(0)?;
    let norm = mean.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
    mean.broadcast_div(&norm)?.to_vec1()
}
