//! What shape a model has. The decoder reads nothing else.

mod gguf;
mod huggingface;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;

pub(crate) use gguf::{EXPERT_NAMES, from_gguf};
pub(crate) use huggingface::{from_huggingface, ids_json};

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
    /// Width of the feed-forward (the shared one, where there are experts).
    pub intermediate: usize,
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
    pub experts: Option<ExpertsConfig>,
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

/// A tensor that a model of some [`Config`] has, under its Hugging Face name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// `[len]`, `[rows, cols]`, or `[experts, rows, cols]`.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Rows and columns when all leading dimensions are taken as one.
    pub fn rows_cols(&self) -> (usize, usize) {
        let (cols, leading) = self.shape.split_last().expect("no tensor is a scalar");
        (leading.iter().product(), *cols)
    }
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
    /// Every tensor of such a model, in the order in which they are written.
    ///
    /// The experts' tensors include the null expert, whose rows are zero and stand last.
    pub fn tensors(&self) -> Vec<TensorInfo> {
        let mut list = vec![];
        let mut add = |name: String, shape: &[usize]| {
            list.push(TensorInfo { name, shape: shape.to_vec() });
        };
        let (hidden, width) = (self.hidden, self.intermediate);
        add("model.embed_tokens.weight".into(), &[self.vocab, hidden]);
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                add(format!("model.layers.{layer}.{name}.weight"), shape);
            };
            add("input_layernorm", &[hidden]);
            add("self_attn.q_proj", &[self.heads * self.head_dim, hidden]);
            add("self_attn.k_proj", &[self.kv_heads * self.head_dim, hidden]);
            add("self_attn.v_proj", &[self.kv_heads * self.head_dim, hidden]);
            add("self_attn.o_proj", &[hidden, self.heads * self.head_dim]);
            add("post_attention_layernorm", &[hidden]);
            if self.family == Family::Gemma3 {
                add("self_attn.q_norm", &[self.head_dim]);
                add("self_attn.k_norm", &[self.head_dim]);
                add("pre_feedforward_layernorm", &[hidden]);
                add("post_feedforward_layernorm", &[hidden]);
            }
            let Some(experts) = &self.experts else {
                add("mlp.gate_proj", &[width, hidden]);
                add("mlp.up_proj", &[width, hidden]);
                add("mlp.down_proj", &[hidden, width]);
                continue;
            };
            let count = experts.names.len() + 1;
            add("block_sparse_moe.router.layer", &[count, hidden]);
            add("block_sparse_moe.input_linear", &[count, 2 * experts.width, hidden]);
            add("block_sparse_moe.output_linear", &[count, hidden, experts.width]);
            add("shared_mlp.input_linear", &[2 * width, hidden]);
            add("shared_mlp.output_linear", &[hidden, width]);
        }
        add("model.norm.weight".into(), &[hidden]);
        if !self.tied_embeddings {
            add("lm_head.weight".into(), &[self.vocab, hidden]);
        }
        list
    }

    /// Checks every size against its limit and against the others; `path` is named in errors.
    pub(crate) fn check(&self, path: &Path) -> Result<(), Error> {
        let width = self.experts.as_ref().map_or(1, |e| e.width);
        let sizes = [
            ("the vocabulary", self.vocab, MAX_VOCAB),
            ("the hidden size", self.hidden, MAX_HIDDEN),
            ("the number of layers", self.layers, MAX_LAYERS),
            ("the number of heads", self.heads, MAX_HEADS),
            ("the number of key-value heads", self.kv_heads, MAX_HEADS),
            ("the head dimension", self.head_dim, MAX_HEAD_DIM),
            ("the feed-forward width", self.intermediate, MAX_WIDTH),
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
