use super::tiles::SUB;
use crate::buffer::Buffer;
use crate::cpu::multiversion;
#[cfg(target_arch = "x86_64")]
use crate::cpu::{Level, level};
use crate::pool::Pool;

/// Rows handled together: enough to outweigh the cost of claiming a task.
const ROWS: usize = 8;

/// Activations rounded to 8 bits, with one scale for each 32 values.
///
/// The rounding error of a value is at most half the scale, which is a 127th of the largest
/// magnitude among the 32. A value that is not finite makes all results of its row NaN.
pub struct Activations<'a> {
    pub(crate) cols: usize,
    /// `[rows, cols]`, four in each lane.
    quants: Buffer<'a>,
    /// `[rows, cols / 32, 4]`: the fields of [`Scale`].
    scales: Buffer<'a>,
}

/// What belongs to 32 values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Scale {
    pub(crate) scale: f32,
    /// Sum of the rounded values, times the scale; then that of either half alone.
    pub(crate) sum: f32,
    pub(crate) low: f32,
    pub(crate) high: f32,
}

impl<'a> Activations<'a> {
    /// **Shapes**: x `[rows, cols]`.
    ///
    /// # Panics
    /// If `cols` is no multiple of 32 or does not divide the length of `x`.
    pub fn new(pool: &'a Pool, x: &[f32], cols: usize) -> Self {
        assert!(cols.is_multiple_of(SUB) && x.len().is_multiple_of(cols), "{} by {cols}", x.len());
        let mut quants = pool.buffer(x.len() / 4);
        let mut scales = pool.buffer(x.len() / SUB * Scale::FIELDS);
        let rows = ROWS * cols;
        {
            let (quants, scales) = (bytes_mut(&mut quants), scales_mut(&mut scales));
            let mut parts: Vec<_> =
                quants.chunks_mut(rows).zip(scales.chunks_mut(rows / SUB)).collect();
            pool.pieces(&mut parts, 1, |index, part| {
                let (quants, scales) = &mut part[0];
                best_round(&x[index * rows..], quants, scales);
            });
        }
        Activations { cols, quants, scales }
    }

    pub(crate) fn rows(&self) -> usize {
        self.quants().len() / self.cols
    }

    /// `[rows, cols]`.
    pub(crate) fn quants(&self) -> &[i8] {
        let lanes = self.quants.lanes();
        // SAFETY: a lane is four bytes, and every byte is an i8.
        unsafe { std::slice::from_raw_parts(lanes.as_ptr().cast(), lanes.len() * 4) }
    }

    /// `[rows, cols / 32]`.
    pub(crate) fn scales(&self) -> &[Scale] {
        let values: &[f32] = &self.scales;
        // SAFETY: a `Scale` is so many f32 without padding.
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len() / Scale::FIELDS) }
    }
}

impl Scale {
    /// Fields, all of them f32.
    const FIELDS: usize = size_of::<Scale>() / size_of::<f32>();
}

fn bytes_mut<'b>(buffer: &'b mut Buffer) -> &'b mut [i8] {
    let lanes = buffer.lanes_mut();
    // SAFETY: as in `Activations::quants`; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), lanes.len() * 4) }
}

fn scales_mut<'b>(buffer: &'b mut Buffer) -> &'b mut [Scale] {
    let values: &mut [f32] = buffer;
    let len = values.len() / Scale::FIELDS;
    // SAFETY: as in `Activations::scales`; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

fn best_round(x: &[f32], quants: &mut [i8], scales: &mut [Scale]) {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        let x = &x[..quants.len()];
        assert_eq!(scales.len() * SUB, x.len());
        // SAFETY: the CPU has the features; the lengths agree.
        return unsafe { avx512_round(x, quants, scales) };
    }
    round(x, quants, scales);
}

