use std::ops::Range;

use kernel::attention::{self, Heads, Rows, Sequence};
use kernel::ops::{self, Rotary, Rotation};
use kernel::{Gate, Output, Pool};

use super::linear::Linear;
use super::mixture::{ExpertLayer, Mixture, MixtureStash, Upstream};
use super::{ExpertSet, Input};

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
    /// Gate rows, then up rows: `[2·intermediate, hidden]`.
    pub(super) gate_up: Linear,
    pub(super) gate: Gate,
    pub(super) down: Linear,
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
pub(super) struct Pass<'a> {
    pub(super) pool: &'a Pool,
    pub(super) heads: Heads,
    pub(super) eps: f32,
    pub(super) rotary: &'a Rotary,
    /// Of layers with a window.
    pub(super) window_rotary: Option<&'a Rotary>,
    /// `[tokens]`.
    pub(super) positions: Vec<u32>,
}

/// What the backward pass needs of one layer.
///
/// **Shapes**: x, middle `[tokens, hidden]`; qkv `[tokens, qkv_width]`; attended
/// `[tokens, heads · head_dim]`; log_sums `[tokens, heads]`; gate_up `[tokens, 2·intermediate]`.
pub(super) struct Stash {
    x: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    log_sums: Vec<f32>,
    middle: Vec<f32>,
    gate_up: Vec<f32>,
    mixture: Option<MixtureStash>,
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
        let qkv = self.qkv_rows(pass, x);
        let attended = attend_cached(pass, &qkv, inputs, layer, self.window);
        self.add_part(pass, x, &self.attention_out, &attended, self.attention_out_norm.as_deref());
        let normed = self.norm(pass, x, &self.feed_forward_norm);
        let inner = self.gate_up.apply_gated(pass.pool, &normed, self.gate);
        self.add_part(pass, x, &self.down, &inner, self.down_norm.as_deref());
        if let Some(mixture) = &self.mixture
            && sets.iter().any(|set| !set.is_empty())
        {
            mixture.forward(pass.pool, x, &normed, sets, gates);
        }
    }

    /// One layer over whole sequences without a cache, keeping what backward needs.
    pub(super) fn train_forward(
        &self,
        pass: &Pass,
        x: &mut [f32],
        sequences: &[Range<usize>],
    ) -> Stash {
        let before = x.to_vec();
        let qkv = self.qkv_rows(pass, x);
        let width = pass.heads.heads * pass.heads.head_dim;
        let mut attended = vec![0.0; pass.positions.len() * width];
        let mut log_sums = vec![0.0; pass.positions.len() * pass.heads.heads];
        let rows = |head: usize| Rows {
            values: &qkv,
            stride: pass.heads.qkv_width(),
            offset: head * pass.heads.head_dim,
        };
        let (keys, values) = (pass.heads.heads, pass.heads.heads + pass.heads.kv_heads);
        let parts: Vec<Sequence> = sequences
            .iter()
            .map(|s| Sequence {
                queries: s.clone(),
                keys: rows(keys),
                values: rows(values),
                kv: s.clone(),
                window: None,
            })
            .collect();
        attention::forward(
            pass.pool,
            &mut attended,
            rows(0),
            &parts,
            pass.heads,
            Some(&mut log_sums),
        );
        self.attention_out.forward(pass.pool, x, &attended, Output::Add);
        let middle = x.to_vec();
        let normed = self.norm(pass, x, &self.feed_forward_norm);
        let gate_up = self.gate_up.apply(pass.pool, &normed);
        let inner = self.activate(pass, &gate_up);
        self.down.forward(pass.pool, x, &inner, Output::Add);
        let mixture = self.mixture.as_ref().map(|m| m.train_forward(pass.pool, x, &normed));
        Stash { x: before, qkv, attended, log_sums, middle, gate_up, mixture }
    }

    /// Turns `d`, the gradient with respect to the layer's output, into that with respect to its
    /// input, and adds the expert's gradients. The layer's own weights are frozen.
    pub(super) fn backward(
        &self,
        pass: &Pass,
        d: &mut [f32],
        sequences: &[Range<usize>],
        stash: Stash,
        pull: &[f32],
        gradients: &mut ExpertLayer,
    ) {
        let pool = pass.pool;
        let intermediate = self.down.inputs();
        let mut d_normed = vec![0.0; d.len()];
        let mut d_gate_up = stash.gate_up;
        let mut d_inner = vec![0.0; d_gate_up.len() / 2];
        self.down.backward(pool, &mut d_inner, d, Output::Replace);
        ops::swiglu_backward(pool, &mut d_gate_up, &d_inner, intermediate);
        self.gate_up.backward(pool, &mut d_normed, &d_gate_up, Output::Replace);
        if let (Some(mixture), Some(kept)) = (&self.mixture, stash.mixture) {
            let normed = self.norm(pass, &stash.middle, &self.feed_forward_norm);
            let upstream = Upstream { x: &normed, dy: d, pull };
            mixture.train_backward(pool, &mut d_normed, upstream, kept, gradients);
        }
        ops::rms_norm_backward(
            pool,
            d,
            &stash.middle,
            &self.feed_forward_norm,
            pass.eps,
            &d_normed,
        );

        let mut d_attended = vec![0.0; stash.attended.len()];
        self.attention_out.backward(pool, &mut d_attended, d, Output::Replace);
        let mut d_qkv = vec![0.0; stash.qkv.len()];
        attention::backward(
            pool,
            &mut d_qkv,
            &stash.qkv,
            &stash.attended,
            &d_attended,
            &stash.log_sums,
            sequences,
            pass.heads,
        );
        self.rotate(pass, &mut d_qkv, Rotation::Backward);
        self.qkv.backward(pool, &mut d_normed, &d_qkv, Output::Replace);
        ops::rms_norm_backward(pool, d, &stash.x, &self.attention_norm, pass.eps, &d_normed);
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

    /// Queries, keys and values of the normed rows, queries and keys rotated.
    fn qkv_rows(&self, pass: &Pass, x: &[f32]) -> Vec<f32> {
        let mut qkv = self.qkv.apply(pass.pool, &self.norm(pass, x, &self.attention_norm));
        if let Some(norms) = &self.head_norms {
            let Heads { heads, kv_heads, head_dim } = pass.heads;
            let stride = pass.heads.qkv_width();
            let (queries, keys) = (&norms.queries, &norms.keys);
            ops::rms_norm_heads(pass.pool, &mut qkv, stride, 0, heads, queries, pass.eps);
            let at = heads * head_dim;
            ops::rms_norm_heads(pass.pool, &mut qkv, stride, at, kv_heads, keys, pass.eps);
        }
        self.rotate(pass, &mut qkv, Rotation::Forward);
        qkv
    }

    fn rotate(&self, pass: &Pass, qkv: &mut [f32], direction: Rotation) {
        let rotated = pass.heads.heads + pass.heads.kv_heads;
        let rotary = self.window.and(pass.window_rotary).unwrap_or(pass.rotary);
        rotary.rotate(pass.pool, qkv, pass.heads.qkv_width(), rotated, &pass.positions, direction);
    }

    fn norm(&self, pass: &Pass, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        ops::rms_norm(pass.pool, &mut out, x, weight, pass.eps);
        out
    }

    /// SwiGLU of the feed-forward.
    fn activate(&self, pass: &Pass, gate_up: &[f32]) -> Vec<f32> {
        let mut inner = vec![0.0; gate_up.len() / 2];
        ops::swiglu(pass.pool, &mut inner, gate_up, self.down.inputs());
        inner
    }

    pub(super) fn bytes(&self) -> usize {
        [&self.qkv, &self.attention_out, &self.gate_up, &self.down].iter().map(|l| l.bytes()).sum()
    }
}

