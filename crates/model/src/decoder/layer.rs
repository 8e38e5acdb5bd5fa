use std::ops::Range;

use kernel::attention::Heads;
use kernel::ops::{self, HeadRows, Rotary};
use kernel::{Buffer, Lanes, Left, Output, Pool};

use super::attention::{Attention, AttentionStash};
use super::feed_forward::{Chosen, FeedForward, FusedStash};
use super::linear::Linear;
use super::mixture::{ExpertLayer, Mixture, MixtureStash, Upstream};
use super::observe::{Place, Watcher};
use super::{ExpertSet, Input, LayerWeights};

/// One decoder layer: attention and feed-forward, each behind a norm and beside the residual.
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) attention: Attention,
    /// Behind the attention, where the family has it.
    pub(super) attention_out_norm: Option<Vec<f32>>,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) feed_forward: FeedForward,
    /// Behind the feed-forward, where the family has it.
    pub(super) down_norm: Option<Vec<f32>>,
    pub(super) mixture: Option<Mixture>,
}

/// What all layers of one pass share.
pub(super) struct Pass<'p, 'a> {
    pub(super) pool: &'p Pool,
    pub(super) heads: Heads,
    pub(super) eps: f32,
    pub(super) rotary: &'a Rotary,
    /// Of layers with a window.
    pub(super) window_rotary: Option<&'a Rotary>,
    /// `[tokens]`.
    pub(super) positions: Vec<u32>,
    /// Looks at the rows that weights are multiplied with.
    pub(super) watcher: Option<&'p Watcher>,
}

/// What is kept of one layer for the backward pass.
///
/// **Shapes**: x `[tokens, hidden]`.
pub(super) struct Stash<'a> {
    x: Buffer<'a>,
    /// The experts of the tokens, in a layer that routes them.
    pub(super) chosen: Option<Chosen>,
    /// None where it is computed again from `x` when its turn comes.
    pub(super) inner: Option<Inner<'a>>,
}

/// What the backward pass needs of one layer besides.
///
/// **Shapes**: middle, and the parts `[tokens, hidden]`.
pub(super) struct Inner<'a> {
    /// The normed rows of the layer's input.
    inputs: Lanes<'a>,
    attention: AttentionStash<'a>,
    /// What attention and feed-forward gave before the norms behind them, where there are such.
    parts: [Option<Buffer<'a>>; 2],
    middle: Buffer<'a>,
    feed_forward: FeedForwardStash<'a>,
    mixture: Option<MixtureStash<'a>>,
}