/// As [`round`], value for value.
///
/// # Safety
/// The CPU must have the features; there are as many quants as values, and a scale for each 32.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512_round(x: &[f32], quants: &mut [i8], scales: &mut [Scale]) {
    use std::arch::x86_64::*;
    /// What `fpclass` calls infinities and what is not a number.
    const NOT_FINITE: i32 = 0x99;
    for (sub, to) in scales.iter_mut().enumerate() {
        // SAFETY: 32 values and as many quants stand there.
        let (a, b, at) = unsafe {
            let from = x.as_ptr().add(sub * SUB);
            let at = quants.as_mut_ptr().add(sub * SUB).cast::<__m128i>();
            (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)), at)
        };
        let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        let faults =
            _mm512_fpclass_ps_mask::<NOT_FINITE>(a) | _mm512_fpclass_ps_mask::<NOT_FINITE>(b);
        let scale = largest / 127.0;
        let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
        let inverse = _mm512_set1_ps(inverse);
        let a = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
        let b = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
        // SAFETY: as above.
        unsafe {
            _mm_storeu_si128(at, _mm512_cvtsepi32_epi8(a));
            _mm_storeu_si128(at.add(1), _mm512_cvtsepi32_epi8(b));
        }
        let sums = [_mm512_reduce_add_epi32(a), _mm512_reduce_add_epi32(b)];
        let scale = if faults == 0 { scale } else { f32::NAN };
        *to = Scale {
            scale,
            sum: (sums[0].wrapping_add(sums[1])) as f32 * scale,
            low: sums[0] as f32 * scale,
            high: sums[1] as f32 * scale,
        };
    }
}

multiversion! {
/// The oracle.
fn round(x: &[f32], quants: &mut [i8], scales: &mut [Scale]) {
    /// 1.5·2²³: adding it rounds to an integer and leaves that integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let (x, quants) = (x.as_chunks::<SUB>().0, quants.as_chunks_mut::<SUB>().0);
    for ((x, quants), to) in x.iter().zip(quants).zip(scales) {
        let mut lanes = [0.0f32; 16];
        // Zero, or NaN if a value is not finite: the maximum would pass over a NaN.
        let mut faults = [0.0f32; 16];
        for i in 0..16 {
            let (a, b) = (x[i].abs(), x[16 + i].abs());
            lanes[i] = if a > b { a } else { b };
            faults[i] = x[i] * 0.0 + x[16 + i] * 0.0;
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
                faults[i] += faults[i + half];
            }
        }
        let scale = lanes[0] / 127.0;
        let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
        let mut sums = [0i32; 2];
        for (half, sum) in sums.iter_mut().enumerate() {
            for i in half * 16..half * 16 + 16 {
                let shifted = x[i] * inverse + MAGIC;
                let value = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
                let value = value.clamp(-127, 127);
                quants[i] = value as i8;
                *sum += value;
            }
        }
        let scale = scale + faults[0];
        *to = Scale {
            scale,
            sum: (sums[0] + sums[1]) as f32 * scale,
            low: sums[0] as f32 * scale,
            high: sums[1] as f32 * scale,
        };
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_rounding_is_the_oracles() {
        let mut x: Vec<f32> = (0..20 * SUB).map(|i| (i as f32 * 0.71).sin() * i as f32).collect();
        // Zeros, numbers that are too small for a scale, and halves between two integers.
        x[..SUB].fill(0.0);
        x[SUB..2 * SUB].fill(1e-39);
        x[2 * SUB..3 * SUB].fill(0.5);
        x[2 * SUB] = 127.0;
        let mut expected = (vec![0; x.len()], vec![Scale::default(); x.len() / SUB]);
        let mut found = expected.clone();
        round(&x, &mut expected.0, &mut expected.1);
        best_round(&x, &mut found.0, &mut found.1);
        assert_eq!(found, expected);
        for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[7 * SUB + 20] = fault;
            best_round(&x, &mut found.0, &mut found.1);
            assert!(found.1[7].scale.is_nan() && found.1[7].sum.is_nan());
            assert_eq!(found.1[8], expected.1[8]);
        }
    }
}
