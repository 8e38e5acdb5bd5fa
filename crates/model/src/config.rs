//! What shape a model has. The decoder reads nothing else.

mod gguf;
mod huggingface;
mod routing;
mod tensors;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;

pub(crate) use gguf::{EXPERT_NAMES, from_gguf};
pub(crate) use huggingface::{from_huggingface, ids_json};
pub use routing::Routing;
pub use tensors::TensorInfo;

/// Which layout of layers a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// Grouped-query attention and a SwiGLU feed-forward: Llama, SmolLM2, and their like.
    Llama,
    /// The same with department experts beside the feed-forward, which is shared by all tokens.
    GraniteMoeShared,
    /// Gemma 3's text model: norms before and behind each part, normed queries and keys, GELU, and
    /// layers that see a window only.
    Gemma3,
    /// Llama with routed experts in place of the feed-forward.
    Mixtral,
    /// The same, whose experts are stacked in one tensor; in GGUF files.
    GraniteMoe,
    /// The same with normed queries and keys.
    Qwen3Moe,
    /// The same with sigmoid scores whose balance a bias keeps, and a shared expert.
    Glm4Moe,
}

/// The shape of a model, checked: every size is in its limit and they agree with each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub family: Family,
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Width of the feed-forward (the shared one, where there are experts; 0 for none).
    pub intermediate: usize,
    /// Whether each head's queries and keys are normed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub head_norms: bool,
    pub norm_eps: f32,
    pub rope_theta: f32,
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
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(wrong(path, "rope_theta", self.rope_theta, "must be above 0"));
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
        }
        self.experts.as_ref().map_or(Ok(()), |experts| experts.check(path))
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
