//! The attention of a layer: from its normed input to what its output matrix reads.

use std::ops::Range;

use kernel::attention::{
    self, Attended, Heads, KeysValues, KvPart, KvPartMut, Pages, Rows, Sequence,
};
use kernel::ops::{self, HeadRows, Rotation};
use kernel::{Buffer, Lanes, Left, Output, matmul_transposed};

use super::latent::Latent;
use super::layer::{Pass, Trained, copy};
use super::linear::Linear;
use super::{Input, LayerWeights, Page};
use crate::Config;
use crate::config::HeadNorms;

pub(super) struct Attention {
    /// Queries, keys and values, one after the other, or what these are expanded from:
    /// `[qkv_rows, hidden]`.
    pub(super) qkv: Linear,
    /// `[qkv_rows]`; empty in families without.
    pub(super) bias: Vec<f32>,
    /// Empty in families without; of queries, and of keys.
    pub(super) norms: Vec<Norm>,
    pub(super) latent: Option<Latent>,
    /// `[hidden, attended_width]`.
    pub(super) out: Linear,
    /// Tokens that are seen; all if none is given.
    pub(super) window: Option<usize>,
    factors: Factors,
}

/// A norm of some columns of the rows that [`Attention::qkv`] gives.
pub(super) struct Norm {
    pub(super) rows: HeadRows,
    pub(super) weight: Vec<f32>,
}

/// What queries are multiplied by, so that the kernel's scale becomes the family's; and values: what
/// attention adds to the residual is linear in these.
#[derive(Clone, Copy)]
struct Factors {
    queries: f32,
    values: f32,
}

/// What the backward pass needs.
///
/// **Shapes**: raw `[tokens, qkv_rows]`; qkv `[tokens, qkv_width]`; attended
/// `[tokens, heads · head_dim]`; log_sums `[tokens, heads]`.
pub(super) struct AttentionStash<'a> {
    /// Before the norms, where there are such.
    raw: Option<Buffer<'a>>,
    qkv: Buffer<'a>,
    attended: Buffer<'a>,
    log_sums: Vec<f32>,
}

impl AttentionStash<'_> {
    pub(super) fn attended(&self) -> &[f32] {
        &self.attended
    }
}

impl Attention {
    /// # Panics
    /// If the matrices have not the configuration's shapes.
    pub(super) fn new(config: &Config, qkv: Linear, out: Linear, latent: Option<Latent>) -> Self {
        assert_eq!((qkv.outputs(), out.inputs()), (config.qkv_rows(), config.attended_width()));
        let usual = 1.0 / (config.head_dim as f32).sqrt();
        let norms = config.head_norm_lengths();
        let norms = head_rows(config).into_iter().zip(norms).filter(|(_, len)| *len > 0);
        Attention {
            qkv,
            bias: Vec::new(),
            norms: norms.map(|(rows, len)| Norm { rows, weight: vec![0.0; len] }).collect(),
            latent,
            out,
            window: None,
            factors: Factors {
                queries: config.attention_scale() / usual,
                values: config.scales.residual,
            },
        }
    }

