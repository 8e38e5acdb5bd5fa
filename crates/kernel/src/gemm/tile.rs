//! The micro-kernels: six rows times one panel of 64 columns, in 24 registers of sums.

use super::lanes::Rows;
use super::narrow;
use super::panels::PANEL;
use crate::Precision;
use crate::buffer::Line;
use crate::cpu::{Level, level};

/// Rows of a tile: 24 sums, 4 parts of the panel and a broadcast fill the 32 registers.
pub(crate) const TILE: usize = 6;

/// A tile of sums.
pub(crate) type Sums = [[f32; PANEL]; TILE];

/// Which code multiplies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// `vdpbf16ps` on tiles of 6 × 64.
    Avx512Bf16,
    /// `vfmadd231ps` on tiles of 6 × 64.
    Avx512F32,
    /// f32 on tiles of 6 × 16, for AVX2, NEON and all others.
    Narrow,
    /// Plain loops over the same panels: the oracle.
    Scalar(Precision),
}

impl Kernel {
    /// What multiplies values of this type on this CPU.
    pub fn best(precision: Precision) -> Self {
        #[cfg(target_arch = "x86_64")]
        if level() == Level::Avx512 {
            match precision {
                Precision::F32 => return Kernel::Avx512F32,
                Precision::Bf16 if Precision::best() == Precision::Bf16 => {
                    return Kernel::Avx512Bf16;
                }
                Precision::Bf16 => {}
            }
        }
        match precision {
            Precision::F32 => Kernel::Narrow,
            Precision::Bf16 => Kernel::Scalar(precision),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kernel::Avx512Bf16 => "AVX512_BF16 vdpbf16ps, tiles of 6x64",
            Kernel::Avx512F32 => "AVX-512 vfmadd231ps, tiles of 6x64",
            Kernel::Narrow if level() == Level::Avx2 => "AVX2 vfmadd231ps, tiles of 6x16",
            Kernel::Narrow if cfg!(target_arch = "aarch64") => "NEON fmla, tiles of 6x16",
            Kernel::Narrow => "f32, tiles of 6x16",
            Kernel::Scalar(Precision::F32) => "scalar f32",
            Kernel::Scalar(Precision::Bf16) => "scalar bf16",
        }
    }
}

/// A block of rows times a part of one panel, into f32 rows: `out[to(r)] (+)= scale(r) · left[r] · panel`.
pub(crate) struct Strip<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) left: Rows<'a>,
    /// The left operand's rows, as [`Rows::start`] counts them.
    pub(crate) rows: std::ops::Range<usize>,
    /// The first step of the left operand; the panel's part begins there too.
    pub(crate) from: usize,
    /// `[steps, 64]`.
    pub(crate) panel: &'a [Line],
    /// Where given, row `r` of the left operand goes to row `targets[r]` of the output; otherwise
    /// the rows go to rows 0, 1, ….
    pub(crate) targets: Option<&'a [u32]>,
    /// Where given, what row `r` is multiplied by.
    pub(crate) scales: Option<&'a [f32]>,
    /// `[rows, out_stride]`, of which `cols` (at most 64) are written.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    pub(crate) cols: usize,
    pub(crate) add: bool,
}

