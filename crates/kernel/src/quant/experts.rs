//! The feed-forwards of many experts as a file stores them, reached through a row map.

use std::ops::Range;

use super::product::{Isa, ROW_BLOCK, TASK_BYTES, tile_product};
use super::tiles::TILE;
use super::{Activations, Error, Matrix, Tiles};
use crate::arena::Arena;
use crate::gate::{Gate, gate_tiles};
use crate::gemm::Routes;
use crate::pool::{Pool, SendPtr};

/// Tokens whose outputs a task adds up.
const SCATTERED_TOKENS: usize = 512;

/// The feed-forwards `down · (gate(G · x) · (U · x))` of several experts, in tiles. One expert alone
/// is a dense feed-forward.
pub struct TiledExperts {
    experts: usize,
    hidden: usize,
    width: usize,
    gate: Gate,
    /// `[experts, 2·width, hidden]`, each expert's `G` before its `U`.
    gate_up: Tiles,
    /// `[experts, hidden, width]`.
    down: Tiles,
}

/// Some tiles of the inner values of some rows of one expert.
struct Inner {
    expert: usize,
    rows: Range<usize>,
    tiles: Range<usize>,
}

impl TiledExperts {
    /// **Shapes**: gate_up `[experts · 2·width, hidden]`, each expert's gate rows before its up rows;
    /// down `[experts · hidden, width]`.
    ///
    /// # Errors
    /// [`Error::Untiled`] if a format is none that tiles are made of, or an expert's rows do not fill
    /// whole tiles.
    ///
    /// # Panics
    /// If the shapes contradict each other.
    pub fn new(
        pool: &Pool,
        arena: &mut Arena,
        experts: usize,
        gate: Gate,
        [gate_up, down]: [&Matrix; 2],
    ) -> Result<Self, Error> {
        let (hidden, width) = (gate_up.cols, down.cols);
        assert_eq!(gate_up.rows, experts * 2 * width, "gate and up rows of {experts} experts");
        assert_eq!(down.rows, experts * hidden, "down rows of {experts} experts");
        if !width.is_multiple_of(TILE) {
            return Err(Error::Untiled { format: gate_up.format, rows: width });
        }
        if !hidden.is_multiple_of(TILE) {
            return Err(Error::Untiled { format: down.format, rows: hidden });
        }
        let gate_up = Tiles::new(pool, arena, &[gate_up])?;
        let down = Tiles::new(pool, arena, &[down])?;
        Ok(TiledExperts { experts, hidden, width, gate, gate_up, down })
    }

    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Whether the weights lie in a file: see [`Arena::in_file`].
    pub fn in_file(&self) -> bool {
        self.gate_up.in_file()
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }

    /// Adds to each row of `out` what its experts make of the row of `x`, times their weights.
    ///
    /// A token's result is the same, bit for bit, whatever the other tokens are.
    ///
    /// **Shapes**: x, out `[tokens, hidden]`.
    ///
    /// # Panics
    /// If a length does not fit the shapes, or the routes are of another number of experts.
    pub fn forward(&self, pool: &Pool, out: &mut [f32], x: &[f32], routes: &Routes) {
        assert_eq!(x.len(), routes.tokens() * self.hidden, "rows of {}", self.hidden);
        assert!(out.len() == x.len() && routes.experts() == self.experts);
        if self.in_file() {
            self.fetch(pool, routes);
        }
        let x = Activations::new(pool, x, self.hidden);
        let mut inner = pool.buffer(routes.rows.len() * self.width);
        self.inner(pool, &mut inner, &x, routes);
        let inner = Activations::new(pool, &inner, self.width);
        self.scatter(pool, out, &inner, routes);
    }

    /// Has the system read the weights of all experts that have rows: those of the last are on their way
    /// while the first compute.
    fn fetch(&self, pool: &Pool, routes: &Routes) {
        let used = routes.load().enumerate().filter(|(_, rows)| *rows > 0);
        let used: Vec<usize> = used.map(|(expert, _)| expert).collect();
        let each = |tiles: usize, expert: usize| expert * tiles..(expert + 1) * tiles;
        pool.run(used.len(), &|at| {
            self.gate_up.will_need(each(2 * self.width / TILE, used[at]));
        });
        pool.run(used.len(), &|at| self.down.will_need(each(self.hidden / TILE, used[at])));
    }

