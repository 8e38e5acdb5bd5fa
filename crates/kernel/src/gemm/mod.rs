//! Matrix products with a packed right operand.
//!
//! Both precisions run through the same panels of 32-bit lanes: a lane holds one f32, or a pair of
//! bf16 that are neighbours along the reduction, as `vdpbf16ps` takes them. A panel is 64 columns
//! wide, `[steps, 64]`, a step being one lane of the reduction.

mod block;
mod grouped;
mod lanes;
mod narrow;
mod panels;
mod routes;
mod scatter;
mod stored;
mod swiglu;
#[cfg(test)]
mod tests;
mod tile;
mod transpose;

use std::ops::Range;

use crate::Precision;
use crate::buffer::as_lanes;
use crate::pool::{Pool, SendPtr};

use lanes::{Rows, pair_row, steps};
use panels::{Order, Panels, Part};
use tile::Strip;
use transpose::transpose_lanes;

pub(crate) use block::Block;
pub use grouped::{ExpertGradients, Experts, Kept};
pub use lanes::Lanes;
pub(crate) use lanes::lanes_of_row;
pub(crate) use panels::PANEL;
pub use routes::Routes;
pub use tile::Kernel;
pub(crate) use tile::{Sums, TILE};

/// Rows that a task covers at most, so that its part of the left operand stays in the L2 cache.
const ROW_BLOCK: usize = 32 * TILE;
/// Columns of a left operand stored by columns that a task turns into rows: eight tiles.
const TURNED: usize = 8 * TILE;
/// Steps of the reduction between two visits of the output: one panel's part is 64 KiB.
const STEP_BLOCK: usize = 256;
/// Panels of a task.
const PANEL_GROUP: usize = 4;

