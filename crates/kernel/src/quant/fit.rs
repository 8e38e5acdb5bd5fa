//! The scales with which rounded values lose least.
//!
//! A group of values `x` with weights `w` is to become `s·q` (or `s·q + m`), `q` of a fixed grid,
//! with the least `Σ w·(x − x̂)²`. For given `q` the best `s` and `m` solve a linear system; for
//! given `s` and `m` the best `q` are the nearest. The search alternates, from many beginnings.

use crate::cpu::multiversion;

/// Values that `q` may have.
pub(super) trait Grid: Copy {
    /// The least and the largest.
    fn bounds(self) -> [f32; 2];
    fn nearest(self, value: f32) -> f32;
    /// `Σ w·x·q` and `Σ w·q²`, `q` the nearest to `x · inverse`.
    fn moments(self, x: &[f32], w: &[f32], inverse: f32) -> Moments;
}

/// What decides about a scale `s`: the loss is `Σ w·x² − 2·s·xq + s²·qq`.
#[derive(Clone, Copy, Default)]
pub(super) struct Moments {
    pub(super) xq: f32,
    pub(super) qq: f32,
}

impl Moments {
    /// Without the part that no scale changes.
    pub(super) fn loss(self, scale: f32) -> f32 {
        scale * (scale * self.qq - 2.0 * self.xq)
    }
}

/// Whole numbers between two.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    pub(super) low: f32,
    pub(super) high: f32,
}

/// Those of a table, which rises.
#[derive(Clone, Copy)]
pub(super) struct Listed(pub(super) &'static [i8; 16]);

impl Grid for Whole {
    fn bounds(self) -> [f32; 2] {
        [self.low, self.high]
    }

    fn nearest(self, value: f32) -> f32 {
        nearest(value, self.low, self.high)
    }

    fn moments(self, x: &[f32], w: &[f32], inverse: f32) -> Moments {
        whole_moments(x, w, inverse, self.low, self.high)
    }
}

impl Grid for Listed {
    fn bounds(self) -> [f32; 2] {
        [f32::from(self.0[0]), f32::from(self.0[15])]
    }

    fn nearest(self, value: f32) -> f32 {
        listed(value, self.0)
    }

    fn moments(self, x: &[f32], w: &[f32], inverse: f32) -> Moments {
        listed_moments(x, w, inverse, self.0)
    }
}

/// Of whole numbers from `low` to `high` the nearest.
#[inline(always)]
pub(super) fn nearest(value: f32, low: f32, high: f32) -> f32 {
    /// 1.5·2²³: what is added to it is rounded to a whole number.
    const MAGIC: f32 = 12_582_912.0;
    let value = if value > low { value } else { low };
    let value = if value < high { value } else { high };
    (value + MAGIC) - MAGIC
}

#[inline(always)]
fn listed(value: f32, table: &[i8; 16]) -> f32 {
    let mut found = f32::from(table[0]);
    for pair in table.windows(2) {
        let (a, b) = (f32::from(pair[0]), f32::from(pair[1]));
        found = if value > 0.5 * (a + b) { b } else { found };
    }
    found
}

/// Sums over lanes, which the compiler keeps in one register.
#[inline(always)]
fn total(lanes: [f32; 16]) -> f32 {
    let mut sum = 0.0;
    for half in 0..8 {
        sum += lanes[half] + lanes[half + 8];
    }
    sum
}

multiversion! {
fn whole_moments(x: &[f32], w: &[f32], inverse: f32, low: f32, high: f32) -> Moments {
    let (mut xq, mut qq) = ([0.0f32; 16], [0.0f32; 16]);
    for (x, w) in x.as_chunks::<16>().0.iter().zip(w.as_chunks::<16>().0) {
        for i in 0..16 {
            let q = nearest(x[i] * inverse, low, high);
            xq[i] += w[i] * x[i] * q;
            qq[i] += w[i] * q * q;
        }
    }
    Moments { xq: total(xq), qq: total(qq) }
}
}

multiversion! {
fn listed_moments(x: &[f32], w: &[f32], inverse: f32, table: &[i8; 16]) -> Moments {
    let (mut xq, mut qq) = ([0.0f32; 16], [0.0f32; 16]);
    for (x, w) in x.as_chunks::<16>().0.iter().zip(w.as_chunks::<16>().0) {
        for i in 0..16 {
            let q = listed(x[i] * inverse, table);
            xq[i] += w[i] * x[i] * q;
            qq[i] += w[i] * q * q;
        }
    }
    Moments { xq: total(xq), qq: total(qq) }
}
}

/// Steps to either side of the scale that puts the extreme value on the grid's end.
const STEPS: i32 = 9;

/// The scale `s` with which `s·q` is nearest to `x`.
///
/// **Shapes**: x, w a multiple of 16.
pub(super) fn scale(grid: impl Grid, x: &[f32], w: &[f32]) -> f32 {
    let extreme = x.iter().fold(0.0f32, |found, v| if v.abs() > found.abs() { *v } else { found });
    if extreme.abs() < f32::MIN_POSITIVE {
        return 0.0;
    }
    let (mut best, mut found) = (0.0, 0.0);
    for bound in grid.bounds() {
        // Grids of more levels need finer steps for the same change of the extreme value's level.
        let step = (0.1f32).max(bound.abs() / 160.0);
        for index in -STEPS..=STEPS {
            let mut inverse = (bound + step * index as f32) / extreme;
            for _ in 0..2 {
                let moments = grid.moments(x, w, inverse);
                if moments.qq <= 0.0 {
                    break;
                }
                let scale = moments.xq / moments.qq;
                let loss = moments.loss(scale);
                if loss < best {
                    (best, found) = (loss, scale);
                }
                if scale.abs() < f32::MIN_POSITIVE {
                    break;
                }
                inverse = 1.0 / scale;
            }
        }
    }
    found
}

/// Whether the offset `m` may have either sign.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Offset {
    Any,
    /// At most 0.
    Low,
}

