//! Attention of many rows of a sequence: products of blocks of queries with packed keys.

use std::sync::OnceLock;

use super::{BLOCK, Heads, KeysValues, Rows, Sequence, exponentiate};
use crate::Precision;
use crate::cpu::multiversion;
use crate::gemm::{Output, Packed, matmul_part};
use crate::pool::{Pool, SendPtr};

/// One block of query rows of one head.
struct Task<'a> {
    sequence: &'a Sequence<'a>,
    /// Of the head's keys and values, among the packed ones.
    packed: usize,
    head: usize,
    /// The block's first row in its sequence.
    first: usize,
}

pub(super) fn attend(
    pool: &Pool,
    out: &mut [f32],
    queries: Rows,
    sequences: &[&Sequence],
    heads: Heads,
    log_sums: Option<&mut [f32]>,
) {
    let Heads { heads: count, kv_heads, head_dim } = heads;
    // Packed once for all heads that share them, and for all blocks.
    let packed: Vec<OnceLock<[Packed; 2]>> =
        (0..sequences.len() * kv_heads).map(|_| OnceLock::new()).collect();
    pool.run(packed.len(), &|task| {
        let keys_values = sequences[task / kv_heads].packed(task % kv_heads, head_dim);
        packed[task].get_or_init(|| keys_values);
    });
    let mut tasks = Vec::new();
    for (index, sequence) in sequences.iter().enumerate() {
        // The last block sees the most keys: it goes first, so that none is left alone at the end.
        for first in (0..sequence.queries.len()).step_by(BLOCK).rev() {
            tasks.extend((0..count).map(|head| {
                let packed = index * kv_heads + heads.kv_head(head);
                Task { sequence, packed, head, first }
            }));
        }
    }
    let width = count * head_dim;
    let out = SendPtr(out.as_mut_ptr());
    let sums = log_sums.map(|l| SendPtr(l.as_mut_ptr()));
    pool.run(tasks.len(), &|index| {
        let task = &tasks[index];
        let packed = packed[task.packed].get().expect("all were packed");
        attend_block(pool, queries, task, packed, heads, &|row, values, log_sum| {
            assert_eq!(values.len(), head_dim);
            // SAFETY: the row is one of this block's, which no other block of the head has, and
            // the columns are those of the head.
            unsafe {
                let at = out.get().add(row * width + task.head * head_dim);
                std::ptr::copy_nonoverlapping(values.as_ptr(), at, values.len());
                if let Some(sums) = &sums {
                    *sums.get().add(row * count + task.head) = log_sum;
                }
            }
        });
    });
}

/// `store` takes a row's result and the logarithm of its sum of exponentials.
fn attend_block(
    pool: &Pool,
    queries: Rows,
    task: &Task,
    [keys, values]: &[Packed; 2],
    heads: Heads,
    store: &dyn Fn(usize, &[f32], f32),
) {
    let (dim, sequence) = (heads.head_dim, task.sequence);
    let last = sequence.queries.len().min(task.first + BLOCK);
    let rows = sequence.queries.start + task.first..sequence.queries.start + last;
    let seen = sequence.past() + last;
    let mut block = queries.copy_head(rows.clone(), task.head, dim);
    let mut scores = pool.buffer(rows.len() * seen);
    matmul_part(&mut scores, &block, keys, seen, dim, Output::Replace);
    let first = sequence.past() + task.first + 1;
    for (index, row) in scores.chunks_exact_mut(seen).enumerate() {
        // What a key weighs is the exponential of its score.
        row[..sequence.out_of_sight(first + index)].fill(f32::NEG_INFINITY);
    }
    let sums = exponentials(&mut scores, seen, first, heads.scale());
    let out = &mut block;
    matmul_part(out, &scores, values, dim, seen, Output::Replace);
    for ((row, out), (sum, max)) in rows.zip(out.chunks_exact_mut(dim)).zip(sums) {
        out.iter_mut().for_each(|value| *value /= sum);
        store(row, out, max + sum.ln());
    }
}

multiversion! {
/// The exponentials of each row's scaled scores less their maximum, in place; of row `r` the first
/// `seen_by_first + r`, the others become 0. Returns the sums and maxima.
fn exponentials(
    scores: &mut [f32],
    cols: usize,
    seen_by_first: usize,
    scale: f32,
) -> Vec<(f32, f32)> {
    let mut sums = Vec::with_capacity(scores.len() / cols);
    for (index, row) in scores.chunks_exact_mut(cols).enumerate() {
        let (seen, hidden) = row.split_at_mut(seen_by_first + index);
        seen.iter_mut().for_each(|score| *score *= scale);
        sums.push(exponentiate(seen));
        hidden.fill(0.0);
    }
    sums
}
}

impl Sequence<'_> {
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
