//! The memory that training a whole model takes, reckoned before it begins.
//!
//! **Units**: bytes.

use kernel::Precision;
use model::{Config, HeadNorms, TensorInfo};

use super::{Means, Training};
use crate::head::{self, GRADIENT_VALUES};
use crate::{Error, Optimizer};

/// What memory goes for.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledger {
    /// What the process holds before: documents, samples, the tokenizer.
    pub held: u64,
    /// Weights, gradients and the optimiser's running means: of all weights, or of what is trained.
    pub states: u64,
    /// The weights as products read them, forward and backward.
    pub laid_out: u64,
    /// What the forward pass of a micro-batch keeps for the backward pass.
    pub activations: u64,
    /// What lives for a moment: a layer's backward pass, the output layer, the optimiser.
    pub passing: u64,
}

/// Rows whose logits exist at a time.
const LOGIT_ROWS: u64 = head::LOGIT_ROWS as u64;
/// Columns of a panel, to which the laid out weights are filled up.
const PANEL: u64 = 64;

impl Ledger {
    /// For a model of this shape, micro-batches of as many tokens as `training` says, on so many
    /// threads; `held` is what the process holds already, `states` is [`Ledger::states`], as of [`all_states`].
    pub fn predict(
        config: &Config,
        training: &Training,
        precision: Precision,
        threads: usize,
        [held, states]: [u64; 2],
    ) -> Ledger {
        let sizes = Sizes::of(config, training, precision);
        let tokens = sizes.tokens;
        let (layers, layer) = ((config.layers + usize::from(config.mtp)) as u64, sizes.layer());
        let kept =
            if training.recompute { layers * sizes.layer_input() + layer } else { layers * layer };
        let activations = kept + (12 * tokens + sizes.mtp(config)) * sizes.hidden;
        let passing = sizes.backward().max(sizes.output()).max(sizes.optimizer(training, threads));
        Ledger {
            held,
            states,
            laid_out: sizes.laid_out(config),
            // Buffers come in eight sizes for each power of two.
            activations: activations + activations / 16,
            passing: passing + passing / 16,
        }
    }

    pub fn total(&self) -> u64 {
        self.held + self.states + self.laid_out + self.activations + self.passing
    }

    /// # Errors
    /// [`Error::Memory`] if it is more than `limit`, with what to change: fewer tokens at once, or
    /// `otherwise`.
    pub fn check(&self, limit: u64, otherwise: &'static str) -> Result<(), Error> {
        if self.total() <= limit {
            return Ok(());
        }
        let over = self.total() - limit;
        let change = if over < self.activations.max(self.passing) * 3 / 4 {
            "lower micro_batch_tokens: the step stays the same, computed in more parts; or set recompute"
        } else {
            otherwise
        };
        Err(Error::Memory { ledger: self.to_string(), limit: limit >> 20, change })
    }
}

impl std::fmt::Display for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mb = |bytes: u64| bytes >> 20;
        write!(
            f,
            "{} MiB: {} held, {} weights and optimiser, {} weights laid out, {} activations, {} for a \
             moment",
            mb(self.total()),
            mb(self.held),
            mb(self.states),
            mb(self.laid_out),
            mb(self.activations),
            mb(self.passing),
        )
    }
}

/// What all weights of such a model take with their gradients and running means.
pub fn all_states(config: &Config, training: &Training) -> u64 {
    states_of(&config.tensors(), training)
}

/// What these weights take with as many values beside them, and their running means.
pub(crate) fn states_of(tensors: &[TensorInfo], training: &Training) -> u64 {
    let values: u64 = tensors.iter().map(|info| info.len() as u64).sum();
    8 * values + Means::bytes(tensors, training)
}

/// The lengths that buffers have.
struct Sizes {
    tokens: u64,
    hidden: u64,
    vocab: u64,
    qkv: u64,
    /// Queries, keys and values that are expanded from fewer.
    expanded: u64,
    attended: u64,
    heads: u64,
    width: u64,
    experts: u64,
    top_k: u64,
    expert_width: u64,
    /// 1 where there are norms behind attention and feed-forward.
    outer_norms: u64,
    head_norms: bool,
    /// Bytes of a value as products read it.
    lane: u64,
    /// Whether that takes a copy.
    copied: u64,
}

impl Sizes {
    fn of(config: &Config, training: &Training, precision: Precision) -> Self {
        let routing = config.routing;
        let routed = |size: fn(&model::Routing) -> usize| routing.as_ref().map_or(0, size) as u64;
        let bf16 = precision == Precision::Bf16;
        Sizes {
            tokens: training.micro_batch_tokens.min(training.batch_tokens) as u64,
            hidden: config.hidden as u64,
            vocab: config.vocab as u64,
            qkv: config.qkv_rows() as u64,
            expanded: config.latent.map_or(0, |_| 3 * config.heads * config.head_dim) as u64,
            attended: config.attended_width() as u64,
            heads: config.heads as u64,
            width: (0..config.layers).map(|l| config.common_width(l)).max().unwrap_or(0) as u64,
            experts: routed(|routing| routing.experts),
            top_k: routed(|routing| routing.top_k),
            expert_width: routed(|routing| routing.width),
            outer_norms: u64::from(config.family.outer_norms()),
            head_norms: config.head_norms != HeadNorms::None,
            lane: if bf16 { 2 } else { 4 },
            copied: if bf16 { 2 } else { 0 },
        }
    }

