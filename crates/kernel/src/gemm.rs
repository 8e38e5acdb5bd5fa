//! Matrix products with a packed right operand.
//!
//! Both precisions run through the same panels of 32-bit lanes: a lane holds one f32, or a pair of
//! bf16 that are neighbours along the reduction, as `vdpbf16ps` takes them. A panel is 64 columns
//! wide, `[steps, 64]`, a step being one lane of the reduction.

use crate::Precision;
use crate::cpu::{Level, level};
use crate::pool::{Pool, SendPtr};

/// Columns of a panel: four 512-bit registers of 32-bit lanes.
pub(crate) const PANEL: usize = 64;
/// Rows that a task covers at most, so that its part of the left operand stays in the L2 cache.
const ROW_BLOCK: usize = 192;
/// Steps of the reduction between two visits of the output: one panel's part is 64 KiB.
const STEP_BLOCK: usize = 256;
/// Panels of a task.
const PANEL_GROUP: usize = 4;

/// The right operand of a product, laid out once for many uses.
///
/// **Shapes**: logically `[k, n]`, the reduction running over `k`.
pub struct Packed {
    n: usize,
    k: usize,
    precision: Precision,
    storage: Storage,
}

enum Storage {
    Panels(Vec<u32>),
    /// Without AVX-512 the `gemm` crate takes the values as they are: strides of k and n.
    Plain {
        values: Vec<f32>,
        k_stride: isize,
        n_stride: isize,
    },
}

/// The left operand, `[m, k]`.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// Stored `[m, k]`.
    Rows(&'a [f32]),
    /// Stored `[k, m]`, to be read transposed.
    Transposed(&'a [f32]),
}

/// What happens to the values that the output holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    Replace,
    Add,
}

impl Packed {
    /// Packs `values`, stored `[n, k]` (a layer's weight, one row for each output): the product is
    /// `left · valuesᵀ`.
    pub fn rows(pool: &Pool, precision: Precision, values: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(values.len(), n * k, "packing [{n}, {k}]");
        if level() < Level::Avx512 {
            return Packed::plain(values, n, k, 1, k as isize);
        }
        let steps = steps(precision, k);
        let mut panels = vec![0; n.div_ceil(PANEL) * steps * PANEL];
        pool.pieces(&mut panels, steps * PANEL, |index, panel| {
            let first = index * PANEL;
            let rows = PANEL.min(n - first);
            pack_rows(precision, &values[first * k..(first + rows) * k], k, panel);
        });
        Packed { n, k, precision, storage: Storage::Panels(panels) }
    }

    /// Packs `values`, stored `[k, n]`: the product is `left · values`.
    pub fn columns(pool: &Pool, precision: Precision, values: &[f32], k: usize, n: usize) -> Self {
        assert_eq!(values.len(), n * k, "packing [{k}, {n}]");
        if level() < Level::Avx512 {
            return Packed::plain(values, n, k, n as isize, 1);
        }
        let steps = steps(precision, k);
        let mut panels = vec![0; n.div_ceil(PANEL) * steps * PANEL];
        pool.pieces(&mut panels, steps * PANEL, |index, panel| {
            pack_columns(precision, values, n, index * PANEL, panel);
        });
        Packed { n, k, precision, storage: Storage::Panels(panels) }
    }

    fn plain(values: &[f32], n: usize, k: usize, k_stride: isize, n_stride: isize) -> Self {
        let storage = Storage::Plain { values: values.to_vec(), k_stride, n_stride };
        Packed { n, k, precision: Precision::F32, storage }
    }

    /// Columns of the product.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Length of the reduction.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::Panels(panels) => panels.len() * 4,
            Storage::Plain { values, .. } => values.len() * 4,
        }
    }
}

