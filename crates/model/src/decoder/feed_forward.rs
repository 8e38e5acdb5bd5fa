//! The feed-forward of a layer: one for all tokens, or experts among which a router chooses.

use std::ops::Range;

use kernel::{
    Choice, ExpertGradients, Experts, Gate, Kept, Lanes, Left, Output, Pool, Precision, Router,
    Routes, SequenceBalance, matmul_transposed,
};

use super::LayerWeights;
use super::linear::{Linear, Purpose};
use super::stored::StoredExperts;
use crate::Config;

// One for each layer: what the smaller variant wastes does not count.
#[allow(clippy::large_enum_variant)]
pub(super) enum FeedForward {
    /// One for all tokens, frozen; its weights may be as the file stores them.
    ///
    /// **Shapes**: gate_up `[2·intermediate, hidden]`, gate rows first.
    Plain { gate_up: Linear, down: Linear, gate: Gate },
    /// Of models with experts of their own, and of all that are trained whole.
    Fused(Fused),
    /// Of models with experts of their own, as the file stores them.
    Stored(Box<StoredExperts>),
}

/// What all tokens go through, and what some do.
pub(super) struct Fused {
    precision: Precision,
    /// What the shared part is multiplied by; the routed one is by its router's scale.
    factor: f32,
    shared: Option<Experts>,
    routed: Option<Routed>,
}

struct Routed {
    router: Router,
    /// `[experts, hidden]`: routing decisions stay in f32.
    logits: Linear,
    /// Empty in families without.
    bias: Vec<f32>,
    experts: Experts,
}

/// The experts of a pass's tokens.
pub(super) struct Chosen {
    /// `[tokens, experts]`
    scores: Vec<f32>,
    choice: Choice,
    pub(super) routes: Routes,
    /// What is asked of the scores besides, and its weight.
    balance: Option<(SequenceBalance, f32)>,
}

/// What [`Fused::backward`] needs of the forward pass, beside what was chosen.
pub(super) struct FusedStash<'a> {
    /// `[tokens, hidden]`
    x: Lanes<'a>,
    shared: Option<Kept<'a>>,
    routed: Option<Kept<'a>>,
}

impl FeedForward {
    pub(super) fn bytes(&self) -> usize {
        match self {
            FeedForward::Plain { gate_up, down, .. } => gate_up.bytes() + down.bytes(),
            FeedForward::Fused(fused) => {
                let routed = fused.routed.as_ref().map_or(0, |r| r.experts.bytes());
                routed + fused.shared.as_ref().map_or(0, Experts::bytes)
            }
            FeedForward::Stored(stored) => stored.bytes(),
        }
    }

    /// As [`super::Decoder::bytes_of_a_token`].
    pub(super) fn bytes_of_a_token(&self) -> usize {
        let idle = |router: Router, bytes: usize| bytes - bytes / router.experts * router.top_k;
        let idle = match self {
            FeedForward::Plain { .. } => 0,
            FeedForward::Fused(fused) => {
                fused.routed.as_ref().map_or(0, |r| idle(r.router, r.experts.bytes()))
            }
            FeedForward::Stored(stored) => idle(stored.router, stored.routed.bytes()),
        };
        self.bytes() - idle
    }
}

/// The experts of each row; `bias` is empty in families without.
///
/// **Shapes**: x `[tokens, hidden]`.
pub(super) fn choose(
    pool: &Pool,
    router: Router,
    logits: &Linear,
    bias: &[f32],
    x: &[f32],
) -> Chosen {
    let mut scores = logits.apply(pool, x).to_vec();
    let choice = router.choose(pool, &mut scores, (!bias.is_empty()).then_some(bias));
    let routes = Routes::new(router.experts, router.top_k, &choice.experts, &choice.weights);
    Chosen { scores, choice, routes, balance: None }
}

impl Fused {
    /// Room for the weights of one layer.
    pub(super) fn unset(
        config: &Config,
        index: usize,
        precision: Precision,
        purpose: Purpose,
    ) -> Self {
        let hidden = config.hidden;
        let train = matches!(purpose, Purpose::Training | Purpose::WholeTraining);
        let experts = |count, width| {
            Experts::new(precision, count, hidden, width, train).with_gate(config.family.gate())
        };
        let (factor, common) = (config.scales.residual, config.common_width(index));
        Fused {
            precision,
            factor,
            shared: (common > 0).then(|| experts(1, common)),
            routed: config.routed(index).map(|routing| Routed {
                router: routing.router(factor),
                logits: Linear::unset(Precision::F32, purpose, routing.experts, hidden),
                bias: Vec::new(),
                experts: experts(routing.experts, routing.width),
            }),
        }
    }