enum FeedForwardStash<'a> {
    /// `[tokens, 2·intermediate]`, before the activation.
    Plain(Buffer<'a>),
    Fused(Box<FusedStash<'a>>),
}

/// Whose gradients the backward pass gives.
pub(super) enum Trained<'a> {
    /// Those of the expert beside the layer's frozen weights are added; for `pull` see
    /// [`Upstream`]. In the lowest layer with a part of it nobody asks for more.
    Expert { gradients: &'a mut ExpertLayer, pull: &'a [f32], lowest: bool },
    /// Those of all weights are set or added.
    Whole { gradients: &'a mut LayerWeights, mode: Output },
}

impl Layer {
    /// One layer over new tokens, whose keys and values join the caches.
    pub(super) fn forward(
        &self,
        pass: &Pass,
        x: &mut [f32],
        inputs: &mut [Input],
        layer: usize,
        sets: &[ExpertSet],
        gates: &mut [f32],
    ) {
        let Attention { qkv, out, .. } = &self.attention;
        let normed = self.norm(pass, x, &self.attention_norm);
        pass.see(layer, Place::Attention, &normed, qkv.inputs());
        let attended = self.attention.forward(pass, &normed, inputs, layer);
        pass.see(layer, Place::AttentionOut, &attended, out.inputs());
        self.add_part(pass, x, out, &attended, &self.attention_out_norm);
        let normed = self.norm(pass, x, &self.feed_forward_norm);
        match &self.feed_forward {
            FeedForward::Plain { gate_up, down, gate } => {
                pass.see(layer, Place::FeedForward, &normed, gate_up.inputs());
                let inner = gate_up.apply_gated(pass.pool, &normed, *gate);
                pass.see(layer, Place::Down, &inner, down.inputs());
                self.add_part(pass, x, down, &inner, &self.down_norm);
            }
            FeedForward::Fused(fused) => {
                let chosen = fused.choose(pass.pool, &normed);
                let rows = fused.lanes(pass.pool, &normed, qkv.inputs());
                self.add(pass, x, &self.down_norm, |out| {
                    fused.forward(pass.pool, out, rows, chosen.as_ref());
                });
            }
            FeedForward::Stored(stored) => {
                self.add(pass, x, &self.down_norm, |out| stored.forward(pass.pool, out, &normed));
            }
        }
        if let Some(mixture) = &self.mixture
            && sets.iter().any(|set| !set.is_empty())
        {
            mixture.forward(pass, x, &normed, (layer, sets), gates);
        }
    }

    /// One layer over whole sequences without a cache, keeping what backward needs.
    pub(super) fn train_forward<'a>(
        &self,
        pass: &Pass<'a, '_>,
        x: &mut [f32],
        sequences: &[Range<usize>],
    ) -> Stash<'a> {
        let pool = pass.pool;
        let before = copy(pool, x);
        let (qkv, hidden) = (&self.attention.qkv, self.attention.qkv.inputs());
        let inputs = self.norm_lanes(pass, x, &self.attention_norm);
        let (compact, attention) = self.attention.train_forward(pass, &inputs, sequences);
        let attended = compact.as_deref().unwrap_or(attention.attended());
        let out = &self.attention.out;
        let first = self.add_part(pass, x, out, attended, &self.attention_out_norm);
        let middle = copy(pool, x);
        let (mut rows, mut chosen) = (None, None);
        let (second, feed_forward) = match &self.feed_forward {
            FeedForward::Plain { gate_up, down, gate } => {
                let normed = &*rows.insert(self.norm(pass, x, &self.feed_forward_norm));
                let gate_up = gate_up.apply(pool, normed);
                let mut inner = pool.buffer(gate_up.len() / 2);
                kernel::gated(pool, &mut inner, &gate_up, down.inputs(), *gate);
                let part = self.add_part(pass, x, down, &inner, &self.down_norm);
                (part, FeedForwardStash::Plain(gate_up))
            }
            FeedForward::Fused(fused) => {
                let normed = match fused.is_routed() {
                    true => {
                        let normed = self.norm(pass, x, &self.feed_forward_norm);
                        chosen = fused.choose(pool, &normed);
                        qkv.lanes(pool, normed, hidden)
                    }
                    false => self.norm_lanes(pass, x, &self.feed_forward_norm),
                };
                let mut stash = None;
                let part = self.add(pass, x, &self.down_norm, |out| {
                    stash = Some(fused.forward(pool, out, normed, chosen.as_ref()));
                });
                let stash = stash.expect("`add` computes the part once");
                (part, FeedForwardStash::Fused(Box::new(stash)))
            }
            FeedForward::Stored(_) => panic!("the decoder was not loaded for training"),
        };
        let mixture = self.mixture.as_ref().map(|mixture| {
            let normed = rows.unwrap_or_else(|| self.norm(pass, &middle, &self.feed_forward_norm));
            mixture.train_forward(pool, x, &normed)
        });
        let parts = [first, second];
        let inner = Inner { inputs, attention, parts, middle, feed_forward, mixture };
        Stash { x: before, chosen, inner: Some(inner) }
    }

    /// See [`Fused::balance`](super::feed_forward::Fused::balance).
    pub(super) fn balance(
        &self,
        pool: &Pool,
        stash: &mut Stash,
        sequences: &[Range<usize>],
        weight: f32,
    ) -> Option<f32> {
        match (&self.feed_forward, &mut stash.chosen) {
            (FeedForward::Fused(fused), Some(chosen)) => {
                fused.balance(pool, chosen, sequences, weight)
            }
            _ => None,
        }
    }

    /// Turns `d`, the gradient with respect to the layer's output, into that with respect to its
    /// input, and gives the gradients of what is trained. Below the lowest layer that is trained, `d`
    /// has no meaning.
    pub(super) fn backward<'a>(
        &self,
        pass: &Pass<'a, '_>,
        d: &mut [f32],
        sequences: &[Range<usize>],
        Stash { x, chosen, inner }: Stash<'a>,
        mut trained: Trained,
    ) {
        let pool = pass.pool;
        let inner =
            inner.or_else(|| self.train_forward(pass, &mut copy(pool, &x), sequences).inner);
        let Inner { inputs, attention, parts, middle, feed_forward, mixture } =
            inner.expect("the forward pass gives it");
        let [first, second] = parts;
        let mut d_normed = pool.buffer(d.len());
        let lowest = matches!(trained, Trained::Expert { lowest: true, .. });
        if !lowest {
            let behind = second.as_deref().zip(self.down_norm.as_deref());
            let part = behind.map(|behind| {
                outer_norm_backward(pass, behind, d, &mut trained, |w| &mut w.down_norm)
            });
            let d = part.as_deref().unwrap_or(d);
            let stash = (chosen.as_ref(), feed_forward);
            self.feed_forward_backward(pass, d, &mut d_normed, &middle, stash, &mut trained);
        }
        if let (Some(mixture), Some(kept)) = (&self.mixture, mixture) {
            let Trained::Expert { gradients, pull, .. } = &mut trained else {
                panic!("the decoder was not loaded for this training");
            };
            let normed = self.norm(pass, &middle, &self.feed_forward_norm);
            let upstream = Upstream { x: &normed, dy: d, pull };
            mixture.train_backward(pool, &mut d_normed, upstream, kept, gradients);
        }
        if lowest {
            return;
        }
        if let Trained::Whole { gradients, mode } = &mut trained {
            let norm = &mut gradients.feed_forward_norm;
            whole_rows_gradient(pass, norm, (&middle, &d_normed), *mode);
        }
        ops::rms_norm_backward(pool, d, &middle, &self.feed_forward_norm, pass.eps, &d_normed);

        {
            let behind = first.as_deref().zip(self.attention_out_norm.as_deref());
            let part = behind.map(|behind| {
                outer_norm_backward(pass, behind, d, &mut trained, |w| &mut w.attention_out_norm)
            });
            let dy = (&inputs, part.as_deref().unwrap_or(d));
            self.attention.backward(pass, &mut d_normed, dy, sequences, attention, &mut trained);
        }
        if let Trained::Whole { gradients, mode } = &mut trained {
            let norm = &mut gradients.attention_norm;
            whole_rows_gradient(pass, norm, (&x, &d_normed), *mode);
        }
        ops::rms_norm_backward(pool, d, &x, &self.attention_norm, pass.eps, &d_normed);
    }

    /// Sets `d_normed` to the gradient with respect to the feed-forward's normed input, given `d` with
    /// respect to its part of the layer's output.
    fn feed_forward_backward(
        &self,
        pass: &Pass,
        d: &[f32],
        d_normed: &mut [f32],
        middle: &[f32],
        (chosen, stash): (Option<&Chosen>, FeedForwardStash),
        trained: &mut Trained,
    ) {
        let pool = pass.pool;
        let (gradients, mode) = match trained {
            Trained::Expert { .. } => (None, Output::Add),
            Trained::Whole { gradients, mode } => (Some(&mut **gradients), *mode),
        };
        match (&self.feed_forward, stash) {
            (
                FeedForward::Plain { gate_up, down, gate },
                FeedForwardStash::Plain(mut d_gate_up),
            ) if gradients.is_none() => {
                let mut d_inner = pool.buffer(d_gate_up.len() / 2);
                down.backward(pool, &mut d_inner, Left::Rows(d), Output::Replace);
                kernel::gated_backward(pool, &mut d_gate_up, &d_inner, down.inputs(), *gate);
                gate_up.backward(pool, d_normed, Left::Rows(&d_gate_up), Output::Replace);
            }
            (FeedForward::Fused(fused), FeedForwardStash::Fused(stash)) => {
                ops::clear(pool, d_normed);
                // The router alone reads its input as f32.
                let normed =
                    fused.is_routed().then(|| self.norm(pass, middle, &self.feed_forward_norm));
                let normed = normed.as_deref().unwrap_or_default();
                let dy = fused.lanes(pool, d, self.attention.qkv.inputs());
                let kept = (chosen, *stash);
                fused.backward(pool, d_normed, (normed, &dy), kept, gradients, mode);
            }
            _ => panic!("the decoder was not loaded for this training"),
        }
    }

    /// Adds the product to the residual, behind its norm where there is one; gives what was normed.
    fn add_part<'a>(
        &self,
        pass: &Pass<'a, '_>,
        x: &mut [f32],
        linear: &Linear,
        inner: &[f32],
        norm: &Option<Vec<f32>>,
    ) -> Option<Buffer<'a>> {
        self.add(pass, x, norm, |out| linear.forward(pass.pool, out, inner, Output::Add))
    }

    /// Adds what `compute` adds to its argument to the residual, behind its norm where there is one;
    /// gives what was normed.
    fn add<'a>(
        &self,
        pass: &Pass<'a, '_>,
        x: &mut [f32],
        norm: &Option<Vec<f32>>,
        compute: impl FnOnce(&mut [f32]),
    ) -> Option<Buffer<'a>> {
        let Some(norm) = norm else {
            compute(x);
            return None;
        };
        let mut part = pass.pool.zeros(x.len());
        compute(&mut part);
        ops::add(pass.pool, x, &self.norm(pass, &part, norm));
        Some(part)
    }

    fn norm<'a>(&self, pass: &Pass<'a, '_>, x: &[f32], weight: &[f32]) -> Buffer<'a> {
        let mut out = pass.pool.buffer(x.len());
        ops::rms_norm(pass.pool, &mut out, x, weight, pass.eps);
        out
    }

    fn norm_lanes<'a>(&self, pass: &Pass<'a, '_>, x: &[f32], weight: &[f32]) -> Lanes<'a> {
        ops::rms_norm_lanes(pass.pool, self.attention.qkv.precision(), x, weight, pass.eps)
    }

    pub(super) fn bytes(&self) -> usize {
        self.attention.bytes() + self.feed_forward.bytes()
    }

    /// As [`super::Decoder::bytes_of_a_token`].
    pub(super) fn bytes_of_a_token(&self) -> usize {
        self.attention.bytes() + self.feed_forward.bytes_of_a_token()
    }
}

