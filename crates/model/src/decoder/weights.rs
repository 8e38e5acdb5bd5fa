//! All weights of a model in f32.

use std::path::Path;

use bytemuck::cast_slice;
use safetensors::Dtype;

use crate::{Config, Error, Source, TensorInfo, tensor_file};

/// All weights of a model, in f32: what is trained, saved and laid out. Also the form of their
/// gradients and of the optimiser's states.
///
/// **Shapes**: embedding, head `[vocab, hidden]`; norm `[hidden]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    pub embedding: Vec<f32>,
    pub layers: Vec<LayerWeights>,
    /// The block that predicts the token after the next, where there is one.
    pub mtp: Option<Box<MtpWeights>>,
    pub norm: Vec<f32>,
    /// Empty where the output matrix is the embedding.
    pub head: Vec<f32>,
}

/// The weights of one layer. What a model has not is empty.
///
/// **Shapes**: attention_norm, attention_out_norm, feed_forward_norm, down_norm `[hidden]`; qkv
/// `[qkv_rows, hidden]`: queries, keys and values, or what they are expanded from; attention_bias
/// `[qkv_rows]`; query_norm, key_norm `[head_dim]`, or as much as is normed; query_up, key_value_up
/// `[…, rank]`; attention_out `[hidden, attended_width]`; router `[experts, hidden]`; bias
/// `[experts]`; expert_gate_up `[experts, 2·width, hidden]`; expert_down `[experts, hidden, width]`;
/// gate_up `[2·intermediate, hidden]`; down `[hidden, intermediate]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerWeights {
    pub attention_norm: Vec<f32>,
    pub qkv: Vec<f32>,
    pub attention_bias: Vec<f32>,
    pub query_norm: Vec<f32>,
    pub key_norm: Vec<f32>,
    /// Expands queries, where they are latent.
    pub query_up: Vec<f32>,
    /// Expands keys and values, where they are latent.
    pub key_value_up: Vec<f32>,
    pub attention_out: Vec<f32>,
    /// Behind the attention.
    pub attention_out_norm: Vec<f32>,
    pub feed_forward_norm: Vec<f32>,
    /// Behind the feed-forward.
    pub down_norm: Vec<f32>,
    pub router: Vec<f32>,
    /// What is added to the scores that experts are chosen by. It has no gradient.
    pub bias: Vec<f32>,
    pub expert_gate_up: Vec<f32>,
    pub expert_down: Vec<f32>,
    /// Of the feed-forward, or the shared expert.
    pub gate_up: Vec<f32>,
    pub down: Vec<f32>,
}

/// The weights of the block that predicts the token after the next.
///
/// **Shapes**: embedding_norm, hidden_norm, norm `[hidden]`; project `[hidden, 2·hidden]`, the columns
/// of the embedding first.
#[derive(Clone, Debug, PartialEq)]
pub struct MtpWeights {
    pub embedding_norm: Vec<f32>,
    pub hidden_norm: Vec<f32>,
    pub project: Vec<f32>,
    /// In place of the final norm.
    pub norm: Vec<f32>,
    pub layer: LayerWeights,
}

impl Weights {
    /// All zero.
    pub fn zeros(config: &Config) -> Self {
        let Config { vocab, hidden, .. } = *config;
        let matrix = |rows: usize, cols: usize| vec![0.0; rows * cols];
        Weights {
            embedding: matrix(vocab, hidden),
            layers: (0..config.layers).map(|index| LayerWeights::zeros(config, index)).collect(),
            mtp: config.mtp.then(|| Box::new(MtpWeights::zeros(config))),
            norm: vec![0.0; hidden],
            head: if config.tied_embeddings { Vec::new() } else { matrix(vocab, hidden) },
        }
    }