/// `out = left · right`, or `out += left · right`.
///
/// Each output is summed in the same order whatever `m` is, so a row's result does not depend on
/// the rows beside it.
///
/// **Shapes**: left `[m, k]`, right `[k, n]`, out `[m, n]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn matmul(pool: &Pool, out: &mut [f32], left: Left, right: &Packed, mode: Output) {
    let (n, k) = (right.n, right.k);
    assert!(n > 0 && k > 0 && out.len().is_multiple_of(n), "output of {} for n = {n}", out.len());
    let m = out.len() / n;
    let (Left::Rows(values) | Left::Transposed(values)) = left;
    assert_eq!(values.len(), m * k, "left operand for [{m}, {k}]");
    match &right.storage {
        Storage::Panels(panels) => {
            let lanes = lanes(pool, right.precision, left, m, k);
            panel_matmul(pool, out, m, lanes.as_slice(), panels, right, mode);
        }
        Storage::Plain { values: b, k_stride, n_stride } => {
            plain_matmul(pool, out, m, left, b, *k_stride, *n_stride, right, mode);
        }
    }
}

/// `matmul` on the caller's thread, with part of an f32 right operand: its first `n` columns and the
/// first `k` of its reduction.
///
/// **Shapes**: left `[m, k]`, out `[m, n]`.
pub(crate) fn matmul_part(
    out: &mut [f32],
    left: &[f32],
    right: &Packed,
    n: usize,
    k: usize,
    mode: Output,
) {
    assert!(n <= right.n && k <= right.k && out.len().is_multiple_of(n));
    let m = out.len() / n;
    assert_eq!(left.len(), m * k, "left operand for [{m}, {k}]");
    match &right.storage {
        Storage::Panels(panels) => {
            assert_eq!(right.precision, Precision::F32, "only whole lanes can be cut");
            for column in (0..n).step_by(PANEL) {
                let strip = Strip {
                    precision: Precision::F32,
                    left: as_lanes(left),
                    left_stride: k,
                    panel: &panels[column / PANEL * right.k * PANEL..][..k * PANEL],
                    out: out[column..].as_mut_ptr(),
                    out_stride: n,
                    rows: m,
                    cols: PANEL.min(n - column),
                    add: mode == Output::Add,
                };
                // SAFETY: `out` is borrowed exclusively, has m rows of n columns, and panels exist
                // on AVX-512 CPUs only.
                unsafe { strip.run() };
            }
        }
        Storage::Plain { values, k_stride, n_stride } => {
            let part =
                Packed { n, k, precision: Precision::F32, storage: Storage::Panels(Vec::new()) };
            let rows = Left::Rows(left);
            plain_matmul(&Pool::new(1), out, m, rows, values, *k_stride, *n_stride, &part, mode);
        }
    }
}

/// Lanes along a reduction of length `k`.
pub(crate) fn steps(precision: Precision, k: usize) -> usize {
    match precision {
        Precision::F32 => k,
        Precision::Bf16 => k.div_ceil(2),
    }
}

enum Lanes<'a> {
    Borrowed(&'a [u32]),
    Owned(Vec<u32>),
}

impl Lanes<'_> {
    fn as_slice(&self) -> &[u32] {
        match self {
            Lanes::Borrowed(lanes) => lanes,
            Lanes::Owned(lanes) => lanes,
        }
    }
}

/// The left operand as lanes `[m, steps]`.
fn lanes<'a>(pool: &Pool, precision: Precision, left: Left<'a>, m: usize, k: usize) -> Lanes<'a> {
    if let (Precision::F32, Left::Rows(values)) = (precision, left) {
        return Lanes::Borrowed(as_lanes(values));
    }
    let steps = steps(precision, k);
    let mut lanes = vec![0; m * steps];
    let block = 16;
    pool.pieces(&mut lanes, block * steps, |index, piece| {
        let first = index * block;
        match left {
            Left::Rows(values) => {
                for (row, out) in piece.chunks_exact_mut(steps).enumerate() {
                    pair_row(&values[(first + row) * k..][..k], out);
                }
            }
            Left::Transposed(values) => transpose_lanes(precision, values, m, k, first, piece),
        }
    });
    Lanes::Owned(lanes)
}

/// f32 and u32 have the same size and alignment, and every bit pattern is valid for both.
pub(crate) fn as_lanes(values: &[f32]) -> &[u32] {
    // SAFETY: as said above; the lifetime and the length stay.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// Rounds to bf16, to nearest even.
#[inline(always)]
fn bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    (bits + 0x7fff + (bits >> 16 & 1)) >> 16
}

