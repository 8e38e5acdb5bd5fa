//! What is done to a tile of sums before it leaves the cache: the gated activation and its gradient.
//!
//! **Source**: Shazeer 2020, arXiv 2002.05202, eq. 5.

use std::ops::Range;

use super::lanes::{bf16, steps};
use super::panels::PANEL;
use super::tile::Sums;
use crate::ops::{exp, lane_sum};
use crate::{Gate, Precision};

/// Gates in a gated panel.
pub(crate) const HALF: usize = PANEL / 2;

/// The part of some rows that a tile covers: columns `cols` of `width`.
///
/// **Shapes**: kept `[rows, 2·width]`, gates first; inner `[rows, width]`: lanes both.
pub(crate) struct Part<'a> {
    pub(crate) precision: Precision,
    pub(crate) gate: Gate,
    pub(crate) width: usize,
    pub(crate) cols: Range<usize>,
    pub(crate) kept: &'a mut [u32],
    pub(crate) inner: &'a mut [u32],
}

impl Part<'_> {
    /// The lanes of the tile's columns in row `row`: gates, up, inner.
    #[inline(always)]
    fn row(&mut self, row: usize) -> [&mut [u32]; 3] {
        let lane = |value: usize| steps(self.precision, value);
        let (width, from, len) = (lane(self.width), lane(self.cols.start), lane(self.cols.len()));
        let kept = &mut self.kept[row * 2 * width..(row + 1) * 2 * width];
        let (gate, up) = kept.split_at_mut(width);
        let inner = &mut self.inner[row * width..(row + 1) * width];
        [gate, up, inner].map(|lanes| &mut lanes[from..from + len])
    }
}

/// Asks for the lanes of some rows, which come while the tile's sums are made: they were written long
/// ago.
pub(crate) fn prefetch(part: &mut Part, rows: usize) {
    for row in 0..rows {
        for lanes in part.row(row) {
            crate::cpu::prefetch(lanes);
        }
    }
}

/// Keeps the values before the activation and writes the values after it. Each row of sums holds
/// up to 32 gates, then what they gate.
pub(crate) fn forward(sums: &Sums, rows: usize, part: &mut Part) {
    #[cfg(target_arch = "x86_64")]
    if x86::runs(part.precision) {
        // SAFETY: the kernel exists where the CPU has the instructions only.
        return unsafe { x86::forward(sums, rows, part) };
    }
    forward_scalar(sums, rows, part);
}

/// Turns what `forward` kept into its gradient, given sums that are the gradient with respect to
/// the output before the row's gate; writes the activation times the gate, and adds to `d_gates` the
/// gradient with respect to the gate, which is the sums along the activation.
pub(crate) fn backward(
    sums: &Sums,
    rows: usize,
    gates: &[f32],
    d_gates: &mut [f32],
    part: &mut Part,
) {
    #[cfg(target_arch = "x86_64")]
    if x86::runs(part.precision) {
        // SAFETY: the kernel exists where the CPU has the instructions only.
        return unsafe { x86::backward(sums, rows, gates, d_gates, part) };
    }
    backward_scalar(sums, rows, gates, d_gates, part);
}

crate::cpu::multiversion! {
fn forward_scalar(sums: &Sums, rows: usize, part: &mut Part) {
    let precision = part.precision;
    forward_rows(sums, rows, part, |values, lanes| store(precision, values, lanes));
}
}

crate::cpu::multiversion! {
fn backward_scalar(sums: &Sums, rows: usize, gates: &[f32], d_gates: &mut [f32], part: &mut Part) {
    let precision = part.precision;
    backward_rows(sums, rows, gates, d_gates, part, |values, lanes| store(precision, values, lanes));
}
}

#[inline(always)]
fn store(precision: Precision, values: &[f32], lanes: &mut [u32]) {
    match precision {
        Precision::F32 => {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane = value.to_bits();
            }
        }
        Precision::Bf16 => {
            for (lane, pair) in lanes.iter_mut().zip(values.as_chunks::<2>().0) {
                *lane = bf16(pair[0]) | bf16(pair[1]) << 16;
            }
        }
    }
}

