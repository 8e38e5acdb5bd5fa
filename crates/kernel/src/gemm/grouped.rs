//! Products grouped by expert: each row goes through the feed-forward of its expert, reached through
//! a row map, so that nothing is gathered, padded or dropped.
//!
//! Which rows a task takes depends on the routes alone, and each output is summed expert by expert:
//! the results are the same, bit for bit, for any number of threads.

use std::ops::Range;

use super::lanes::{Lanes, Rows, steps};
use super::panels::{Order, PANEL, Panels, Part, per_step};
use super::routes::Routes;
use super::swiglu::{self, HALF};
use super::tile::{Strip, TILE, tile};
use super::transpose::transpose_lanes;
use super::{Output, STEP_BLOCK, matmul_transposed};
use crate::pool::{Pool, SendPtr};
use crate::{Gate, Precision};

/// Rows of one expert that a task takes: sixteen tiles.
const GROUPED_ROWS: usize = 16 * TILE;
/// Tokens whose outputs a task adds to, over all experts: some 64 rows of each of 32 experts.
const SCATTERED_TOKENS: usize = 512;
/// Panels of such a task.
const SCATTERED_PANELS: usize = 2;

/// The feed-forwards `down · (act(gate · x) · (up · x))` of several experts, where act is a [`Gate`],
/// laid out for their products. One expert alone is a dense feed-forward.
pub struct Experts {
    precision: Precision,
    gate: Gate,
    hidden: usize,
    width: usize,
    gate_up: Panels<'static>,
    down: Panels<'static>,
    backward: Option<Backward>,
}

/// The same weights for the products with gradients.
struct Backward {
    gate_up: Panels<'static>,
    down: Panels<'static>,
}

/// What the backward pass needs of the forward pass.
pub struct Kept<'a> {
    /// `[rows, 2·width]`: gates, then up, before the activation.
    gate_up: Lanes<'a>,
}

/// Where the weights' gradients go.
///
/// **Shapes**: gate_up `[experts, 2·width, hidden]`; down `[experts, hidden, width]`; gates, where
/// wanted, `[tokens, top_k]`.
pub struct ExpertGradients<'a> {
    pub gate_up: &'a mut [f32],
    pub down: &'a mut [f32],
    pub gates: Option<&'a mut [f32]>,
    pub mode: Output,
}

impl Experts {
    /// Room for the weights of `experts` experts; with `train`, for the backward pass too.
    ///
    /// # Panics
    /// If the width is odd, whose last gate would share a lane with the first of what is gated.
    pub fn new(
        precision: Precision,
        experts: usize,
        hidden: usize,
        width: usize,
        train: bool,
    ) -> Self {
        assert!(width.is_multiple_of(2), "an expert's width of {width} is odd");
        let zeros = |order, n, k| Panels::zeros(precision, order, experts, n, k);
        Experts {
            precision,
            gate: Gate::Silu,
            hidden,
            width,
            gate_up: zeros(Order::Gated, 2 * width, hidden),
            down: zeros(Order::Plain, hidden, width),
            backward: train.then(|| Backward {
                gate_up: zeros(Order::Plain, hidden, 2 * width),
                down: zeros(Order::Plain, width, hidden),
            }),
        }
    }

    /// The same with another activation than [`Gate::Silu`].
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    /// Lays out new weights.
    ///
    /// **Shapes**: gate_up `[experts, 2·width, hidden]`, gate rows first; down
    /// `[experts, hidden, width]`.
    pub fn fill(&mut self, pool: &Pool, gate_up: &[f32], down: &[f32]) {
        self.gate_up.fill_rows(pool, gate_up);
        self.down.fill_rows(pool, down);
        if let Some(backward) = &mut self.backward {
            backward.gate_up.fill_columns(pool, gate_up);
            backward.down.fill_columns(pool, down);
        }
    }

    pub fn experts(&self) -> usize {
        self.gate_up.groups
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        let forward = self.gate_up.bytes() + self.down.bytes();
        forward + self.backward.as_ref().map_or(0, |b| b.gate_up.bytes() + b.down.bytes())
    }

    fn check(&self, x: &Lanes, routes: &Routes) {
        let shape = (x.precision(), x.rows(), x.cols(), routes.experts());
        assert_eq!(shape, (self.precision, routes.tokens(), self.hidden, self.experts()));
    }