#[inline(always)]
fn lane(precision: Precision, first: f32, second: f32) -> u32 {
    match precision {
        Precision::F32 => first.to_bits(),
        Precision::Bf16 => bf16(first) | bf16(second) << 16,
    }
}

crate::cpu::multiversion! {
fn pair_row(values: &[f32], out: &mut [u32]) {
    let (pairs, rest) = values.as_chunks::<2>();
    for (pair, lane) in pairs.iter().zip(out.iter_mut()) {
        *lane = bf16(pair[0]) | bf16(pair[1]) << 16;
    }
    if let [last] = rest {
        out[pairs.len()] = bf16(*last);
    }
}
}

crate::cpu::multiversion! {
/// Rows `first..` of the transpose of `values` (stored `[k, m]`) as lanes.
fn transpose_lanes(precision: Precision, values: &[f32], m: usize, k: usize, first: usize, out: &mut [u32]) {
    let steps = steps(precision, k);
    let rows = out.len() / steps;
    let width = if precision == Precision::Bf16 { 2 } else { 1 };
    for step in 0..steps {
        let source = &values[step * width * m..];
        let next = if width == 2 && step * 2 + 1 < k { m } else { usize::MAX };
        for row in 0..rows {
            let second = if next == usize::MAX { 0.0 } else { source[next + first + row] };
            out[row * steps + step] = lane(precision, source[first + row], second);
        }
    }
}
}

crate::cpu::multiversion! {
/// Packs up to 64 rows of length `k` into one panel `[steps, 64]`.
fn pack_rows(precision: Precision, values: &[f32], k: usize, panel: &mut [u32]) {
    let rows = values.len() / k;
    let width = if precision == Precision::Bf16 { 2 } else { 1 };
    // Sixteen rows at a time: their cache lines stay while the steps are walked.
    for group in (0..rows).step_by(16) {
        let end = rows.min(group + 16);
        for (step, out) in panel.chunks_exact_mut(PANEL).enumerate() {
            let at = step * width;
            for row in group..end {
                let source = &values[row * k..(row + 1) * k];
                let second = if width == 2 && at + 1 < k { source[at + 1] } else { 0.0 };
                out[row] = lane(precision, source[at], second);
            }
        }
    }
}
}

crate::cpu::multiversion! {
/// Packs 64 columns (fewer at the edge) of `values` `[k, n]`, from column `first` on.
fn pack_columns(precision: Precision, values: &[f32], n: usize, first: usize, panel: &mut [u32]) {
    let cols = PANEL.min(n - first);
    let k = values.len() / n;
    for (step, out) in panel.chunks_exact_mut(PANEL).enumerate() {
        match precision {
            Precision::F32 => {
                let row = &values[step * n + first..][..cols];
                for col in 0..cols {
                    out[col] = row[col].to_bits();
                }
            }
            Precision::Bf16 => {
                let row = &values[2 * step * n + first..][..cols];
                if 2 * step + 1 < k {
                    let next = &values[(2 * step + 1) * n + first..][..cols];
                    for col in 0..cols {
                        out[col] = bf16(row[col]) | bf16(next[col]) << 16;
                    }
                } else {
                    for col in 0..cols {
                        out[col] = bf16(row[col]);
                    }
                }
            }
        }
    }
}
}

