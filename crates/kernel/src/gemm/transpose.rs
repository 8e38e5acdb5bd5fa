//! Matrices turned round, sixteen rows by sixteen lanes at a time: weights into panels, and a left
//! operand that is stored by columns into rows.

use super::lanes::{Lanes, bf16};
use super::panels::{PANEL, Part, interleave_lanes, per_step};
#[cfg(target_arch = "x86_64")]
use super::tile::Kernel;
use super::tile::LINES;
use crate::Precision;
use crate::buffer::{LINE, Line, flat, flat_mut};

/// The columns of a part of `source` as rows of lanes.
///
/// **Shapes**: out `[cols, steps]`.
pub(crate) fn transpose_lanes(source: &Lanes, part: Part, out: &mut [u32], stride: usize) {
    assert_eq!(out.len(), part.cols.len() * stride);
    let precision = source.precision();
    let mut tile = [Line([0; LINE]); LINE * LINES];
    for step in (0..stride).step_by(LINE) {
        let steps = LINE.min(stride - step);
        for first in part.cols.clone().step_by(PANEL) {
            let cols = first..part.cols.end.min(first + PANEL);
            let rows = part.rows.start + step * per_step(precision)..part.rows.end;
            let read = Part { rows, cols: cols.clone(), ..part.clone() };
            interleave_lanes(source, read, PANEL, flat_mut(&mut tile[..steps * LINES]));
            let column = first - part.cols.start;
            for line in 0..cols.len().div_ceil(LINE) {
                let rows = LINE.min(cols.len() - line * LINE);
                let out = &mut out[(column + line * LINE) * stride + step..];
                turn(&tile, line, out, stride, rows, steps);
            }
        }
    }
}

/// Line `line` of each step of a tile becomes a column of `out`.
fn turn(
    tile: &[Line; LINE * LINES],
    line: usize,
    out: &mut [u32],
    stride: usize,
    rows: usize,
    steps: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if (rows, steps) == (LINE, LINE) && crate::cpu::level() == crate::cpu::Level::Avx512 {
        // SAFETY: the CPU has AVX-512.
        return unsafe { x86::turn(tile, line, out, stride) };
    }
    for row in 0..rows {
        for step in 0..steps {
            out[row * stride + step] = flat(tile)[step * PANEL + line * LINE + row];
        }
    }
}