    /// Reads a whole model, or what of it `config` tells of.
    ///
    /// # Errors
    /// What [`Source`] says of a missing or misshapen tensor.
    pub fn read(source: &Source, config: &Config) -> Result<Self, Error> {
        let mut weights = Weights::zeros(config);
        for (info, values) in weights.tensors_mut(config) {
            let (rows, cols) = info.rows_cols();
            let read = match info.shape.len() {
                1 => source.vector(&info.name, cols)?,
                _ => source.matrix(&info.name, rows, cols)?.to_f32(),
            };
            values.copy_from_slice(&read);
        }
        Ok(weights)
    }

    /// Writes the weights as f32 safetensors; the file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] on a full disk, for instance.
    pub fn write_file(&self, config: &Config, path: &Path) -> Result<(), Error> {
        let tensors = self.tensors(config).into_iter();
        let tensors =
            tensors.map(|(info, values)| (info.name, Dtype::F32, info.shape, cast_slice(values)));
        tensor_file::write(path, None, tensors)
    }

    /// Reads what [`Weights::write_file`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`], [`Error::NoTensor`] or [`Error::Shape`] if it is not the
    /// file of such a model.
    pub fn read_file(config: &Config, path: &Path) -> Result<Self, Error> {
        let map = tensor_file::map(path)?;
        let file = tensor_file::parse(path, &map)?;
        let mut weights = Weights::zeros(config);
        for (info, values) in weights.tensors_mut(config) {
            values.copy_from_slice(&tensor_file::floats(path, &file, &info.name, &info.shape)?);
        }
        Ok(weights)
    }

    /// See [`kernel::huge_pages`]: for weights that are gone through in each step.
    pub fn ask_for_huge_pages(&self) {
        self.parts().for_each(kernel::huge_pages);
    }

    /// How many values there are.
    pub fn parameters(&self) -> usize {
        self.parts().map(<[f32]>::len).sum()
    }

    /// Each tensor of [`Config::tensors`], in that order, with its values.
    pub fn tensors(&self, config: &Config) -> Vec<(TensorInfo, &[f32])> {
        let mut parts = self.parts().filter(|part| !part.is_empty());
        let mut left: &[f32] = &[];
        let mut tensors = Vec::new();
        for info in config.tensors() {
            if left.is_empty() {
                left = parts.next().expect("a part for each tensor");
            }
            let values = left.split_off(..info.len()).expect("a part is some tensors, whole");
            tensors.push((info, values));
        }
        tensors
    }

    /// As [`Weights::tensors`], to change.
    pub fn tensors_mut(&mut self, config: &Config) -> Vec<(TensorInfo, &mut [f32])> {
        let mut parts = self.parts_mut().filter(|part| !part.is_empty());
        let mut left: &mut [f32] = &mut [];
        let mut tensors = Vec::new();
        for info in config.tensors() {
            if left.is_empty() {
                left = parts.next().expect("a part for each tensor");
            }
            let values = left.split_off_mut(..info.len()).expect("a part is some tensors, whole");
            tensors.push((info, values));
        }
        tensors
    }

    /// Every part, in the order of [`Config::tensors`].
    fn parts(&self) -> impl Iterator<Item = &[f32]> {
        let layers = self.layers.iter().flat_map(LayerWeights::parts);
        [&self.embedding]
            .into_iter()
            .chain(layers)
            .chain(self.mtp.iter().flat_map(|mtp| mtp.parts()))
            .chain([&self.norm, &self.head])
            .map(Vec::as_slice)
    }

    fn parts_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let layers = self.layers.iter_mut().flat_map(LayerWeights::parts_mut);
        let mtp = self.mtp.iter_mut().flat_map(|mtp| mtp.parts_mut());
        let ends = [&mut self.norm, &mut self.head];
        [&mut self.embedding]
            .into_iter()
            .chain(layers)
            .chain(mtp)
            .chain(ends)
            .map(Vec::as_mut_slice)
    }
}

impl MtpWeights {
    fn zeros(config: &Config) -> Self {
        let norm = || vec![0.0; config.hidden];
        MtpWeights {
            embedding_norm: norm(),
            hidden_norm: norm(),
            project: vec![0.0; 2 * config.hidden * config.hidden],
            norm: norm(),
            layer: LayerWeights::zeros(config, config.layers),
        }
    }

