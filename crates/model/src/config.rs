//! What shape a model has. The decoder reads nothing else.

mod family;
mod gguf;
mod huggingface;
mod rope;
mod routing;
mod tensors;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;

pub use family::Family;
pub(crate) use gguf::{EXPERT_NAMES, ROPE_FACTORS, from_gguf};
pub(crate) use huggingface::{from_huggingface, ids_json};
pub use rope::{Rope, Scaling, Yarn};
pub use routing::{Groups, Routing};
pub use tensors::TensorInfo;

/// The shape of a model, checked: every size is in its limit and they agree with each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub family: Family,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    /// Whether behind them stands a block that predicts the token after the next.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mtp: bool,
    pub heads: usize,
    pub kv_heads: usize,
    /// Of queries and keys, and of values where they are not [latent](Config::latent).
    pub head_dim: usize,
    /// Width of the feed-forward (the shared one, where there are experts; 0 for none).
    pub intermediate: usize,
    /// What is normed of queries and keys.
    #[serde(default)]
    pub head_norms: HeadNorms,
    /// Whether queries, keys and values have a bias.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attention_bias: bool,
    /// Where queries, keys and values come from a few values each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<Latent>,
    pub norm_eps: f32,
    pub rope: Rope,
    #[serde(default)]
    pub scales: Scales,
    /// Layers that see the newest tokens only, where there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<Windows>,
    /// Tokens the model was trained to see at once.
    pub context: usize,
    /// Whether the output matrix is the embedding.
    pub tied_embeddings: bool,
    pub bos: Option<u32>,
    /// Every token that ends an answer.
    pub eos: Vec<u32>,
    /// Department experts.
    pub experts: Option<ExpertsConfig>,
    /// Experts of the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
}

/// What is normed of queries and keys, before they are rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeadNorms {
    #[default]
    None,
    /// Each head, with weights that all heads share.
    Each,
    /// All heads as one row.
    Whole,
}

/// Attention whose queries, keys and values are expanded from a few values of each token. Of each
/// head's queries and keys, the [rotated part](Rope::dim) stands last in the file's matrices; that
/// of the keys is the same in all heads.
///
/// **Source**: DeepSeek-AI 2024, arXiv 2405.04434, section 2.1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latent {
    /// Values that queries are expanded from; 0 where they are not.
    pub query_rank: usize,
    /// Values that keys and values are expanded from.
    pub rank: usize,
    /// Of each head's values.
    pub value_dim: usize,
    /// Whether neighbours are rotated as a pair, instead of values of the two halves.
    pub interleaved: bool,
}

/// What some families multiply by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scales {
    /// What embeddings are multiplied by.
    pub embedding: f32,
    /// What attention and feed-forward are multiplied by before they join the residual.
    pub residual: f32,
    /// What logits are divided by.
    pub logits: f32,
    /// What the products of queries and keys are multiplied by; head_dim^-½ if none is given.
    pub attention: Option<f32>,
}

impl Default for Scales {
    fn default() -> Self {
        Scales { embedding: 1.0, residual: 1.0, logits: 1.0, attention: None }
    }
}

/// Layers whose attention sees a window of the newest tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Windows {
    /// Tokens that such a layer sees, a token itself being one of them.
    pub tokens: usize,
    /// The last of each so many layers sees all tokens.
    pub full_every: usize,
    /// Base of the rotary positions in layers with a window.
    pub rope_theta: f32,
}

impl Windows {
    /// Whether the layer of this index sees a window only.
    pub fn cover(self, layer: usize) -> bool {
        !(layer + 1).is_multiple_of(self.full_every)
    }
}

/// Department experts beside the shared feed-forward, without the null expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpertsConfig {
    /// Width of each expert's feed-forward.
    pub width: usize,
    /// One for each expert, in the order of the router's rows.
    pub names: Vec<String>,
}

