use std::ops::Range;

use kernel::attention::{
    self, Attended, Heads, KeysValues, KvPart, KvPartMut, Pages, Rows, Sequence,
};
use kernel::ops::{self, HeadRows, Rotary, Rotation};
use kernel::{Buffer, Lanes, Left, Output, Pool, Precision, Routes, matmul_transposed};

use super::feed_forward::{FeedForward, FusedStash};
use super::linear::Linear;
use super::mixture::{ExpertLayer, Mixture, MixtureStash, Upstream};
use super::observe::{Place, Watcher};
use super::{ExpertSet, Input, LayerWeights, Page};

/// One decoder layer: attention and feed-forward, each behind a norm and beside the residual.
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    /// Queries, keys and values, one after the other: `[qkv_width, hidden]`.
    pub(super) qkv: Linear,
    /// Of each head's queries and keys, where the family has them.
    pub(super) head_norms: Option<HeadNorms>,
    pub(super) attention_out: Linear,
    /// Behind the attention, where the family has it.
    pub(super) attention_out_norm: Option<Vec<f32>>,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) feed_forward: FeedForward,
    /// Behind the feed-forward, where the family has it.
    pub(super) down_norm: Option<Vec<f32>>,
    /// Tokens that the layer sees; all if none is given.
    pub(super) window: Option<usize>,
    pub(super) mixture: Option<Mixture>,
}

/// Weights `[head_dim]`.
pub(super) struct HeadNorms {
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
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

/// What the backward pass needs of one layer.
///
/// **Shapes**: x, middle `[tokens, hidden]`; qkv `[tokens, qkv_width]`; attended
/// `[tokens, heads · head_dim]`; log_sums `[tokens, heads]`.
pub(super) struct Stash<'a> {
    x: Buffer<'a>,
    /// The normed rows of `x`.
    inputs: Lanes<'a>,
    /// Queries, keys and values before the heads' norms, where there are such.
    raw: Option<Buffer<'a>>,
    qkv: Buffer<'a>,
    attended: Buffer<'a>,
    log_sums: Vec<f32>,
    middle: Buffer<'a>,
    feed_forward: FeedForwardStash<'a>,
}

enum FeedForwardStash<'a> {
    /// `[tokens, 2·intermediate]`, before the activation.
    Plain {
        gate_up: Buffer<'a>,
        mixture: Option<MixtureStash<'a>>,
    },
    Fused(Box<FusedStash<'a>>),
}

