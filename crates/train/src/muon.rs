//! Muon: a matrix moves along its momentum with the singular values drawn towards 1.
//!
//! An expert is an associative memory whose keys are much alike (`K-402`, `K-409`). AdamW scales
//! each weight by itself and learns the keys' common direction first; Muon gives every direction
//! the same pace, and so tells them apart after far fewer examples (docs/measurements.md).
//!
//! **Source**: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the
//! scale of the step is that of arXiv 2502.16982.

use kernel::{Left, Output, Packed, Pool, Precision, matmul, ops};

/// How much of the last momentum remains.
const MOMENTUM: f32 = 0.95;
/// The quintic whose iteration draws singular values towards 1, and how often it is applied:
/// they end between 0.7 and 1.2.
const QUINTIC: (f32, f32, f32) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;

/// One matrix with what it takes to move it.
///
/// **Shapes**: all `[rows, columns]`.
pub(crate) struct Matrix<'a> {
    pub(crate) rows: usize,
    pub(crate) weights: &'a mut [f32],
    pub(crate) gradient: &'a [f32],
    pub(crate) momentum: &'a mut [f32],
}

impl<'a> Matrix<'a> {
    /// Matrices of `rows` rows that stand one above the other and move each by itself.
    pub(crate) fn stacked(
        rows: usize,
        count: usize,
        [weights, momentum]: [&'a mut [f32]; 2],
        gradient: &'a [f32],
    ) -> impl Iterator<Item = Self> {
        let size = weights.len() / count;
        let each = weights.chunks_exact_mut(size).zip(gradient.chunks_exact(size));
        let each = each.zip(momentum.chunks_exact_mut(size));
        each.map(move |((weights, gradient), momentum)| Matrix {
            rows,
            weights,
            gradient,
            momentum,
        })
    }
}

/// One step of every matrix, each on one thread: expert matrices are too small to share.
pub(crate) fn update(pool: &Pool, matrices: &mut [Matrix], learning_rate: f32, weight_decay: f32) {
    pool.pieces(matrices, 1, |_, matrix| {
        let [matrix] = matrix else { unreachable!("pieces hold one matrix") };
        matrix.update(learning_rate, weight_decay);
    });
}

impl Matrix<'_> {
    fn update(&mut self, learning_rate: f32, weight_decay: f32) {
        let columns = self.weights.len() / self.rows;
        let direction = self.momentum.iter_mut().zip(self.gradient).map(|(momentum, gradient)| {
            *momentum = MOMENTUM * *momentum + gradient;
            // Nesterov's: as if the next momentum were known.
            MOMENTUM * *momentum + gradient
        });
        let direction = orthogonalise(direction.collect(), self.rows, columns);
        // The update's root mean square is 0.2 of the rate, about that of AdamW.
        let scale = 0.2 * learning_rate * (self.rows.max(columns) as f32).sqrt();
        let keep = 1.0 - learning_rate * weight_decay;
        for (weight, direction) in self.weights.iter_mut().zip(&direction) {
            *weight = keep * *weight - scale * direction;
        }
    }
}

/// `x` with its singular values drawn towards 1; zero stays zero.
///
/// **Shapes**: x and the result `[rows, columns]`.
fn orthogonalise(mut x: Vec<f32>, rows: usize, columns: usize) -> Vec<f32> {
    let pool = &Pool::new(1);
    let precision = Precision::best();
    let norm = ops::sum_of_squares(pool, &x).sqrt() as f32;
    x.iter_mut().for_each(|value| *value /= norm.max(f32::MIN_POSITIVE));
    let (a, b, c) = QUINTIC;
    // The Gram matrix of the shorter side; with it, X ← X·(a + b·G + c·G²).
    let small = rows.min(columns);
    let (mut gram, mut factor) = (vec![0.0; small * small], vec![0.0; small * small]);
    let mut next = vec![0.0; x.len()];
    let tall = rows > columns;
    for _ in 0..ITERATIONS {
        let by_columns = || Packed::columns(pool, precision, &x, rows, columns);
        let by_rows = || Packed::rows(pool, precision, &x, rows, columns);
        let square = |values: &[f32]| Packed::rows(pool, precision, values, small, small);
        match tall {
            true => matmul(pool, &mut gram, Left::Transposed(&x), &by_columns(), Output::Replace),
            false => matmul(pool, &mut gram, Left::Rows(&x), &by_rows(), Output::Replace),
        }
        matmul(pool, &mut factor, Left::Rows(&gram), &square(&gram), Output::Replace);
        for (index, (factor, gram)) in factor.iter_mut().zip(&gram).enumerate() {
            let diagonal = if index % (small + 1) == 0 { a } else { 0.0 };
            *factor = diagonal + b * gram + c * *factor;
        }
        match tall {
            true => matmul(pool, &mut next, Left::Rows(&x), &square(&factor), Output::Replace),
            false => matmul(pool, &mut next, Left::Rows(&factor), &by_columns(), Output::Replace),
        }
        std::mem::swap(&mut x, &mut next);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `XᵀX` or `XXᵀ`, whichever is smaller, in f64.
    fn gram(x: &[f32], rows: usize, columns: usize) -> Vec<f64> {
        let small = rows.min(columns);
        let at = |i: usize, k: usize| match rows > columns {
            true => f64::from(x[k * columns + i]),
            false => f64::from(x[i * columns + k]),
        };
        let product = |i, j| (0..rows.max(columns)).map(|k| at(i, k) * at(j, k)).sum();
        (0..small * small).map(|n| product(n / small, n % small)).collect()
    }

    #[test]
    fn singular_values_come_near_one() {
        for (rows, columns) in [(24, 40), (40, 24), (32, 32)] {
            let x: Vec<f32> = (0..rows * columns)
                .map(|i| ((i * i) as f32 * 0.37).sin() + 0.3 * (i as f32 * 0.11).cos())
                .collect();
            let gram = gram(&orthogonalise(x, rows, columns), rows, columns);
            let small = rows.min(columns);
            // The mean square of the singular values, and the worst deviation on the diagonal.
            let trace: f64 = (0..small).map(|i| gram[i * (small + 1)]).sum();
            let mean = trace / small as f64;
            assert!((0.6..1.3).contains(&mean), "[{rows}, {columns}]: mean square {mean}");
            let square: f64 = gram.iter().map(|g| g * g).sum::<f64>() / small as f64;
            assert!(square < 1.6, "[{rows}, {columns}]: mean fourth power {square}");
        }
    }

    #[test]
    fn a_matrix_without_gradient_stays() {
        let pool = Pool::new(2);
        let (mut weights, mut momentum) = (vec![1.0, -2.0, 3.0, 0.5, 0.0, 1.0], vec![0.0; 6]);
        let before = weights.clone();
        let matrix =
            Matrix { rows: 2, weights: &mut weights, gradient: &[0.0; 6], momentum: &mut momentum };
        update(&pool, &mut [matrix], 0.1, 0.0);
        assert_eq!(weights, before);
    }
}