pub(super) fn copy<'a>(pool: &'a Pool, x: &[f32]) -> Buffer<'a> {
    let mut out = pool.buffer(x.len());
    ops::copy(pool, &mut out, x);
    out
}

/// The gradient with respect to a part, given `d` with respect to what stands behind its norm.
fn outer_norm_backward<'a>(
    pass: &Pass<'a, '_>,
    (part, weight): (&[f32], &[f32]),
    d: &[f32],
    trained: &mut Trained,
    gradient: impl Fn(&mut LayerWeights) -> &mut Vec<f32>,
) -> Buffer<'a> {
    if let Trained::Whole { gradients, mode } = trained {
        whole_rows_gradient(pass, gradient(gradients), (part, d), *mode);
    }
    let mut d_part = pass.pool.zeros(d.len());
    ops::rms_norm_backward(pass.pool, &mut d_part, part, weight, pass.eps, d);
    d_part
}

/// The gradient of a norm over whole rows.
fn whole_rows_gradient(pass: &Pass, d_weight: &mut [f32], rows: (&[f32], &[f32]), mode: Output) {
    let row = HeadRows { stride: d_weight.len(), first: 0, heads: 1 };
    ops::rms_norm_weight_gradient(pass.pool, d_weight, rows, row, pass.eps, mode);
}
