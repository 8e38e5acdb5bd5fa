//! Root-mean-square norm, of whole rows and of heads.
//!
//! **Source**: Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4.

use super::{lane_sum, task_rows};
use crate::cpu::multiversion;
use crate::gemm::lanes_of_row;
use crate::{Lanes, Output, Pool, Precision};

/// Root-mean-square norm: `out = x / sqrt(mean(x²) + eps) · weight`.
///
/// **Shapes**: x, out `[tokens, hidden]`; weight `[hidden]`.
pub fn rms_norm(pool: &Pool, out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let cols = weight.len();
    assert!(
        out.len() == x.len() && x.len().is_multiple_of(cols),
        "rms_norm of {} by {cols}",
        x.len()
    );
    let rows = task_rows(cols);
    pool.pieces(out, rows * cols, |index, piece| {
        norm_rows(piece, &x[index * rows * cols..], weight, eps);
    });
}

multiversion! {
fn norm_rows(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let cols = weight.len();
    for (out, x) in out.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
        let scale = inverse_rms(x, eps);
        for i in 0..cols {
            out[i] = x[i] * scale * weight[i];
        }
    }
}
}

/// [`rms_norm`] into lanes, for products that read nothing else.
///
/// **Shapes**: x, the result `[tokens, hidden]`; weight `[hidden]`.
pub fn rms_norm_lanes<'a>(
    pool: &'a Pool,
    precision: Precision,
    x: &[f32],
    weight: &[f32],
    eps: f32,
) -> Lanes<'a> {
    let cols = weight.len();
    assert!(x.len().is_multiple_of(cols), "rms_norm of {} by {cols}", x.len());
    let mut lanes = Lanes::unset(pool, precision, x.len() / cols, cols);
    let (rows, steps) = (task_rows(cols), lanes.steps());
    pool.pieces(lanes.lanes_mut(), rows * steps, |index, piece| {
        let mut normed = vec![0.0; cols];
        let x = x[index * rows * cols..].chunks_exact(cols);
        for (lanes, x) in piece.chunks_exact_mut(steps).zip(x) {
            norm_rows(&mut normed, x, weight, eps);
            lanes_of_row(precision, &normed, lanes);
        }
    });
    lanes
}

/// Heads inside the rows of a matrix `[tokens, stride]`.
#[derive(Clone, Copy)]
pub struct HeadRows {
    pub stride: usize,
    /// Where in a row the first head begins.
    pub first: usize,
    pub heads: usize,
}

impl HeadRows {
    fn check(self, len: usize, head_dim: usize) {
        let Self { stride, first, heads } = self;
        let fits = len.is_multiple_of(stride) && first + heads * head_dim <= stride;
        assert!(fits, "{heads} heads of {head_dim} from {first} in rows of {stride}, {len} values");
    }
}

/// [`rms_norm`] of each head in every row, in place.
///
/// **Shapes**: x `[tokens, stride]`; weight `[head_dim]`.
pub fn rms_norm_heads(pool: &Pool, x: &mut [f32], rows: HeadRows, weight: &[f32], eps: f32) {
    rows.check(x.len(), weight.len());
    let HeadRows { stride, first, heads } = rows;
    let width = heads * weight.len();
    pool.pieces(x, task_rows(width) * stride, |_, piece| {
        for row in piece.chunks_exact_mut(stride) {
            norm_heads(&mut row[first..first + width], weight, eps);
        }
    });
}

multiversion! {
fn norm_heads(x: &mut [f32], weight: &[f32], eps: f32) {
    for head in x.chunks_exact_mut(weight.len()) {
        let scale = inverse_rms(head, eps);
        for i in 0..weight.len() {
            head[i] = head[i] * scale * weight[i];
        }
    }
}
}

