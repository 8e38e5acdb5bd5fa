//! The gradient of attention within whole sequences.
//!
//! Scores are made again, turned round: a row for each key, a column for each query of a block. What
//! a query needs, its saved log-sum for instance, then stands in one vector for all keys, and the
//! weights are at once the left operand of the products that give the keys' and values' gradients.

use std::ops::Range;

use super::{Heads, Rows};
use crate::Precision;
use crate::cpu::multiversion;
use crate::gemm::{Block, Lanes, PANEL, Sums, TILE};
use crate::ops::{exp, lane_sum};
use crate::pool::{Pool, SendPtr};

/// What [`super::forward`] read and left, of sequences that stand one after the other.
///
/// **Shapes**: qkv `[tokens, qkv_width]`; out `[tokens, heads · head_dim]`; log_sums
/// `[tokens, heads]`.
pub struct Attended<'a> {
    pub qkv: &'a [f32],
    pub out: &'a [f32],
    pub log_sums: &'a [f32],
    /// Row ranges: each sequence sees its own rows only.
    pub sequences: &'a [Range<usize>],
    /// As in [`super::Sequence`].
    pub window: Option<usize>,
    pub heads: Heads,
    /// The type in which queries, keys, values and weights are multiplied.
    pub precision: Precision,
}

/// The gradient of attention with respect to queries, keys and values that stand side by side.
///
/// **Shapes**: d_qkv `[tokens, qkv_width]` (written over); d_out `[tokens, heads · head_dim]`.
pub fn backward(pool: &Pool, d_qkv: &mut [f32], d_out: &[f32], attended: &Attended) {
    let &Attended { qkv, out, log_sums, sequences, heads, .. } = attended;
    let (stride, width) = (heads.qkv_width(), heads.heads * heads.head_dim);
    let tokens = qkv.len() / stride;
    assert!(d_qkv.len() == qkv.len() && out.len() == tokens * width && d_out.len() == out.len());
    assert!(log_sums.len() == tokens * heads.heads && sequences.iter().all(|s| s.end <= tokens));
    let base = SendPtr(d_qkv.as_mut_ptr());
    pool.run(sequences.len() * heads.kv_heads, &|task| {
        let (rows, kv_head) = (&sequences[task / heads.kv_heads], task % heads.kv_heads);
        let write = |head_column: usize, values: &[f32]| {
            for (row, values) in rows.clone().zip(values.chunks_exact(heads.head_dim)) {
                // SAFETY: rows of this sequence and the columns of one head, which belong to this
                // task alone: its own key and value head, and the query heads that share them.
                unsafe {
                    let at = base.get().add(row * stride + head_column * heads.head_dim);
                    std::ptr::copy_nonoverlapping(values.as_ptr(), at, values.len());
                }
            }
        };
        attended.head_group(pool, d_out, rows, kv_head, &write);
    });
}

/// Keys and values of a sequence that some query heads share.
struct KeysValues<'a> {
    /// `[keys, dim]`, to be multiplied with queries, and with gradients of outputs.
    keys: Lanes<'a>,
    values: Lanes<'a>,
    /// To be multiplied with gradients of scores.
    key_columns: Block<'a>,
}

/// What the gradients of one head's queries are added up in.
struct Gradients<'a> {
    queries: &'a mut [f32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

