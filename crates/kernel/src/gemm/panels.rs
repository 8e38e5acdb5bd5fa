//! The right operand, laid out for the micro-kernels in panels of 64 columns.

use super::lanes::{Lanes, bf16, halves, steps};
use super::tile::{Kernel, LINES};
use super::transpose::pack_rows;
use crate::Precision;
use crate::buffer::{Buffer, LINE, Line, as_floats, flat_mut};
use crate::cpu::prefetch;
use crate::huge_pages;
use crate::pool::Pool;

/// Columns of a panel: four 512-bit registers of 32-bit lanes.
pub(crate) const PANEL: usize = 64;
/// Rows that are asked for before they are read.
const AHEAD: usize = 16;
/// Steps of a panel that one task packs.
const PACKED_STEPS: usize = 32;

/// Several right operands of one shape, `[steps, 64]` by panel, panel by panel, operand by operand.
///
/// **Shapes**: logically `[groups, k, n]`, the reduction running over `k`.
pub(crate) struct Panels<'a> {
    pub(crate) precision: Precision,
    pub(crate) kernel: Kernel,
    pub(crate) groups: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    order: Order,
    lines: Lines<'a>,
}

enum Lines<'a> {
    Owned(Vec<Line>),
    Loan(Buffer<'a>),
}

impl Lines<'_> {
    fn all(&self) -> &[Line] {
        match self {
            Lines::Owned(lines) => lines,
            Lines::Loan(buffer) => buffer.lines(),
        }
    }

    fn all_mut(&mut self) -> &mut [Line] {
        match self {
            Lines::Owned(lines) => lines,
            Lines::Loan(buffer) => buffer.lines_mut(),
        }
    }
}

/// Which columns stand in a panel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    Plain,
    /// The first half of the columns are gates, the second half what they gate: each panel holds 32
    /// gates and the 32 columns that belong to them.
    Gated,
}

impl Order {
    /// Panels for `n` columns.
    pub(crate) fn panels(self, n: usize) -> usize {
        match self {
            Order::Plain => n.div_ceil(PANEL),
            Order::Gated => (n / 2).div_ceil(PANEL / 2),
        }
    }

    /// The columns of a panel: a run for each half of it.
    pub(crate) fn runs(self, panel: usize, n: usize) -> [std::ops::Range<usize>; 2] {
        let half = PANEL / 2;
        match self {
            Order::Plain => {
                let at = (panel * PANEL).min(n);
                let middle = (at + half).min(n);
                [at..middle, middle..(middle + half).min(n)]
            }
            Order::Gated => {
                let (from, to) = (panel * half, (n / 2).min((panel + 1) * half));
                [from..to, n / 2 + from..n / 2 + to]
            }
        }
    }
}

impl<'a> Panels<'a> {
    /// Panels of zeros, to be filled.
    pub(crate) fn zeros(
        precision: Precision,
        order: Order,
        groups: usize,
        n: usize,
        k: usize,
    ) -> Self {
        let lines = groups * order.panels(n) * steps(precision, k) * LINES;
        let lines = vec![Line([0; LINE]); lines];
        huge_pages(&lines);
        let lines = Lines::Owned(lines);
        Panels { precision, kernel: Kernel::best(precision), groups, n, k, order, lines }
    }

    /// Panels of one operand for the moment, to be filled.
    pub(crate) fn loan(pool: &'a Pool, precision: Precision, n: usize, k: usize) -> Self {
        let order = Order::Plain;
        let lines = pool.buffer(order.panels(n) * steps(precision, k) * PANEL);
        let (kernel, lines) = (Kernel::best(precision), Lines::Loan(lines));
        Panels { precision, kernel, groups: 1, n, k, order, lines }
    }

    pub(crate) fn steps(&self) -> usize {
        steps(self.precision, self.k)
    }