/// Appends the new keys and values to the caches, then attends to all that they hold.
fn attend_cached(
    pass: &Pass,
    qkv: &[f32],
    inputs: &mut [Input],
    layer: usize,
    window: Option<usize>,
) -> Vec<f32> {
    let Heads { heads, kv_heads, head_dim } = pass.heads;
    let (stride, kv_width) = (pass.heads.qkv_width(), kv_heads * head_dim);
    let keys_at = heads * head_dim;
    let mut row = 0;
    for input in inputs.iter_mut() {
        let cache = &mut input.cache.layers[layer];
        for values in qkv[row * stride..].chunks_exact(stride).take(input.tokens.len()) {
            cache.keys.extend_from_slice(&values[keys_at..keys_at + kv_width]);
            cache.values.extend_from_slice(&values[keys_at + kv_width..]);
        }
        row += input.tokens.len();
    }
    let mut first = 0;
    let sequences: Vec<Sequence> = inputs
        .iter()
        .map(|input| {
            let cache = &input.cache.layers[layer];
            let queries = first..first + input.tokens.len();
            first = queries.end;
            let rows = |values| Rows { values, stride: kv_width, offset: 0 };
            Sequence {
                queries,
                keys: rows(&cache.keys),
                values: rows(&cache.values),
                kv: 0..cache.keys.len() / kv_width,
                window,
            }
        })
        .collect();
    let mut out = vec![0.0; row * heads * head_dim];
    let queries = Rows { values: qkv, stride, offset: 0 };
    attention::forward(pass.pool, &mut out, queries, &sequences, pass.heads, None);
    out
}
