//! Causal attention with grouped query heads, without a score matrix of all tokens by all tokens.
//!
//! **Source**: Vaswani et al. 2017, arXiv 1706.03762, eq. 1; the blockwise backward with the saved
//! log-sum follows Dao 2023, arXiv 2307.08691, algorithm 2.

mod pages;

use std::ops::Range;

use crate::Precision;
use crate::cpu::multiversion;
use crate::gemm::{Left, Output, Packed, matmul, matmul_part};
use crate::ops::{exp, lane_sum};
use crate::pool::{Pool, SendPtr};

pub use pages::Pages;

/// Query rows handled together: their scores against a thousand keys stay in the L2 cache.
const BLOCK: usize = 64;
/// With fewer query rows than this, packing keys costs more than it saves. Their sums are added in
/// another order.
pub const FEW_ROWS: usize = 5;

/// Columns of values whose sums fit the registers, with room for those of wider instruction sets.
const STRIP: usize = 64;

/// How queries, keys and values are divided into heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Width of a row that holds queries, keys and values side by side.
    pub fn qkv_width(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn kv_head(self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}

/// Rows inside a wider matrix.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub values: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
    /// Where in a row its first head begins.
    pub offset: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn head(self, row: usize, head: usize, dim: usize) -> &'a [f32] {
        &self.values[row * self.stride + self.offset + head * dim..][..dim]
    }

    /// One head of `count` rows, without gaps.
    fn copy_head(self, rows: Range<usize>, head: usize, dim: usize) -> Vec<f32> {
        let mut copy = Vec::with_capacity(rows.len() * dim);
        for row in rows {
            copy.extend_from_slice(self.head(row, head, dim));
        }
        copy
    }
}

/// One sequence of a batch: its queries are the last of its keys.
pub struct Sequence<'a> {
    /// The batch's rows that are this sequence's queries.
    pub queries: Range<usize>,
    pub keys_values: KeysValues<'a>,
    /// Keys that a query sees, the newest ones, its own being the last; all if none is given.
    pub window: Option<usize>,
}

/// Where a sequence's keys and values stand.
#[derive(Clone, Copy)]
pub enum KeysValues<'a> {
    /// In the batch's rows that are the sequence's queries, too.
    Rows {
        keys: Rows<'a>,
        values: Rows<'a>,
    },
    Pages(Pages<'a>),
}

impl Sequence<'_> {
    /// Keys in all.
    fn len(&self) -> usize {
        match self.keys_values {
            KeysValues::Rows { .. } => self.queries.len(),
            KeysValues::Pages(pages) => pages.len,
        }
    }

    /// Keys that stand before the first query.
    fn past(&self) -> usize {
        self.len() - self.queries.len()
    }

    /// How many of the first `seen` keys lie before the window.
    fn out_of_sight(&self, seen: usize) -> usize {
        self.window.map_or(0, |window| seen.saturating_sub(window))
    }

    /// A head's keys and values, packed for products with queries and with scores.
    fn packed(&self, head: usize, dim: usize) -> [Packed; 2] {
        let (local, len) = (Pool::new(1), self.len());
        let columns = |values: &[f32], k, n| Packed::columns(&local, Precision::F32, values, k, n);
        match self.keys_values {
            KeysValues::Rows { keys, values } => {
                let keys = keys.copy_head(self.queries.clone(), head, dim);
                let values = values.copy_head(self.queries.clone(), head, dim);
                let keys = Packed::rows(&local, Precision::F32, &keys, len, dim);
                [keys, columns(&values, len, dim)]
            }
            KeysValues::Pages(pages) => {
                let (keys, values) = (pages.copy_keys(head, dim), pages.copy_values(head, dim));
                [columns(&keys, dim, len), columns(&values, len, dim)]
            }
        }
    }
}