/// Turns `d`, the gradient with respect to the output of [`rms_norm_heads`], into that with respect
/// to its input `x`.
///
/// **Shapes**: d, x `[tokens, stride]`; weight `[head_dim]`.
pub fn rms_norm_heads_backward(
    pool: &Pool,
    d: &mut [f32],
    x: &[f32],
    rows: HeadRows,
    weight: &[f32],
    eps: f32,
) {
    rows.check(x.len(), weight.len());
    assert_eq!(d.len(), x.len());
    let HeadRows { stride, first, heads } = rows;
    let width = heads * weight.len();
    let size = task_rows(width) * stride;
    pool.pieces(d, size, |index, piece| {
        let x = &x[index * size..];
        for (d, x) in piece.chunks_exact_mut(stride).zip(x.chunks_exact(stride)) {
            let columns = first..first + width;
            heads_backward(&mut d[columns.clone()], &x[columns], weight, eps);
        }
    });
}

multiversion! {
fn heads_backward(d: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let cols = weight.len();
    for (d, x) in d.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
        let scale = inverse_rms(x, eps);
        let along = lane_sum([&*d, weight, x], |[d, weight, x]| d * weight * x);
        let pull = along * scale * scale * scale / cols as f32;
        for i in 0..cols {
            d[i] = d[i] * weight[i] * scale - x[i] * pull;
        }
    }
}
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (lane_sum([x], |[x]| x * x) / x.len() as f32 + eps).sqrt()
}

/// Adds to `dx` the gradient of [`rms_norm`] with respect to `x`, given `dy` with respect to its
/// output.
///
/// **Shapes**: dx, x, dy `[tokens, hidden]`; weight `[hidden]`.
pub fn rms_norm_backward(
    pool: &Pool,
    dx: &mut [f32],
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
) {
    let cols = weight.len();
    assert!(dx.len() == x.len() && dy.len() == x.len() && x.len().is_multiple_of(cols));
    let rows = task_rows(cols);
    pool.pieces(dx, rows * cols, |index, piece| {
        let at = index * rows * cols;
        norm_rows_backward(piece, &x[at..], weight, eps, &dy[at..]);
    });
}

multiversion! {
fn norm_rows_backward(dx: &mut [f32], x: &[f32], weight: &[f32], eps: f32, dy: &[f32]) {
    let cols = weight.len();
    for ((dx, x), dy) in
        dx.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(dy.chunks_exact(cols))
    {
        let scale = inverse_rms(x, eps);
        let along = lane_sum([dy, weight, x], |[dy, weight, x]| dy * weight * x);
        let pull = along * scale * scale * scale / cols as f32;
        for i in 0..cols {
            dx[i] += dy[i] * weight[i] * scale - x[i] * pull;
        }
    }
}
}

/// Rows whose part of a weight's gradient is summed together.
const GRADIENT_ROWS: usize = 64;

/// Sets or adds to `d_weight` the gradient of [`rms_norm_heads`] with respect to its weight, given
/// `dy` with respect to its output. [`rms_norm`] is the case of one head that fills the row.
///
/// **Shapes**: d_weight `[head_dim]`; x, dy `[tokens, stride]`.
pub fn rms_norm_weight_gradient(
    pool: &Pool,
    d_weight: &mut [f32],
    (x, dy): (&[f32], &[f32]),
    rows: HeadRows,
    eps: f32,
    mode: Output,
) {
    let cols = d_weight.len();
    rows.check(x.len(), cols);
    assert_eq!(x.len(), dy.len());
    let HeadRows { stride, first, heads } = rows;
    let size = GRADIENT_ROWS * stride;
    let mut sums = pool.zeros(x.len().div_ceil(size) * cols);
    pool.pieces(&mut sums, cols, |index, sums| {
        let block = index * size..x.len().min((index + 1) * size);
        let rows = x[block.clone()].chunks_exact(stride).zip(dy[block].chunks_exact(stride));
        for (x, dy) in rows {
            let columns = first..first + heads * cols;
            weight_gradient_row(sums, &x[columns.clone()], eps, &dy[columns]);
        }
    });
    if mode == Output::Replace {
        d_weight.fill(0.0);
    }
    for sums in sums.chunks_exact(cols) {
        d_weight.iter_mut().zip(sums).for_each(|(d, sum)| *d += sum);
    }
}