    /// What a layer keeps of its forward pass: see `Stash`.
    fn layer(&self) -> u64 {
        let raw = if self.head_norms { 4 * self.qkv } else { 0 };
        let attention = 4 * self.hidden
            + self.lane * self.hidden
            + 4 * (self.qkv + self.expanded)
            + 8 * self.outer_norms * self.hidden
            + raw
            + 4 * self.attended
            + 4 * self.heads;
        let shared = self.lane * (self.hidden + 2 * self.width);
        let routed = self.top_k * 2 * self.lane * self.expert_width;
        self.layer_input() + self.tokens * (attention + shared + routed)
    }

    /// What of it is kept where the rest is computed again.
    fn layer_input(&self) -> u64 {
        self.tokens * (4 * self.hidden + 4 * self.experts + 20 * self.top_k)
    }

    /// What a layer's backward pass needs besides: the gradients of its rows, and the operands of
    /// the weights' gradients, turned.
    fn backward(&self) -> u64 {
        let feed_forward = 4 * self.hidden
            + self.lane * self.hidden
            + self.lane * self.width.max(self.top_k * self.expert_width)
            + 4 * self.experts
            + self.lane * (self.hidden + 2 * self.width);
        let attention = 4 * (self.hidden + self.qkv + self.expanded + self.attended)
            + self.copied * (self.hidden + self.qkv + self.attended)
            + self.lane * (self.hidden + self.qkv);
        // Given back buffers stay, of either part in sizes of its own.
        self.tokens * (feed_forward + attention)
    }

    /// What the block for a further token keeps besides its layer, of each column: see `MtpTape`.
    fn mtp(&self, config: &Config) -> u64 {
        if config.mtp { self.tokens * (28 + 2 * self.lane) } else { 0 }
    }

    fn output(&self) -> u64 {
        let rows = LOGIT_ROWS.min(self.tokens);
        let together = (GRADIENT_VALUES as u64 / self.vocab).next_multiple_of(LOGIT_ROWS);
        let gradients = together.min(self.tokens) * (self.vocab + self.hidden) * self.lane;
        gradients + rows * (self.vocab * (4 + self.copied) + self.hidden * (8 + self.lane))
    }

    /// Muon's copies of the matrix that each thread works on.
    fn optimizer(&self, training: &Training, threads: usize) -> u64 {
        if training.optimizer != Optimizer::Muon {
            return 0;
        }
        let matrix = |rows: u64, cols: u64| {
            let small = rows.min(cols);
            (8 + self.lane) * rows * cols + (8 + self.lane) * small * small
        };
        let shapes = [
            matrix(self.qkv, self.hidden),
            matrix(self.hidden, self.attended),
            matrix(2 * self.width, self.hidden),
            matrix(2 * self.expert_width, self.hidden),
        ];
        threads as u64 * shapes.into_iter().max().unwrap_or(0)
    }

    fn laid_out(&self, config: &Config) -> u64 {
        let panels = |outputs: u64, inputs: u64| outputs.next_multiple_of(PANEL) * inputs;
        let both = |outputs, inputs| panels(outputs, inputs) + panels(inputs, outputs);
        let routed = self.experts
            * (both(2 * self.expert_width, self.hidden) + both(self.hidden, self.expert_width));
        let layer = both(self.qkv, self.hidden)
            + both(self.hidden, self.attended)
            + both(2 * self.width, self.hidden)
            + both(self.hidden, self.width)
            + routed;
        let router = 4 * both(self.experts, self.hidden);
        let mtp = u64::from(config.mtp);
        let layers = config.layers as u64 + mtp;
        let project = mtp * both(self.hidden, 2 * self.hidden);
        let all = layers * layer + both(self.vocab, self.hidden) + project;
        self.lane * all + layers * router + 4 * self.vocab * self.hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Options;

    fn ledger(options: &Options) -> Ledger {
        let config = options.config(1000, None, vec![]);
        let training = options.training();
        let held = [100 << 20, all_states(&config, &training)];
        Ledger::predict(&config, &training, Precision::Bf16, 2, held)
    }

    #[test]
    fn a_larger_micro_batch_takes_activations_only() {
        let small = ledger(&Options { micro_batch_tokens: 1024, ..Options::default() });
        let large = ledger(&Options { micro_batch_tokens: 4096, ..Options::default() });
        assert_eq!((small.states, small.laid_out), (large.states, large.laid_out));
        assert_eq!(4 * small.activations, large.activations);
    }

    #[test]
    fn a_refusal_says_what_to_change() {
        let found = ledger(&Options::default());
        assert!(found.check(found.total(), "").is_ok());
        let message = |limit| found.check(limit, "make the model smaller").unwrap_err().to_string();
        let message_near = message(found.total() - found.activations / 2);
        assert!(message_near.contains("lower micro_batch_tokens"), "{message_near}");
        let message_far = message(found.states / 2);
        assert!(message_far.contains("make the model smaller"), "{message_far}");
    }
}
