use super::tiles::SUB;
use crate::cpu::multiversion;
use crate::pool::Pool;

/// Rows handled together: enough to outweigh the cost of claiming a task.
const ROWS: usize = 8;

/// Activations rounded to 8 bits, with one scale for each 32 values.
///
/// The rounding error of a value is at most half the scale, which is a 127th of the largest
/// magnitude among the 32. A value that is not finite makes all results of its row NaN.
pub struct Activations {
    pub(crate) cols: usize,
    /// `[rows, cols]`.
    pub(crate) quants: Vec<i8>,
    /// `[rows, cols / 32]`.
    pub(crate) scales: Vec<Scale>,
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

impl Activations {
    /// **Shapes**: x `[rows, cols]`.
    ///
    /// # Panics
    /// If `cols` is no multiple of 32 or does not divide the length of `x`.
    pub fn new(pool: &Pool, x: &[f32], cols: usize) -> Self {
        assert!(cols.is_multiple_of(SUB) && x.len().is_multiple_of(cols), "{} by {cols}", x.len());
        let mut quants = vec![0; x.len()];
        let mut scales = vec![Scale::default(); x.len() / SUB];
        let rows = ROWS * cols;
        let mut parts: Vec<_> =
            quants.chunks_mut(rows).zip(scales.chunks_mut(rows / SUB)).collect();
        pool.pieces(&mut parts, 1, |index, part| {
            let (quants, scales) = &mut part[0];
            round(&x[index * rows..], quants, scales);
        });
        Activations { cols, quants, scales }
    }

    pub(crate) fn rows(&self) -> usize {
        self.quants.len() / self.cols
    }
}

multiversion! {
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