    /// Adds each token's experts, weighted by their gates, to its row of `out`.
    ///
    /// **Shapes**: x, out `[tokens, hidden]`.
    pub fn forward<'a>(
        &self,
        pool: &'a Pool,
        out: &mut [f32],
        x: &Lanes,
        routes: &Routes,
    ) -> Kept<'a> {
        self.check(x, routes);
        let rows = routes.rows.len();
        let mut kept = Lanes::unset(pool, self.precision, rows, 2 * self.width);
        let mut inner = Lanes::unset(pool, self.precision, rows, self.width);
        let mut blocks = self.blocks(routes, &mut kept, &mut inner, None);
        pool.pieces(&mut blocks, 1, |_, blocks| {
            for block in blocks {
                self.gate_block(block, x.view(Some(&routes.rows)));
            }
        });
        scatter(pool, out, &inner, routes, &self.down, Some(&routes.gates));
        Kept { gate_up: kept }
    }

    /// The backward pass: adds to `dx` the gradient with respect to `x`, given `dy` with respect to
    /// the output of [`Experts::forward`], and the weights' to `gradients`.
    ///
    /// **Shapes**: dx, x, dy `[tokens, hidden]`.
    ///
    /// # Panics
    /// If the experts were not made for training.
    pub fn backward(
        &self,
        pool: &Pool,
        dx: &mut [f32],
        (x, dy): (&Lanes, &Lanes),
        routes: &Routes,
        kept: Kept,
        gradients: ExpertGradients,
    ) {
        self.check(x, routes);
        self.check(dy, routes);
        let panels = self.backward.as_ref().expect("made for training");
        let rows = routes.rows.len();
        let mut d_gate_up = kept.gate_up;
        let mut inner = Lanes::unset(pool, self.precision, rows, self.width);
        let mut d_gates = pool.zeros(rows);
        let mut blocks = self.blocks(routes, &mut d_gate_up, &mut inner, Some(&mut d_gates));
        pool.pieces(&mut blocks, 1, |_, blocks| {
            for block in blocks {
                self.gradient_block(block, dy.view(Some(&routes.rows)), &panels.down, routes);
            }
        });
        if let Some(out) = gradients.gates {
            assert_eq!(out.len(), rows);
            for (&place, d) in routes.places.iter().zip(d_gates.iter()) {
                out[place as usize] = *d;
            }
        }
        scatter(pool, dx, &d_gate_up, routes, &panels.gate_up, None);
        let by_token = Some(routes.rows.as_slice());
        let gate_up = [(&d_gate_up, None), (x, by_token)];
        weight_gradient(pool, gradients.gate_up, gate_up, routes, gradients.mode);
        let down = [(dy, by_token), (&inner, None)];
        weight_gradient(pool, gradients.down, down, routes, gradients.mode);
    }

    /// The rows of each expert in blocks, with their parts of the matrices.
    fn blocks<'a>(
        &self,
        routes: &Routes,
        kept: &'a mut Lanes,
        inner: &'a mut Lanes,
        d_gates: Option<&'a mut [f32]>,
    ) -> Vec<Block<'a>> {
        let width = steps(self.precision, self.width);
        let (mut kept, mut inner) = (kept.lanes_mut(), inner.lanes_mut());
        let mut d_gates = d_gates.unwrap_or_default();
        let mut blocks = Vec::new();
        for (expert, rows) in routes.blocks(GROUPED_ROWS) {
            let gates = d_gates.len().min(rows.len());
            blocks.push(Block {
                expert,
                kept: kept.split_off_mut(..rows.len() * 2 * width).expect("a part of every row"),
                inner: inner.split_off_mut(..rows.len() * width).expect("a part of every row"),
                d_gates: d_gates.split_off_mut(..gates).expect("no more than there are"),
                rows,
            });
        }
        blocks
    }

    /// Gate, up and activation of a block.
    fn gate_block(&self, block: &mut Block, x: Rows) {
        let mut sums = [[0.0; PANEL]; TILE];
        for panel in 0..self.gate_up.count() {
            let lines = self.gate_up.part(block.expert, panel, 0, self.gate_up.steps());
            let cols = panel * HALF..self.width.min((panel + 1) * HALF);
            for rows in tiles(&block.rows) {
                tile(self.gate_up.kernel, x, rows.clone(), 0, lines, &mut sums);
                let count = rows.len();
                swiglu::forward(&sums, count, &mut self.part(block, rows, cols.clone()));
            }
        }
    }

    /// The gradients of gate, up and the row's gate of a block.
    fn gradient_block(&self, block: &mut Block, dy: Rows, down: &Panels, routes: &Routes) {
        let mut sums = [[0.0; PANEL]; TILE];
        for panel in 0..down.count() {
            let lines = down.part(block.expert, panel, 0, down.steps());
            let cols = panel * PANEL..self.width.min((panel + 1) * PANEL);
            for rows in tiles(&block.rows) {
                tile(down.kernel, dy, rows.clone(), 0, lines, &mut sums);
                let first = rows.start - block.rows.start;
                let d_gates = std::mem::take(&mut block.d_gates);
                swiglu::backward(
                    &sums,
                    rows.len(),
                    &routes.gates[rows.clone()],
                    &mut d_gates[first..first + rows.len()],
                    &mut self.part(block, rows, cols.clone()),
                );
                block.d_gates = d_gates;
            }
        }
    }

    fn part<'b>(
        &self,
        block: &'b mut Block,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> swiglu::Part<'b> {
        let width = steps(self.precision, self.width);
        let (from, to) = (rows.start - block.rows.start, rows.end - block.rows.start);
        swiglu::Part {
            kernel: self.gate_up.kernel,
            precision: self.precision,
            gate: self.gate,
            width: self.width,
            cols,
            kept: &mut block.kept[from * 2 * width..to * 2 * width],
            inner: &mut block.inner[from * width..to * width],
        }
    }
}