/// Attention of every sequence.
///
/// **Shapes**: queries `[tokens, …]` by [`Rows`]; out `[tokens, heads · head_dim]`; `log_sums`,
/// where given, `[tokens, heads]`: the natural logarithm of each row's sum of exponentials, which
/// [`backward`] needs. They are not written for a few rows whose keys stand in pages.
pub fn forward(
    pool: &Pool,
    out: &mut [f32],
    queries: Rows,
    sequences: &[Sequence],
    heads: Heads,
    log_sums: Option<&mut [f32]>,
) {
    let width = heads.heads * heads.head_dim;
    let tokens = out.len() / width;
    assert!(out.len().is_multiple_of(width));
    assert!(sequences.iter().all(|s| s.queries.end <= tokens && s.len() >= s.queries.len()));
    assert!(log_sums.as_ref().is_none_or(|l| l.len() == tokens * heads.heads));
    let out = SendPtr(out.as_mut_ptr());
    let sums = log_sums.map(|l| SendPtr(l.as_mut_ptr()));
    // Heads that share their keys go together, unless that leaves threads without work.
    let group = heads.heads / heads.kv_heads;
    let many = sequences.len() * heads.kv_heads >= 2 * pool.threads();
    let together = if many { group } else { 1 };
    let tasks = heads.heads / together;
    pool.run(sequences.len() * tasks, &|task| {
        let sequence = &sequences[task / tasks];
        for head in task % tasks * together..(task % tasks + 1) * together {
            let store = |row: usize, values: &[f32], log_sum: Option<f32>| {
                assert_eq!(values.len(), heads.head_dim);
                // SAFETY: the row is one of this sequence's, which no other sequence has, and the
                // columns are those of one of this task's heads.
                unsafe {
                    let at = out.get().add(row * width + head * heads.head_dim);
                    std::ptr::copy_nonoverlapping(values.as_ptr(), at, values.len());
                    if let (Some(sums), Some(log_sum)) = (&sums, log_sum) {
                        *sums.get().add(row * heads.heads + head) = log_sum;
                    }
                }
            };
            attend_head(queries, sequence, head, heads, &store);
        }
    });
}

/// Takes a row's result and the logarithm of its sum of exponentials, where that is known.
type Store<'a> = dyn Fn(usize, &[f32], Option<f32>) + 'a;

fn attend_head(queries: Rows, sequence: &Sequence, head: usize, heads: Heads, store: &Store) {
    match sequence.keys_values {
        KeysValues::Pages(pages) if sequence.queries.len() < FEW_ROWS => {
            for (index, row) in sequence.queries.clone().enumerate() {
                let seen = sequence.past() + index + 1;
                let seen = sequence.out_of_sight(seen)..seen;
                let query = queries.head(row, head, heads.head_dim);
                let kv_head = heads.kv_head(head);
                store(row, &pages::attend_row(query, pages, kv_head, seen, heads.scale()), None);
            }
        }
        _ => attend_blocks(queries, sequence, head, heads, store),
    }
}

/// Replaces scores by exp(score − max); returns their sum and the maximum.
#[inline(always)]
fn exponentiate(scores: &mut [f32]) -> (f32, f32) {
    let max = scores.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    (lane_sum(scores.len(), |i| scores[i]), max)
}

fn attend_blocks(queries: Rows, sequence: &Sequence, head: usize, heads: Heads, store: &Store) {
    let dim = heads.head_dim;
    let [keys, values] = sequence.packed(heads.kv_head(head), dim);
    for first in (0..sequence.queries.len()).step_by(BLOCK) {
        let last = sequence.queries.len().min(first + BLOCK);
        let rows = sequence.queries.start + first..sequence.queries.start + last;
        let seen = sequence.past() + last;
        let block = queries.copy_head(rows.clone(), head, dim);
        let mut scores = vec![0.0; rows.len() * seen];
        matmul_part(&mut scores, &block, &keys, seen, dim, Output::Replace);
        for (index, row) in scores.chunks_exact_mut(seen).enumerate() {
            let last = sequence.past() + first + index + 1;
            // What a key weighs is the exponential of its score.
            row[..sequence.out_of_sight(last)].fill(f32::NEG_INFINITY);
        }
        let sums = softmax_rows(&mut scores, seen, sequence.past() + first + 1, heads.scale());
        let mut out = vec![0.0; rows.len() * dim];
        matmul_part(&mut out, &scores, &values, dim, seen, Output::Replace);
        for ((row, out), log_sum) in rows.zip(out.chunks_exact(dim)).zip(sums) {
            store(row, out, Some(log_sum));
        }
    }
}

