//! Products grouped by expert: each row goes through the feed-forward of its expert, reached through
//! a row map, so that nothing is gathered, padded or dropped.
//!
//! Which rows a task takes depends on the routes alone, and each output is summed expert by expert:
//! the results are the same, bit for bit, for any number of threads.

use std::ops::Range;

use super::Output;
use super::lanes::{Lanes, Rows, steps};
use super::panels::{Order, PANEL, Panels};
use super::routes::Routes;
use super::scatter::{scatter, weight_gradient};
use super::stored::{Right, Stored};
use super::swiglu::{self, HALF};
use super::tile::{TILE, tile};
use crate::pool::Pool;
use crate::{Gate, Precision};

/// Rows of one expert that a task takes: sixteen tiles.
const GROUPED_ROWS: usize = 16 * TILE;
/// As many as outweigh packing the expert's weights: all that one of many experts has, as a rule.
const STORED_ROWS: usize = 64 * TILE;

/// The feed-forwards `down · (act(gate · x) · (up · x))` of several experts, where act is a [`Gate`],
/// laid out for their products. One expert alone is a dense feed-forward.
pub struct Experts {
    precision: Precision,
    gate: Gate,
    experts: usize,
    hidden: usize,
    width: usize,
    weights: Weights,
}

enum Weights {
    /// Laid out once.
    Panels { gate_up: Panels<'static>, down: Panels<'static> },
    /// In training, where they change with each step.
    Stored { gate_up: Stored, down: Stored },
}

/// What the backward pass needs of the forward pass.
pub struct Kept<'a> {
    /// `[rows, 2·width]`: gates, then up, before the activation.
    gate_up: Lanes<'a>,
}

/// Where gradients go; what is not wanted is not computed.
///
/// **Shapes**: weights `[experts, 2·width, hidden]` of gate and up, `[experts, hidden, width]` of down;
/// gates `[tokens, top_k]`.
pub struct ExpertGradients<'a> {
    pub weights: Option<[&'a mut [f32]; 2]>,
    pub gates: Option<&'a mut [f32]>,
    /// Of the weights' gradients.
    pub mode: Output,
}