fn panel_matmul(
    pool: &Pool,
    out: &mut [f32],
    m: usize,
    left: &[u32],
    panels: &[u32],
    right: &Packed,
    mode: Output,
) {
    let n = right.n;
    let steps = steps(right.precision, right.k);
    let row_blocks = m.div_ceil(ROW_BLOCK);
    let groups = n.div_ceil(PANEL * PANEL_GROUP);
    let base = SendPtr(out.as_mut_ptr());
    pool.run(row_blocks * groups, &|task| {
        // Row blocks of one panel group follow each other: the group is then in a shared cache.
        let (group, block) = (task / row_blocks, task % row_blocks);
        let rows = block * ROW_BLOCK..m.min((block + 1) * ROW_BLOCK);
        let columns = group * PANEL_GROUP * PANEL..n.min((group + 1) * PANEL_GROUP * PANEL);
        for from in (0..steps).step_by(STEP_BLOCK) {
            let to = steps.min(from + STEP_BLOCK);
            let add = mode == Output::Add || from > 0;
            for column in columns.clone().step_by(PANEL) {
                let panel =
                    &panels[(column / PANEL * steps + from) * PANEL..][..(to - from) * PANEL];
                let strip = Strip {
                    precision: right.precision,
                    left: &left[rows.start * steps + from..],
                    left_stride: steps,
                    panel,
                    // SAFETY: the offset lies within `out`.
                    out: unsafe { base.get().add(rows.start * n + column) },
                    out_stride: n,
                    rows: rows.len(),
                    cols: PANEL.min(n - column),
                    add,
                };
                // SAFETY: the rows and columns of different tasks do not overlap, both operands
                // have the lengths that the loops above derive from them, and panels exist on
                // AVX-512 CPUs only.
                unsafe { strip.run() };
            }
        }
    });
}

/// A block of rows times one panel.
pub(crate) struct Strip<'a> {
    pub(crate) precision: Precision,
    /// `[rows, left_stride]`; as many lanes of each row count as the panel has steps.
    pub(crate) left: &'a [u32],
    pub(crate) left_stride: usize,
    /// `[steps, 64]`.
    pub(crate) panel: &'a [u32],
    /// `[rows, out_stride]`, of which `cols` (at most 64) are written.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) add: bool,
}

