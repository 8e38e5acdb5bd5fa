//! Attention of single rows, whose keys stand in pages: each token that is written.
//!
//! The keys of a row are divided into parts at fixed places, so that many threads can work on one
//! row and the result does not depend on how many there are. A part gives, for each head, the sum
//! of its exponentials, their maximum, and the weighted sum of values; the last part to be done
//! puts them together.
//!
//! **Source**: Dao 2023, arXiv 2307.08691, section 3.1.1 (partial softmax and how to rescale it).

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::pages::KvPart;
use super::{Heads, KeysValues, Pages, Rows, Sequence, exponentiate};
use crate::cpu::multiversion;
#[cfg(target_arch = "x86_64")]
use crate::cpu::{Level, level};
use crate::pool::{Pool, SendPtr};

/// Keys of a part.
pub(super) const PART: usize = 4 * Pages::TOKENS;
/// Query heads that share their keys and are handled together, at most: their sums fit the registers.
pub(super) const TOGETHER: usize = 4;

/// The query heads of one row that share their keys.
struct Group<'a> {
    row: usize,
    kv_head: usize,
    pages: Pages<'a>,
    /// Keys that the row sees.
    seen: Range<usize>,
    /// Number of its first part, among those of all groups.
    first: usize,
    parts: usize,
    /// Parts that are done.
    done: AtomicUsize,
}

/// Attention of all rows of these sequences.
pub(super) fn attend(
    pool: &Pool,
    out: &mut [f32],
    queries: Rows,
    sequences: &[&Sequence],
    heads: Heads,
) {
    let Heads { head_dim: dim, kv_heads, .. } = heads;
    let share = heads.heads / kv_heads;
    let groups = groups(sequences, kv_heads);
    let tasks: Vec<(usize, usize)> = groups
        .iter()
        .enumerate()
        .flat_map(|(group, of)| (0..of.parts).map(move |part| (group, part)))
        .collect();
    // Of each part and head: sum, maximum, values.
    let size = share * (dim + 2);
    let mut partial = pool.buffer(tasks.len() * size);
    let (partial, out) = (SendPtr(partial.as_mut_ptr()), SendPtr(out.as_mut_ptr()));
    pool.run(tasks.len(), &|task| {
        let (group, part) = (&groups[tasks[task].0], tasks[task].1);
        // SAFETY: each task has its own part of the buffer, which outlives the run.
        let to = unsafe { std::slice::from_raw_parts_mut(partial.get().add(task * size), size) };
        let query = queries.head(group.row, group.kv_head, dim * share);
        attend_part(query, group, part, heads, to);
        if group.done.fetch_add(1, Ordering::AcqRel) + 1 < group.parts {
            return;
        }
        // SAFETY: all parts of the group are done, as the counter says, and nobody writes them.
        let parts = unsafe {
            std::slice::from_raw_parts(partial.get().add(group.first * size), group.parts * size)
        };
        // SAFETY: the row's heads of this group, which belong to whoever finishes it.
        let to = unsafe {
            let at = group.row * heads.heads * dim + group.kv_head * share * dim;
            std::slice::from_raw_parts_mut(out.get().add(at), share * dim)
        };
        for (head, to) in to.chunks_exact_mut(dim).enumerate() {
            let of = |part: usize| &parts[part * size + head * (dim + 2)..][..dim + 2];
            combine((0..group.parts).map(of), to);
        }
    });
}

fn groups<'a>(sequences: &[&Sequence<'a>], kv_heads: usize) -> Vec<Group<'a>> {
    let mut groups = Vec::new();
    let mut first = 0;
    for sequence in sequences {
        let KeysValues::Pages(pages) = sequence.keys_values else {
            unreachable!("only keys in pages are attended to row by row")
        };
        for (index, row) in sequence.queries.clone().enumerate() {
            let last = sequence.past() + index + 1;
            let seen = sequence.out_of_sight(last)..last;
            let parts = seen.end.div_ceil(PART) - seen.start / PART;
            for kv_head in 0..kv_heads {
                let (seen, done) = (seen.clone(), AtomicUsize::new(0));
                groups.push(Group { row, kv_head, pages, seen, first, parts, done });
                first += parts;
            }
        }
    }
    groups
}

/// **Shapes**: query `[heads, head_dim]`; out `[heads, 2 + head_dim]`.
fn attend_part(query: &[f32], group: &Group, part: usize, heads: Heads, out: &mut [f32]) {
    let dim = heads.head_dim;
    let start = (group.seen.start / PART + part) * PART;
    let seen = start.max(group.seen.start)..group.seen.end.min(start + PART);
    let pages = start / Pages::TOKENS..seen.end.div_ceil(Pages::TOKENS);
    let mut keys = [KvPart::F32(&[]); PART / Pages::TOKENS];
    let mut values = keys;
    for (index, page) in pages.clone().enumerate() {
        keys[index] = group.pages.keys(page, group.kv_head, dim);
        values[index] = group.pages.values(page, group.kv_head, dim);
    }
    let part = Part {
        keys: &keys[..pages.len()],
        values: &values[..pages.len()],
        seen: seen.start - start..seen.end - start,
        scale: heads.scale(),
    };
    let mut first = 0;
    while first * dim < query.len() {
        let count = TOGETHER.min(query.len() / dim - first);
        let query = &query[first * dim..(first + count) * dim];
        let out = &mut out[first * (dim + 2)..(first + count) * (dim + 2)];
        part.attend(query, dim, out);
        first += count;
    }
}