    /// Panels of one operand.
    pub(crate) fn count(&self) -> usize {
        self.order.panels(self.n)
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.lines.all())
    }

    /// The steps from `from` to `to` of a panel.
    pub(crate) fn part(&self, group: usize, panel: usize, from: usize, to: usize) -> &[Line] {
        let begin = (group * self.count() + panel) * self.steps();
        &self.lines.all()[(begin + from) * LINES..(begin + to) * LINES]
    }

    /// Columns that a panel holds, in plain order.
    pub(crate) fn cols(&self, panel: usize) -> usize {
        PANEL.min(self.n - panel * PANEL)
    }

    /// Packs `values`, stored `[groups, n, k]`: a layer's weights, one row for each output.
    pub(crate) fn fill_rows(&mut self, pool: &Pool, values: &[f32]) {
        let (n, k, precision, order) = (self.n, self.k, self.precision, self.order);
        assert_eq!(values.len(), self.groups * n * k, "packing [{}, {n}, {k}]", self.groups);
        let count = self.count();
        let size = self.steps() * LINES;
        pool.pieces(self.lines.all_mut(), size, |index, panel| {
            let (group, panel_index) = (index / count, index % count);
            let values = &values[group * n * k..(group + 1) * n * k];
            for (half, run) in order.runs(panel_index, n).into_iter().enumerate() {
                for part in 0..2 {
                    // Sixteen rows at a time become one line of each step.
                    let from = run.end.min(run.start + part * LINE);
                    let to = run.end.min(from + LINE);
                    let rows = &values[from * k..to * k];
                    pack_rows(precision, rows, k, panel, 2 * half + part);
                }
            }
        });
    }

    /// Packs `values`, stored `[groups, k, n]`.
    pub(crate) fn fill_columns(&mut self, pool: &Pool, values: &[f32]) {
        let (n, k, precision) = (self.n, self.k, self.precision);
        assert_eq!(values.len(), self.groups * n * k, "packing [{}, {k}, {n}]", self.groups);
        let per_step = per_step(precision);
        self.fill_parts(pool, |group, panel, first_step, out| {
            let part = Part {
                stride: n,
                map: None,
                rows: group * k + first_step * per_step..(group + 1) * k,
                cols: panel * PANEL..n.min((panel + 1) * PANEL),
            };
            interleave_floats(precision, values, part, PANEL, out);
        });
    }

    /// Packs one operand that is there as lanes `[k, n]`.
    pub(crate) fn fill_lanes(&mut self, pool: &Pool, values: &Lanes) {
        assert!((self.groups, self.k, self.n) == (1, values.rows(), values.cols()));
        let (n, k, per_step) = (self.n, self.k, per_step(self.precision));
        self.fill_parts(pool, |_, panel, first_step, out| {
            let cols = panel * PANEL..n.min((panel + 1) * PANEL);
            let part = Part { stride: 0, map: None, rows: first_step * per_step..k, cols };
            interleave_lanes(values, part, PANEL, out);
        });
    }

    /// Packs some rows of `values`, on the caller's thread; with a map, rows `map[r]`.
    pub(crate) fn fill_rows_of(
        &mut self,
        values: &Lanes,
        map: Option<&[u32]>,
        rows: std::ops::Range<usize>,
    ) {
        assert!(self.groups == 1 && self.n == values.cols() && self.k >= rows.len());
        let (n, size) = (self.n, self.steps() * LINES);
        for (panel, lines) in self.lines.all_mut().chunks_exact_mut(size).enumerate() {
            let cols = panel * PANEL..n.min((panel + 1) * PANEL);
            let part = Part { stride: 0, map, rows: rows.clone(), cols };
            interleave_lanes(values, part, PANEL, flat_mut(lines));
        }
    }

    /// Runs `fill(group, panel, first step, lanes)` for parts of all panels.
    fn fill_parts(&mut self, pool: &Pool, fill: impl Fn(usize, usize, usize, &mut [u32]) + Sync) {
        assert_eq!(self.order, Order::Plain);
        let (count, size) = (self.count(), self.steps() * LINES);
        let chunks = self.steps().div_ceil(PACKED_STEPS);
        let mut parts: Vec<&mut [Line]> = self
            .lines
            .all_mut()
            .chunks_exact_mut(size)
            .flat_map(|panel| panel.chunks_mut(PACKED_STEPS * LINES))
            .collect();
        pool.pieces(&mut parts, 1, |index, parts| {
            let (panel, chunk) = (index / chunks, index % chunks);
            for part in parts {
                fill(panel / count, panel % count, chunk * PACKED_STEPS, flat_mut(part));
            }
        });
    }
}

