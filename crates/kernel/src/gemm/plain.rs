//! Products on CPUs without AVX-512, by the `gemm` crate.

use super::{Left, Output};
use crate::pool::Pool;

/// A right operand as it is, in f32.
#[derive(Default)]
pub(crate) struct Plain {
    values: Vec<f32>,
    k_stride: usize,
    n_stride: usize,
}

impl Plain {
    pub(crate) fn fill(&mut self, values: &[f32], k_stride: usize, n_stride: usize) {
        self.values.clear();
        self.values.extend_from_slice(values);
        (self.k_stride, self.n_stride) = (k_stride, n_stride);
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
    }
}

/// `out = left · right` or `out += left · right` with the first `n` columns and the first `k` of the
/// reduction of `right`.
///
/// # Panics
/// If a length does not fit.
pub(crate) fn plain_matmul(
    pool: &Pool,
    out: &mut [f32],
    left: Left,
    right: &Plain,
    n: usize,
    k: usize,
    mode: Output,
) {
    let m = out.len() / n;
    let last = (k - 1) * right.k_stride + (n - 1) * right.n_stride;
    assert!(out.len() == m * n && last < right.values.len());
    let (values, row_stride, step_stride) = match left {
        Left::Rows(values) => (values, k, 1),
        Left::Transposed(values) => (values, 1, m),
        Left::Lanes(lanes) => (lanes.floats(), k, 1),
    };
    assert_eq!(values.len(), m * k, "left operand for [{m}, {k}]");
    let block = 64;
    pool.pieces(out, block * n, |index, piece| {
        let values = &values[index * block * row_stride..];
        // SAFETY: the strides describe slices whose lengths were checked above.
        unsafe {
            gemm::gemm(
                piece.len() / n,
                n,
                k,
                piece.as_mut_ptr(),
                1,
                n as isize,
                mode == Output::Add,
                values.as_ptr(),
                step_stride as isize,
                row_stride as isize,
                right.values.as_ptr(),
                right.n_stride as isize,
                right.k_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    });
}
