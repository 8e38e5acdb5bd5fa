//! The one decoder of all families, for training, scoring and generation.

mod attention;
mod cache;
mod embedding;
mod feed_forward;
mod latent;
mod layer;
mod linear;
mod load;
mod mixture;
mod mtp;
mod observe;
mod sets;
mod stored;
mod training;
mod weights;
mod whole;

use kernel::attention::Heads;
use kernel::ops::{self, Rotary};
use kernel::{Buffer, Pool, Precision};

use crate::{Config, ExpertsConfig, Rope};
use embedding::Embedding;
use feed_forward::FeedForward;
use layer::{Layer, Pass};
use linear::Linear;
use mixture::Mixture;
use mtp::Mtp;
use observe::Watcher;

pub use cache::{Input, KvCache, Page};
pub use linear::Purpose;
pub use load::read_experts;
pub use mixture::{ExpertLayer, ExpertWeights};
pub use sets::ExpertSet;
pub use training::{Batch, Keep, Tape};
pub use weights::{LayerWeights, MtpWeights, Weights};

/// The transformer: token ids in, logits out.
pub struct Decoder {
    config: Config,
    precision: Precision,
    purpose: Purpose,
    rotary: Rotary,
    /// Of layers that see a window only.
    window_rotary: Option<Rotary>,
    embedding: Embedding,
    layers: Vec<Layer>,
    /// The block that predicts the token after the next, where it was asked for.
    mtp: Option<Mtp>,
    /// The final norm's weights, divided by what logits are divided by.
    norm: Vec<f32>,
    head: Linear,
    /// Experts attached, in the order of [`ExpertSet`].
    experts: usize,
}

/// What [`Decoder::forward`] gives for the new tokens of all inputs, in their order.
pub struct Hidden {
    /// `[tokens, hidden]`, after the final norm.
    pub rows: Vec<f32>,
    /// `[tokens, experts]`: each expert's gate, mean over the layers.
    pub gates: Vec<f32>,
}

impl Decoder {
    /// Fewer tokens of a sequence than this are attended to row by row, whose sums round otherwise.
    pub const LEAST_CUT: usize = kernel::attention::FEW_ROWS;

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How many department experts are attached.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The weights `[hidden]` of the norm that a layer's feed-forward, and an expert, read through.
    pub fn feed_forward_norm(&self, layer: usize) -> &[f32] {
        &self.layers[layer].feed_forward_norm
    }