impl Stash<'_> {
    /// The experts of the tokens, in a layer that routes them.
    pub(super) fn routes(&self) -> Option<&Routes> {
        match &self.feed_forward {
            FeedForwardStash::Plain { .. } => None,
            FeedForwardStash::Fused(stash) => stash.routes(),
        }
    }
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
        let normed = self.norm(pass, x, &self.attention_norm);
        pass.see(layer, Place::Attention, &normed, self.qkv.inputs());
        let mut qkv = self.qkv.apply(pass.pool, &normed);
        self.place(pass, &mut qkv);
        let attended = attend_cached(pass, &qkv, inputs, layer, self.window);
        pass.see(layer, Place::AttentionOut, &attended, self.attention_out.inputs());
        self.add_part(pass, x, &self.attention_out, &attended, self.attention_out_norm.as_deref());
        let normed = self.norm(pass, x, &self.feed_forward_norm);
        if let FeedForward::Plain { gate_up, .. } = &self.feed_forward {
            pass.see(layer, Place::FeedForward, &normed, gate_up.inputs());
        }
        match &self.feed_forward {
            FeedForward::Plain { gate_up, down, gate } => {
                let inner = gate_up.apply_gated(pass.pool, &normed, *gate);
                pass.see(layer, Place::Down, &inner, down.inputs());
                self.add_part(pass, x, down, &inner, self.down_norm.as_deref());
            }
            FeedForward::Fused(fused) => {
                let chosen = fused.choose(pass.pool, &normed);
                fused.forward(
                    pass.pool,
                    x,
                    fused.lanes(pass.pool, &normed, self.qkv.inputs()),
                    chosen,
                );
            }
            FeedForward::Stored(stored) => stored.forward(pass.pool, x, &normed),
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
        let hidden = self.qkv.inputs();
        let inputs = self.norm_lanes(pass, x, &self.attention_norm);
        let mut qkv = self.qkv.apply_lanes(pool, &inputs);
        let raw = self.head_norms.is_some().then(|| copy(pool, &qkv));
        self.place(pass, &mut qkv);
        let width = pass.heads.heads * pass.heads.head_dim;
        let mut attended = pool.buffer(pass.positions.len() * width);
        let mut log_sums = vec![0.0; pass.positions.len() * pass.heads.heads];
        attend(pass, self.qkv.precision(), &mut attended, &qkv, sequences, &mut log_sums);
        self.attention_out.forward(pool, x, &attended, Output::Add);
        let middle = copy(pool, x);
        let feed_forward = match &self.feed_forward {
            FeedForward::Plain { gate_up, down, .. } => {
                let normed = self.norm(pass, x, &self.feed_forward_norm);
                let gate_up = gate_up.apply(pool, &normed);
                let mut inner = pool.buffer(gate_up.len() / 2);
                ops::swiglu(pool, &mut inner, &gate_up, down.inputs());
                down.forward(pool, x, &inner, Output::Add);
                let mixture = self.mixture.as_ref().map(|m| m.train_forward(pool, x, &normed));
                FeedForwardStash::Plain { gate_up, mixture }
            }
            FeedForward::Fused(fused) if fused.is_routed() => {
                let normed = self.norm(pass, x, &self.feed_forward_norm);
                let chosen = fused.choose(pool, &normed);
                let normed = self.qkv.lanes(pool, normed, hidden);
                FeedForwardStash::Fused(Box::new(fused.forward(pool, x, normed, chosen)))
            }
            FeedForward::Fused(fused) => {
                let normed = self.norm_lanes(pass, x, &self.feed_forward_norm);
                FeedForwardStash::Fused(Box::new(fused.forward(pool, x, normed, None)))
            }
            FeedForward::Stored(_) => panic!("the decoder was not loaded for training"),
        };
        Stash { x: before, inputs, raw, qkv, attended, log_sums, middle, feed_forward }
    }

    /// Turns `d`, the gradient with respect to the layer's output, into that with respect to its
    /// input, and gives the gradients of what is trained. Below the lowest layer that is trained, `d`
    /// has no meaning.
    pub(super) fn backward(
        &self,
        pass: &Pass,
        d: &mut [f32],
        sequences: &[Range<usize>],
        stash: Stash,
        mut trained: Trained,
    ) {
        let pool = pass.pool;
        let Stash { x, inputs, raw, qkv, attended, log_sums, middle, feed_forward } = stash;
        let mut d_normed = pool.buffer(d.len());
        self.feed_forward_backward(pass, (d, &mut d_normed), &middle, feed_forward, &mut trained);
        if matches!(trained, Trained::Expert { lowest: true, .. }) {
            return;
        }
        if let Trained::Whole { gradients, mode } = &mut trained {
            let norm = &mut gradients.feed_forward_norm;
            whole_rows_gradient(pass, norm, (&middle, &d_normed), *mode);
        }
        ops::rms_norm_backward(pool, d, &middle, &self.feed_forward_norm, pass.eps, &d_normed);

        let mut d_qkv = pool.buffer(qkv.len());
        {
            let dy = self.attention_out.lanes_of(pool, d, self.attention_out.outputs());
            let mut d_attended = pool.buffer(attended.len());
            self.attention_out.backward(pool, &mut d_attended, Left::Lanes(&dy), Output::Replace);
            let forward = Attended {
                qkv: &qkv,
                out: &attended,
                log_sums: &log_sums,
                sequences,
                window: None,
                heads: pass.heads,
                precision: self.qkv.precision(),
            };
            attention::backward(pool, &mut d_qkv, &d_attended, &forward);
            if let Trained::Whole { gradients, mode } = &mut trained {
                let width = self.attention_out.inputs();
                let attended = self.attention_out.lanes(pool, attended, width);
                matmul_transposed(pool, &mut gradients.attention_out, &dy, &attended, *mode);
            }
        }
        self.rotate(pass, &mut d_qkv, Rotation::Backward);
        if let Some(raw) = &raw {
            self.head_norms_backward(pass, &mut d_qkv, raw, &mut trained);
        }
        let d_qkv = self.qkv.lanes(pool, d_qkv, self.qkv.outputs());
        self.qkv.backward(pool, &mut d_normed, Left::Lanes(&d_qkv), Output::Replace);
        if let Trained::Whole { gradients, mode } = &mut trained {
            matmul_transposed(pool, &mut gradients.qkv, &d_qkv, &inputs, *mode);
            let norm = &mut gradients.attention_norm;
            whole_rows_gradient(pass, norm, (&x, &d_normed), *mode);
        }
        ops::rms_norm_backward(pool, d, &x, &self.attention_norm, pass.eps, &d_normed);
    }

    /// Sets `d_normed` to the gradient with respect to the feed-forward's normed input.
    fn feed_forward_backward(
        &self,
        pass: &Pass,
        (d, d_normed): (&[f32], &mut [f32]),
        middle: &[f32],
        stash: FeedForwardStash,
        trained: &mut Trained,
    ) {
        let pool = pass.pool;
        match (&self.feed_forward, stash, trained) {
            (
                FeedForward::Plain { gate_up, down, .. },
                FeedForwardStash::Plain { gate_up: mut d_gate_up, mixture: kept },
                Trained::Expert { gradients, pull, lowest },
            ) => {
                if !*lowest {
                    let mut d_inner = pool.buffer(d_gate_up.len() / 2);
                    down.backward(pool, &mut d_inner, Left::Rows(d), Output::Replace);
                    ops::swiglu_backward(pool, &mut d_gate_up, &d_inner, down.inputs());
                    gate_up.backward(pool, d_normed, Left::Rows(&d_gate_up), Output::Replace);
                }
                if let (Some(mixture), Some(kept)) = (&self.mixture, kept) {
                    let normed = self.norm(pass, middle, &self.feed_forward_norm);
                    let upstream = Upstream { x: &normed, dy: d, pull };
                    mixture.train_backward(pool, d_normed, upstream, kept, gradients);
                }
            }
            (
                FeedForward::Fused(fused),
                FeedForwardStash::Fused(stash),
                Trained::Whole { gradients, mode },
            ) => {
                ops::clear(pool, d_normed);
                // The router alone reads its input as f32.
                let normed =
                    fused.is_routed().then(|| self.norm(pass, middle, &self.feed_forward_norm));
                let normed = normed.as_deref().unwrap_or_default();
                let dy = fused.lanes(pool, d, self.qkv.inputs());
                fused.backward(pool, d_normed, (normed, &dy), *stash, gradients, *mode);
            }
            _ => panic!("the decoder was not loaded for this training"),
        }
    }

    fn head_norms_backward(
        &self,
        pass: &Pass,
        d_qkv: &mut [f32],
        raw: &[f32],
        trained: &mut Trained,
    ) {
        let Some(norms) = &self.head_norms else { return };
        let [queries, keys] = head_rows(pass.heads);
        if let Trained::Whole { gradients, mode } = trained {
            for (norm, rows) in
                [(&mut gradients.query_norm, queries), (&mut gradients.key_norm, keys)]
            {
                ops::rms_norm_weight_gradient(pass.pool, norm, (raw, d_qkv), rows, pass.eps, *mode);
            }
        }
        for (norm, rows) in [(&norms.queries, queries), (&norms.keys, keys)] {
            ops::rms_norm_heads_backward(pass.pool, d_qkv, raw, rows, norm, pass.eps);
        }
    }

    /// Adds the product to the residual, behind its norm where there is one.
    fn add_part(
        &self,
        pass: &Pass,
        x: &mut [f32],
        linear: &Linear,
        inner: &[f32],
        norm: Option<&[f32]>,
    ) {
        match norm {
            None => linear.forward(pass.pool, x, inner, Output::Add),
            Some(norm) => {
                let part = self.norm(pass, &linear.apply(pass.pool, inner), norm);
                ops::add(pass.pool, x, &part);
            }
        }
    }

    /// Norms queries and keys, where the family does, and rotates them to their positions.
    fn place(&self, pass: &Pass, qkv: &mut [f32]) {
        if let Some(norms) = &self.head_norms {
            let [queries, keys] = head_rows(pass.heads);
            ops::rms_norm_heads(pass.pool, qkv, queries, &norms.queries, pass.eps);
            ops::rms_norm_heads(pass.pool, qkv, keys, &norms.keys, pass.eps);
        }
        self.rotate(pass, qkv, Rotation::Forward);
    }

    fn rotate(&self, pass: &Pass, qkv: &mut [f32], direction: Rotation) {
        let rotated = pass.heads.heads + pass.heads.kv_heads;
        let rotary = self.window.and(pass.window_rotary).unwrap_or(pass.rotary);
        rotary.rotate(pass.pool, qkv, pass.heads.qkv_width(), rotated, &pass.positions, direction);
    }

    fn norm<'a>(&self, pass: &Pass<'a, '_>, x: &[f32], weight: &[f32]) -> Buffer<'a> {
        let mut out = pass.pool.buffer(x.len());
        ops::rms_norm(pass.pool, &mut out, x, weight, pass.eps);
        out
    }

    fn norm_lanes<'a>(&self, pass: &Pass<'a, '_>, x: &[f32], weight: &[f32]) -> Lanes<'a> {
        ops::rms_norm_lanes(pass.pool, self.qkv.precision(), x, weight, pass.eps)
    }

    pub(super) fn bytes(&self) -> usize {
        self.qkv.bytes() + self.attention_out.bytes() + self.feed_forward.bytes()
    }
}