/// The right operand of a product, laid out once for many uses.
///
/// **Shapes**: logically `[k, n]`, the reduction running over `k`.
pub struct Packed(Panels<'static>);

/// The left operand, `[m, k]`.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// Stored `[m, k]`.
    Rows(&'a [f32]),
    /// Stored `[k, m]`, to be read transposed.
    Transposed(&'a [f32]),
    /// As [`Left::Rows`], converted already.
    Lanes(&'a Lanes<'a>),
}

/// What happens to the values that the output holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    Replace,
    Add,
}

impl Packed {
    /// Packs `values`, stored `[n, k]` (a layer's weight, one row for each output): the product is
    /// `left · valuesᵀ`.
    pub fn rows(pool: &Pool, precision: Precision, values: &[f32], n: usize, k: usize) -> Self {
        let mut packed = Packed::unset(precision, n, k);
        packed.fill_rows(pool, values);
        packed
    }

    /// Packs `values`, stored `[k, n]`: the product is `left · values`.
    pub fn columns(pool: &Pool, precision: Precision, values: &[f32], k: usize, n: usize) -> Self {
        let mut packed = Packed::unset(precision, n, k);
        packed.fill_columns(pool, values);
        packed
    }

    /// Room for an operand `[k, n]`, to be filled.
    pub fn unset(precision: Precision, n: usize, k: usize) -> Self {
        Packed(Panels::zeros(precision, Order::Plain, 1, n, k))
    }

    /// As [`Packed::rows`], into the memory that is there.
    pub fn fill_rows(&mut self, pool: &Pool, values: &[f32]) {
        self.0.fill_rows(pool, values);
    }

    /// As [`Packed::columns`], into the memory that is there.
    pub fn fill_columns(&mut self, pool: &Pool, values: &[f32]) {
        self.0.fill_columns(pool, values);
    }

    /// Columns of the product.
    pub fn n(&self) -> usize {
        self.0.n
    }

    /// Length of the reduction.
    pub fn k(&self) -> usize {
        self.0.k
    }

    /// What multiplies with it.
    pub fn kernel(&self) -> Kernel {
        self.0.kernel
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// `out = left · right`, or `out += left · right`.
///
/// Each output is summed in the same order whatever `m` is, so a row's result does not depend on
/// the rows beside it.
///
/// **Shapes**: left `[m, k]`, right `[k, n]`, out `[m, n]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn matmul(pool: &Pool, out: &mut [f32], left: Left, right: &Packed, mode: Output) {
    let right = &right.0;
    let (n, k) = (right.n, right.k);
    assert!(n > 0 && k > 0 && out.len().is_multiple_of(n), "output of {} for n = {n}", out.len());
    let m = out.len() / n;
    let (found, expected) = match left {
        Left::Rows(values) | Left::Transposed(values) => (values.len(), m * k),
        Left::Lanes(lanes) => (lanes.rows() * lanes.cols(), m * k),
    };
    assert_eq!(found, expected, "left operand for [{m}, {k}]");
    match left {
        Left::Rows(values) => {
            let lanes = Lanes::new(pool, right.precision, values, k);
            panel_matmul(pool, out, m, lanes.view(None), right, mode);
        }
        Left::Transposed(values) => {
            let lanes = Lanes::new(pool, right.precision, values, m);
            transposed_matmul(pool, out, &lanes, right, mode);
        }
        Left::Lanes(lanes) => {
            assert!(lanes.precision() == right.precision && lanes.cols() == k);
            panel_matmul(pool, out, m, lanes.view(None), right, mode);
        }
    }
}

/// `out = leftᵀ · right` or `out += leftᵀ · right`: a layer's weight gradient, from the gradient of
/// its output and its input.
///
/// **Shapes**: left `[k, m]`, right `[k, n]`, out `[m, n]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn matmul_transposed(pool: &Pool, out: &mut [f32], left: &Lanes, right: &Lanes, mode: Output) {
    let (k, m, n) = (left.rows(), left.cols(), right.cols());
    assert!(right.rows() == k && left.precision() == right.precision(), "reduction over {k} rows");
    assert_eq!(out.len(), m * n, "output of [{m}, {n}]");
    let mut panels = Panels::loan(pool, right.precision(), n, k);
    panels.fill_lanes(pool, right);
    transposed_matmul(pool, out, left, &panels, mode);
}

/// `matmul` on the caller's thread, with part of the right operand: its first `n` columns and the
/// first `k` of its reduction.
///
/// **Shapes**: left `[m, k]`, out `[m, n]`.
pub(crate) fn matmul_part(
    out: &mut [f32],
    left: &[f32],
    right: &Packed,
    n: usize,
    k: usize,
    mode: Output,
) {
    let right = &right.0;
    assert!(n <= right.n && k <= right.k && out.len().is_multiple_of(n));
    let m = out.len() / n;
    assert_eq!(left.len(), m * k, "left operand for [{m}, {k}]");
    let steps = steps(right.precision, k);
    let mut pairs = Vec::new();
    let lanes = match right.precision {
        Precision::F32 => as_lanes(left),
        Precision::Bf16 => {
            // The value beyond an odd end is zero, whatever the panel holds there.
            pairs.resize(m * steps, 0);
            let rows = left.chunks_exact(k).zip(pairs.chunks_exact_mut(steps));
            rows.for_each(|(row, pairs)| pair_row(row, pairs));
            pairs.as_slice()
        }
    };
    let left = Rows { lanes, steps, map: None };
    for column in (0..n).step_by(PANEL) {
        let strip = Strip {
            kernel: right.kernel,
            left,
            rows: 0..m,
            from: 0,
            panel: right.part(0, column / PANEL, 0, steps),
            targets: None,
            scales: None,
            out: out[column..].as_mut_ptr(),
            out_stride: n,
            cols: PANEL.min(n - column),
            add: mode == Output::Add,
        };
        // SAFETY: `out` is borrowed exclusively and has m rows of n columns.
        unsafe { strip.run() };
    }
}

/// The product with a left operand stored `[k, m]`.
fn transposed_matmul(pool: &Pool, out: &mut [f32], left: &Lanes, right: &Panels, mode: Output) {
    let (k, m, n) = (left.rows(), left.cols(), right.n);
    assert_eq!(out.len(), m * n);
    let blocks = m.div_ceil(TURNED);
    // Few columns are turned round more than once, so that all threads have work.
    let groups = (2 * pool.threads()).div_ceil(blocks).min(right.count());
    let size = right.count().div_ceil(groups);
    let base = SendPtr(out.as_mut_ptr());
    pool.run(blocks * groups, &|task| {
        let (block, group) = (task / groups, task % groups);
        let cols = block * TURNED..m.min((block + 1) * TURNED);
        let panels = group * size..right.count().min((group + 1) * size);
        // SAFETY: the offset lies within `out`.
        let out = unsafe { base.get().add(cols.start * n) };
        // SAFETY: the rows and columns of different tasks do not overlap, and lie within `out`,
        // whose length was checked.
        unsafe { turned_product(pool, out, (left, None), (0..k, cols), (right, panels), mode) };
    });
}

/// A matrix by rows: as they are, or through a row map.
type Mapped<'a> = (&'a Lanes<'a>, Option<&'a [u32]>);