    /// Over new tokens, whose keys and values join the caches: `[tokens, attended_width]`.
    ///
    /// **Shapes**: x `[tokens, hidden]`.
    pub(super) fn forward<'a>(
        &self,
        pass: &Pass<'a, '_>,
        x: &[f32],
        inputs: &mut [Input],
        layer: usize,
    ) -> Buffer<'a> {
        let raw = self.biased(pass, self.qkv.apply(pass.pool, x));
        let qkv = self.placed(pass, raw);
        let attended = attend_cached(pass, &qkv, inputs, layer, self.window);
        match &self.latent {
            None => attended,
            Some(latent) => latent.compact(pass.pool, &attended),
        }
    }

    /// Over whole sequences without a cache. The first is what the output matrix reads, where that
    /// is not [`AttentionStash::attended`].
    ///
    /// **Shapes**: x `[tokens, hidden]`.
    pub(super) fn train_forward<'a>(
        &self,
        pass: &Pass<'a, '_>,
        x: &Lanes,
        sequences: &[Range<usize>],
    ) -> (Option<Buffer<'a>>, AttentionStash<'a>) {
        let pool = pass.pool;
        let raw = self.biased(pass, self.qkv.apply_lanes(pool, x));
        let kept = (!self.norms.is_empty()).then(|| copy(pool, &raw));
        let qkv = self.placed(pass, raw);
        let Heads { heads, head_dim, .. } = pass.heads;
        let mut attended = pool.buffer(pass.positions.len() * heads * head_dim);
        let mut log_sums = vec![0.0; pass.positions.len() * heads];
        self.attend(pass, &mut attended, &qkv, sequences, &mut log_sums);
        let compact = self.latent.as_ref().map(|latent| latent.compact(pool, &attended));
        (compact, AttentionStash { raw: kept, qkv, attended, log_sums })
    }

    /// Writes the gradient with respect to `x` to `dx`, given `dy` with respect to what the output
    /// matrix gives, and the gradients of what is trained.
    ///
    /// **Shapes**: x, dx, dy `[tokens, hidden]`.
    pub(super) fn backward(
        &self,
        pass: &Pass,
        dx: &mut [f32],
        (x, dy): (&Lanes, &[f32]),
        sequences: &[Range<usize>],
        stash: AttentionStash,
        trained: &mut Trained,
    ) {
        let pool = pass.pool;
        let AttentionStash { raw, qkv, attended, log_sums } = stash;
        let mut d_qkv = pool.buffer(qkv.len());
        {
            let dy = self.out.lanes_of(pool, dy, self.out.outputs());
            let mut d_attended = pool.buffer(dy.rows() * self.out.inputs());
            self.out.backward(pool, &mut d_attended, Left::Lanes(&dy), Output::Replace);
            if let Some(latent) = &self.latent {
                d_attended = latent.spread(pool, &d_attended);
            }
            let forward = Attended {
                qkv: &qkv,
                out: &attended,
                log_sums: &log_sums,
                sequences,
                window: self.window,
                heads: pass.heads,
                precision: self.qkv.precision(),
            };
            attention::backward(pool, &mut d_qkv, &d_attended, &forward);
            if let Trained::Whole { gradients, mode } = trained {
                let attended = match &self.latent {
                    None => attended,
                    Some(latent) => latent.compact(pool, &attended),
                };
                let attended = self.out.lanes(pool, attended, self.out.inputs());
                matmul_transposed(pool, &mut gradients.attention_out, &dy, &attended, *mode);
            }
        }
        self.scale(pass, &mut d_qkv);
        self.rotate(pass, &mut d_qkv, Rotation::Backward);
        if let Some(latent) = &self.latent {
            let raw = raw.as_deref().expect("latent keys are normed");
            let normed = self.normed(pass, copy(pool, raw));
            d_qkv = latent.backward(pass, &d_qkv, &normed, trained);
        }
        if let Some(raw) = &raw {
            self.norms_backward(pass, &mut d_qkv, raw, trained);
        }
        if let (Trained::Whole { gradients, mode }, false) = (&mut *trained, self.bias.is_empty()) {
            ops::column_sums(pool, &mut gradients.attention_bias, &d_qkv, *mode);
        }
        let d_qkv = self.qkv.lanes(pool, d_qkv, self.qkv.outputs());
        self.qkv.backward(pool, dx, Left::Lanes(&d_qkv), Output::Replace);
        if let Trained::Whole { gradients, mode } = trained {
            matmul_transposed(pool, &mut gradients.qkv, &d_qkv, x, *mode);
        }
    }

    /// Attention within whole sequences.
    fn attend(
        &self,
        pass: &Pass,
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
                    precision: self.qkv.precision(),
                },
                window: self.window,
            })
            .collect();
        attention::forward(pass.pool, out, rows(0), &parts, pass.heads, Some(log_sums));
    }

    fn biased<'a>(&self, pass: &Pass<'a, '_>, mut raw: Buffer<'a>) -> Buffer<'a> {
        if !self.bias.is_empty() {
            ops::add_bias(pass.pool, &mut raw, &self.bias);
        }
        raw
    }

    fn normed<'a>(&self, pass: &Pass<'a, '_>, mut raw: Buffer<'a>) -> Buffer<'a> {
        for Norm { rows, weight } in &self.norms {
            ops::rms_norm_heads(pass.pool, &mut raw, *rows, weight, pass.eps);
        }
        raw
    }

    /// Queries, keys and values as the kernel reads them: normed, expanded, rotated, scaled.
    fn placed<'a>(&self, pass: &Pass<'a, '_>, raw: Buffer<'a>) -> Buffer<'a> {
        let mut qkv = self.normed(pass, raw);
        if let Some(latent) = &self.latent {
            qkv = latent.expand(pass.pool, &qkv);
        }
        self.rotate(pass, &mut qkv, Rotation::Forward);
        self.scale(pass, &mut qkv);
        qkv
    }

    fn norms_backward(&self, pass: &Pass, d: &mut [f32], raw: &[f32], trained: &mut Trained) {
        if let Trained::Whole { gradients, mode } = trained {
            let LayerWeights { query_norm, key_norm, .. } = &mut **gradients;
            let parts = [query_norm, key_norm].into_iter().filter(|weight| !weight.is_empty());
            for (Norm { rows, .. }, gradient) in self.norms.iter().zip(parts) {
                let (rows, mode) = (*rows, *mode);
                ops::rms_norm_weight_gradient(pass.pool, gradient, (raw, d), rows, pass.eps, mode);
            }
        }
        for Norm { rows, weight } in &self.norms {
            ops::rms_norm_heads_backward(pass.pool, d, raw, *rows, weight, pass.eps);
        }
    }

    fn rotate(&self, pass: &Pass, qkv: &mut [f32], direction: Rotation) {
        let rotated = pass.heads.heads + pass.heads.kv_heads;
        let rotary = self.window.and(pass.window_rotary).unwrap_or(pass.rotary);
        rotary.rotate(pass.pool, qkv, pass.heads.qkv_width(), rotated, &pass.positions, direction);
    }

    /// Applies the factors; backward, too, since they are linear.
    fn scale(&self, pass: &Pass, qkv: &mut [f32]) {
        let Heads { heads, kv_heads, head_dim } = pass.heads;
        let width = pass.heads.qkv_width();
        let values = (heads + kv_heads) * head_dim..width;
        let parts = [(0..heads * head_dim, self.factors.queries), (values, self.factors.values)];
        for (columns, factor) in parts {
            if factor != 1.0 {
                ops::scale_columns(pass.pool, qkv, width, columns, factor);
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let latent = self.latent.as_ref().map_or(0, Latent::bytes);
        self.qkv.bytes() + self.out.bytes() + latent
    }
}

/// Which columns of the rows that [`Attention::qkv`] gives are normed: of queries, and of keys.
fn head_rows(config: &Config) -> [HeadRows; 2] {
    let (stride, queries) = (config.qkv_rows(), config.heads * config.head_dim);
    let (first, heads) = match (&config.latent, config.head_norms) {
        (Some(latent), _) if latent.query_rank > 0 => (latent.query_rank, [1, 1]),
        (Some(_), _) | (None, HeadNorms::Whole | HeadNorms::None) => (queries, [1, 1]),
        (None, HeadNorms::Each) => (queries, [config.heads, config.kv_heads]),
    };
    [HeadRows { stride, first: 0, heads: heads[0] }, HeadRows { stride, first, heads: heads[1] }]
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
    let mut sequences = Vec::with_capacity(inputs.len());
    for (input, parts) in inputs.iter().zip(&parts) {
        let mut len = input.cache.len;
        for tokens in input.tokens.chunks(input.cache.together) {
            let queries = first..first + tokens.len();
            (first, len) = (queries.end, len + tokens.len());
            let keys_values = KeysValues::Pages(Pages { parts, len });
            sequences.push(Sequence { queries, keys_values, window });
        }
    }
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