multiversion! {
fn weight_gradient_row(sums: &mut [f32], x: &[f32], eps: f32, dy: &[f32]) {
    let cols = sums.len();
    for (x, dy) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)) {
        let scale = inverse_rms(x, eps);
        for i in 0..cols {
            sums[i] += dy[i] * x[i] * scale;
        }
    }
}
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, numeric, wave, weighted};
    use super::*;

    #[test]
    fn norm_gradient_is_the_numeric_one() {
        let pool = Pool::new(2);
        let (x, dy, weight) = (wave(3 * 20, 0.1), wave(3 * 20, 1.0), wave(20, 2.0));
        let mut dx = vec![0.0; x.len()];
        rms_norm_backward(&pool, &mut dx, &x, &weight, 1e-5, &dy);
        let expected = numeric(&x, |x| {
            let mut out = vec![0.0; x.len()];
            rms_norm(&pool, &mut out, x, &weight, 1e-5);
            weighted(&out, &dy)
        });
        close(&dx, &expected, 2e-3);
    }

    #[test]
    fn normed_lanes_hold_what_the_norm_gives() {
        let pool = Pool::new(2);
        // More rows than one task has.
        let (x, weight) = (wave(900 * 20, 0.1), wave(20, 2.0));
        let mut out = vec![0.0; x.len()];
        rms_norm(&pool, &mut out, &x, &weight, 1e-5);
        for precision in [Precision::F32, Precision::Bf16] {
            let expected = Lanes::new(&pool, precision, &out, 20);
            let lanes = rms_norm_lanes(&pool, precision, &x, &weight, 1e-5);
            assert_eq!(lanes.lanes(), expected.lanes());
        }
    }

    #[test]
    fn norm_weight_gradient_is_the_numeric_one() {
        let pool = Pool::new(2);
        // Two blocks of rows.
        let (x, dy, weight) = (wave(70 * 9, 0.1), wave(70 * 9, 1.0), wave(9, 2.0));
        let mut d = vec![1.0; 9];
        let rows = HeadRows { stride: 9, first: 0, heads: 1 };
        rms_norm_weight_gradient(&pool, &mut d, (&x, &dy), rows, 1e-5, Output::Replace);
        let expected = numeric(&weight, |weight| {
            let mut out = vec![0.0; x.len()];
            rms_norm(&pool, &mut out, &x, weight, 1e-5);
            weighted(&out, &dy)
        });
        close(&d, &expected, 2e-3);
    }

    #[test]
    fn head_norm_gradients_are_the_numeric_ones() {
        let pool = Pool::new(2);
        // Two heads of 6 after the first value of each row of 15; the rest stays.
        let rows = HeadRows { stride: 15, first: 1, heads: 2 };
        let (x, dy, weight) = (wave(3 * 15, 0.1), wave(3 * 15, 1.0), wave(6, 2.0));
        let norm = |x: &[f32], weight: &[f32]| {
            let mut out = x.to_vec();
            rms_norm_heads(&pool, &mut out, rows, weight, 1e-5);
            weighted(&out, &dy)
        };
        let mut dx = dy.clone();
        rms_norm_heads_backward(&pool, &mut dx, &x, rows, &weight, 1e-5);
        close(&dx, &numeric(&x, |x| norm(x, &weight)), 2e-3);
        let mut d_weight = vec![0.0; 6];
        rms_norm_weight_gradient(&pool, &mut d_weight, (&x, &dy), rows, 1e-5, Output::Add);
        close(&d_weight, &numeric(&weight, |weight| norm(&x, weight)), 2e-3);
    }
}
