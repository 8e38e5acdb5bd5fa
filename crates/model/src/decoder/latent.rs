//! Queries, keys and values that are expanded from a few values of each token.
//!
//! Expanded rows hold queries, keys and values of heads of one size: the rotated part of queries and
//! keys stands first, values end in zeros. The cache holds keys and values expanded.
//!
//! **Source**: DeepSeek-AI 2024, arXiv 2405.04434, eq. 9 to 19.

use std::ops::Range;

use kernel::{Buffer, Lanes, Left, Output, Pool, matmul_transposed};

use super::layer::{Pass, Trained};
use super::linear::{Linear, Purpose};
use crate::Config;

pub(super) struct Latent {
    heads: usize,
    head_dim: usize,
    rotated: usize,
    value_dim: usize,
    interleaved: bool,
    query_rank: usize,
    rank: usize,
    /// `[heads · head_dim, query_rank]`; none where the row holds the queries themselves.
    pub(super) query_up: Option<Linear>,
    /// `[heads · (head_dim − rotated + value_dim), rank]`.
    pub(super) key_value_up: Linear,
}

impl Latent {
    /// Room for the weights, in models that have them.
    pub(super) fn unset(
        config: &Config,
        precision: kernel::Precision,
        purpose: Purpose,
    ) -> Option<Self> {
        let latent = config.latent?;
        let (heads, head_dim, rotated) = (config.heads, config.head_dim, config.rope.dim);
        let linear = |outputs, inputs| Linear::unset(precision, purpose, outputs, inputs);
        let expanded = heads * (head_dim - rotated + latent.value_dim);
        Some(Latent {
            heads,
            head_dim,
            rotated,
            value_dim: latent.value_dim,
            interleaved: latent.interleaved,
            query_rank: latent.query_rank,
            rank: latent.rank,
            query_up: (latent.query_rank > 0).then(|| linear(heads * head_dim, latent.query_rank)),
            key_value_up: linear(expanded, latent.rank),
        })
    }

    fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Where in a normed row stands what queries come from, what keys and values come from, and the
    /// keys' rotated part.
    fn columns(&self) -> [Range<usize>; 3] {
        let first = if self.query_rank > 0 { self.query_rank } else { self.queries() };
        let second = first + self.rank;
        [0..first, first..second, second..second + self.rotated]
    }

    /// The place in the expanded row of a rotated value of the file's order.
    fn place(&self, index: usize) -> usize {
        match self.interleaved {
            true => index % 2 * (self.rotated / 2) + index / 2,
            false => index,
        }
    }

