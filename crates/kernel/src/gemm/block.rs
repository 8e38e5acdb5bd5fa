//! Small products on the caller's thread, between blocks that one task makes for itself.

use std::ops::Range;

use super::lanes::Lanes;
use super::panels::{PANEL, Panels};
use super::tile::{Strip, Sums, tile};
use super::{Output, turned_product};
use crate::Precision;
use crate::pool::Pool;

/// A small right operand.
pub(crate) struct Block<'a>(Panels<'a>);

impl<'a> Block<'a> {
    /// `[cols, rows]`, of values `[rows, cols]`.
    pub(crate) fn rows(pool: &'a Pool, precision: Precision, values: &[f32], cols: usize) -> Self {
        let mut panels = Panels::loan(pool, precision, values.len() / cols, cols);
        panels.fill_rows(Pool::local(), values);
        Block(panels)
    }

    /// `[rows, cols]`, of values `[rows, cols]`.
    pub(crate) fn columns(
        pool: &'a Pool,
        precision: Precision,
        values: &[f32],
        cols: usize,
    ) -> Self {
        let mut panels = Panels::loan(pool, precision, cols, values.len() / cols);
        panels.fill_columns(Pool::local(), values);
        Block(panels)
    }

    /// Some rows of `left` times the first panel.
    pub(crate) fn tile(&self, left: &Lanes, rows: Range<usize>, sums: &mut Sums) {
        let panels = &self.0;
        tile(panels.kernel, left.view(None), rows, 0, panels.part(0, 0, 0, panels.steps()), sums);
    }

    /// `out += left · self`, the reduction running over the columns of `left`.
    ///
    /// **Shapes**: left `[m, k]`, out `[m, n]`.
    pub(crate) fn add(&self, out: &mut [f32], left: &Lanes) {
        let panels = &self.0;
        let n = panels.n;
        assert!(out.len() == left.rows() * n && left.cols() == panels.k);
        for panel in 0..panels.count() {
            let strip = Strip {
                kernel: panels.kernel,
                left: left.view(None),
                rows: 0..left.rows(),
                from: 0,
                panel: panels.part(0, panel, 0, panels.steps()),
                targets: None,
                scales: None,
                out: out[panel * PANEL..].as_mut_ptr(),
                out_stride: n,
                cols: panels.cols(panel),
                add: true,
            };
            // SAFETY: `out` is borrowed exclusively and has a row of n columns for each of `left`.
            unsafe { strip.run() };
        }
    }

    /// `out = leftᵀ · self` with as much of the reduction as `left` has rows.
    ///
    /// **Shapes**: left `[k, m]`, out `[m, n]`.
    pub(crate) fn set_turned(&self, pool: &Pool, out: &mut [f32], left: &Lanes) {
        let panels = &self.0;
        let (k, m) = (left.rows(), left.cols());
        assert!(out.len() == m * panels.n && k <= panels.k);
        let part = (0..k, 0..m);
        let right = (panels, 0..panels.count());
        // SAFETY: `out` is borrowed exclusively and has m rows of n columns.
        unsafe {
            turned_product(pool, out.as_mut_ptr(), (left, None), part, right, Output::Replace);
        }
    }
}