    fn parts(&self) -> impl Iterator<Item = &Vec<f32>> {
        let own = [&self.embedding_norm, &self.hidden_norm, &self.project, &self.norm];
        own.into_iter().chain(self.layer.parts())
    }

    pub(super) fn parts_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        let MtpWeights { embedding_norm, hidden_norm, project, norm, layer } = self;
        [embedding_norm, hidden_norm, project, norm].into_iter().chain(layer.parts_mut())
    }
}

impl LayerWeights {
    fn zeros(config: &Config, index: usize) -> Self {
        let Config { hidden, heads, head_dim, .. } = *config;
        let zeros = |len: usize| vec![0.0; len];
        let [router, bias, expert_gate_up, expert_down, gate_up, down] =
            LayerWeights::feed_forward_lengths(config, index);
        let [query_norm, key_norm] = config.head_norm_lengths();
        let outer = if config.family.outer_norms() { hidden } else { 0 };
        let [query_up, key_value_up] = config.latent.map_or([0, 0], |latent| {
            let expanded = heads * (head_dim - config.rope.dim + latent.value_dim);
            [heads * head_dim * latent.query_rank, expanded * latent.rank]
        });
        LayerWeights {
            attention_norm: zeros(hidden),
            qkv: zeros(config.qkv_rows() * hidden),
            attention_bias: zeros(if config.attention_bias { config.qkv_rows() } else { 0 }),
            query_norm: zeros(query_norm),
            key_norm: zeros(key_norm),
            query_up: zeros(query_up),
            key_value_up: zeros(key_value_up),
            attention_out: zeros(hidden * config.attended_width()),
            attention_out_norm: zeros(outer),
            feed_forward_norm: zeros(hidden),
            down_norm: zeros(outer),
            router: zeros(router),
            bias: zeros(bias),
            expert_gate_up: zeros(expert_gate_up),
            expert_down: zeros(expert_down),
            gate_up: zeros(gate_up),
            down: zeros(down),
        }
    }

    /// Lengths of what a layer has from `router` on.
    pub(super) fn feed_forward_lengths(config: &Config, index: usize) -> [usize; 6] {
        let hidden = config.hidden;
        let routed = config.routed(index);
        let (experts, width) = routed.map_or((0, 0), |r| (r.experts, r.width));
        let bias = if routed.is_some_and(|routing| routing.sigmoid) { experts } else { 0 };
        let common = config.common_width(index);
        [
            experts * hidden,
            bias,
            experts * 2 * width * hidden,
            experts * hidden * width,
            2 * common * hidden,
            hidden * common,
        ]
    }

    fn parts(&self) -> [&Vec<f32>; 17] {
        [
            &self.attention_norm,
            &self.qkv,
            &self.attention_bias,
            &self.query_norm,
            &self.key_norm,
            &self.query_up,
            &self.key_value_up,
            &self.attention_out,
            &self.attention_out_norm,
            &self.feed_forward_norm,
            &self.down_norm,
            &self.router,
            &self.bias,
            &self.expert_gate_up,
            &self.expert_down,
            &self.gate_up,
            &self.down,
        ]
    }

    fn parts_mut(&mut self) -> [&mut Vec<f32>; 17] {
        [
            &mut self.attention_norm,
            &mut self.qkv,
            &mut self.attention_bias,
            &mut self.query_norm,
            &mut self.key_norm,
            &mut self.query_up,
            &mut self.key_value_up,
            &mut self.attention_out,
            &mut self.attention_out_norm,
            &mut self.feed_forward_norm,
            &mut self.down_norm,
            &mut self.router,
            &mut self.bias,
            &mut self.expert_gate_up,
            &mut self.expert_down,
            &mut self.gate_up,
            &mut self.down,
        ]
    }
}