impl Attended<'_> {
    /// The query heads that share one key head.
    fn head_group(
        &self,
        pool: &Pool,
        d_out: &[f32],
        rows: &Range<usize>,
        kv_head: usize,
        write: &dyn Fn(usize, &[f32]),
    ) {
        let Heads { heads, kv_heads, head_dim: dim } = self.heads;
        let len = rows.len();
        let all = Rows { values: self.qkv, stride: self.heads.qkv_width(), offset: 0 };
        let keys = all.copy_head(rows.clone(), heads + kv_head, dim);
        let values = all.copy_head(rows.clone(), heads + kv_heads + kv_head, dim);
        let shared = KeysValues {
            keys: Lanes::local(pool, self.precision, &keys, dim),
            values: Lanes::local(pool, self.precision, &values, dim),
            key_columns: Block::columns(pool, self.precision, &keys, dim),
        };
        let (mut d_keys, mut d_values) = (pool.zeros(len * dim), pool.zeros(len * dim));
        let mut d_queries = pool.buffer(len * dim);
        let group = heads / kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            for first in (0..len).step_by(PANEL) {
                let last = len.min(first + PANEL);
                let gradients = Gradients {
                    queries: &mut d_queries[first * dim..last * dim],
                    keys: &mut d_keys[..last * dim],
                    values: &mut d_values[..last * dim],
                };
                self.block(pool, d_out, rows.start, first..last, head, &shared, gradients);
            }
            write(head, &d_queries);
        }
        write(heads + kv_head, &d_keys);
        write(heads + kv_heads + kv_head, &d_values);
    }

    /// A panel of query rows of one head; `queries` counts from the sequence's first row, which is
    /// row `start` of the batch.
    #[allow(clippy::too_many_arguments)]
    fn block(
        &self,
        pool: &Pool,
        d_out: &[f32],
        start: usize,
        queries: Range<usize>,
        head: usize,
        shared: &KeysValues,
        gradients: Gradients,
    ) {
        let (heads, precision) = (self.heads, self.precision);
        let (dim, width) = (heads.head_dim, heads.heads * heads.head_dim);
        let rows = start + queries.start..start + queries.end;
        let (count, seen) = (queries.len(), queries.end);
        let all = Rows { values: self.qkv, stride: heads.qkv_width(), offset: 0 };
        let block = all.copy_head(rows.clone(), head, dim);
        let d_outs = Rows { values: d_out, stride: width, offset: 0 };
        let d_block = d_outs.copy_head(rows.clone(), head, dim);
        let outs = Rows { values: self.out, stride: width, offset: 0 };
        let mut step = BlockStep {
            first: queries.start,
            window: self.window.unwrap_or(usize::MAX),
            scale: heads.scale(),
            log_sums: [0.0; PANEL],
            along: [0.0; PANEL],
        };
        for (index, row) in rows.enumerate() {
            step.log_sums[index] = self.log_sums[row * heads.heads + head];
            step.along[index] = dot(outs.head(row, head, dim), &d_block[index * dim..][..dim]);
        }
        let (query_rows, d_out_rows) = (
            Block::rows(pool, precision, &block, dim),
            Block::rows(pool, precision, &d_block, dim),
        );
        let mut weights = Lanes::unset(pool, precision, seen, count);
        let mut d_scores = Lanes::unset(pool, precision, seen, count);
        let (mut sums, mut d_sums) = ([[0.0; PANEL]; TILE], [[0.0; PANEL]; TILE]);
        for key in (0..seen).step_by(TILE) {
            let keys = key..seen.min(key + TILE);
            query_rows.tile(&shared.keys, keys.clone(), &mut sums);
            d_out_rows.tile(&shared.values, keys.clone(), &mut d_sums);
            turn_scores(&mut sums, &mut d_sums, keys.clone(), &step);
            for (row, (sums, d_sums)) in keys.zip(sums.iter().zip(&d_sums)) {
                weights.set_row(row, &sums[..count]);
                d_scores.set_row(row, &d_sums[..count]);
            }
        }
        Block::columns(pool, precision, &d_block, dim).add(gradients.values, &weights);
        Block::columns(pool, precision, &block, dim).add(gradients.keys, &d_scores);
        shared.key_columns.set_turned(pool, gradients.queries, &d_scores);
    }
}

/// What all keys need of a block of queries.
struct BlockStep {
    /// The position of the block's first query.
    first: usize,
    window: usize,
    scale: f32,
    log_sums: [f32; PANEL],
    /// Σ out · d_out of each query.
    along: [f32; PANEL],
}

multiversion! {
/// Turns scores into weights, and gradients of weights into gradients of scores: rows are the keys
/// `keys`, columns the block's queries.
fn turn_scores(scores: &mut Sums, d: &mut Sums, keys: Range<usize>, step: &BlockStep) {
    for (key, (scores, d)) in keys.zip(scores.iter_mut().zip(d.iter_mut())) {
        for i in 0..PANEL {
            let weight = exp(scores[i] * step.scale - step.log_sums[i]);
            // A query sees the keys up to its own, as far back as the window reaches.
            let query = step.first + i;
            let seen = key <= query && query < key.saturating_add(step.window);
            let weight = if seen { weight } else { 0.0 };
            scores[i] = weight;
            d[i] = weight * (d[i] - step.along[i]) * step.scale;
        }
    }
}
}

