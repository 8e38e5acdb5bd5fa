//! Row-wise operations: norm, rotary positions, activation, gates, and the optimiser's step.
//!
//! All matrices are row-major; rows are tokens.

mod adamw;
mod columns;
mod norm;

use crate::Pool;
use crate::cpu::multiversion;

pub use adamw::{AdamW, adamw, adamw_in_bytes, bytes_of_means};
pub use columns::{add_bias, column_sums, scale_columns};
pub use norm::{
    HeadRows, rms_norm, rms_norm_backward, rms_norm_heads, rms_norm_heads_backward, rms_norm_lanes,
    rms_norm_weight_gradient,
};

/// Values a task handles: enough to outweigh the cost of claiming it.
const TASK_VALUES: usize = 16 * 1024;

fn task_rows(cols: usize) -> usize {
    (TASK_VALUES / cols.max(1)).max(1)
}

/// e^x to about 2 units in the last place, without branches; 0 far below, large but finite above.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5·2²³: adding it rounds to an integer and leaves that integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    // ln 2 in two parts, so that the remainder is exact.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_65;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits());
    f32::from_bits(y.to_bits().wrapping_add(exponent << 23))
}

#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The sum of a term over arrays of one length, in 16 lanes, so that the compiler vectorises without
/// changing the order of additions. Whole chunks are copied first: a check of bounds for each value
/// would keep it from that.
#[inline(always)]
pub(crate) fn lane_sum<const N: usize>(values: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let len = values[0].len();
    let whole = len / 16 * 16;
    for at in (0..whole).step_by(16) {
        let mut chunks = [[0.0; 16]; N];
        for n in 0..N {
            chunks[n].copy_from_slice(&values[n][at..at + 16]);
        }
        for lane in 0..16 {
            let mut value = [0.0; N];
            for n in 0..N {
                value[n] = chunks[n][lane];
            }
            lanes[lane] += term(value);
        }
    }
    for at in whole..len {
        let mut value = [0.0; N];
        for n in 0..N {
            value[n] = values[n][at];
        }
        lanes[at - whole] += term(value);
    }
    fold(lanes)
}

#[inline(always)]
fn fold(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// Cosines and sines of the rotary position embedding.
///
/// **Source**: Su et al. 2021, arXiv 2104.09864, eq. 34, in the rotate-half layout.
pub struct Rotary {
    half: usize,
    head_dim: usize,
    /// `[positions, half]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The direction to rotate in: backward is the gradient of forward, and undoes it where the
/// magnitude is 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rotation {
    Forward,
    Backward,
}

impl Rotary {
    /// Tables for positions `0..positions`, for heads of `head_dim` values of which the first
    /// `2 · frequencies.len()` are rotated; these are multiplied by `magnitude`, too.
    ///
    /// **Units**: frequencies in radians per token.
    ///
    /// # Panics
    /// If a head has fewer values than are to be rotated.
    pub fn new(frequencies: &[f32], magnitude: f32, head_dim: usize, positions: usize) -> Self {
        let half = frequencies.len();
        assert!(2 * half <= head_dim, "{half} pairs in a head of {head_dim}");
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..positions {
            for frequency in frequencies {
                // Computed as the reference does, in f32.
                let angle = position as f32 * frequency;
                cos.push(angle.cos() * magnitude);
                sin.push(angle.sin() * magnitude);
            }
        }
        Rotary { half, head_dim, cos, sin }
    }

    /// Rotates the first `heads` heads of each row in place.
    ///
    /// **Shapes**: x `[tokens, stride]`; positions `[tokens]`, each below the tables' length.
    pub fn rotate(
        &self,
        pool: &Pool,
        x: &mut [f32],
        stride: usize,
        heads: usize,
        positions: &[u32],
        direction: Rotation,
    ) {
        assert_eq!(x.len(), positions.len() * stride);
        assert!(heads * self.head_dim <= stride);
        let rows = task_rows(stride);
        pool.pieces(x, rows * stride, |index, piece| {
            rotate_rows(self, piece, stride, heads, &positions[index * rows..], direction);
        });
    }
}

multiversion! {
fn rotate_rows(
    tables: &Rotary,
    x: &mut [f32],
    stride: usize,
    heads: usize,
    positions: &[u32],
    direction: Rotation,
) {
    let half = tables.half;
    let sign = if direction == Rotation::Forward { 1.0 } else { -1.0 };
    for (row, &position) in x.chunks_exact_mut(stride).zip(positions) {
        let at = position as usize * half;
        let (cos, sin) = (&tables.cos[at..at + half], &tables.sin[at..at + half]);
        for head in row.chunks_exact_mut(tables.head_dim).take(heads) {
            let (a, b) = head[..2 * half].split_at_mut(half);
            for i in 0..half {
                let (x, y) = (a[i], b[i]);
                a[i] = x * cos[i] - y * sin[i] * sign;
                b[i] = y * cos[i] + x * sin[i] * sign;
            }
        }
    }
}
}

/// SwiGLU: `out = silu(gate) · up`, gate and up side by side.
///
/// **Shapes**: out `[tokens, width]`; gate_up `[tokens, 2·width]`.
/// **Source**: Shazeer 2020, arXiv 2002.05202, eq. 5.
pub fn swiglu(pool: &Pool, out: &mut [f32], gate_up: &[f32], width: usize) {
    assert_eq!(gate_up.len(), 2 * out.len());
    let rows = task_rows(width);
    pool.pieces(out, rows * width, |index, piece| {
        swiglu_rows(piece, &gate_up[2 * index * rows * width..], width);
    });
}

multiversion! {
fn swiglu_rows(out: &mut [f32], gate_up: &[f32], width: usize) {
    for (out, row) in out.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
        let (gate, up) = row.split_at(width);
        for i in 0..width {
            out[i] = gate[i] * sigmoid(gate[i]) * up[i];
        }
    }
}
}

