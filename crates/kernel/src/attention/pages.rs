use std::ops::Range;

use super::{STRIP, exponentiate};
use crate::cpu::multiversion;

/// Keys and values in pages, as they are kept while text is generated.
///
/// **Shapes**: each part `[kv_heads, 2, …]`: of each head the keys `[head_dim, TOKENS]`, so that the
/// scores of neighbouring tokens stand side by side, then the values `[TOKENS, head_dim]`.
#[derive(Clone, Copy)]
pub struct Pages<'a> {
    pub parts: &'a [&'a [f32]],
    /// Tokens in all of them; the last page may have room for more.
    pub len: usize,
}

impl<'a> Pages<'a> {
    /// Tokens of a page.
    pub const TOKENS: usize = 32;

    /// Values of a page.
    pub fn page_len(kv_heads: usize, head_dim: usize) -> usize {
        kv_heads * head_dim * 2 * Self::TOKENS
    }

    /// Puts a token's keys and values in the place `row` of a page.
    ///
    /// **Shapes**: keys, values `[kv_heads, head_dim]`.
    pub fn write(page: &mut [f32], row: usize, keys: &[f32], values: &[f32], head_dim: usize) {
        assert!(row < Self::TOKENS && keys.len() == values.len());
        let heads = page.chunks_exact_mut(2 * Self::TOKENS * head_dim);
        let rows = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (head, (keys, values)) in heads.zip(rows) {
            let (to_keys, to_values) = head.split_at_mut(Self::TOKENS * head_dim);
            for (to, key) in to_keys.chunks_exact_mut(Self::TOKENS).zip(keys) {
                to[row] = *key;
            }
            to_values[row * head_dim..(row + 1) * head_dim].copy_from_slice(values);
        }
    }

    fn keys(self, page: usize, head: usize, dim: usize) -> &'a [f32] {
        &self.parts[page][head * 2 * Self::TOKENS * dim..][..Self::TOKENS * dim]
    }

    fn values(self, page: usize, head: usize, dim: usize) -> &'a [f32] {
        &self.parts[page][(head * 2 + 1) * Self::TOKENS * dim..][..Self::TOKENS * dim]
    }

    /// A head's keys `[head_dim, len]`.
    pub(super) fn copy_keys(self, head: usize, dim: usize) -> Vec<f32> {
        let mut copy = vec![0.0; dim * self.len];
        for (page, first) in (0..self.len).step_by(Self::TOKENS).enumerate() {
            let count = Self::TOKENS.min(self.len - first);
            let keys = self.keys(page, head, dim).chunks_exact(Self::TOKENS);
            for (to, keys) in copy.chunks_exact_mut(self.len).zip(keys) {
                to[first..first + count].copy_from_slice(&keys[..count]);
            }
        }
        copy
    }

    /// A head's values `[len, head_dim]`.
    pub(super) fn copy_values(self, head: usize, dim: usize) -> Vec<f32> {
        let mut copy = Vec::with_capacity(dim * self.len);
        for page in 0..self.len.div_ceil(Self::TOKENS) {
            let rest = dim * self.len - copy.len();
            let values = self.values(page, head, dim);
            copy.extend_from_slice(&values[..values.len().min(rest)]);
        }
        copy
    }
}

multiversion! {
/// One query against the keys `seen` of a head.
pub(super) fn attend_row(
    query: &[f32],
    pages: Pages,
    head: usize,
    seen: Range<usize>,
    scale: f32,
) -> Vec<f32> {
    const TOKENS: usize = Pages::TOKENS;
    let dim = query.len();
    let (first, last) = (seen.start / TOKENS, seen.end.div_ceil(TOKENS));
    let mut scores = vec![0.0; (last - first) * TOKENS];
    for (page, scores) in scores.chunks_exact_mut(TOKENS).enumerate() {
        let keys = pages.keys(first + page, head, dim);
        let (columns, _) = keys.as_chunks::<TOKENS>();
        // Two sums for each token, of even and odd columns: one alone would wait for itself. As
        // arrays of their own, or they would not stay in registers.
        let (mut even, mut odd) = ([0.0f32; TOKENS], [0.0f32; TOKENS]);
        for pair in 0..dim / 2 {
            let (a, b) = (query[2 * pair], query[2 * pair + 1]);
            let (keys_a, keys_b) = (&columns[2 * pair], &columns[2 * pair + 1]);
            for token in 0..TOKENS {
                even[token] += a * keys_a[token];
            }
            for token in 0..TOKENS {
                odd[token] += b * keys_b[token];
            }
        }
        if dim % 2 == 1 {
            for token in 0..TOKENS {
                even[token] += query[dim - 1] * columns[dim - 1][token];
            }
        }
        for token in 0..TOKENS {
            scores[token] = (even[token] + odd[token]) * scale;
        }
    }
    // Of the first and the last page, only what is seen.
    let skipped = seen.start - first * TOKENS;
    let scores = &mut scores[skipped..skipped + seen.len()];
    let (sum, _) = exponentiate(scores);
    let mut out = vec![0.0; dim];
    for start in (0..dim).step_by(STRIP) {
        let out = &mut out[start..dim.min(start + STRIP)];
        if out.len() == STRIP {
            // The strip's sums stay in registers over all keys.
            let mut sums = [0.0f32; STRIP];
            let mut index = 0;
            while index < scores.len() {
                let token = seen.start + index;
                let values = pages.values(token / TOKENS, head, dim);
                let count = (TOKENS - token % TOKENS).min(scores.len() - index);
                for row in 0..count {
                    let values = &values[(token % TOKENS + row) * dim + start..][..STRIP];
                    let weight = scores[index + row];
                    for i in 0..STRIP {
                        sums[i] += weight * values[i];
                    }
                }
                index += count;
            }
            out.copy_from_slice(&sums);
        } else {
            for index in 0..scores.len() {
                let token = seen.start + index;
                let values = pages.values(token / TOKENS, head, dim);
                let values = &values[token % TOKENS * dim + start..][..out.len()];
                for i in 0..out.len() {
                    out[i] += scores[index] * values[i];
                }
            }
        }
    }
    for value in out.iter_mut() {
        *value /= sum;
    }
    out
}
}