multiversion! {
fn dot(a: &[f32], b: &[f32]) -> f32 {
    lane_sum([a, b], |[a, b]| a * b)
}
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HEADS, oracle, run_in, wave};
    use super::*;

    fn gradient(
        precision: Precision,
        qkv: &[f32],
        d_out: &[f32],
        sequences: &[Range<usize>],
        window: Option<usize>,
    ) -> Vec<f32> {
        let (out, log_sums) = run_in(precision, qkv, sequences, window);
        let (out, log_sums) = (&out, &log_sums);
        let attended = Attended { qkv, out, log_sums, sequences, window, heads: HEADS, precision };
        let mut d_qkv = vec![0.0; qkv.len()];
        backward(&Pool::new(2), &mut d_qkv, d_out, &attended);
        d_qkv
    }

    /// At the places named, against central differences of the oracle.
    fn check(tokens: usize, sequences: &[Range<usize>], places: impl Iterator<Item = usize>) {
        let qkv = wave(tokens * HEADS.qkv_width(), 0.2);
        let d_out = wave(tokens * HEADS.heads * HEADS.head_dim, 1.3);
        let d_qkv = gradient(Precision::F32, &qkv, &d_out, sequences, None);
        let value = |qkv: &[f32]| -> f64 {
            oracle(qkv, sequences).iter().zip(&d_out).map(|(o, d)| o * f64::from(*d)).sum()
        };
        for i in places {
            let mut moved = qkv.clone();
            moved[i] += 1e-2;
            let up = value(&moved);
            moved[i] -= 2e-2;
            let expected = (up - value(&moved)) / 2e-2;
            let found = f64::from(d_qkv[i]);
            assert!((found - expected).abs() < 1e-3, "{i}: {found} against {expected}");
        }
    }

    #[test]
    fn gradient_is_the_numeric_one() {
        check(9, &[0..2, 2..9], 0..9 * HEADS.qkv_width());
    }

    #[test]
    fn long_gradients_agree_with_short_blocks() {
        // 150 rows cross two block borders; moving one key changes the outputs as the gradient says.
        let places = [0, 33, 40, 60 * 64 + 35, 70 * 64 + 50, 149 * 64, 149 * 64 + 63];
        check(150, &[0..149, 149..150], places.into_iter());
    }

    #[test]
    fn a_window_of_all_keys_changes_nothing_and_a_small_one_is_as_a_short_sequence() {
        let (qkv, d_out) = (wave(100 * HEADS.qkv_width(), 0.2), wave(100 * 32, 1.3));
        let all = gradient(Precision::F32, &qkv, &d_out, std::slice::from_ref(&(0..100)), None);
        let wide =
            gradient(Precision::F32, &qkv, &d_out, std::slice::from_ref(&(0..100)), Some(100));
        assert_eq!(all, wide);
        // A query that sees itself alone gives its value's gradient only.
        let own = gradient(Precision::F32, &qkv, &d_out, std::slice::from_ref(&(0..100)), Some(1));
        let alone: Vec<Range<usize>> = (0..100).map(|row| row..row + 1).collect();
        let alone = gradient(Precision::F32, &qkv, &d_out, &alone, None);
        assert!(own.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn products_in_bf16_stay_near() {
        let (qkv, d_out) = (wave(150 * HEADS.qkv_width(), 0.2), wave(150 * 32, 1.3));
        let sequences = [0..3, 3..143, 143..150];
        let exact = gradient(Precision::F32, &qkv, &d_out, &sequences, None);
        let near = gradient(Precision::Bf16, &qkv, &d_out, &sequences, None);
        let norm =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
        let off = norm(&mut exact.iter().zip(&near).map(|(a, b)| a - b));
        // Values are rounded to 8 bits.
        assert!(off < 1e-2 * norm(&mut exact.iter().copied()), "off by {off}");
    }
}
