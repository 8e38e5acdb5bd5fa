//! Operations on columns of a matrix: biases, factors, and their sums.

use std::ops::Range;

use super::task_rows;
use crate::cpu::multiversion;
use crate::{Output, Pool};

/// Rows that are summed together.
const SUMMED_ROWS: usize = 64;

/// Adds `bias` to every row.
///
/// **Shapes**: x `[tokens, cols]`; bias `[cols]`.
pub fn add_bias(pool: &Pool, x: &mut [f32], bias: &[f32]) {
    let cols = bias.len();
    assert!(x.len().is_multiple_of(cols), "{} values by {cols}", x.len());
    pool.pieces(x, task_rows(cols) * cols, |_, piece| {
        for row in piece.chunks_exact_mut(cols) {
            add_rows(row, bias);
        }
    });
}

multiversion! {
fn add_rows(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}
}

/// Sets or adds to `sums` the sum of all rows: the gradient of a bias.
///
/// **Shapes**: sums `[cols]`; x `[tokens, cols]`.
pub fn column_sums(pool: &Pool, sums: &mut [f32], x: &[f32], mode: Output) {
    let cols = sums.len();
    assert!(x.len().is_multiple_of(cols), "{} values by {cols}", x.len());
    // Blocks of fixed size: the same sums for any number of threads.
    let size = SUMMED_ROWS * cols;
    let mut parts = pool.zeros(x.len().div_ceil(size) * cols);
    pool.pieces(&mut parts, cols, |index, part| {
        for row in x[index * size..x.len().min((index + 1) * size)].chunks_exact(cols) {
            add_rows(part, row);
        }
    });
    if mode == Output::Replace {
        sums.fill(0.0);
    }
    for part in parts.chunks_exact(cols) {
        add_rows(sums, part);
    }
}

/// Multiplies some columns of every row.
///
/// **Shapes**: x `[tokens, stride]`.
pub fn scale_columns(
    pool: &Pool,
    x: &mut [f32],
    stride: usize,
    columns: Range<usize>,
    factor: f32,
) {
    assert!(x.len().is_multiple_of(stride) && columns.end <= stride);
    pool.pieces(x, task_rows(stride) * stride, |_, piece| {
        for row in piece.chunks_exact_mut(stride) {
            row[columns.clone()].iter_mut().for_each(|value| *value *= factor);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_added_and_its_gradient_summed() {
        let pool = Pool::new(2);
        // More rows than one block.
        let mut x = vec![1.0; 130 * 3];
        add_bias(&pool, &mut x, &[0.0, 1.0, 2.0]);
        assert_eq!(x[..3], [1.0, 2.0, 3.0]);
        let mut sums = vec![7.0; 3];
        column_sums(&pool, &mut sums, &x, Output::Replace);
        assert_eq!(sums, [130.0, 260.0, 390.0]);
        column_sums(&pool, &mut sums, &x, Output::Add);
        assert_eq!(sums, [260.0, 520.0, 780.0]);
    }

    #[test]
    fn only_the_named_columns_are_multiplied() {
        let mut x = vec![2.0; 2 * 4];
        scale_columns(&Pool::new(1), &mut x, 4, 1..3, 0.5);
        assert_eq!(x, [2.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0]);
    }
}