    /// **Shapes**: out `[routes, width]`.
    fn inner(&self, pool: &Pool, out: &mut [f32], x: &Activations, routes: &Routes) {
        let (isa, width, tiles) = (Isa::best(), self.width, self.width / TILE);
        let tasks = self.inner_tasks(pool, routes);
        let base = SendPtr(out.as_mut_ptr());
        pool.run(tasks.len(), &|task| {
            let Inner { expert, rows, tiles: range } = &tasks[task];
            let slice = x.mapped(&routes.rows[rows.clone()]);
            let mut gates = [[0.0; TILE]; ROW_BLOCK];
            let mut ups = [[0.0; TILE]; ROW_BLOCK];
            let (gates, ups) = (&mut gates[..rows.len()], &mut ups[..rows.len()]);
            for tile in range.clone() {
                let at = expert * 2 * tiles + tile;
                tile_product(isa, &self.gate_up.tile(at), slice, gates);
                tile_product(isa, &self.gate_up.tile(at + tiles), slice, ups);
                gate_tiles(self.gate, gates, ups);
                for (row, values) in rows.clone().zip(&*gates) {
                    // SAFETY: rows of `out` are `width` long; this row and these columns belong to
                    // this task alone.
                    unsafe {
                        let to = base.get().add(row * width + tile * TILE);
                        std::ptr::copy_nonoverlapping(values.as_ptr(), to, TILE);
                    }
                }
            }
        });
    }

    fn inner_tasks(&self, pool: &Pool, routes: &Routes) -> Vec<Inner> {
        let tiles = self.width / TILE;
        let blocks = routes.blocks(ROW_BLOCK, ROW_BLOCK);
        let mut tasks = Vec::new();
        for (expert, rows) in &blocks {
            let least = TASK_BYTES / rows.len().min(16) / (2 * self.gate_up.tile_bytes());
            let wanted = (pool.threads() * 8).div_ceil(blocks.len());
            let group = tiles.div_ceil(wanted).max(least).max(1);
            tasks.extend((0..tiles).step_by(group).map(|first| {
                let tiles = first..tiles.min(first + group);
                Inner { expert: *expert, rows: rows.clone(), tiles }
            }));
        }
        tasks
    }