fn copy<'a>(pool: &'a Pool, x: &[f32]) -> Buffer<'a> {
    let mut out = pool.buffer(x.len());
    ops::copy(pool, &mut out, x);
    out
}

/// The queries' and the keys' heads in rows of queries, keys and values.
fn head_rows(Heads { heads, kv_heads, head_dim }: Heads) -> [HeadRows; 2] {
    let stride = (heads + 2 * kv_heads) * head_dim;
    [
        HeadRows { stride, first: 0, heads },
        HeadRows { stride, first: heads * head_dim, heads: kv_heads },
    ]
}

/// The gradient of a norm over whole rows.
fn whole_rows_gradient(pass: &Pass, d_weight: &mut [f32], rows: (&[f32], &[f32]), mode: Output) {
    let row = HeadRows { stride: d_weight.len(), first: 0, heads: 1 };
    ops::rms_norm_weight_gradient(pass.pool, d_weight, rows, row, pass.eps, mode);
}

/// Attention within whole sequences.
fn attend(
    pass: &Pass,
    precision: Precision,
    out: &mut [f32],
    qkv: &[f32],
    sequences: &[Range<usize>],
    log_sums: &mut [f32],
) {
    let Heads { heads, kv_heads, head_dim } = pass.heads;
    let stride = pass.heads.qkv_width();
    let rows = |head: usize| Rows { values: qkv, stride, offset: head * head_dim };
    let parts: Vec<Sequence> = sequences
        .iter()
        .map(|s| Sequence {
            queries: s.clone(),
            keys_values: KeysValues::Rows {
                keys: rows(heads),
                values: rows(heads + kv_heads),
                precision,
            },
            window: None,
        })
        .collect();
    attention::forward(pass.pool, out, rows(0), &parts, pass.heads, Some(log_sums));
}