impl Experts {
    /// Room for the weights of `experts` experts; with `train`, for both passes, and for weights that
    /// change with each step.
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
        let weights = match train {
            true => Weights::Stored {
                gate_up: Stored::zeros(precision, experts, 2 * width, hidden),
                down: Stored::zeros(precision, experts, hidden, width),
            },
            false => Weights::Panels {
                gate_up: Panels::zeros(precision, Order::Gated, experts, 2 * width, hidden),
                down: Panels::zeros(precision, Order::Plain, experts, hidden, width),
            },
        };
        Experts { precision, gate: Gate::Silu, experts, hidden, width, weights }
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
        match &mut self.weights {
            Weights::Panels { gate_up: gate_up_panels, down: down_panels } => {
                gate_up_panels.fill_rows(pool, gate_up);
                down_panels.fill_rows(pool, down);
            }
            Weights::Stored { gate_up: stored_gate_up, down: stored_down } => {
                stored_gate_up.fill(pool, gate_up);
                stored_down.fill(pool, down);
            }
        }
    }

    pub fn experts(&self) -> usize {
        self.experts
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::Panels { gate_up, down } => gate_up.bytes() + down.bytes(),
            Weights::Stored { gate_up, down } => gate_up.bytes() + down.bytes(),
        }
    }

    /// Right operands of the forward pass: of gate and up, and of down.
    fn forward_weights(&self) -> [Right<'_>; 2] {
        match &self.weights {
            Weights::Panels { gate_up, down } => [Right::Panels(gate_up), Right::Panels(down)],
            Weights::Stored { gate_up, down } => {
                [Right::Rows(gate_up, Order::Gated), Right::Rows(down, Order::Plain)]
            }
        }
    }

    /// As [`Experts::forward_weights`], of the products with gradients.
    ///
    /// # Panics
    /// If the experts were not made for training.
    fn backward_weights(&self) -> [Right<'_>; 2] {
        match &self.weights {
            Weights::Panels { .. } => panic!("the experts were not made for training"),
            Weights::Stored { gate_up, down } => [Right::Columns(gate_up), Right::Columns(down)],
        }
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
        let [gate_up, down] = self.forward_weights();
        let mut blocks = self.blocks(routes, &mut kept, &mut inner, None);
        pool.pieces(&mut blocks, 1, |_, blocks| {
            for block in blocks {
                self.gate_block(pool, block, x.view(Some(&routes.rows)), gate_up);
            }
        });
        scatter(pool, out, &inner, routes, down, Some(&routes.gates));
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
        let [gate_up, down] = self.backward_weights();
        let rows = routes.rows.len();
        let mut d_gate_up = kept.gate_up;
        let mut inner = Lanes::unset(pool, self.precision, rows, self.width);
        let mut d_gates = pool.zeros(rows);
        let mut blocks = self.blocks(routes, &mut d_gate_up, &mut inner, Some(&mut d_gates));
        pool.pieces(&mut blocks, 1, |_, blocks| {
            for block in blocks {
                self.gradient_block(pool, block, dy.view(Some(&routes.rows)), down, routes);
            }
        });
        if let Some(out) = gradients.gates {
            assert_eq!(out.len(), rows);
            for (&place, d) in routes.places.iter().zip(d_gates.iter()) {
                out[place as usize] = *d;
            }
        }
        scatter(pool, dx, &d_gate_up, routes, gate_up, None);
        let Some([to_gate_up, to_down]) = gradients.weights else { return };
        let by_token = Some(routes.rows.as_slice());
        let gate_up = [(&d_gate_up, None), (x, by_token)];
        weight_gradient(pool, to_gate_up, gate_up, routes, gradients.mode);
        let down = [(dy, by_token), (&inner, None)];
        weight_gradient(pool, to_down, down, routes, gradients.mode);
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
        let size = match &self.weights {
            Weights::Panels { .. } => GROUPED_ROWS,
            Weights::Stored { .. } => STORED_ROWS,
        };
        let mut blocks = Vec::new();
        for (expert, rows) in routes.blocks(size, GROUPED_ROWS) {
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
    fn gate_block(&self, pool: &Pool, block: &mut Block, x: Rows, gate_up: Right) {
        let mut sums = [[0.0; PANEL]; TILE];
        let mut scratch = gate_up.scratch(pool);
        for panel in 0..gate_up.count() {
            let lines = gate_up.panel(block.expert, panel, &mut scratch);
            let cols = panel * HALF..self.width.min((panel + 1) * HALF);
            for rows in tiles(&block.rows) {
                swiglu::prefetch(&mut self.part(block, rows.clone(), cols.clone()), rows.len());
                tile(gate_up.kernel(), x, rows.clone(), 0, lines, &mut sums);
                let count = rows.len();
                swiglu::forward(&sums, count, &mut self.part(block, rows, cols.clone()));
            }
        }
    }

    /// The gradients of gate, up and the row's gate of a block.
    fn gradient_block(
        &self,
        pool: &Pool,
        block: &mut Block,
        dy: Rows,
        down: Right,
        routes: &Routes,
    ) {
        let mut sums = [[0.0; PANEL]; TILE];
        let mut scratch = down.scratch(pool);
        for panel in 0..down.count() {
            let lines = down.panel(block.expert, panel, &mut scratch);
            let cols = panel * PANEL..self.width.min((panel + 1) * PANEL);
            for rows in tiles(&block.rows) {
                swiglu::prefetch(&mut self.part(block, rows.clone(), cols.clone()), rows.len());
                tile(down.kernel(), dy, rows.clone(), 0, lines, &mut sums);
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