    pub(super) fn fill(&mut self, pool: &Pool, weights: &LayerWeights) {
        if let Some(shared) = &mut self.shared {
            shared.fill(pool, &weights.gate_up, &weights.down);
        }
        if let Some(routed) = &mut self.routed {
            routed.logits.fill(pool, &weights.router);
            routed.bias.clone_from(&weights.bias);
            routed.experts.fill(pool, &weights.expert_gate_up, &weights.expert_down);
        }
    }

    /// Whether some experts are chosen for each row.
    pub(super) fn is_routed(&self) -> bool {
        self.routed.is_some()
    }

    /// The experts of each row, where there are such.
    ///
    /// **Shapes**: x `[tokens, hidden]`.
    pub(super) fn choose(&self, pool: &Pool, x: &[f32]) -> Option<Chosen> {
        let routed = self.routed.as_ref()?;
        Some(choose(pool, routed.router, &routed.logits, &routed.bias, x))
    }

    /// The balance loss of whole sequences, where experts are chosen; the backward pass adds the
    /// gradient of `weight` times its sum over the tokens.
    pub(super) fn balance(
        &self,
        pool: &Pool,
        chosen: &mut Chosen,
        sequences: &[Range<usize>],
        weight: f32,
    ) -> Option<f32> {
        let routed = self.routed.as_ref()?;
        let balance = routed.router.sequence_balance(pool, &chosen.scores, sequences);
        let loss = balance.loss;
        chosen.balance = (weight != 0.0).then_some((balance, weight));
        Some(loss)
    }

    /// The rows as they are multiplied.
    pub(super) fn lanes<'a>(&self, pool: &'a Pool, x: &'a [f32], hidden: usize) -> Lanes<'a> {
        Lanes::new(pool, self.precision, x, hidden)
    }

    /// Adds to each row of `out` what its experts make of the row of `x`.
    ///
    /// **Shapes**: x, out `[tokens, hidden]`.
    pub(super) fn forward<'a>(
        &self,
        pool: &'a Pool,
        out: &mut [f32],
        x: Lanes<'a>,
        chosen: Option<&Chosen>,
    ) -> FusedStash<'a> {
        let routes = |rows: usize| Routes::dense(rows).weighted(self.factor);
        let shared = self.shared.as_ref().map(|e| e.forward(pool, out, &x, &routes(x.rows())));
        let routed = self.routed.as_ref().zip(chosen);
        let routed = routed.map(|(r, chosen)| r.experts.forward(pool, out, &x, &chosen.routes));
        FusedStash { x, shared, routed }
    }

    /// Adds to `dx` the gradient with respect to the rows, given `dy` with respect to the output;
    /// sets or adds to the weights' gradients, unless they are frozen.
    ///
    /// **Shapes**: dx, x, dy `[tokens, hidden]`; x is what [`Fused::choose`] was given, where it chose.
    pub(super) fn backward(
        &self,
        pool: &Pool,
        dx: &mut [f32],
        (x, dy): (&[f32], &Lanes),
        (chosen, stash): (Option<&Chosen>, FusedStash),
        mut gradients: Option<&mut LayerWeights>,
        mode: Output,
    ) {
        if let (Some(shared), Some(kept)) = (&self.shared, stash.shared) {
            let weights = gradients.as_deref_mut();
            let gradients = ExpertGradients {
                weights: weights.map(|w| [w.gate_up.as_mut_slice(), &mut w.down]),
                gates: None,
                mode,
            };
            let routes = Routes::dense(dy.rows()).weighted(self.factor);
            shared.backward(pool, dx, (&stash.x, dy), &routes, kept, gradients);
        }
        let (Some(routed), Some(chosen), Some(kept)) = (&self.routed, chosen, stash.routed) else {
            return;
        };
        let mut d_weights = vec![0.0; chosen.choice.weights.len()];
        let weights = gradients.as_deref_mut();
        let expert_gradients = ExpertGradients {
            weights: weights.map(|w| [w.expert_gate_up.as_mut_slice(), &mut w.expert_down]),
            gates: Some(&mut d_weights),
            mode,
        };
        let routes = &chosen.routes;
        routed.experts.backward(pool, dx, (&stash.x, dy), routes, kept, expert_gradients);
        let mut d_logits = pool.buffer(chosen.scores.len());
        let router = routed.router;
        router.backward(pool, &mut d_logits, &chosen.scores, &chosen.choice, &d_weights);
        if let Some((balance, weight)) = &chosen.balance {
            let scores = &chosen.scores;
            router.sequence_balance_backward(pool, &mut d_logits, scores, balance, *weight);
        }
        let left = Lanes::new(pool, Precision::F32, &d_logits, router.experts);
        if let Some(gradients) = gradients {
            let right = Lanes::new(pool, Precision::F32, x, dx.len() / dy.rows());
            matmul_transposed(pool, &mut gradients.router, &left, &right, mode);
        }
        routed.logits.backward(pool, dx, Left::Lanes(&left), Output::Add);
    }
}