/// Experts of a model, for one bit each in a set of 64.
pub(crate) const MAX_EXPERTS: usize = 64;
const MAX_VOCAB: usize = 1 << 21;
const MAX_WIDTH: usize = 1 << 20;
const MAX_HIDDEN: usize = 1 << 17;
const MAX_LAYERS: usize = 1 << 10;
const MAX_HEADS: usize = 1 << 10;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_CONTEXT: usize = 1 << 24;
const MAX_NAME: usize = 128;

impl Config {
    /// Checks every size against its limit and against the others; `path` is named in errors.
    pub(crate) fn check(&self, path: &Path) -> Result<(), Error> {
        let width = self.experts.as_ref().map_or(1, |e| e.width);
        // Routed experts may stand without a shared one.
        let inner = usize::from(self.routing.is_some());
        let sizes = [
            ("the vocabulary", self.vocab, MAX_VOCAB),
            ("the hidden size", self.hidden, MAX_HIDDEN),
            ("the number of layers", self.layers, MAX_LAYERS),
            ("the number of heads", self.heads, MAX_HEADS),
            ("the number of key-value heads", self.kv_heads, MAX_HEADS),
            ("the head dimension", self.head_dim, MAX_HEAD_DIM),
            ("the feed-forward width", self.intermediate.max(inner), MAX_WIDTH),
            ("the expert width", width, MAX_WIDTH),
            ("the context length", self.context, MAX_CONTEXT),
        ];
        for (what, value, limit) in sizes {
            if value == 0 {
                return Err(wrong(path, what, "0", "must be at least 1"));
            }
            within(path, what, value, limit)?;
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("must divide the {} heads", self.heads);
            return Err(wrong(path, "the number of key-value heads", self.kv_heads, &expected));
        }
        if !self.head_dim.is_multiple_of(2) {
            let expected = "rotary positions turn pairs, so it must be even";
            return Err(wrong(path, "the head dimension", self.head_dim, expected));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(wrong(path, "the norm's epsilon", self.norm_eps, "must be in (0, 1)"));
        }
        self.rope.check(path, self.head_dim)?;
        self.scales.check(path)?;
        if let Some(latent) = &self.latent {
            latent.check(path, self)?;
        }
        if let Some(windows) = self.windows {
            within(path, "the attention window", windows.tokens, MAX_CONTEXT)?;
            if windows.tokens == 0 || windows.full_every == 0 {
                return Err(wrong(path, "the attention window", "0", "must be at least 1"));
            }
            if !(windows.rope_theta.is_finite() && windows.rope_theta > 0.0) {
                let key = "rope_theta of layers with a window";
                return Err(wrong(path, key, windows.rope_theta, "must be above 0"));
            }
        }
        for id in self.bos.iter().chain(&self.eos) {
            if *id as usize >= self.vocab {
                let expected = format!("the vocabulary has {} tokens", self.vocab);
                return Err(wrong(path, "a begin or end token", id, &expected));
            }
        }
        if let Some(routing) = &self.routing {
            routing.check(path)?;
            if routing.dense_layers > self.layers {
                let expected = format!("there are {} layers", self.layers);
                let key = "the number of layers without experts";
                return Err(wrong(path, key, routing.dense_layers, &expected));
            }
        }
        if self.mtp && !self.family.has_mtp() {
            let expected = format!("the family {:?} has no layout for it", self.family);
            return Err(wrong(path, "the number of further tokens predicted", 1, &expected));
        }
        self.experts.as_ref().map_or(Ok(()), |experts| experts.check(path))
    }
}

impl Config {
    /// What the products of queries and keys are multiplied by.
    pub(crate) fn attention_scale(&self) -> f32 {
        let scale = self.scales.attention.unwrap_or(1.0 / (self.head_dim as f32).sqrt());
        match &self.rope.scaling {
            Some(Scaling::Yarn(yarn)) if self.latent.is_some() => scale * yarn.scores(),
            _ => scale,
        }
    }