impl Strip<'_> {
    /// Runs the product.
    ///
    /// # Safety
    /// `out` must be valid for reads and writes at the rows and columns named, with no other access.
    pub(crate) unsafe fn run(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Kernel::best` gives these kernels where the CPU has them only; the output
        // is valid as this function requires.
        unsafe {
            match self.kernel {
                Kernel::Avx512Bf16 => return x86::strip_bf16(self),
                Kernel::Avx512F32 => return x86::strip_f32(self),
                Kernel::Narrow | Kernel::Scalar(_) => {}
            }
        }
        let mut sums = [[0.0; PANEL]; TILE];
        for first in self.rows.clone().step_by(TILE) {
            let rows = first..self.rows.end.min(first + TILE);
            tile(self.kernel, self.left, rows.clone(), self.from, self.panel, &mut sums);
            for (row, sums) in rows.zip(&sums) {
                let scale = self.scale(row);
                // SAFETY: a row and columns that the caller vouches for.
                let out = unsafe { std::slice::from_raw_parts_mut(self.target(row), self.cols) };
                match self.add {
                    true => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum * scale),
                    false => out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * scale),
                }
            }
        }
    }

    /// Where the row's output begins.
    #[inline(always)]
    fn target(&self, row: usize) -> *mut f32 {
        let to = self.targets.map_or(row - self.rows.start, |targets| targets[row] as usize);
        self.out.wrapping_add(to * self.out_stride)
    }

    #[inline(always)]
    fn scale(&self, row: usize) -> f32 {
        self.scales.map_or(1.0, |scales| scales[row])
    }
}

/// The products of up to six rows with a panel, for an epilogue to use: `sums[r]` of the row
/// `rows.start + r`. Sums beyond the rows are not touched.
pub(crate) fn tile(
    kernel: Kernel,
    left: Rows,
    rows: std::ops::Range<usize>,
    from: usize,
    panel: &[Line],
    sums: &mut Sums,
) {
    assert!(rows.len() <= TILE);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `Strip::run`; the sums are written whole.
    unsafe {
        match kernel {
            Kernel::Avx512Bf16 => return x86::tile_bf16(left, rows, from, panel, sums),
            Kernel::Avx512F32 => return x86::tile_f32(left, rows, from, panel, sums),
            Kernel::Narrow | Kernel::Scalar(_) => {}
        }
    }
    match kernel {
        Kernel::Narrow => narrow::tile(left, rows, from, panel, sums),
        _ => scalar_tile(kernel, left, rows, from, panel, sums),
    }
}

crate::cpu::multiversion! {
fn scalar_tile(
    kernel: Kernel,
    left: Rows,
    rows: std::ops::Range<usize>,
    from: usize,
    panel: &[Line],
    sums: &mut Sums,
) {
    let steps = panel.len() / LINES;
    let bf16 = kernel == Kernel::Scalar(Precision::Bf16);
    for (row, sums) in rows.zip(sums) {
        sums.fill(0.0);
        let start = left.start(row, from, steps);
        for step in 0..steps {
            let a = start[step];
            for (line, sums) in panel[step * LINES..][..LINES].iter().zip(sums.chunks_exact_mut(16))
            {
                for (b, sum) in line.0.iter().zip(sums) {
                    *sum += if bf16 {
                        let half = |lane: u32| f32::from_bits(lane << 16);
                        half(a) * half(*b) + half(a >> 16) * half(b >> 16)
                    } else {
                        f32::from_bits(a) * f32::from_bits(*b)
                    };
                }
            }
        }
    }
}
}

/// Lines of one step of a panel.
pub(crate) const LINES: usize = PANEL / 16;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::super::lanes::Rows;
    use super::super::panels::PANEL;
    use super::{LINES, Strip, TILE};
    use crate::buffer::Line;

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn strip_f32(strip: &Strip) {
        // SAFETY: passed on from the caller.
        unsafe { walk::<false>(strip) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn strip_bf16(strip: &Strip) {
        // SAFETY: passed on from the caller.
        unsafe { walk::<true>(strip) }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn tile_f32(
        left: Rows,
        rows: Range<usize>,
        from: usize,
        panel: &[Line],
        out: &mut [[f32; PANEL]; TILE],
    ) {
        // SAFETY: passed on from the caller.
        unsafe { one::<false>(left, rows, from, panel, out) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn tile_bf16(
        left: Rows,
        rows: Range<usize>,
        from: usize,
        panel: &[Line],
        out: &mut [[f32; PANEL]; TILE],
    ) {
        // SAFETY: passed on from the caller.
        unsafe { one::<true>(left, rows, from, panel, out) }
    }

    /// Calls `$function::<BF16, rows>` for the number of rows at hand.
    macro_rules! by_rows {
        ($rows:expr, $function:ident::<$bf16:ident>($($argument:expr),*)) => {
            match $rows {
                0 => {}
                1 => $function::<$bf16, 1>($($argument),*),
                2 => $function::<$bf16, 2>($($argument),*),
                3 => $function::<$bf16, 3>($($argument),*),
                4 => $function::<$bf16, 4>($($argument),*),
                5 => $function::<$bf16, 5>($($argument),*),
                _ => $function::<$bf16, 6>($($argument),*),
            }
        };
    }

    #[inline(always)]
    unsafe fn walk<const BF16: bool>(strip: &Strip) {
        let mut row = strip.rows.start;
        while row < strip.rows.end {
            // SAFETY: passed on from the caller.
            unsafe {
                by_rows!(strip.rows.end - row, strip_tile::<BF16>(strip, row));
            }
            row += TILE;
        }
    }

    #[inline(always)]
    unsafe fn strip_tile<const BF16: bool, const ROWS: usize>(strip: &Strip, row: usize) {
        // SAFETY: `Rows::start` checks the left operand; writes are masked to `cols`, in rows that
        // the caller vouches for.
        unsafe {
            let steps = strip.panel.len() / LINES;
            // Loops, not closures, which would not be inlined here.
            let mut targets = [std::ptr::null_mut::<f32>(); ROWS];
            for r in 0..ROWS {
                targets[r] = strip.target(row + r);
            }
            let left = starts::<ROWS>(strip.left, row, strip.from, steps);
            for target in targets {
                for part in 0..LINES {
                    // The lines come while the sums are made.
                    _mm_prefetch::<_MM_HINT_ET0>(target.wrapping_add(part * 16).cast());
                }
            }
            let sums = sums::<BF16, ROWS>(left, strip.panel, steps);
            for r in 0..ROWS {
                let scale = _mm512_set1_ps(strip.scale(row + r));
                for part in 0..LINES {
                    let cols = strip.cols.saturating_sub(part * 16).min(16);
                    let mask = ((1u32 << cols) - 1) as __mmask16;
                    let at = targets[r].wrapping_add(part * 16);
                    let mut sum = _mm512_mul_ps(sums[r][part], scale);
                    if strip.add {
                        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, at));
                    }
                    _mm512_mask_storeu_ps(at, mask, sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn one<const BF16: bool>(
        left: Rows,
        rows: Range<usize>,
        from: usize,
        panel: &[Line],
        out: &mut [[f32; PANEL]; TILE],
    ) {
        // SAFETY: passed on from the caller.
        unsafe {
            by_rows!(rows.len(), stored_tile::<BF16>(left, rows.start, from, panel, out));
        }
    }

    #[inline(always)]
    unsafe fn stored_tile<const BF16: bool, const ROWS: usize>(
        left: Rows,
        row: usize,
        from: usize,
        panel: &[Line],
        out: &mut [[f32; PANEL]; TILE],
    ) {
        // SAFETY: `Rows::start` checks the left operand; each row of sums has 64 values.
        unsafe {
            let steps = panel.len() / LINES;
            let left = starts::<ROWS>(left, row, from, steps);
            let sums = sums::<BF16, ROWS>(left, panel, steps);
            for r in 0..ROWS {
                for part in 0..LINES {
                    _mm512_storeu_ps(out[r].as_mut_ptr().add(part * 16), sums[r][part]);
                }
            }
        }
    }

    #[inline(always)]
    fn starts<const ROWS: usize>(
        left: Rows,
        row: usize,
        from: usize,
        steps: usize,
    ) -> [*const u32; ROWS] {
        let mut starts = [std::ptr::null(); ROWS];
        for r in 0..ROWS {
            starts[r] = left.start(row + r, from, steps).as_ptr();
        }
        starts
    }

    /// The sums over all steps.
    ///
    /// # Safety
    /// Each of `left` must be readable at `steps` lanes; the panel must have `steps` steps.
    #[inline(always)]
    unsafe fn sums<const BF16: bool, const ROWS: usize>(
        left: [*const u32; ROWS],
        panel: &[Line],
        steps: usize,
    ) -> [[__m512; LINES]; ROWS] {
        // SAFETY: as this function requires.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); LINES]; ROWS];
            let panel = panel.as_ptr();
            for step in 0..steps {
                let lines = panel.add(step * LINES);
                let mut b = [_mm512_setzero_si512(); LINES];
                for part in 0..LINES {
                    b[part] = _mm512_load_si512(lines.add(part).cast());
                }
                for r in 0..ROWS {
                    let a = _mm512_set1_epi32(*left[r].add(step) as i32);
                    for part in 0..LINES {
                        sums[r][part] = fma::<BF16>(sums[r][part], a, b[part]);
                    }
                }
            }
            sums
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
