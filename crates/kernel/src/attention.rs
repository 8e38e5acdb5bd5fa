//! Causal attention with grouped query heads, without a score matrix of all tokens by all tokens.
//!
//! **Source**: Vaswani et al. 2017, arXiv 1706.03762, eq. 1; the blockwise backward with the saved
//! log-sum follows Dao 2023, arXiv 2307.08691, algorithm 2.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod backward;
mod blocks;
mod pages;
mod rows;

use std::ops::Range;

use crate::Precision;
use crate::logits::largest_value;
use crate::ops::{exp, lane_sum};
use crate::pool::Pool;

pub use backward::{Attended, backward};
pub use pages::{KvFormat, KvPart, KvPartMut, KvValues, Pages};

/// Query rows handled together: their scores against a thousand keys stay in the L2 cache.
const BLOCK: usize = 64;
/// With fewer query rows than this, packing keys costs more than it saves. Their sums are added in
/// another order.
pub const FEW_ROWS: usize = 5;

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

    /// Whether its rows are attended to one by one, because packing its keys would cost more.
    fn has_few_rows(&self) -> bool {
        matches!(self.keys_values, KeysValues::Pages(_)) && self.queries.len() < FEW_ROWS
    }

    /// How many of the first `seen` keys lie before the window.
    fn out_of_sight(&self, seen: usize) -> usize {
        self.window.map_or(0, |window| seen.saturating_sub(window))
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
    let (few, many): (Vec<&Sequence>, Vec<&Sequence>) =
        sequences.iter().partition(|sequence| sequence.has_few_rows());
    if !few.is_empty() {
        rows::attend(pool, out, queries, &few, heads);
    }
    if !many.is_empty() {
        blocks::attend(pool, out, queries, &many, heads, log_sums);
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
    fn run_paged(
        (qkv, heads): (&[f32], Heads),
        queries: usize,
        window: Option<usize>,
        format: KvFormat,
        threads: usize,
    ) -> Vec<f32> {
        let (stride, dim) = (heads.qkv_width(), heads.head_dim);
        let len = qkv.len() / stride;
        let size = Pages::page_len(heads.kv_heads, dim);
        // What stands behind the last token must not be read.
        let mut pages: Vec<KvValues> = (0..len.div_ceil(Pages::TOKENS))
            .map(|_| match format {
                KvFormat::F32 => KvValues::F32(vec![f32::NAN; size]),
                KvFormat::F16 => KvValues::F16(vec![0x7e00; size]),
                KvFormat::Q8 => {
                    KvValues::Q8 { values: vec![99; size], scales: vec![f32::NAN; size / dim] }
                }
            })
            .collect();
        for (page, rows) in pages.iter_mut().zip(qkv.chunks(Pages::TOKENS * stride)) {
            let mut page = page.part_mut(0..size);
            let rows = &rows[heads.heads * dim..];
            Pages::write(&mut page, 0, rows, stride, [heads.kv_heads, dim]);
        }
        let parts: Vec<KvPart> = pages.iter().map(|page| page.part(0..size)).collect();
        let keys_values = KeysValues::Pages(Pages { parts: &parts, len });
        let sequence = Sequence { queries: 0..queries, keys_values, window };
        let mut out = vec![0.0; queries * heads.heads * dim];
        let rows = Rows { values: &qkv[(len - queries) * stride..], stride, offset: 0 };
        forward(&Pool::new(threads), &mut out, rows, &[sequence], heads, None);
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
            (300, 2, None),
            (300, 1, Some(140)),
        ] {
            let qkv = wave(len * HEADS.qkv_width(), 0.2);
            let (expected, _) = run_windowed(&qkv, std::slice::from_ref(&(0..len)), window);
            let expected = &expected[(len - queries) * width..];
            for (format, most) in
                [(KvFormat::F32, 1e-5), (KvFormat::F16, 1e-3), (KvFormat::Q8, 1e-2)]
            {
                let found = run_paged((&qkv, HEADS), queries, window, format, 2);
                for (a, b) in found.iter().zip(expected) {
                    let what = format!("{len} {queries} {window:?} {format:?}");
                    assert!((a - b).abs() < most, "{what}: {a} against {b}");
                }
            }
        }
    }

    /// Rows one by one, through whatever this CPU has for them, against blocks of rows.
    #[test]
    fn heads_of_any_group_and_size_agree() {
        for (heads, kv_heads, head_dim) in [(1, 1, 16), (6, 2, 64), (5, 1, 80), (8, 1, 256)] {
            let heads = Heads { heads, kv_heads, head_dim };
            let qkv = wave(150 * heads.qkv_width(), 0.4);
            for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
                let rows = run_paged((&qkv, heads), 4, Some(145), format, 1);
                let again = run_paged((&qkv, heads), 4, Some(145), format, 3);
                assert_eq!(rows, again, "{heads:?}: the number of threads shows");
                let blocks = run_paged((&qkv, heads), 20, Some(145), format, 1);
                let blocks = &blocks[16 * heads.heads * head_dim..];
                for (a, b) in rows.iter().zip(blocks) {
                    assert!((a - b).abs() < 1e-5, "{heads:?} {format:?}: {a} against {b}");
                }
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
