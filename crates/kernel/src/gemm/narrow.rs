//! f32 tiles for CPUs without AVX-512: a quarter of a panel at a time, whose 6 × 16 sums fill the
//! registers of AVX2 (twelve of 16) and NEON (24 of 32).

use std::ops::Range;

use super::lanes::Rows;
use super::tile::{LINES, Sums};
use crate::buffer::{LINE, Line};

/// As [`super::tile::tile`], of lanes that hold f32.
pub(super) fn tile(left: Rows, rows: Range<usize>, from: usize, panel: &[Line], sums: &mut Sums) {
    let row = rows.start;
    match rows.len() {
        0 => {}
        1 => some_rows::<1>(left, row, from, panel, sums),
        2 => some_rows::<2>(left, row, from, panel, sums),
        3 => some_rows::<3>(left, row, from, panel, sums),
        4 => some_rows::<4>(left, row, from, panel, sums),
        5 => some_rows::<5>(left, row, from, panel, sums),
        _ => some_rows::<6>(left, row, from, panel, sums),
    }
}

fn some_rows<const ROWS: usize>(
    left: Rows,
    row: usize,
    from: usize,
    panel: &[Line],
    sums: &mut Sums,
) {
    let steps = panel.len() / LINES;
    let mut starts: [&[u32]; ROWS] = [&[]; ROWS];
    for (r, start) in starts.iter_mut().enumerate() {
        *start = left.start(row + r, from, steps);
    }
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::level() >= crate::cpu::Level::Avx2 {
        // SAFETY: the CPU has AVX2 and FMA.
        return unsafe { x86::some_rows(starts, panel, sums) };
    }
    for part in 0..LINES {
        let quarter = quarter(starts, panel, part);
        for (sums, quarter) in sums.iter_mut().zip(quarter) {
            sums[part * LINE..][..LINE].copy_from_slice(&quarter);
        }
    }
}

/// Line `part` of each step, for whatever the compiler finds on the build's target.
fn quarter<const ROWS: usize>(
    left: [&[u32]; ROWS],
    panel: &[Line],
    part: usize,
) -> [[f32; LINE]; ROWS] {
    let mut sums = [[0.0; LINE]; ROWS];
    let steps = panel.len() / LINES;
    let left = left.map(|row| &row[..steps]);
    for (step, lines) in panel.chunks_exact(LINES).enumerate() {
        for r in 0..ROWS {
            let a = f32::from_bits(left[r][step]);
            for (sum, b) in sums[r].iter_mut().zip(lines[part].0) {
                let b = f32::from_bits(b);
                // Elsewhere a fused step may be a call into the C library.
                *sum = match cfg!(target_arch = "aarch64") {
                    true => a.mul_add(b, *sum),
                    false => *sum + a * b,
                };
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LINE, LINES, Line, Sums};

    /// Registers of a line.
    const PARTS: usize = LINE / 8;

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn some_rows<const ROWS: usize>(
        left: [&[u32]; ROWS],
        panel: &[Line],
        out: &mut Sums,
    ) {
        let steps = panel.len() / LINES;
        assert!(left.iter().all(|row| row.len() >= steps));
        for line in 0..LINES {
            // SAFETY: there are as many steps in all rows and in the panel; a row of sums has a place
            // for each column of the line.
            unsafe {
                let mut sums = [[_mm256_setzero_ps(); PARTS]; ROWS];
                for step in 0..steps {
                    let at = panel.as_ptr().add(step * LINES + line).cast::<f32>();
                    let b: [__m256; PARTS] = [_mm256_load_ps(at), _mm256_load_ps(at.add(8))];
                    for r in 0..ROWS {
                        let a = _mm256_set1_ps(f32::from_bits(*left[r].as_ptr().add(step)));
                        for part in 0..PARTS {
                            sums[r][part] = _mm256_fmadd_ps(a, b[part], sums[r][part]);
                        }
                    }
                }
                for r in 0..ROWS {
                    for part in 0..PARTS {
                        let at = out[r].as_mut_ptr().add(line * LINE + 8 * part);
                        _mm256_storeu_ps(at, sums[r][part]);
                    }
                }
            }
        }
    }
}