#[inline(always)]
fn load<const N: usize>(precision: Precision, lanes: &[u32]) -> [f32; N] {
    let mut values = [0.0; N];
    match precision {
        Precision::F32 => {
            for (value, lane) in values.iter_mut().zip(lanes) {
                *value = f32::from_bits(*lane);
            }
        }
        Precision::Bf16 => {
            for (pair, lane) in values.as_chunks_mut::<2>().0.iter_mut().zip(lanes) {
                *pair = [f32::from_bits(lane << 16), f32::from_bits(lane & 0xffff_0000)];
            }
        }
    }
    values
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn forward_rows(sums: &Sums, rows: usize, part: &mut Part, store: impl Fn(&[f32], &mut [u32])) {
    // Each in a loop of its own, without a branch inside.
    match part.gate {
        Gate::Silu => forward_gated(sums, rows, part, |x| Gate::Silu.inner(x), store),
        Gate::GeluTanh => forward_gated(sums, rows, part, |x| Gate::GeluTanh.inner(x), store),
    }
}

/// `inner` is [`Gate::inner`].
#[inline(always)]
fn forward_gated(
    sums: &Sums,
    rows: usize,
    part: &mut Part,
    inner: impl Fn(f32) -> (f32, f32),
    store: impl Fn(&[f32], &mut [u32]),
) {
    let cols = part.cols.len();
    for (row, sums) in sums.iter().enumerate().take(rows) {
        let mut values = [0.0; HALF];
        for i in 0..HALF {
            values[i] = sums[i] * sigmoid(inner(sums[i]).0) * sums[HALF + i];
        }
        let [gate, up, inside] = part.row(row);
        store(&sums[..cols], gate);
        store(&sums[HALF..][..cols], up);
        store(&values[..cols], inside);
    }
}

#[inline(always)]
fn backward_rows(
    sums: &Sums,
    rows: usize,
    gates: &[f32],
    d_gates: &mut [f32],
    part: &mut Part,
    store: impl Fn(&[f32], &mut [u32]),
) {
    let inner = (|x| Gate::Silu.inner(x), |x| Gate::GeluTanh.inner(x));
    match part.gate {
        Gate::Silu => backward_gated(sums, rows, (gates, d_gates), part, inner.0, store),
        Gate::GeluTanh => backward_gated(sums, rows, (gates, d_gates), part, inner.1, store),
    }
}

#[inline(always)]
fn backward_gated(
    sums: &Sums,
    rows: usize,
    (gates, d_gates): (&[f32], &mut [f32]),
    part: &mut Part,
    inner_of: impl Fn(f32) -> (f32, f32),
    store: impl Fn(&[f32], &mut [u32]),
) {
    let (precision, cols) = (part.precision, part.cols.len());
    for (row, sums) in sums.iter().enumerate().take(rows) {
        let [gate_lanes, up_lanes, inner_lanes] = part.row(row);
        let gate: [f32; PANEL] = load(precision, gate_lanes);
        let up: [f32; PANEL] = load(precision, up_lanes);
        let (mut d_gate, mut d_up) = ([0.0; PANEL], [0.0; PANEL]);
        let (mut inner, mut along) = ([0.0; PANEL], [0.0; PANEL]);
        let weight = gates[row];
        for i in 0..PANEL {
            let (z, slope) = inner_of(gate[i]);
            let s = sigmoid(z);
            let activated = gate[i] * s;
            let value = activated * up[i];
            along[i] = if i < cols { sums[i] * value } else { 0.0 };
            inner[i] = value * weight;
            let d = sums[i] * weight;
            d_gate[i] = d * up[i] * s * (1.0 + gate[i] * (1.0 - s) * slope);
            d_up[i] = d * activated;
        }
        d_gates[row] += lane_sum([&along], |[along]| along);
        store(&d_gate[..cols], gate_lanes);
        store(&d_up[..cols], up_lanes);
        store(&inner[..cols], inner_lanes);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::lanes::x86::pair_row_inline;
    use super::super::tile::Kernel;
    use super::{Part, Precision, Sums, backward_rows, forward_rows};

    pub(super) fn runs(precision: Precision) -> bool {
        Kernel::best(precision) == Kernel::Avx512Bf16
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")]
    pub(super) unsafe fn forward(sums: &Sums, rows: usize, part: &mut Part) {
        forward_rows(sums, rows, part, |values, lanes| {
            // SAFETY: the features are this function's.
            unsafe { pair_row_inline(values, lanes) }
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")]
    pub(super) unsafe fn backward(
        sums: &Sums,
        rows: usize,
        gates: &[f32],
        d_gates: &mut [f32],
        part: &mut Part,
    ) {
        backward_rows(sums, rows, gates, d_gates, part, |values, lanes| {
            // SAFETY: the features are this function's.
            unsafe { pair_row_inline(values, lanes) }
        });
    }
}
