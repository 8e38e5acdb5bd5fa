//! Right operands that stay as they are stored and are packed where they are used, panel by panel.
//!
//! Of many experts each sees few rows: laying all of them out for both passes moves more memory than
//! their products do. Here each panel is packed in the cache of the thread that multiplies with it.

use super::lanes::{lanes_of_row, steps};
use super::panels::{Order, PANEL, Panels, Part, interleave_stored};
use super::tile::{Kernel, LINES};
use super::transpose::pack_rows;
use crate::Precision;
use crate::buffer::{Buffer, LINE, Line, as_floats, flat_mut};
use crate::huge_pages;
use crate::pool::Pool;

/// Rows that a task converts.
const CONVERTED: usize = 64;

/// Several matrices of one shape, `[groups, rows, cols]`, each row as lanes.
pub(crate) struct Stored {
    precision: Precision,
    groups: usize,
    rows: usize,
    cols: usize,
    lanes: Vec<u32>,
}

impl Stored {
    /// Room for matrices, to be filled.
    pub(crate) fn zeros(precision: Precision, groups: usize, rows: usize, cols: usize) -> Self {
        let lanes = vec![0; groups * rows * steps(precision, cols)];
        huge_pages(&lanes);
        Stored { precision, groups, rows, cols, lanes }
    }

    /// **Shapes**: values `[groups, rows, cols]`.
    pub(crate) fn fill(&mut self, pool: &Pool, values: &[f32]) {
        let (cols, precision, steps) = (self.cols, self.precision, self.steps());
        assert_eq!(values.len(), self.groups * self.rows * cols, "rows of {cols}");
        pool.pieces(&mut self.lanes, CONVERTED * steps, |index, lanes| {
            let values = values[index * CONVERTED * cols..].chunks_exact(cols);
            for (lanes, values) in lanes.chunks_exact_mut(steps).zip(values) {
                lanes_of_row(precision, values, lanes);
            }
        });
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.lanes.as_slice())
    }

    /// Lanes of a row.
    fn steps(&self) -> usize {
        steps(self.precision, self.cols)
    }

    fn group(&self, group: usize) -> &[u32] {
        let size = self.rows * self.steps();
        &self.lanes[group * size..(group + 1) * size]
    }
}

/// A right operand `[k, n]` of each group.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// Laid out before.
    Panels(&'a Panels<'static>),
    /// The transpose of what is stored: `[n, k]`.
    Rows(&'a Stored, Order),
    /// As it is stored.
    Columns(&'a Stored),
}

impl<'a> Right<'a> {
    /// Whether panels are packed when they are asked for, which should be done for many rows at once.
    pub(crate) fn is_stored(self) -> bool {
        !matches!(self, Right::Panels(_))
    }

    pub(crate) fn kernel(self) -> Kernel {
        match self {
            Right::Panels(panels) => panels.kernel,
            Right::Rows(stored, _) | Right::Columns(stored) => Kernel::best(stored.precision),
        }
    }

    pub(crate) fn n(self) -> usize {
        match self {
            Right::Panels(panels) => panels.n,
            Right::Rows(stored, _) => stored.rows,
            Right::Columns(stored) => stored.cols,
        }
    }

    pub(crate) fn k(self) -> usize {
        match self {
            Right::Panels(panels) => panels.k,
            Right::Rows(stored, _) => stored.cols,
            Right::Columns(stored) => stored.rows,
        }
    }

    /// Panels of one group.
    pub(crate) fn count(self) -> usize {
        match self {
            Right::Panels(panels) => panels.count(),
            Right::Rows(_, order) => order.panels(self.n()),
            Right::Columns(_) => Order::Plain.panels(self.n()),
        }
    }

    /// Columns that a panel holds, in plain order.
    pub(crate) fn cols(self, panel: usize) -> usize {
        PANEL.min(self.n() - panel * PANEL)
    }

    /// Memory for [`Right::panel`].
    pub(crate) fn scratch(self, pool: &Pool) -> Buffer<'_> {
        match self {
            Right::Panels(_) => pool.buffer(0),
            Right::Rows(stored, _) | Right::Columns(stored) => {
                pool.buffer(steps(stored.precision, self.k()) * PANEL)
            }
        }
    }

    /// All steps of a panel.
    pub(crate) fn panel<'b>(self, group: usize, panel: usize, scratch: &'b mut Buffer) -> &'b [Line]
    where
        'a: 'b,
    {
        match self {
            Right::Panels(panels) => panels.part(group, panel, 0, panels.steps()),
            Right::Rows(stored, order) => {
                let (rows, steps) = (stored.group(group), stored.steps());
                let lines = scratch.lines_mut();
                for (half, run) in order.runs(panel, stored.rows).into_iter().enumerate() {
                    for part in 0..2 {
                        let from = run.end.min(run.start + part * LINE);
                        let to = run.end.min(from + LINE);
                        // Lanes are turned round as f32 are.
                        let rows = as_floats(&rows[from * steps..to * steps]);
                        pack_rows(Precision::F32, rows, steps, lines, 2 * half + part);
                    }
                }
                lines
            }
            Right::Columns(stored) => {
                let cols = panel * PANEL..stored.cols.min((panel + 1) * PANEL);
                let part = Part { stride: 0, map: None, rows: 0..stored.rows, cols };
                let lines = scratch.lines_mut();
                let source = (stored.group(group), stored.steps());
                interleave_stored(stored.precision, source, part, PANEL, flat_mut(lines));
                debug_assert_eq!(lines.len() % LINES, 0);
                lines
            }
        }
    }
}