    /// Tokens that a layer sees; all if none is given.
    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        self.windows.filter(|windows| windows.cover(layer)).map(|windows| windows.tokens)
    }

    /// The experts of a layer that has some.
    pub fn routed(&self, layer: usize) -> Option<&Routing> {
        self.routing.as_ref().filter(|routing| layer >= routing.dense_layers)
    }

    /// Width of what all tokens of a layer go through; 0 for none.
    pub fn common_width(&self, layer: usize) -> usize {
        match &self.routing {
            Some(routing) if layer < routing.dense_layers => routing.dense_width,
            _ => self.intermediate,
        }
    }

    /// Rows of the matrix that reads the layer's input for attention.
    pub fn qkv_rows(&self) -> usize {
        let queries = self.heads * self.head_dim;
        match &self.latent {
            None => queries + 2 * self.kv_heads * self.head_dim,
            Some(latent) => {
                let first = if latent.query_rank > 0 { latent.query_rank } else { queries };
                first + latent.rank + self.rope.dim
            }
        }
    }

    /// Columns of the matrix that writes the attention's output.
    pub fn attended_width(&self) -> usize {
        self.heads * self.latent.map_or(self.head_dim, |latent| latent.value_dim)
    }

    /// Lengths of the norms' weights of queries and of keys; 0 for none.
    pub(crate) fn head_norm_lengths(&self) -> [usize; 2] {
        if let Some(latent) = &self.latent {
            return [latent.query_rank, latent.rank];
        }
        match self.head_norms {
            HeadNorms::None => [0, 0],
            HeadNorms::Each => [self.head_dim; 2],
            HeadNorms::Whole => [self.heads * self.head_dim, self.kv_heads * self.head_dim],
        }
    }
}

impl Scales {
    fn check(&self, path: &Path) -> Result<(), Error> {
        let numbers = [self.embedding, self.residual, self.logits, self.attention.unwrap_or(1.0)];
        match numbers.iter().find(|n| !(n.is_finite() && **n > 0.0)) {
            Some(number) => Err(wrong(path, "a multiplier", number, "must be above 0")),
            None => Ok(()),
        }
    }
}

impl Latent {
    fn check(&self, path: &Path, config: &Config) -> Result<(), Error> {
        for (what, size, least) in [
            ("the rank of queries", self.query_rank, 0),
            ("the rank of keys and values", self.rank, 1),
            ("the dimension of values", self.value_dim, 1),
        ] {
            within(path, what, size, MAX_HIDDEN)?;
            if size < least {
                return Err(wrong(path, what, size, "must be at least 1"));
            }
        }
        // Values stand beside keys in the cache, in heads of one size.
        if self.value_dim > config.head_dim || config.kv_heads != config.heads {
            let expected = format!("must be at most that of keys, {}", config.head_dim);
            return Err(wrong(path, "the dimension of values", self.value_dim, &expected));
        }
        if config.routing.is_none() || config.head_norms != HeadNorms::None {
            let expected = "only models with routed experts have latent attention here";
            return Err(wrong(path, "the rank of keys and values", self.rank, expected));
        }
        Ok(())
    }
}

impl ExpertsConfig {
    fn check(&self, path: &Path) -> Result<(), Error> {
        within(path, "the number of experts", self.names.len(), MAX_EXPERTS)?;
        if self.names.is_empty() {
            return Err(wrong(path, "the list of experts", "empty", "must name at least one"));
        }
        for (index, name) in self.names.iter().enumerate() {
            within(path, "the length of an expert's name", name.len(), MAX_NAME)?;
            if name.is_empty() || self.names[..index].contains(name) {
                let expected = "each expert needs a name of its own";
                return Err(wrong(path, "an expert's name", format!("{name:?}"), expected));
            }
        }
        Ok(())
    }
}

fn within(path: &Path, what: &str, value: usize, limit: usize) -> Result<(), Error> {
    if value <= limit {
        return Ok(());
    }
    let (value, limit) = (value as u64, limit as u64);
    Err(Error::Limit { path: path.into(), what: what.into(), value, limit })
}

fn wrong(path: &Path, key: &str, value: impl ToString, expected: &str) -> Error {
    let (key, value, expected) = (key.into(), value.to_string(), expected.into());
    Error::Value { path: path.into(), key, value, expected }
}
