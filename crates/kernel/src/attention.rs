//! Causal attention with grouped query heads, without a score matrix of all tokens by all tokens.
//!
//! **Source**: Vaswani et al. 2017, arXiv 1706.03762, eq. 1; the blockwise backward with the saved
//! log-sum follows Dao 2023, arXiv 2307.08691, algorithm 2.

mod backward;
mod pages;

use std::ops::Range;

use crate::Precision;
use crate::cpu::multiversion;
use crate::gemm::{Output, Packed, matmul_part};
use crate::logits::largest_value;
use crate::ops::{exp, lane_sum};
use crate::pool::{Pool, SendPtr};

pub use backward::{Attended, backward};
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
        /// The type in which they are multiplied.
        precision: Precision,
    },
    /// Multiplied in f32.
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
        let (local, len) = (Pool::local(), self.len());
        let columns =
            |precision, values: &[f32], k, n| Packed::columns(local, precision, values, k, n);
        match self.keys_values {
            KeysValues::Rows { keys, values, precision } => {
                let keys = keys.copy_head(self.queries.clone(), head, dim);
                let values = values.copy_head(self.queries.clone(), head, dim);
                let keys = Packed::rows(local, precision, &keys, len, dim);
                [keys, columns(precision, &values, len, dim)]
            }
            KeysValues::Pages(pages) => {
                let (keys, values) = (pages.copy_keys(head, dim), pages.copy_values(head, dim));
                let exact = Precision::F32;
                [columns(exact, &keys, dim, len), columns(exact, &values, len, dim)]
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
    let max = largest_value(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    (lane_sum([&*scores], |[score]| score), max)
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

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const HEADS: Heads = Heads { heads: 4, kv_heads: 2, head_dim: 8 };

    pub(super) fn wave(len: usize, phase: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.613 + phase).sin()).collect()
    }

    /// The oracle: f64, one row at a time.
    pub(super) fn oracle(qkv: &[f32], sequences: &[Range<usize>]) -> Vec<f64> {
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
        run_in(Precision::F32, qkv, sequences, window)
    }

    pub(super) fn run_in(
        precision: Precision,
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
                    precision,
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

    #[test]
    fn products_in_bf16_stay_near() {
        let sequences = [0..3, 3..143, 143..150];
        let qkv = wave(150 * HEADS.qkv_width(), 0.2);
        let (out, sums) = run(&qkv, &sequences);
        let (near, near_sums) = run_in(Precision::Bf16, &qkv, &sequences, None);
        // Values below 1 are rounded to 8 bits: by 2e-3 each, of which means are taken.
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-2);
        assert!(close(&out, &near) && close(&sums, &near_sums));
        assert!(out != near || Precision::best() == Precision::F32, "they were products in f32");
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
}