/// Rows of one expert, and their lanes.
struct Block<'a> {
    expert: usize,
    rows: Range<usize>,
    kept: &'a mut [u32],
    inner: &'a mut [u32],
    /// Of every row; empty in the forward pass.
    d_gates: &'a mut [f32],
}

fn tiles(rows: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = rows.end;
    rows.clone().step_by(TILE).map(move |from| from..end.min(from + TILE))
}

/// Adds `scale(r) · left[r] · right[expert of r]` to the row of `r`'s token, expert after expert.
///
/// **Shapes**: left `[rows, k]`; right `[experts, k, n]`; out `[tokens, n]`.
fn scatter(
    pool: &Pool,
    out: &mut [f32],
    left: &Lanes,
    routes: &Routes,
    right: &Panels,
    scales: Option<&[f32]>,
) {
    let n = right.n;
    assert!(out.len() == routes.tokens() * n && left.cols() == right.k);
    assert!(routes.rows.iter().all(|&token| (token as usize) < routes.tokens()));
    let groups = right.count().div_ceil(SCATTERED_PANELS);
    let base = SendPtr(out.as_mut_ptr());
    pool.run(routes.tokens().div_ceil(SCATTERED_TOKENS) * groups, &|task| {
        let (block, group) = (task / groups, task % groups);
        let tokens = block * SCATTERED_TOKENS..(block + 1) * SCATTERED_TOKENS;
        let first = group * SCATTERED_PANELS;
        for expert in 0..routes.experts() {
            let rows = routes.within(expert, tokens.clone());
            for panel in first..right.count().min(first + SCATTERED_PANELS) {
                let strip = Strip {
                    kernel: right.kernel,
                    left: left.view(None),
                    rows: rows.clone(),
                    from: 0,
                    panel: right.part(expert, panel, 0, right.steps()),
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

/// A matrix by grouped rows: as it is, or through a row map.
type Grouped<'a> = (&'a Lanes<'a>, Option<&'a [u32]>);

/// `out[e] = leftᵀ · right` over the rows of each expert.
///
/// **Shapes**: left `[rows, m]`, right `[rows, n]`, out `[experts, m, n]`.
fn weight_gradient(
    pool: &Pool,
    out: &mut [f32],
    [left, right]: [Grouped; 2],
    routes: &Routes,
    mode: Output,
) {
    let (m, n) = (left.0.cols(), right.0.cols());
    assert_eq!(out.len(), routes.experts() * m * n, "gradients [{}, {m}, {n}]", routes.experts());
    if routes.experts() == 1 && routes.rows.len() == routes.tokens() {
        // Dense: every token once, in order.
        return matmul_transposed(pool, out, left.0, right.0, mode);
    }
    pool.pieces(out, m * n, |expert, out| {
        let rows = routes.starts[expert]..routes.starts[expert + 1];
        if !rows.is_empty() {
            expert_gradient(pool, out, [left, right], rows, mode);
        } else if mode == Output::Replace {
            out.fill(0.0);
        }
    });
}

/// As `weight_gradient`, of one expert with at least one row, on the caller's thread.
fn expert_gradient(
    pool: &Pool,
    out: &mut [f32],
    [left, right]: [Grouped; 2],
    rows: Range<usize>,
    mode: Output,
) {
    let (m, n) = (left.0.cols(), right.0.cols());
    let precision = left.0.precision();
    let steps = rows.len().div_ceil(per_step(precision));
    let mut panels = Panels::loan(pool, precision, n, steps * per_step(precision));
    panels.fill_rows_of(right.0, right.1, rows.clone());
    let mut turned = pool.buffer(PANEL * steps);
    for first in (0..m).step_by(PANEL) {
        let cols = first..m.min(first + PANEL);
        let part = Part { stride: 0, map: left.1, rows: rows.clone(), cols: cols.clone() };
        transpose_lanes(left.0, part, &mut turned.lanes_mut()[..cols.len() * steps], steps);
        let left = Rows { lanes: turned.lanes(), steps, map: None };
        for from in (0..steps).step_by(STEP_BLOCK) {
            let to = steps.min(from + STEP_BLOCK);
            for panel in 0..panels.count() {
                let strip = Strip {
                    kernel: panels.kernel,
                    left,
                    rows: 0..cols.len(),
                    from,
                    panel: panels.part(0, panel, from, to),
                    targets: None,
                    scales: None,
                    out: out[first * n + panel * PANEL..].as_mut_ptr(),
                    out_stride: n,
                    cols: panels.cols(panel),
                    add: mode == Output::Add || from > 0,
                };
                // SAFETY: `out` is borrowed exclusively and has m rows of n columns.
                unsafe { strip.run() };
            }
        }
    }
}