/// Packs up to sixteen rows of length `k` into line `line` of each step of a panel.
pub(crate) fn pack_rows(
    precision: Precision,
    values: &[f32],
    k: usize,
    panel: &mut [Line],
    line: usize,
) {
    #[cfg(target_arch = "x86_64")]
    match Kernel::best(precision) {
        // SAFETY: `Kernel::best` names these where the CPU has them only.
        Kernel::Avx512Bf16 => return unsafe { x86::pack_rows_bf16(values, k, panel, line) },
        // SAFETY: as above.
        Kernel::Avx512F32 => return unsafe { x86::pack_rows_f32(values, k, panel, line) },
        Kernel::Narrow | Kernel::Scalar(_) => {}
    }
    let per_step = per_step(precision);
    for (step, lines) in panel.chunks_exact_mut(LINES).enumerate() {
        let out = &mut lines[line].0;
        out.fill(0);
        for (row, lane) in values.chunks_exact(k).zip(out) {
            let at = step * per_step;
            *lane = match precision {
                Precision::F32 => row[at].to_bits(),
                Precision::Bf16 => bf16(row[at]) | row.get(at + 1).map_or(0, |&b| bf16(b) << 16),
            };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::LINES;
    use crate::buffer::{LINE, Line};

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn pack_rows_f32(values: &[f32], k: usize, panel: &mut [Line], line: usize) {
        // SAFETY: the features are there; see `pack`.
        unsafe { pack::<1>(values, k, panel, line, |row, at| load(row, at)) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn pack_rows_bf16(values: &[f32], k: usize, panel: &mut [Line], line: usize) {
        // SAFETY: the features are there; see `pack`.
        unsafe {
            pack::<2>(values, k, panel, line, |row, at| {
                let (first, second) = (load(row, at), load(row, at + LINE));
                let pairs =
                    _mm512_cvtne2ps_pbh(_mm512_castsi512_ps(second), _mm512_castsi512_ps(first));
                std::mem::transmute::<__m512bh, __m512i>(pairs)
            });
        }
    }

    /// Sixteen values from `at` on, zero beyond the row's end.
    #[inline(always)]
    unsafe fn load(row: &[f32], at: usize) -> __m512i {
        let left = row.len().saturating_sub(at).min(LINE);
        let mask = ((1u32 << left) - 1) as __mmask16;
        // SAFETY: the mask keeps the load within the row.
        unsafe { _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(at))) }
    }

    /// Sixteen steps of sixteen rows at a time, transposed in registers.
    ///
    /// # Safety
    /// The CPU must have the features of `lanes` and AVX-512 F.
    #[inline(always)]
    unsafe fn pack<const PER_STEP: usize>(
        values: &[f32],
        k: usize,
        panel: &mut [Line],
        line: usize,
        lanes: impl Fn(&[f32], usize) -> __m512i,
    ) {
        let rows = values.len() / k;
        let steps = panel.len() / LINES;
        for first in (0..steps).step_by(LINE) {
            // SAFETY: register operations, and a store to a whole line.
            unsafe {
                let mut block = [_mm512_setzero_si512(); LINE];
                for row in 0..rows.min(LINE) {
                    block[row] = lanes(&values[row * k..(row + 1) * k], first * PER_STEP);
                }
                let columns = transpose(block);
                for (step, column) in columns.into_iter().enumerate().take(steps - first) {
                    let out = &mut panel[(first + step) * LINES + line];
                    _mm512_store_si512(out.0.as_mut_ptr().cast(), column);
                }
            }
        }
    }

    /// As `transpose`, from rows of 64 lanes to rows that begin `stride` apart.
    ///
    /// # Safety
    /// The CPU must have AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn turn(
        tile: &[Line; 16 * LINES],
        line: usize,
        out: &mut [u32],
        stride: usize,
    ) {
        // SAFETY: whole lines are read; the slices say that there is room for what is written.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); LINE];
            for step in 0..LINE {
                rows[step] = _mm512_load_si512(tile[step * LINES + line].0.as_ptr().cast());
            }
            for (row, lanes) in transpose(rows).into_iter().enumerate() {
                let out = &mut out[row * stride..][..LINE];
                _mm512_storeu_si512(out.as_mut_ptr().cast(), lanes);
            }
        }
    }

    /// The transpose of a 16 × 16 matrix of 32-bit lanes: within pairs of rows, within fours, then
    /// the quarters of the registers.
    #[inline(always)]
    unsafe fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
        // SAFETY: register operations of AVX-512 F, which the callers have.
        unsafe {
            // Loops, not closures, which would be compiled without the instruction set.
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
            }
            // Column 4·quarter + c of rows 4j..4j+4 stands in quarter `quarter` of u[4j + c].
            let mut u = t;
            for low in [0, 4, 8, 12] {
                for half in 0..2 {
                    let (a, b) = (t[low + half], t[low + half + 2]);
                    u[low + 2 * half] = _mm512_unpacklo_epi64(a, b);
                    u[low + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
                }
            }
            let mut out = r;
            for c in 0..4 {
                let low = _mm512_shuffle_i32x4::<0x44>(u[c], u[4 + c]);
                let high = _mm512_shuffle_i32x4::<0xee>(u[c], u[4 + c]);
                let low2 = _mm512_shuffle_i32x4::<0x44>(u[8 + c], u[12 + c]);
                let high2 = _mm512_shuffle_i32x4::<0xee>(u[8 + c], u[12 + c]);
                out[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
                out[4 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
                out[8 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
                out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
            }
            out
        }
    }
}