/// `Σ w·q`, `Σ w·q²` and `Σ w·x·q`.
#[derive(Clone, Copy)]
pub(super) struct AffineMoments {
    pub(super) q: f32,
    pub(super) qq: f32,
    pub(super) xq: f32,
}

multiversion! {
/// Of the whole numbers from 0 to `levels` that are nearest to `(x − m) · inverse`.
pub(super) fn affine_moments(x: &[f32], w: &[f32], m: f32, inverse: f32, levels: f32) -> AffineMoments {
    let mut sums = [[0.0f32; 16]; 3];
    for (x, w) in x.as_chunks::<16>().0.iter().zip(w.as_chunks::<16>().0) {
        for i in 0..16 {
            let q = nearest((x[i] - m) * inverse, 0.0, levels);
            sums[0][i] += w[i] * q;
            sums[1][i] += w[i] * q * q;
            sums[2][i] += w[i] * x[i] * q;
        }
    }
    AffineMoments { q: total(sums[0]), qq: total(sums[1]), xq: total(sums[2]) }
}
}

/// `Σ w` and `Σ w·x`.
#[derive(Clone, Copy)]
pub(super) struct Totals {
    pub(super) w: f32,
    pub(super) x: f32,
}

impl Totals {
    pub(super) fn of(x: &[f32], w: &[f32]) -> Self {
        let (mut all, mut product) = (0.0, 0.0);
        for (x, w) in x.iter().zip(w) {
            all += w;
            product += w * x;
        }
        Totals { w: all, x: product }
    }

    /// The loss with scale `s` and offset `m`, without the part that none changes.
    pub(super) fn loss(self, at: AffineMoments, s: f32, m: f32) -> f32 {
        s * (s * at.qq + 2.0 * m * at.q - 2.0 * at.xq) + m * (m * self.w - 2.0 * self.x)
    }

    /// The best scale and offset for given `q`.
    fn solve(self, at: AffineMoments, offset: Offset) -> Option<(f32, f32)> {
        let determinant = self.w * at.qq - at.q * at.q;
        if determinant > 0.0 {
            let s = (self.w * at.xq - self.x * at.q) / determinant;
            let m = (at.qq * self.x - at.q * at.xq) / determinant;
            if offset == Offset::Any || m <= 0.0 {
                return Some((s, m));
            }
        }
        (at.qq > 0.0).then(|| (at.xq / at.qq, 0.0))
    }
}