/// `out = leftᵀ · right` or `out += leftᵀ · right` for some rows and columns of the left operand and
/// some panels of the right one, on the caller's thread.
///
/// # Safety
/// `out` must be valid for reads and writes at the rows `cols` and the panels' columns, with no
/// other access.
unsafe fn turned_product(
    pool: &Pool,
    out: *mut f32,
    (left, map): Mapped,
    (rows, cols): (Range<usize>, Range<usize>),
    (right, panels): (&Panels, Range<usize>),
    mode: Output,
) {
    let (steps, count) = (steps(right.precision, rows.len()), cols.len());
    let mut turned = pool.buffer(count * steps);
    let part = Part { stride: 0, map, rows, cols };
    transpose_lanes(left, part, turned.lanes_mut(), steps);
    let left = Rows { lanes: turned.lanes(), steps, map: None };
    for from in (0..steps).step_by(STEP_BLOCK) {
        let to = steps.min(from + STEP_BLOCK);
        for panel in panels.clone() {
            let strip = Strip {
                kernel: right.kernel,
                left,
                rows: 0..count,
                from,
                panel: right.part(0, panel, from, to),
                targets: None,
                scales: None,
                out: out.wrapping_add(panel * PANEL),
                out_stride: right.n,
                cols: right.cols(panel),
                add: mode == Output::Add || from > 0,
            };
            // SAFETY: as this function requires.
            unsafe { strip.run() };
        }
    }
}

fn panel_matmul(pool: &Pool, out: &mut [f32], m: usize, left: Rows, right: &Panels, mode: Output) {
    let n = right.n;
    let steps = right.steps();
    // Blocks and groups of about one size: the last task is no smaller than the others.
    let row_blocks = m.div_ceil(ROW_BLOCK);
    let block_rows = m.div_ceil(row_blocks.max(1)).next_multiple_of(TILE);
    let groups = right.count().div_ceil(PANEL_GROUP);
    let group_panels = right.count().div_ceil(groups);
    assert_eq!(out.len(), m * n);
    let base = SendPtr(out.as_mut_ptr());
    pool.run(row_blocks * groups, &|task| {
        // Row blocks of one panel group follow each other: the group is then in a shared cache.
        let (group, block) = (task / row_blocks, task % row_blocks);
        let rows = m.min(block * block_rows)..m.min((block + 1) * block_rows);
        let first = group * group_panels;
        let panels = first..right.count().min(first + group_panels);
        for from in (0..steps).step_by(STEP_BLOCK) {
            let to = steps.min(from + STEP_BLOCK);
            for panel in panels.clone() {
                let strip = Strip {
                    kernel: right.kernel,
                    left,
                    rows: rows.clone(),
                    from,
                    panel: right.part(0, panel, from, to),
                    targets: None,
                    scales: None,
                    // SAFETY: the offset lies within `out`.
                    out: unsafe { base.get().add(rows.start * n + panel * PANEL) },
                    out_stride: n,
                    cols: right.cols(panel),
                    add: mode == Output::Add || from > 0,
                };
                // SAFETY: the rows and columns of different tasks do not overlap, and lie within
                // `out`, whose length was checked.
                unsafe { strip.run() };
            }
        }
    });
}