/// Appends the new keys and values to the caches, then attends to all that they hold.
fn attend_cached<'a>(
    pass: &Pass<'a, '_>,
    qkv: &[f32],
    inputs: &mut [Input],
    layer: usize,
    window: Option<usize>,
) -> Buffer<'a> {
    let Heads { heads, head_dim, .. } = pass.heads;
    let stride = pass.heads.qkv_width();
    write_pages(pass, qkv, inputs, layer);
    let parts: Vec<Vec<KvPart>> =
        inputs.iter().map(|input| input.cache.layer(layer).collect()).collect();
    let mut first = 0;
    let sequences: Vec<Sequence> = inputs
        .iter()
        .zip(&parts)
        .map(|(input, parts)| {
            let queries = first..first + input.tokens.len();
            first = queries.end;
            let pages = Pages { parts, len: input.cache.len + input.tokens.len() };
            Sequence { queries, keys_values: KeysValues::Pages(pages), window }
        })
        .collect();
    let mut out = pass.pool.buffer(first * heads * head_dim);
    let queries = Rows { values: qkv, stride, offset: 0 };
    attention::forward(pass.pool, &mut out, queries, &sequences, pass.heads, None);
    out
}

/// Appends the new keys and values to the caches.
fn write_pages(pass: &Pass, qkv: &[f32], inputs: &mut [Input], layer: usize) {
    let Heads { heads, kv_heads, head_dim } = pass.heads;
    let stride = pass.heads.qkv_width();
    // Each page with its place in it, and the rows that go there.
    let mut pages: Vec<(KvPartMut, usize, &[f32])> = Vec::new();
    let mut rest = qkv;
    for input in inputs.iter_mut() {
        let mut at = input.cache.len % Page::TOKENS;
        let rows;
        (rows, rest) = rest.split_at(input.tokens.len() * stride);
        let mut left = rows;
        for page in input.cache.reserved(layer) {
            let count = (Page::TOKENS - at).min(left.len() / stride);
            let rows;
            (rows, left) = left.split_at(count * stride);
            pages.push((page, at, rows));
            at = 0;
        }
    }
    pass.pool.pieces(&mut pages, 1, |_, page| {
        let (page, at, rows) = &mut page[0];
        Pages::write(page, *at, &rows[heads * head_dim..], stride, [kv_heads, head_dim]);
    });
}