multiversion! {
/// Causal softmax in place: row `r` sees the first `seen_by_first + r` columns. Returns the
/// logarithms of the sums.
fn softmax_rows(scores: &mut [f32], cols: usize, seen_by_first: usize, scale: f32) -> Vec<f32> {
    let mut log_sums = Vec::with_capacity(scores.len() / cols);
    for (index, row) in scores.chunks_exact_mut(cols).enumerate() {
        let (seen, hidden) = row.split_at_mut(seen_by_first + index);
        for score in seen.iter_mut() {
            *score *= scale;
        }
        let (sum, max) = exponentiate(seen);
        for weight in seen.iter_mut() {
            *weight /= sum;
        }
        hidden.fill(0.0);
        log_sums.push(max + sum.ln());
    }
    log_sums
}
}

/// The gradient of [`forward`] with respect to queries, keys and values that stand side by side.
///
/// **Shapes**: qkv, d_qkv `[tokens, qkv_width]` (d_qkv is written over); out, d_out
/// `[tokens, heads · head_dim]`; log_sums `[tokens, heads]`. `sequences` are row ranges: each
/// sequence sees its own rows only, and within it each row its newest `window`, if one is given.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    pool: &Pool,
    d_qkv: &mut [f32],
    qkv: &[f32],
    out: &[f32],
    d_out: &[f32],
    log_sums: &[f32],
    sequences: &[Range<usize>],
    window: Option<usize>,
    heads: Heads,
) {
    let (stride, width) = (heads.qkv_width(), heads.heads * heads.head_dim);
    let tokens = qkv.len() / stride;
    assert!(d_qkv.len() == qkv.len() && out.len() == tokens * width && d_out.len() == out.len());
    assert!(log_sums.len() == tokens * heads.heads && sequences.iter().all(|s| s.end <= tokens));
    let saved = Saved { qkv, out, d_out, log_sums, window, heads };
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
        saved.head_group(rows, kv_head, &write);
    });
}

/// What the forward pass left.
struct Saved<'a> {
    qkv: &'a [f32],
    out: &'a [f32],
    d_out: &'a [f32],
    log_sums: &'a [f32],
    window: Option<usize>,
    heads: Heads,
}

