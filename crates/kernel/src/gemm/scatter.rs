//! Products whose rows, grouped by expert, are added up: by token, or into each expert's weights.

use std::ops::Range;

use super::lanes::Lanes;
use super::panels::{PANEL, Panels, per_step};
use super::routes::Routes;
use super::stored::Right;
use super::tile::Strip;
use super::{Mapped, Output, TURNED, matmul_transposed, turned_product};
use crate::pool::{Pool, SendPtr};

/// Tokens whose outputs a task adds to, over all experts: some 64 rows of each of 32 experts.
const SCATTERED_TOKENS: usize = 512;
/// Panels of such a task.
const SCATTERED_PANELS: usize = 2;

/// Adds `scale(r) · left[r] · right[expert of r]` to the row of `r`'s token, expert after expert.
///
/// **Shapes**: left `[rows, k]`; right `[experts, k, n]`; out `[tokens, n]`.
pub(super) fn scatter(
    pool: &Pool,
    out: &mut [f32],
    left: &Lanes,
    routes: &Routes,
    right: Right,
    scales: Option<&[f32]>,
) {
    let (n, tokens) = (right.n(), routes.tokens());
    assert!(out.len() == tokens * n && left.cols() == right.k());
    assert!(routes.rows.iter().all(|&token| (token as usize) < tokens));
    let (size, panels) = match right.is_stored() {
        // Each task packs what it reads: as few blocks of tokens as give all threads equal work.
        true => {
            let (count, threads) = (right.count(), pool.threads());
            let fits = |blocks: &usize| {
                (count * blocks).is_multiple_of(threads) || count * blocks >= 8 * threads
            };
            let blocks = (1..).find(fits).expect("enough blocks fit");
            (tokens.div_ceil(blocks).max(SCATTERED_TOKENS), 1)
        }
        false => (SCATTERED_TOKENS, SCATTERED_PANELS),
    };
    let groups = right.count().div_ceil(panels);
    let base = SendPtr(out.as_mut_ptr());
    pool.run(tokens.div_ceil(size) * groups, &|task| {
        let (block, first) = (task / groups, task % groups * panels);
        let tokens = block * size..(block + 1) * size;
        let mut scratch = right.scratch(pool);
        for expert in 0..routes.experts() {
            let rows = routes.within(expert, tokens.clone());
            if rows.is_empty() {
                continue;
            }
            for panel in first..right.count().min(first + panels) {
                let strip = Strip {
                    kernel: right.kernel(),
                    left: left.view(None),
                    rows: rows.clone(),
                    from: 0,
                    panel: right.panel(expert, panel, &mut scratch),
                    targets: Some(&routes.rows),
                    scales,
                    out: base.get().wrapping_add(panel * PANEL),
                    out_stride: n,
                    cols: right.cols(panel),
                    add: true,
                };
                // SAFETY: the targets are tokens of this task's block, and the columns those of its
                // panels: no other task has them, and they lie within `out`, as was checked.
                unsafe { strip.run() };
            }
        }
    });
}

/// `out[e] = leftᵀ · right` over the rows of each expert.
///
/// **Shapes**: left `[rows, m]`, right `[rows, n]`, out `[experts, m, n]`.
pub(super) fn weight_gradient(
    pool: &Pool,
    out: &mut [f32],
    [left, right]: [Mapped; 2],
    routes: &Routes,
    mode: Output,
) {
    let (m, n) = (left.0.cols(), right.0.cols());
    assert_eq!(out.len(), routes.experts() * m * n, "gradients [{}, {m}, {n}]", routes.experts());
    if routes.experts() == 1 && routes.rows.len() == routes.tokens() {
        // Dense: every token once, in order.
        return matmul_transposed(pool, out, left.0, right.0, mode);
    }
    // Two tasks for each expert: with one, threads would wait long for the last.
    let half = m.div_ceil(2).next_multiple_of(TURNED).min(m);
    let experts = out.chunks_exact_mut(m * n).enumerate();
    let halves = experts.flat_map(|(expert, out)| {
        let parts = out.chunks_mut(half * n).enumerate();
        parts.map(move |(part, out)| (expert, part * half..m.min((part + 1) * half), out))
    });
    let mut halves: Vec<(usize, Range<usize>, &mut [f32])> = halves.collect();
    pool.pieces(&mut halves, 1, |_, halves| {
        for (expert, cols, out) in halves {
            let rows = routes.starts[*expert]..routes.starts[*expert + 1];
            if !rows.is_empty() {
                expert_gradient(pool, out, [left, right], (rows, cols.clone()), mode);
            } else if mode == Output::Replace {
                out.fill(0.0);
            }
        }
    });
}

/// As `weight_gradient`, of some columns of `left` and of one expert with at least one row, on the
/// caller's thread.
fn expert_gradient(
    pool: &Pool,
    out: &mut [f32],
    [left, right]: [Mapped; 2],
    (rows, cols): (Range<usize>, Range<usize>),
    mode: Output,
) {
    let n = right.0.cols();
    let precision = left.0.precision();
    let steps = rows.len().div_ceil(per_step(precision));
    let mut panels = Panels::loan(pool, precision, n, steps * per_step(precision));
    panels.fill_rows_of(right.0, right.1, rows.clone());
    for (block, out) in out.chunks_mut(TURNED * n).enumerate() {
        let first = cols.start + block * TURNED;
        let part = (rows.clone(), first..cols.end.min(first + TURNED));
        let right = (&panels, 0..panels.count());
        // SAFETY: `out` is borrowed exclusively and has a row of n columns for each of the part's.
        unsafe { turned_product(pool, out.as_mut_ptr(), left, part, right, mode) };
    }
}