/// Some keys and values of a head, page by page.
pub(super) struct Part<'a> {
    pub(super) keys: &'a [KvPart<'a>],
    pub(super) values: &'a [KvPart<'a>],
    /// Those that are seen.
    pub(super) seen: Range<usize>,
    pub(super) scale: f32,
}

/// Of each head the scores, then what the keys weigh.
pub(super) type Weights = [[f32; PART]; TOGETHER];

impl Part<'_> {
    /// **Shapes**: query `[heads, head_dim]`; out `[heads, 2 + head_dim]`.
    fn attend(&self, query: &[f32], dim: usize, out: &mut [f32]) {
        let mut weights: Weights = [[0.0; PART]; TOGETHER];
        #[cfg(target_arch = "x86_64")]
        if level() == Level::Avx512 && dim.is_multiple_of(16) && is_x86_feature_detected!("f16c") {
            let heads = avx512::checked_heads(self, query, dim, out);
            // SAFETY: the CPU has the features, and the lengths were just checked.
            unsafe { avx512::scores(self, query, heads, dim, &mut weights) };
            self.weigh(&mut weights, dim, out);
            // SAFETY: as above.
            unsafe { avx512::values(self, &weights, heads, dim, out) };
            return;
        }
        let mut wide = [Vec::new(), Vec::new()];
        let [keys, values] = &mut wide;
        self.keys.iter().for_each(|page| page.widen(keys, |at| at % Pages::TOKENS));
        self.values.iter().for_each(|page| page.widen(values, |at| at / dim));
        plain_scores(&wide[0], query, dim, self.scale, &mut weights);
        self.weigh(&mut weights, dim, out);
        plain_values(&wide[1], self.seen.clone(), &weights, dim, out);
    }

    /// Turns the scores of what is seen into exponentials; writes their sums and maxima.
    fn weigh(&self, weights: &mut Weights, dim: usize, out: &mut [f32]) {
        for (weights, out) in weights.iter_mut().zip(out.chunks_exact_mut(dim + 2)) {
            [out[0], out[1]] = exponentials(&mut weights[self.seen.clone()]);
        }
    }
}

multiversion! {
fn exponentials(scores: &mut [f32]) -> [f32; 2] {
    let (sum, max) = exponentiate(scores);
    [sum, max]
}
}

multiversion! {
/// The oracle.
///
/// **Shapes**: keys `[pages, head_dim, TOKENS]`; query `[heads, head_dim]`.
fn plain_scores(keys: &[f32], query: &[f32], dim: usize, scale: f32, scores: &mut Weights) {
    const TOKENS: usize = Pages::TOKENS;
    for (page, keys) in keys.chunks_exact(TOKENS * dim).enumerate() {
        for (query, scores) in query.chunks_exact(dim).zip(scores.iter_mut()) {
            let mut sums = [0.0f32; TOKENS];
            for (query, keys) in query.iter().zip(keys.as_chunks::<TOKENS>().0) {
                for token in 0..TOKENS {
                    sums[token] += query * keys[token];
                }
            }
            for token in 0..TOKENS {
                scores[page * TOKENS + token] = sums[token] * scale;
            }
        }
    }
}
}

multiversion! {
/// **Shapes**: values `[tokens, head_dim]`; out `[heads, 2 + head_dim]`.
fn plain_values(values: &[f32], seen: Range<usize>, weights: &Weights, dim: usize, out: &mut [f32]) {
    for (weights, out) in weights.iter().zip(out.chunks_exact_mut(dim + 2)) {
        let out = &mut out[2..];
        out.fill(0.0);
        for token in seen.clone() {
            for (sum, value) in out.iter_mut().zip(&values[token * dim..]) {
                *sum += weights[token] * value;
            }
        }
    }
}
}

multiversion! {
/// One head's result of the parts: each the sum of exponentials, their maximum, and values.
fn scaled_sum(parts: &[(&[f32], f32)], total: f32, out: &mut [f32]) {
    out.fill(0.0);
    for (values, weight) in parts {
        for (sum, value) in out.iter_mut().zip(*values) {
            *sum += value * weight;
        }
    }
    out.iter_mut().for_each(|value| *value /= total);
}
}

fn combine<'a>(parts: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [f32]) {
    let max = parts.clone().fold(f32::NEG_INFINITY, |max, part| max.max(part[1]));
    let mut total = 0.0;
    let scaled: Vec<(&[f32], f32)> = parts
        .map(|part| {
            let weight = (part[1] - max).exp();
            total += part[0] * weight;
            (&part[2..], weight)
        })
        .collect();
    scaled_sum(&scaled, total, out);
}
