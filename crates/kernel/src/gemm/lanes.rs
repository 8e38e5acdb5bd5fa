//! The left operand of a product, as lanes: one f32 each, or a pair of bf16 that are neighbours
//! along the reduction, as `vdpbf16ps` takes them.

use std::ops::Range;

use crate::Precision;
use crate::buffer::{Buffer, as_floats, as_lanes};
use crate::pool::Pool;

/// Rows that a task converts.
const CONVERTED: usize = 16;

/// Lanes along a reduction of length `k`.
pub(crate) fn steps(precision: Precision, k: usize) -> usize {
    match precision {
        Precision::F32 => k,
        Precision::Bf16 => k.div_ceil(2),
    }
}

/// A view of a left operand, `[rows, steps]`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) lanes: &'a [u32],
    pub(crate) steps: usize,
    /// Where given, row `r` is the operand's row `map[r]`.
    pub(crate) map: Option<&'a [u32]>,
}

impl<'a> Rows<'a> {
    /// The lanes of `row` from step `from` on, the first of `steps`.
    ///
    /// # Panics
    /// If there is no such row or are no such steps: the kernels read without further checks.
    #[inline(always)]
    pub(crate) fn start(self, row: usize, from: usize, steps: usize) -> &'a [u32] {
        let row = self.map.map_or(row, |map| map[row] as usize);
        assert!(from + steps <= self.steps, "steps {from}..{}", from + steps);
        &self.lanes[row * self.steps + from..][..steps]
    }
}

/// A matrix as lanes `[rows, steps]`, read as it is (`left · …`) or packed further.
pub struct Lanes<'a> {
    precision: Precision,
    values: Values<'a>,
    rows: usize,
    cols: usize,
}

enum Values<'a> {
    /// f32 as they are, or somebody else's lanes.
    Borrowed(&'a [f32]),
    Owned(Buffer<'a>),
}

impl<'a> Lanes<'a> {
    /// The lanes of `values`, which f32 needs no copy for.
    ///
    /// **Shapes**: values `[rows, cols]`.
    pub fn new(pool: &'a Pool, precision: Precision, values: &'a [f32], cols: usize) -> Self {
        let rows = values.len() / cols;
        assert_eq!(values.len(), rows * cols, "lanes of rows of {cols}");
        if precision == Precision::F32 {
            return Lanes { precision, values: Values::Borrowed(values), rows, cols };
        }
        let mut lanes = Lanes::unset(pool, precision, rows, cols);
        lanes.fill(pool, values);
        lanes
    }

    /// Pairs of bf16.
    fn fill(&mut self, pool: &Pool, values: &[f32]) {
        let (steps, cols) = (self.steps(), self.cols);
        assert_eq!(values.len(), self.rows * cols, "lanes of rows of {cols}");
        pool.pieces(self.lanes_mut(), CONVERTED * steps, |index, piece| {
            for (row, out) in piece.chunks_exact_mut(steps).enumerate() {
                pair_row(&values[(index * CONVERTED + row) * cols..][..cols], out);
            }
        });
    }

    /// As [`Lanes::new`], of rows that are needed no more.
    pub fn owned(pool: &'a Pool, precision: Precision, rows: Buffer<'a>, cols: usize) -> Self {
        if precision == Precision::F32 {
            let count = rows.len() / cols;
            assert_eq!(rows.len(), count * cols, "lanes of rows of {cols}");
            return Lanes { precision, values: Values::Owned(rows), rows: count, cols };
        }
        let mut lanes = Lanes::unset(pool, precision, rows.len() / cols, cols);
        lanes.fill(pool, &rows);
        lanes
    }

    /// As [`Lanes::new`], a copy made on the caller's thread.
    pub(crate) fn local(pool: &'a Pool, precision: Precision, values: &[f32], cols: usize) -> Self {
        let mut lanes = Lanes::unset(pool, precision, values.len() / cols, cols);
        for (row, values) in values.chunks_exact(cols).enumerate() {
            lanes.set_row(row, values);
        }
        lanes
    }

    /// Writes one row.
    pub(crate) fn set_row(&mut self, row: usize, values: &[f32]) {
        let (precision, steps) = (self.precision, self.steps());
        lanes_of_row(precision, values, &mut self.lanes_mut()[row * steps..][..steps]);
    }

    /// Some of the rows.
    pub fn part(&self, rows: Range<usize>) -> Lanes<'_> {
        let steps = self.steps();
        let lanes = &self.lanes()[rows.start * steps..rows.end * steps];
        let values = Values::Borrowed(as_floats(lanes));
        Lanes { precision: self.precision, values, rows: rows.len(), cols: self.cols }
    }

    /// Memory for lanes that somebody else fills.
    pub fn unset(pool: &'a Pool, precision: Precision, rows: usize, cols: usize) -> Self {
        let buffer = pool.buffer(rows * steps(precision, cols));
        Lanes { precision, values: Values::Owned(buffer), rows, cols }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    pub(crate) fn steps(&self) -> usize {
        steps(self.precision, self.cols)
    }

    pub(crate) fn lanes(&self) -> &[u32] {
        match &self.values {
            Values::Borrowed(values) => as_lanes(values),
            Values::Owned(buffer) => buffer.lanes(),
        }
    }

    /// # Panics
    /// If the lanes are borrowed.
    pub(crate) fn lanes_mut(&mut self) -> &mut [u32] {
        match &mut self.values {
            Values::Borrowed(_) => panic!("borrowed lanes are not written to"),
            Values::Owned(buffer) => buffer.lanes_mut(),
        }
    }

    pub(crate) fn view<'b>(&'b self, map: Option<&'b [u32]>) -> Rows<'b> {
        Rows { lanes: self.lanes(), steps: self.steps(), map }
    }
}

/// Rounds to bf16, to nearest even.
#[inline(always)]
pub(crate) fn bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    (bits + 0x7fff + (bits >> 16 & 1)) >> 16
}