/// The scale and offset with which `s·q + m`, `q` from 0 to `levels`, is nearest to `x`.
///
/// **Shapes**: x, w a multiple of 16.
pub(super) fn affine(x: &[f32], w: &[f32], levels: f32, offset: Offset) -> (f32, f32) {
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for &value in x {
        (low, high) = (low.min(value), high.max(value));
    }
    if offset == Offset::Low {
        low = low.min(0.0);
    }
    if high - low < f32::MIN_POSITIVE {
        return (0.0, low);
    }
    let totals = Totals::of(x, w);
    let (mut best, mut found) = (f32::INFINITY, (0.0, low));
    for step in -STEPS..=STEPS {
        let (mut m, mut inverse) = (low, (levels + 0.1 * step as f32) / (high - low));
        for _ in 0..2 {
            let moments = affine_moments(x, w, m, inverse, levels);
            let Some((s, offset)) = totals.solve(moments, offset) else { break };
            let loss = totals.loss(moments, s, offset);
            if s > 0.0 && loss < best {
                (best, found) = (loss, (s, offset));
            }
            if s < f32::MIN_POSITIVE {
                break;
            }
            (m, inverse) = (offset, 1.0 / s);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(phase: f32) -> Vec<f32> {
        (0..32).map(|i| (i as f32 * 0.77 + phase).sin() * (1.0 + (i % 5) as f32 * 0.3)).collect()
    }

    fn loss(x: &[f32], w: &[f32], rounded: impl Fn(f32) -> f32) -> f32 {
        x.iter().zip(w).map(|(x, w)| w * (x - rounded(*x)).powi(2)).sum()
    }

    #[test]
    fn values_on_a_grid_are_found_again() {
        let grid = Whole { low: -8.0, high: 7.0 };
        let x: Vec<f32> = (0..32).map(|i| (i % 16 - 8) as f32 * 0.37).collect();
        let s = scale(grid, &x, &[1.0; 32]);
        assert!((s.abs() - 0.37).abs() < 1e-5, "{s}");
        let x: Vec<f32> = (0..32).map(|i| (i % 16) as f32 * 0.25 - 1.5).collect();
        let (s, m) = affine(&x, &[1.0; 32], 15.0, Offset::Any);
        assert!((s - 0.25).abs() < 1e-5 && (m + 1.5).abs() < 1e-5, "{s} {m}");
        let table = Listed(&super::super::blocks::IQ4);
        let x: Vec<f32> = table.0.iter().chain(table.0).map(|v| f32::from(*v) * 0.02).collect();
        let s = scale(table, &x, &[1.0; 32]);
        assert!((s - 0.02).abs() < 1e-6, "{s}");
    }

    #[test]
    fn the_search_beats_the_extreme_value_and_heeds_weights() {
        let grid = Whole { low: -8.0, high: 7.0 };
        for phase in [0.0, 0.4, 1.3, 2.2] {
            let x = values(phase);
            let extreme = x.iter().fold(0.0f32, |a, v| if v.abs() > a.abs() { *v } else { a });
            let with = |w: &[f32], s: f32| loss(&x, w, |v| s * grid.nearest(v / s));
            let even = [1.0; 32];
            let s = scale(grid, &x, &even);
            assert!(with(&even, s) <= with(&even, extreme / -8.0), "phase {phase}");
            let mut heavy = [0.01; 32];
            heavy[..4].fill(100.0);
            assert!(with(&heavy, scale(grid, &x, &heavy)) <= with(&heavy, s), "phase {phase}");
        }
    }

    #[test]
    fn what_cannot_be_scaled_is_zero() {
        let grid = Whole { low: -8.0, high: 7.0 };
        assert_eq!(scale(grid, &[0.0; 32], &[1.0; 32]), 0.0);
        assert_eq!(affine(&[-0.5; 32], &[1.0; 32], 15.0, Offset::Any), (0.0, -0.5));
        assert_eq!(affine(&[0.0; 32], &[1.0; 32], 15.0, Offset::Low), (0.0, 0.0));
        // All above zero: the offset may not be.
        let above: Vec<f32> = values(0.0).iter().map(|v| v + 5.0).collect();
        let (s, m) = affine(&above, &[1.0; 32], 15.0, Offset::Low);
        assert!(s > 0.0 && m <= 0.0);
    }
}