impl Saved<'_> {
    /// The query heads that share one key head.
    fn head_group(&self, rows: &Range<usize>, kv_head: usize, write: &dyn Fn(usize, &[f32])) {
        let heads = self.heads;
        let (dim, len) = (heads.head_dim, rows.len());
        let local = Pool::new(1);
        let all = Rows { values: self.qkv, stride: heads.qkv_width(), offset: 0 };
        let keys = all.copy_head(rows.clone(), heads.heads + kv_head, dim);
        let values = all.copy_head(rows.clone(), heads.heads + heads.kv_heads + kv_head, dim);
        let packed = PackedHead {
            key_rows: Packed::rows(&local, Precision::F32, &keys, len, dim),
            key_columns: Packed::columns(&local, Precision::F32, &keys, len, dim),
            value_rows: Packed::rows(&local, Precision::F32, &values, len, dim),
        };
        let (mut d_keys, mut d_values) = (vec![0.0; len * dim], vec![0.0; len * dim]);
        let group = heads.heads / heads.kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            let mut d_queries = vec![0.0; len * dim];
            for first in (0..len).step_by(BLOCK) {
                let last = len.min(first + BLOCK);
                let block = rows.start + first..rows.start + last;
                let dq = &mut d_queries[first * dim..last * dim];
                let (dk, dv) = (&mut d_keys[..last * dim], &mut d_values[..last * dim]);
                self.block(&packed, all, block, first, head, dq, dk, dv);
            }
            write(head, &d_queries);
        }
        write(heads.heads + kv_head, &d_keys);
        write(heads.heads + heads.kv_heads + kv_head, &d_values);
    }

    /// One block of query rows of one head; `first` is the block's first row in its sequence.
    #[allow(clippy::too_many_arguments)]
    fn block(
        &self,
        packed: &PackedHead,
        all: Rows,
        rows: Range<usize>,
        first: usize,
        head: usize,
        d_queries: &mut [f32],
        d_keys: &mut [f32],
        d_values: &mut [f32],
    ) {
        let (heads, dim) = (self.heads, self.heads.head_dim);
        let local = Pool::new(1);
        let seen = first + rows.len();
        let width = heads.heads * dim;
        let outs = Rows { values: self.out, stride: width, offset: 0 };
        let d_outs = Rows { values: self.d_out, stride: width, offset: 0 };
        let queries = all.copy_head(rows.clone(), head, dim);
        let d_out = d_outs.copy_head(rows.clone(), head, dim);
        let mut weights = vec![0.0; rows.len() * seen];
        matmul_part(&mut weights, &queries, &packed.key_rows, seen, dim, Output::Replace);
        let mut d_scores = vec![0.0; rows.len() * seen];
        matmul_part(&mut d_scores, &d_out, &packed.value_rows, seen, dim, Output::Replace);
        for (index, row) in rows.clone().enumerate() {
            let last = first + index + 1;
            let along = outs.head(row, head, dim).iter().zip(&d_out[index * dim..]);
            let step = RowStep {
                seen: self.window.map_or(0, |window| last.saturating_sub(window))..last,
                scale: heads.scale(),
                log_sum: self.log_sums[row * heads.heads + head],
                along: along.map(|(o, d)| o * d).sum(),
            };
            let range = index * seen..(index + 1) * seen;
            row_backward(&mut weights[range.clone()], &mut d_scores[range], step);
        }
        let d_out = Packed::columns(&local, Precision::F32, &d_out, rows.len(), dim);
        matmul(&local, d_values, Left::Transposed(&weights), &d_out, Output::Add);
        matmul_part(d_queries, &d_scores, &packed.key_columns, dim, seen, Output::Replace);
        let queries = Packed::columns(&local, Precision::F32, &queries, rows.len(), dim);
        matmul(&local, d_keys, Left::Transposed(&d_scores), &queries, Output::Add);
    }
}

struct PackedHead {
    key_rows: Packed,
    key_columns: Packed,
    value_rows: Packed,
}

struct RowStep {
    seen: Range<usize>,
    scale: f32,
    log_sum: f32,
    /// Σ out · d_out of the row.
    along: f32,
}