/// One row of f32 as lanes.
pub(crate) fn lanes_of_row(precision: Precision, values: &[f32], out: &mut [u32]) {
    match precision {
        Precision::Bf16 => pair_row(values, out),
        Precision::F32 => out.copy_from_slice(as_lanes(values)),
    }
}

/// One row of f32 as pairs of bf16.
pub(crate) fn pair_row(values: &[f32], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if Precision::best() == Precision::Bf16 {
        // SAFETY: the CPU has AVX512_BF16.
        return unsafe { x86::pair_row(values, out) };
    }
    pair_rest(values, out);
}

#[inline(always)]
fn pair_rest(values: &[f32], out: &mut [u32]) {
    assert_eq!(out.len(), values.len().div_ceil(2));
    let (pairs, rest) = values.as_chunks::<2>();
    for (pair, lane) in pairs.iter().zip(out.iter_mut()) {
        *lane = bf16(pair[0]) | bf16(pair[1]) << 16;
    }
    if let [last] = rest {
        out[pairs.len()] = bf16(*last);
    }
}

/// The bf16 values of lanes, in their order. x86 and little-endian ARM store the first one first.
pub(crate) fn halves(lanes: &[u32]) -> &[u16] {
    const { assert!(cfg!(target_endian = "little")) };
    // SAFETY: a u32 is two u16 without padding, whose alignment is lower.
    unsafe { std::slice::from_raw_parts(lanes.as_ptr().cast(), 2 * lanes.len()) }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU must have AVX512_BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn pair_row(values: &[f32], out: &mut [u32]) {
        // SAFETY: the features are this function's.
        unsafe { pair_row_inline(values, out) }
    }

    /// Whole registers first, then the rest.
    ///
    /// # Safety
    /// The CPU must have AVX512_BF16, and the caller must be compiled for it.
    #[inline(always)]
    pub(crate) unsafe fn pair_row_inline(values: &[f32], out: &mut [u32]) {
        let (whole, rest) = values.as_chunks::<32>();
        let (lanes, rest_lanes) = out.split_at_mut(16 * whole.len());
        for (values, lanes) in whole.iter().zip(lanes.as_chunks_mut::<16>().0) {
            // SAFETY: 32 values and 16 lanes, as their types say.
            unsafe {
                let from = values.as_ptr();
                let (first, second) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
                let pairs = _mm512_cvtne2ps_pbh(second, first);
                let pairs = std::mem::transmute::<__m512bh, __m512i>(pairs);
                _mm512_storeu_si512(lanes.as_mut_ptr().cast(), pairs);
            }
        }
        super::pair_rest(rest, rest_lanes);
    }
}