/// Rows of a `[k, n]` matrix that one lane takes.
pub(crate) fn per_step(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 1,
        Precision::Bf16 => 2,
    }
}

/// What is read of a matrix `[.., stride]` that is packed by columns.
#[derive(Clone)]
pub(crate) struct Part<'a> {
    pub(crate) stride: usize,
    /// Where given, row `r` is the matrix's row `map[r]`.
    pub(crate) map: Option<&'a [u32]>,
    /// As many of them are read as the steps written need.
    pub(crate) rows: std::ops::Range<usize>,
    pub(crate) cols: std::ops::Range<usize>,
}

/// `width` lanes for each step, of which those beyond the columns are zero, and so are the second
/// halves of a step that has only one row.
#[inline(always)]
fn interleave<T: Copy + Default>(
    precision: Precision,
    source: &[T],
    part: Part,
    width: usize,
    out: &mut [u32],
    lane: impl Fn(T, T) -> u32,
) {
    let per_step = per_step(precision);
    let cols = part.cols.len();
    let row = |index: usize| {
        let index = part.map.map_or(index, |map| map[index] as usize);
        &source[index * part.stride..][part.cols.clone()][..cols]
    };
    for (step, out) in out.chunks_exact_mut(width).enumerate() {
        let at = part.rows.start + step * per_step;
        for ahead in at + AHEAD..at + AHEAD + per_step {
            if ahead < part.rows.end {
                prefetch(row(ahead));
            }
        }
        let (out, rest) = out.split_at_mut(cols);
        let first = row(at);
        if per_step == 2 && at + 1 < part.rows.end {
            let second = row(at + 1);
            for col in 0..cols {
                out[col] = lane(first[col], second[col]);
            }
        } else {
            for col in 0..cols {
                out[col] = lane(first[col], T::default());
            }
        }
        rest.fill(0);
    }
}

crate::cpu::multiversion! {
/// Steps of rows of f32.
pub(crate) fn interleave_floats(precision: Precision, source: &[f32], part: Part, width: usize, out: &mut [u32]) {
    match precision {
        Precision::F32 => interleave(precision, source, part, width, out, |a, _| a.to_bits()),
        Precision::Bf16 => {
            interleave(precision, source, part, width, out, |a, b| bf16(a) | bf16(b) << 16);
        }
    }
}
}

crate::cpu::multiversion! {
/// Steps of rows of bf16.
fn interleave_halves(source: &[u16], part: Part, width: usize, out: &mut [u32]) {
    let lane = |a: u16, b: u16| u32::from(a) | u32::from(b) << 16;
    interleave(Precision::Bf16, source, part, width, out, lane);
}
}

/// Steps of the rows of lanes. The part's stride is set here.
pub(crate) fn interleave_lanes(source: &Lanes, part: Part, width: usize, out: &mut [u32]) {
    interleave_stored(source.precision(), (source.lanes(), source.steps()), part, width, out);
}

/// As [`interleave_lanes`], of rows of so many lanes.
pub(crate) fn interleave_stored(
    precision: Precision,
    (lanes, steps): (&[u32], usize),
    part: Part,
    width: usize,
    out: &mut [u32],
) {
    match precision {
        Precision::F32 => {
            interleave_floats(
                precision,
                as_floats(lanes),
                Part { stride: steps, ..part },
                width,
                out,
            );
        }
        Precision::Bf16 => {
            interleave_halves(halves(lanes), Part { stride: 2 * steps, ..part }, width, out);
        }
    }
}