    /// Rows of queries, keys and values, all of `heads` heads.
    ///
    /// **Shapes**: normed `[tokens, qkv_rows]`; the result `[tokens, 3 · heads · head_dim]`.
    pub(super) fn expand<'a>(&self, pool: &'a Pool, normed: &[f32]) -> Buffer<'a> {
        let [first, second, third] = self.columns();
        let stride = third.end;
        let tokens = normed.len() / stride;
        let mut queries = columns(pool, normed, stride, first);
        if let Some(up) = &self.query_up {
            queries = up.apply(pool, &queries);
        }
        let up = self.key_value_up.apply(pool, &columns(pool, normed, stride, second));
        let (width, plain) = (self.queries(), self.head_dim - self.rotated);
        let up_stride = up.len() / tokens;
        let mut rows = pool.zeros(tokens * 3 * width);
        pool.pieces(&mut rows, 3 * width, |token, row| {
            let [q, k, v] = thirds(row, self.head_dim);
            let turned = &normed[token * stride..][third.clone()];
            let queries = queries[token * width..][..width].chunks_exact(self.head_dim);
            let up = up[token * up_stride..][..up_stride].chunks_exact(plain + self.value_dim);
            let heads = q.zip(k).zip(v).zip(queries.zip(up));
            for (((q, k), v), (query, up)) in heads {
                q[self.rotated..].copy_from_slice(&query[..plain]);
                k[self.rotated..].copy_from_slice(&up[..plain]);
                v[..self.value_dim].copy_from_slice(&up[plain..]);
                for index in 0..self.rotated {
                    q[self.place(index)] = query[plain + index];
                    k[self.place(index)] = turned[index];
                }
            }
        });
        rows
    }

    /// The gradient with respect to the normed row, given that with respect to the expanded one.
    ///
    /// **Shapes**: d `[tokens, 3 · heads · head_dim]`; normed and the result `[tokens, qkv_rows]`.
    pub(super) fn backward<'a>(
        &self,
        pass: &Pass<'a, '_>,
        d: &[f32],
        normed: &[f32],
        trained: &mut Trained,
    ) -> Buffer<'a> {
        let pool = pass.pool;
        let parts = self.columns();
        let stride = parts[2].end;
        let tokens = normed.len() / stride;
        let [d_queries, d_up, d_turned] = self.collect(pool, d, tokens);
        let mut d_normed = pool.buffer(tokens * stride);
        put(&mut d_normed, stride, &parts[2], &d_turned);
        let mut back = |up: &Linear, d: Buffer<'a>, part: &Range<usize>| {
            let d = up.lanes(pool, d, up.outputs());
            let mut d_part = pool.buffer(tokens * up.inputs());
            up.backward(pool, &mut d_part, Left::Lanes(&d), Output::Replace);
            if let Trained::Whole { gradients, mode } = trained {
                let x = columns(pool, normed, stride, part.clone());
                let x: Lanes = up.lanes(pool, x, up.inputs());
                // What queries come from stands first.
                let gradient = match part.start {
                    0 => &mut gradients.query_up,
                    _ => &mut gradients.key_value_up,
                };
                matmul_transposed(pool, gradient, &d, &x, *mode);
            }
            d_part
        };
        put(&mut d_normed, stride, &parts[1], &back(&self.key_value_up, d_up, &parts[1]));
        let d_first = match &self.query_up {
            Some(up) => back(up, d_queries, &parts[0]),
            None => d_queries,
        };
        put(&mut d_normed, stride, &parts[0], &d_first);
        d_normed
    }

    /// The gradients with respect to the queries, to what keys and values are parts of, and to the
    /// keys' rotated part, which is the sum over the heads: the inverse of what `expand` puts
    /// together.
    fn collect<'a>(&self, pool: &'a Pool, d: &[f32], tokens: usize) -> [Buffer<'a>; 3] {
        let (width, plain) = (self.queries(), self.head_dim - self.rotated);
        let up_width = self.key_value_up.outputs();
        let mut d_queries = pool.buffer(tokens * width);
        let mut d_up = pool.buffer(tokens * up_width);
        let mut d_turned = pool.zeros(tokens * self.rotated);
        for token in 0..tokens {
            let row = &d[token * 3 * width..][..3 * width];
            let head = |part: usize, head: usize| {
                &row[part * width + head * self.head_dim..][..self.head_dim]
            };
            let queries = d_queries[token * width..].chunks_exact_mut(self.head_dim);
            let ups = d_up[token * up_width..].chunks_exact_mut(plain + self.value_dim);
            let turned = &mut d_turned[token * self.rotated..][..self.rotated];
            for (index, (query, up)) in queries.zip(ups).take(self.heads).enumerate() {
                let (q, k, v) = (head(0, index), head(1, index), head(2, index));
                query[..plain].copy_from_slice(&q[self.rotated..]);
                up[..plain].copy_from_slice(&k[self.rotated..]);
                up[plain..].copy_from_slice(&v[..self.value_dim]);
                for index in 0..self.rotated {
                    query[plain + index] = q[self.place(index)];
                    turned[index] += k[self.place(index)];
                }
            }
        }
        [d_queries, d_up, d_turned]
    }

    /// Attended values without the zeros they end in.
    pub(super) fn compact<'a>(&self, pool: &'a Pool, attended: &[f32]) -> Buffer<'a> {
        columns(pool, attended, self.head_dim, 0..self.value_dim)
    }

    /// The inverse of [`Latent::compact`].
    pub(super) fn spread<'a>(&self, pool: &'a Pool, values: &[f32]) -> Buffer<'a> {
        let rows = values.len() / self.value_dim;
        let mut spread = pool.zeros(rows * self.head_dim);
        let heads = spread.chunks_exact_mut(self.head_dim);
        for (head, values) in heads.zip(values.chunks_exact(self.value_dim)) {
            head[..self.value_dim].copy_from_slice(values);
        }
        spread
    }

    pub(super) fn bytes(&self) -> usize {
        self.key_value_up.bytes() + self.query_up.as_ref().map_or(0, Linear::bytes)
    }
}

/// The heads of each third of a row.
fn thirds(row: &mut [f32], head_dim: usize) -> [std::slice::ChunksExactMut<'_, f32>; 3] {
    let width = row.len() / 3;
    let (q, rest) = row.split_at_mut(width);
    let (k, v) = rest.split_at_mut(width);
    [q, k, v].map(|part| part.chunks_exact_mut(head_dim))
}

/// Some columns of a matrix, without gaps.
///
/// **Shapes**: x `[rows, stride]`; the result `[rows, columns]`.
fn columns<'a>(pool: &'a Pool, x: &[f32], stride: usize, part: Range<usize>) -> Buffer<'a> {
    let mut out = pool.buffer(x.len() / stride * part.len());
    for (out, row) in out.chunks_exact_mut(part.len()).zip(x.chunks_exact(stride)) {
        out.copy_from_slice(&row[part.clone()]);
    }
    out
}

/// The inverse of [`columns`].
fn put(x: &mut [f32], stride: usize, part: &Range<usize>, values: &[f32]) {
    for (row, values) in x.chunks_exact_mut(stride).zip(values.chunks_exact(part.len())) {
        row[part.clone()].copy_from_slice(values);
    }
}