/// The gradient of [`swiglu`]: writes over `gate_up` the gradient with respect to it.
///
/// **Shapes**: gate_up `[tokens, 2·width]`; d_out `[tokens, width]`.
pub fn swiglu_backward(pool: &Pool, gate_up: &mut [f32], d_out: &[f32], width: usize) {
    assert_eq!(gate_up.len(), 2 * d_out.len());
    let rows = task_rows(2 * width);
    pool.pieces(gate_up, rows * 2 * width, |index, piece| {
        swiglu_rows_backward(piece, &d_out[index * rows * width..], width);
    });
}

multiversion! {
fn swiglu_rows_backward(gate_up: &mut [f32], d_out: &[f32], width: usize) {
    for (row, d_out) in gate_up.chunks_exact_mut(2 * width).zip(d_out.chunks_exact(width)) {
        let (gate, up) = row.split_at_mut(width);
        for i in 0..width {
            let s = sigmoid(gate[i]);
            let d_gate = d_out[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
            up[i] = d_out[i] * gate[i] * s;
            gate[i] = d_gate;
        }
    }
}
}

/// `out = x`, on all threads.
pub fn copy<T: Copy + Send + Sync>(pool: &Pool, out: &mut [T], x: &[T]) {
    assert_eq!(out.len(), x.len());
    pool.pieces(out, TASK_VALUES, |index, piece| {
        piece.copy_from_slice(&x[index * TASK_VALUES..][..piece.len()]);
    });
}

/// `out = 0`, on all threads.
pub fn clear(pool: &Pool, out: &mut [f32]) {
    pool.pieces(out, TASK_VALUES, |_, piece| piece.fill(0.0));
}

/// `out += x`.
pub fn add(pool: &Pool, out: &mut [f32], x: &[f32]) {
    assert_eq!(out.len(), x.len());
    pool.pieces(out, TASK_VALUES, |index, piece| {
        for (out, x) in piece.iter_mut().zip(&x[index * TASK_VALUES..]) {
            *out += x;
        }
    });
}

/// `out[t] += weights[t] · x[t]` for every row.
///
/// **Shapes**: out, x `[tokens, cols]`; weights `[tokens]`.
pub fn add_weighted_rows(pool: &Pool, out: &mut [f32], x: &[f32], weights: &[f32], cols: usize) {
    assert!(out.len() == x.len() && x.len() == weights.len() * cols);
    let rows = task_rows(cols);
    pool.pieces(out, rows * cols, |index, piece| {
        let first = index * rows;
        for (row, out) in piece.chunks_exact_mut(cols).enumerate() {
            let weight = weights[first + row];
            for (out, x) in out.iter_mut().zip(&x[(first + row) * cols..]) {
                *out += weight * x;
            }
        }
    });
}

/// `out[t] = a[t] · b[t]`, the dot product of the rows.
///
/// **Shapes**: a, b `[tokens, cols]`; out `[tokens]`.
pub fn row_dots(pool: &Pool, out: &mut [f32], a: &[f32], b: &[f32], cols: usize) {
    assert!(a.len() == b.len() && a.len() == out.len() * cols);
    let rows = task_rows(cols);
    pool.pieces(out, rows, |index, piece| {
        let at = index * rows * cols;
        dots(piece, &a[at..], &b[at..], cols);
    });
}

multiversion! {
fn dots(out: &mut [f32], a: &[f32], b: &[f32], cols: usize) {
    for (row, out) in out.iter_mut().enumerate() {
        let (a, b) = (&a[row * cols..][..cols], &b[row * cols..][..cols]);
        *out = lane_sum([a, b], |[a, b]| a * b);
    }
}
}

/// The sum of squares, in f64 over pieces of fixed size: the same for any number of threads.
pub fn sum_of_squares(pool: &Pool, x: &[f32]) -> f64 {
    let mut sums = vec![0.0f64; x.len().div_ceil(TASK_VALUES)];
    pool.pieces(&mut sums, 1, |index, sum| {
        let piece = &x[index * TASK_VALUES..x.len().min((index + 1) * TASK_VALUES)];
        sum[0] = f64::from(squares(piece));
    });
    sums.iter().sum()
}

multiversion! {
fn squares(x: &[f32]) -> f32 {
    lane_sum([x], |[x]| x * x)
}
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn wave(len: usize, phase: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.7 + phase).sin() * 2.0).collect()
    }

    /// The derivative of `f` at `x`, along every coordinate, by central differences in f64 steps.
    pub(super) fn numeric(x: &[f32], f: impl Fn(&[f32]) -> f64) -> Vec<f32> {
        let h = 1e-2;
        (0..x.len())
            .map(|i| {
                let mut moved = x.to_vec();
                moved[i] = x[i] + h;
                let up = f(&moved);
                moved[i] = x[i] - h;
                ((up - f(&moved)) / f64::from(2.0 * h)) as f32
            })
            .collect()
    }

    pub(super) fn close(a: &[f32], b: &[f32], tolerance: f32) {
        assert_eq!(a.len(), b.len());
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{i}: {a} against {b}");
        }
    }

    pub(super) fn weighted(out: &[f32], dy: &[f32]) -> f64 {
        out.iter().zip(dy).map(|(o, d)| f64::from(*o) * f64::from(*d)).sum()
    }

    #[test]
    fn exp_is_exact_to_a_few_units() {
        for i in -8000..8000 {
            let x = i as f32 * 0.01;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 4e-7, "{x}");
        }
        assert!(exp(-1000.0) < 1e-37 && exp(1000.0).is_finite());
    }

    #[test]
    fn swiglu_gradient_is_the_numeric_one() {
        let pool = Pool::new(2);
        let (x, dy) = (wave(3 * 14, 0.3), wave(3 * 7, 1.0));
        let mut d = x.clone();
        swiglu_backward(&pool, &mut d, &dy, 7);
        let expected = numeric(&x, |x| {
            let mut out = vec![0.0; dy.len()];
            swiglu(&pool, &mut out, x, 7);
            weighted(&out, &dy)
        });
        close(&d, &expected, 2e-3);
    }

    #[test]
    fn rotation_backward_undoes_forward() {
        let pool = Pool::new(1);
        // Three heads of 8, of which the first 6 are rotated.
        let rotary = Rotary::new(&[1.0, 0.1, 0.01], 1.0, 8, 50);
        let x = wave(2 * 30, 0.0);
        let mut y = x.clone();
        rotary.rotate(&pool, &mut y, 30, 3, &[7, 49], Rotation::Forward);
        assert_eq!(y[24..30], x[24..30], "values beyond the heads stay");
        assert_eq!(y[6..8], x[6..8], "values beyond the rotated part stay");
        assert!(y[..6] != x[..6] && y[16..22] != x[16..22]);
        rotary.rotate(&pool, &mut y, 30, 3, &[7, 49], Rotation::Backward);
        close(&y, &x, 1e-6);
    }

    #[test]
    fn a_magnitude_multiplies_what_is_rotated_and_its_gradient() {
        let pool = Pool::new(1);
        let rotary = Rotary::new(&[1.0, 0.1], 1.5, 4, 9);
        let (x, dy) = (wave(4, 0.0), wave(4, 1.0));
        let mut dx = dy.clone();
        rotary.rotate(&pool, &mut dx, 4, 1, &[8], Rotation::Backward);
        let expected = numeric(&x, |x| {
            let mut y = x.to_vec();
            rotary.rotate(&pool, &mut y, 4, 1, &[8], Rotation::Forward);
            weighted(&y, &dy)
        });
        close(&dx, &expected, 2e-3);
    }
}