multiversion! {
/// Turns scores into weights, and gradients of weights into gradients of scores.
fn row_backward(weights: &mut [f32], d_scores: &mut [f32], step: RowStep) {
    let (first, last) = (step.seen.start, step.seen.end);
    for hidden in [&mut *weights, &mut *d_scores] {
        hidden[..first].fill(0.0);
        hidden[last..].fill(0.0);
    }
    let seen = weights[first..last].iter_mut().zip(&mut d_scores[first..last]);
    for (weight, d) in seen {
        *weight = exp(*weight * step.scale - step.log_sum);
        *d = *weight * (*d - step.along) * step.scale;
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { heads: 4, kv_heads: 2, head_dim: 8 };

    fn wave(len: usize, phase: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.613 + phase).sin()).collect()
    }

    /// The oracle: f64, one row at a time.
    fn oracle(qkv: &[f32], sequences: &[Range<usize>]) -> Vec<f64> {
        let (dim, stride) = (HEADS.head_dim, HEADS.qkv_width());
        let tokens = qkv.len() / stride;
        let mut out = vec![0.0; tokens * HEADS.heads * dim];
        let at = |row: usize, head: usize, i: usize| f64::from(qkv[row * stride + head * dim + i]);
        for rows in sequences {
            for row in rows.clone() {
                for head in 0..HEADS.heads {
                    let k = HEADS.heads + head / 2;
                    let scores: Vec<f64> = (rows.start..=row)
                        .map(|j| (0..dim).map(|i| at(row, head, i) * at(j, k, i)).sum::<f64>())
                        .map(|s| (s / (dim as f64).sqrt()).exp())
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for (j, score) in (rows.start..=row).zip(&scores) {
                        for i in 0..dim {
                            out[(row * HEADS.heads + head) * dim + i] +=
                                score / sum * at(j, k + 2, i);
                        }
                    }
                }
            }
        }
        out
    }

    fn run(qkv: &[f32], sequences: &[Range<usize>]) -> (Vec<f32>, Vec<f32>) {
        run_windowed(qkv, sequences, None)
    }

    fn run_windowed(
        qkv: &[f32],
        sequences: &[Range<usize>],
        window: Option<usize>,
    ) -> (Vec<f32>, Vec<f32>) {
        let stride = HEADS.qkv_width();
        let tokens = qkv.len() / stride;
        let rows = |offset| Rows { values: qkv, stride, offset };
        let sequences: Vec<Sequence> = sequences
            .iter()
            .map(|r| Sequence {
                queries: r.clone(),
                keys_values: KeysValues::Rows {
                    keys: rows(HEADS.heads * HEADS.head_dim),
                    values: rows((HEADS.heads + HEADS.kv_heads) * HEADS.head_dim),
                },
                window,
            })
            .collect();
        let mut out = vec![0.0; tokens * HEADS.heads * HEADS.head_dim];
        let mut sums = vec![0.0; tokens * HEADS.heads];
        forward(&Pool::new(2), &mut out, rows(0), &sequences, HEADS, Some(&mut sums));
        (out, sums)
    }

    #[test]
    fn short_and_long_sequences_agree_with_the_oracle() {
        let sequences = [0..3, 3..143, 143..150];
        let qkv = wave(150 * HEADS.qkv_width(), 0.2);
        let (out, _) = run(&qkv, &sequences);
        for (i, (a, b)) in out.iter().zip(oracle(&qkv, &sequences)).enumerate() {
            assert!((f64::from(*a) - b).abs() < 1e-5, "{i}: {a} against {b}");
        }
    }

    /// As `run`, with keys and values in pages, and the last `queries` rows as queries.
    fn run_paged(qkv: &[f32], queries: usize, window: Option<usize>) -> Vec<f32> {
        let (stride, dim) = (HEADS.qkv_width(), HEADS.head_dim);
        let len = qkv.len() / stride;
        let size = Pages::page_len(HEADS.kv_heads, dim);
        let mut pages = vec![vec![f32::NAN; size]; len.div_ceil(Pages::TOKENS)];
        for (at, row) in qkv.chunks_exact(stride).enumerate() {
            let (keys, values) = row[HEADS.heads * dim..].split_at(HEADS.kv_heads * dim);
            let page = &mut pages[at / Pages::TOKENS];
            Pages::write(page, at % Pages::TOKENS, keys, values, dim);
        }
        let parts: Vec<&[f32]> = pages.iter().map(Vec::as_slice).collect();
        let keys_values = KeysValues::Pages(Pages { parts: &parts, len });
        let sequence = Sequence { queries: 0..queries, keys_values, window };
        let mut out = vec![0.0; queries * HEADS.heads * dim];
        let rows = Rows { values: &qkv[(len - queries) * stride..], stride, offset: 0 };
        forward(&Pool::new(2), &mut out, rows, &[sequence], HEADS, None);
        out
    }

    #[test]
    fn keys_in_pages_give_what_keys_in_rows_do() {
        let width = HEADS.heads * HEADS.head_dim;
        for (len, queries, window) in [
            (1, 1, None),
            (33, 1, None),
            (64, 4, None),
            (100, 3, Some(40)),
            (100, 1, Some(3)),
            (100, 5, None),
            (150, 90, None),
            (150, 90, Some(33)),
        ] {
            let qkv = wave(len * HEADS.qkv_width(), 0.2);
            let (expected, _) = run_windowed(&qkv, std::slice::from_ref(&(0..len)), window);
            let expected = &expected[(len - queries) * width..];
            for (a, b) in run_paged(&qkv, queries, window).iter().zip(expected) {
                assert!((a - b).abs() < 1e-5, "{len} {queries} {window:?}: {a} against {b}");
            }
        }
    }

    #[test]
    fn a_window_hides_all_but_the_newest_keys() {
        let qkv = wave(150 * HEADS.qkv_width(), 0.2);
        for (rows, window) in [(0..150, 1), (0..150, 7), (0..150, 70), (0..4, 2)] {
            let (out, _) = run_windowed(&qkv, std::slice::from_ref(&rows), Some(window));
            for row in rows {
                // The last row of a sequence that begins with the window.
                let seen = (row + 1).saturating_sub(window)..row + 1;
                let expected = oracle(&qkv, std::slice::from_ref(&seen));
                let width = HEADS.heads * HEADS.head_dim;
                for i in row * width..(row + 1) * width {
                    assert!((f64::from(out[i]) - expected[i]).abs() < 1e-5, "{row} {window}");
                }
            }
        }
    }

    #[test]
    fn gradient_is_the_numeric_one() {
        let sequences = [0..2, 2..9];
        let qkv = wave(9 * HEADS.qkv_width(), 0.2);
        let (out, sums) = run(&qkv, &sequences);
        let d_out = wave(out.len(), 1.3);
        let mut d_qkv = vec![0.0; qkv.len()];
        backward(&Pool::new(2), &mut d_qkv, &qkv, &out, &d_out, &sums, &sequences, None, HEADS);
        let value = |qkv: &[f32]| -> f64 {
            oracle(qkv, &sequences).iter().zip(&d_out).map(|(o, d)| o * f64::from(*d)).sum()
        };
        for i in 0..qkv.len() {
            let mut moved = qkv.clone();
            moved[i] += 1e-2;
            let up = value(&moved);
            moved[i] -= 2e-2;
            let expected = (up - value(&moved)) / 2e-2;
            assert!(
                (f64::from(d_qkv[i]) - expected).abs() < 1e-3,
                "{i}: {} against {expected}",
                d_qkv[i]
            );
        }
    }

    #[test]
    fn gradients_within_a_window_are_the_numeric_ones() {
        let rows = 0..9;
        let qkv = wave(9 * HEADS.qkv_width(), 0.2);
        let run = |qkv: &[f32]| run_windowed(qkv, std::slice::from_ref(&rows), Some(3));
        let (out, sums) = run(&qkv);
        let d_out = wave(out.len(), 1.3);
        let mut d_qkv = vec![0.0; qkv.len()];
        let (pool, all) = (Pool::new(2), [rows.clone()]);
        backward(&pool, &mut d_qkv, &qkv, &out, &d_out, &sums, &all, Some(3), HEADS);
        let value = |qkv: &[f32]| -> f64 {
            run(qkv).0.iter().zip(&d_out).map(|(o, d)| f64::from(o * d)).sum()
        };
        for i in 0..qkv.len() {
            let mut moved = qkv.clone();
            moved[i] += 1e-2;
            let up = value(&moved);
            moved[i] -= 2e-2;
            let expected = (up - value(&moved)) / 2e-2;
            assert!((f64::from(d_qkv[i]) - expected).abs() < 1e-3, "{i}: {} {expected}", d_qkv[i]);
        }
    }

    #[test]
    fn long_gradients_agree_with_short_blocks() {
        // 150 rows cross two block borders; moving one key changes the outputs as the gradient says.
        let sequences = [0..149, 149..150];
        let qkv = wave(150 * HEADS.qkv_width(), 0.4);
        let (out, sums) = run(&qkv, &sequences);
        let d_out = wave(out.len(), 0.3);
        let mut d_qkv = vec![0.0; qkv.len()];
        backward(&Pool::new(2), &mut d_qkv, &qkv, &out, &d_out, &sums, &sequences, None, HEADS);
        let value = |qkv: &[f32]| -> f64 {
            oracle(qkv, &sequences).iter().zip(&d_out).map(|(o, d)| o * f64::from(*d)).sum()
        };
        for i in [0, 33, 40, 60 * 64 + 35, 70 * 64 + 50, 149 * 64, 149 * 64 + 63] {
            let mut moved = qkv.clone();
            moved[i] += 1e-2;
            let up = value(&moved);
            moved[i] -= 2e-2;
            let expected = (up - value(&moved)) / 2e-2;
            assert!(
                (f64::from(d_qkv[i]) - expected).abs() < 1e-3,
                "{i}: {} against {expected}",
                d_qkv[i]
            );
        }
    }
}