    /// Adds the experts' outputs to their tokens. A task owns some tokens and columns and walks all
    /// experts in their order, so no two tasks write one place, and the sums have one order.
    ///
    /// **Shapes**: inner `[routes, width]`.
    fn scatter(&self, pool: &Pool, out: &mut [f32], inner: &Activations, routes: &Routes) {
        let (isa, hidden, tiles) = (Isa::best(), self.hidden, self.hidden / TILE);
        let blocks = routes.tokens().div_ceil(SCATTERED_TOKENS);
        let active = routes.load().filter(|rows| *rows > 0).count().max(1);
        let least = TASK_BYTES / (active * self.down.tile_bytes());
        let group = tiles.div_ceil(pool.threads() * 8).max(least).max(1);
        let groups = tiles.div_ceil(group);
        let base = SendPtr(out.as_mut_ptr());
        pool.run(blocks * groups, &|task| {
            let first = task / groups * SCATTERED_TOKENS;
            let tokens = first..routes.tokens().min(first + SCATTERED_TOKENS);
            let range = task % groups * group..tiles.min((task % groups + 1) * group);
            let mut sums = [[0.0; TILE]; ROW_BLOCK];
            for expert in 0..self.experts {
                let rows = routes.within(expert, tokens.clone());
                for first in rows.clone().step_by(ROW_BLOCK) {
                    let count = ROW_BLOCK.min(rows.end - first);
                    let (slice, sums) = (inner.slice(first, count), &mut sums[..count]);
                    for tile in range.clone() {
                        tile_product(isa, &self.down.tile(expert * tiles + tile), slice, sums);
                        for (row, sums) in sums.iter().enumerate() {
                            let token = routes.rows[first + row] as usize;
                            // SAFETY: the token and the columns of the tile are this task's alone.
                            let to = unsafe {
                                let at = base.get().add(token * hidden + tile * TILE);
                                std::slice::from_raw_parts_mut(at, TILE)
                            };
                            let weight = routes.gates[first + row];
                            to.iter_mut().zip(sums).for_each(|(to, sum)| *to += weight * sum);
                        }
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::product::{gated_product, product};
    use super::super::product_tests::{matrix, wave};
    use super::*;
    use crate::gemm::Output;
    use crate::quant::Format;

    const EXPERTS: usize = 5;
    const HIDDEN: usize = 256;
    const WIDTH: usize = 32;

    /// Experts that tokens choose, two each.
    fn chosen(tokens: usize) -> (Vec<u32>, Vec<f32>) {
        let experts = (0..tokens).flat_map(|t| [t % 3, 3 + t % 2]).map(|e| e as u32).collect();
        (experts, (0..2 * tokens).map(|i| 0.1 + i as f32 * 0.01).collect())
    }

    fn experts(gate_up: &Matrix, down: &Matrix) -> TiledExperts {
        let (pool, mut arena) = (Pool::new(2), Arena::new());
        TiledExperts::new(&pool, &mut arena, EXPERTS, Gate::Silu, [gate_up, down]).unwrap()
    }

    #[test]
    fn a_token_gets_what_its_experts_give_one_by_one() {
        let gate_up = matrix(Format::Q4_K, EXPERTS * 2 * WIDTH, HIDDEN);
        let down = matrix(Format::Q5_0, EXPERTS * HIDDEN, WIDTH);
        let all = experts(&gate_up, &down);
        let pool = Pool::new(3);
        let part = |matrix: &Matrix, expert: usize| {
            let rows = matrix.rows / EXPERTS;
            let part = matrix.select_rows(expert * rows..(expert + 1) * rows);
            Tiles::new(&pool, &mut Arena::new(), &[&part]).unwrap()
        };
        for tokens in [1, 7, 600] {
            let x: Vec<f32> = wave(tokens * HIDDEN, 0.3).iter().map(|x| x * 1e-3).collect();
            let (chosen, weights) = chosen(tokens);
            let mut found = vec![1.0; x.len()];
            all.forward(&pool, &mut found, &x, &Routes::new(EXPERTS, 2, &chosen, &weights));
            for token in (0..tokens).step_by(37) {
                let x = Activations::new(&pool, &x[token * HIDDEN..][..HIDDEN], HIDDEN);
                let mut expected = vec![1.0; HIDDEN];
                for place in [2 * token, 2 * token + 1] {
                    let expert = chosen[place] as usize;
                    let mut inner = vec![0.0; WIDTH];
                    gated_product(&pool, &mut inner, &x, &part(&gate_up, expert), Gate::Silu);
                    let inner = Activations::new(&pool, &inner, WIDTH);
                    let mut y = vec![0.0; HIDDEN];
                    product(&pool, &mut y, &inner, &part(&down, expert), Output::Replace);
                    let sums = expected.iter_mut().zip(&y);
                    sums.for_each(|(sum, y)| *sum += weights[place] * y);
                }
                assert!(expected.iter().all(|value| value.is_finite()));
                assert_eq!(found[token * HIDDEN..][..HIDDEN], expected, "{token} of {tokens}");
            }
        }
    }

    #[test]
    fn experts_that_fill_no_tiles_are_refused() {
        let (pool, mut arena) = (Pool::new(1), Arena::new());
        let (gate_up, down) = (matrix(Format::Q8_0, 2 * 24, 64), matrix(Format::Q8_0, 64, 32));
        let gate_up = gate_up.select_rows(0..48);
        let narrow = Matrix { rows: 64, cols: 24, ..Matrix::from_f32(64, 24, vec![0.0; 64 * 24]) };
        let refused = TiledExperts::new(&pool, &mut arena, 1, Gate::Silu, [&gate_up, &narrow]);
        assert!(matches!(refused.err(), Some(Error::Untiled { rows: 24, .. })));
        let plain = Matrix::from_f32(64, 64, vec![0.0; 64 * 64]);
        let refused = TiledExperts::new(&pool, &mut arena, 1, Gate::Silu, [&plain, &down]);
        assert!(matches!(refused.err(), Some(Error::Untiled { .. })));
    }
}