impl Strip<'_> {
    /// Runs the product.
    ///
    /// # Safety
    /// `out` must be valid for writes at the rows and columns named, with no other access; the
    /// CPU must have AVX-512, and AVX512_BF16 if the precision is bf16.
    pub(crate) unsafe fn run(&self) {
        let steps = self.panel.len() / PANEL;
        assert!(self.rows == 0 || self.left.len() >= (self.rows - 1) * self.left_stride + steps);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as this function requires; the lengths were just checked.
        unsafe {
            match self.precision {
                Precision::F32 => x86::strip_f32(self, steps),
                Precision::Bf16 => x86::strip_bf16(self, steps),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("panels exist on AVX-512 CPUs only");
    }
}

#[allow(clippy::too_many_arguments)]
fn plain_matmul(
    pool: &Pool,
    out: &mut [f32],
    m: usize,
    left: Left,
    right_values: &[f32],
    k_stride: isize,
    n_stride: isize,
    right: &Packed,
    mode: Output,
) {
    let (n, k) = (right.n, right.k);
    let block = 64;
    pool.pieces(out, block * n, |index, piece| {
        let first = index * block;
        let (values, row_stride, step_stride) = match left {
            Left::Rows(values) => (&values[first * k..], k as isize, 1),
            Left::Transposed(values) => (&values[first..], 1, m as isize),
        };
        // SAFETY: the strides describe slices whose lengths `matmul` and `Packed` have checked.
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
                step_stride,
                row_stride,
                right_values.as_ptr(),
                n_stride,
                k_stride,
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{PANEL, Strip};

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn strip_f32(strip: &Strip, steps: usize) {
        // SAFETY: passed on from the caller.
        unsafe { walk::<false>(strip, steps) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn strip_bf16(strip: &Strip, steps: usize) {
        // SAFETY: passed on from the caller.
        unsafe { walk::<true>(strip, steps) }
    }

    /// Six rows at a time: 24 sums, 4 parts of the panel and a broadcast fill the 32 registers.
    #[inline(always)]
    unsafe fn walk<const BF16: bool>(strip: &Strip, steps: usize) {
        let mut row = 0;
        while row < strip.rows {
            // SAFETY: `Strip::run` has checked that the left operand holds these rows.
            unsafe {
                match strip.rows - row {
                    1 => tile::<BF16, 1>(strip, row, steps),
                    2 => tile::<BF16, 2>(strip, row, steps),
                    3 => tile::<BF16, 3>(strip, row, steps),
                    4 => tile::<BF16, 4>(strip, row, steps),
                    5 => tile::<BF16, 5>(strip, row, steps),
                    _ => tile::<BF16, 6>(strip, row, steps),
                }
            }
            row += 6;
        }
    }

    #[inline(always)]
    unsafe fn tile<const BF16: bool, const ROWS: usize>(strip: &Strip, row: usize, steps: usize) {
        // SAFETY: reads `ROWS` rows of `steps` lanes from `row` on and `steps` rows of the panel,
        // all within the slices; writes are masked to `cols`.
        unsafe {
            let left = strip.left.as_ptr().add(row * strip.left_stride);
            let mut sums = [[_mm512_setzero_ps(); 4]; ROWS];
            for step in 0..steps {
                let panel = strip.panel.as_ptr().add(step * PANEL);
                let b: [__m512i; 4] =
                    std::array::from_fn(|part| _mm512_loadu_si512(panel.add(part * 16).cast()));
                for r in 0..ROWS {
                    let a = _mm512_set1_epi32(*left.add(r * strip.left_stride + step) as i32);
                    for part in 0..4 {
                        sums[r][part] = fma::<BF16>(sums[r][part], a, b[part]);
                    }
                }
            }
            for r in 0..ROWS {
                let out = strip.out.add((row + r) * strip.out_stride);
                for part in 0..4 {
                    let cols = strip.cols.saturating_sub(part * 16).min(16);
                    let mask = ((1u32 << cols) - 1) as __mmask16;
                    let at = out.wrapping_add(part * 16);
                    let mut sum = sums[r][part];
                    if strip.add {
                        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, at));
                    }
                    _mm512_mask_storeu_ps(at, mask, sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn fma<const BF16: bool>(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: the callers carry the target features; the casts keep the bits.
        unsafe {
            if BF16 {
                _mm512_dpbf16_ps(
                    sum,
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                )
            } else {
                _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The oracle: `out = left · right` with both stored `[m, k]` and `[k, n]`, in f64.
    fn oracle(left: &[f32], right: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                let sum: f64 =
                    (0..k).map(|s| f64::from(left[i * k + s]) * f64::from(right[s * n + j])).sum();
                out[i * n + j] = sum as f32;
            }
        }
        out
    }

    fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..cols * rows).map(|i| values[i % rows * cols + i / rows]).collect()
    }

    /// Small integers, so that bf16 holds them and every sum is exact.
    fn integers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 + seed * 11) % 17) as f32 - 8.0).collect()
    }

    #[test]
    fn every_layout_gives_the_oracle_product() {
        let pool = Pool::new(2);
        for (m, k, n) in
            [(1, 1, 1), (1, 64, 65), (5, 3, 63), (7, 33, 130), (200, 515, 70), (13, 1030, 300)]
        {
            let (left, right) = (integers(m * k, 1), integers(k * n, 2));
            let expected = oracle(&left, &right, m, k, n);
            let left_t = transpose(&left, m, k);
            let right_t = transpose(&right, k, n);
            for precision in [Precision::F32, Precision::best()] {
                let by_rows = Packed::rows(&pool, precision, &right_t, n, k);
                let by_columns = Packed::columns(&pool, precision, &right, k, n);
                for packed in [&by_rows, &by_columns] {
                    for left in [Left::Rows(&left), Left::Transposed(&left_t)] {
                        let mut out = vec![1.0; m * n];
                        matmul(&pool, &mut out, left, packed, Output::Replace);
                        assert_eq!(out, expected, "{precision:?} [{m}, {k}, {n}]");
                        matmul(&pool, &mut out, left, packed, Output::Add);
                        assert!(out.iter().zip(&expected).all(|(a, b)| *a == 2.0 * b));
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours_or_the_threads() {
        let (m, k, n) = (23, 700, 130);
        let left: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
        let right: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.11).cos()).collect();
        let (one, three) = (Pool::new(1), Pool::new(3));
        let packed = Packed::columns(&one, Precision::best(), &right, k, n);
        let mut all = vec![0.0; m * n];
        matmul(&three, &mut all, Left::Rows(&left), &packed, Output::Replace);
        for row in 0..m {
            let mut alone = vec![0.0; n];
            matmul(&one, &mut alone, Left::Rows(&left[row * k..][..k]), &packed, Output::Replace);
            assert_eq!(alone, all[row * n..][..n], "row {row}");
        }
    }
}