    /// Memory of the weights, in bytes.
    pub fn bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        let mtp = self.mtp.as_ref().map_or(0, Mtp::bytes);
        layers + mtp + self.head.bytes() + self.embedding.bytes()
    }

    /// Of these, what lies in a file, from which the system reads it when it is needed.
    pub fn bytes_in_file(&self) -> usize {
        let stored = self.layers.iter().map(|layer| match &layer.feed_forward {
            FeedForward::Stored(stored) => stored.bytes_in_file(),
            _ => 0,
        });
        stored.sum()
    }

    /// Of these, what one token alone is multiplied with: of a model's own experts, those that it
    /// chooses.
    pub fn bytes_of_a_token(&self) -> usize {
        let layers: usize = self.layers.iter().map(Layer::bytes_of_a_token).sum();
        layers + self.head.bytes()
    }

    /// How most products are computed, for people to read.
    pub fn product_name(&self) -> &'static str {
        self.head.product_name()
    }

    /// Puts these experts, with their names, beside the feed-forward, in place of those that are
    /// there.
    ///
    /// # Panics
    /// If their number of layers or hidden size is not the decoder's.
    pub fn attach(&mut self, pool: &Pool, experts: &[(&str, &ExpertWeights)]) {
        assert!(experts.len() <= ExpertSet::LIMIT, "{} experts", experts.len());
        let hidden = self.config.hidden;
        for (_, expert) in experts {
            assert_eq!((expert.layers.len(), expert.hidden), (self.layers.len(), hidden));
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let parts: Vec<_> = experts.iter().map(|(_, e)| (e.width, &e.layers[index])).collect();
            layer.mixture = parts
                .iter()
                .any(|(_, layer)| !layer.is_empty())
                .then(|| Mixture::new(pool, self.precision, self.purpose, hidden, &parts));
        }
        self.config.experts = (!experts.is_empty()).then(|| ExpertsConfig {
            width: experts.iter().map(|(_, e)| e.width).max().unwrap_or(0),
            names: experts.iter().map(|(name, _)| name.to_string()).collect(),
        });
        self.experts = experts.len();
    }

    /// Runs the new tokens of several sequences in one batch and extends their caches. What a
    /// sequence gets does not depend on the others, bit for bit; nor on how its tokens are divided
    /// among calls, as long as each has at least [`Decoder::LEAST_CUT`] of them.
    ///
    /// # Panics
    /// If an input has no tokens, a token lies beyond the vocabulary, or a cache would outgrow the
    /// model's context: callers check these where the request comes in.
    pub fn forward(&self, pool: &Pool, inputs: &mut [Input]) -> Hidden {
        self.run(pool, inputs, None)
    }

    fn run(&self, pool: &Pool, inputs: &mut [Input], watcher: Option<&Watcher>) -> Hidden {
        let (tokens, positions) = self.begin(inputs);
        let each = inputs.iter().flat_map(|i| std::iter::repeat_n(i.experts, i.tokens.len()));
        let sets: Vec<ExpertSet> = each.collect();
        let pass = Pass { watcher, ..self.pass(pool, positions) };
        let mut x = self.embed(&tokens);
        let mut gates = vec![0.0; tokens.len() * self.experts];
        for (index, layer) in self.layers.iter().enumerate() {
            layer.forward(&pass, &mut x, inputs, index, &sets, &mut gates);
        }
        for input in inputs.iter_mut() {
            input.cache.len += input.tokens.len();
        }
        gates.iter_mut().for_each(|gate| *gate /= self.layers.len() as f32);
        Hidden { rows: self.final_norm(pool, &x), gates }
    }

    /// The new tokens and their positions; the caches make room for them.
    fn begin(&self, inputs: &mut [Input]) -> (Vec<u32>, Vec<u32>) {
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        for input in inputs.iter_mut() {
            let (from, to) = (input.cache.len, input.cache.len + input.tokens.len());
            assert!(from < to && to <= self.config.context, "positions {from}..{to}");
            positions.extend(from as u32..to as u32);
            tokens.extend_from_slice(input.tokens);
        }
        for input in inputs.iter_mut() {
            input.cache.reserve(input.tokens.len());
        }
        (tokens, positions)
    }

    /// The logits of hidden rows.
    ///
    /// **Shapes**: rows `[rows, hidden]`; the result `[rows, vocab]`.
    pub fn logits<'a>(&self, pool: &'a Pool, rows: &[f32]) -> Buffer<'a> {
        self.head.apply(pool, rows)
    }

    fn pass<'p, 'a>(&'a self, pool: &'p Pool, positions: Vec<u32>) -> Pass<'p, 'a> {
        let heads = Heads {
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
        };
        Pass {
            pool,
            heads,
            eps: self.config.norm_eps,
            rotary: &self.rotary,
            window_rotary: self.window_rotary.as_ref(),
            positions,
            watcher: None,
        }
    }

    fn embed(&self, tokens: &[u32]) -> Vec<f32> {
        let mut x = vec![0.0; tokens.len() * self.config.hidden];
        for (row, &token) in x.chunks_exact_mut(self.config.hidden).zip(tokens) {
            self.embedding.row(&self.head, token as usize, row);
        }
        let scale = self.config.scales.embedding;
        if scale != 1.0 {
            x.iter_mut().for_each(|value| *value *= scale);
        }
        x
    }

    fn set_norm(&mut self, weights: &[f32]) {
        let logits = self.config.scales.logits;
        self.norm = weights.iter().map(|weight| weight / logits).collect();
    }

    fn final_norm(&self, pool: &Pool, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        ops::rms_norm(pool, &mut out, x, &self.norm, self.config.norm_eps);
        out
    }
}

/// The rotary tables of layers that see all tokens, and of those that see a window.
fn rotaries(config: &Config) -> (Rotary, Option<Rotary>) {
    let tables = |rope: &Rope| {
        Rotary::new(&rope.frequencies(), rope.magnitude(), config.head_dim, config.context)
    };
    let window = config.windows.map(|windows| Rope {
        theta: windows.rope_theta,
        dim: config.rope.dim,
        scaling: None,
    });
    (tables(&config.rope), window.as_ref().map(tables))
}
