//! Blocks of the formats that models are written in, their scales found by [`fit`](super::fit).

use half::f16;

use super::blocks::{self, IQ4};
use super::fit::{self, Grid, Listed, Offset, Totals, Whole, affine, affine_moments, nearest};
use super::{Error, Format};

/// Formats whose blocks are written here.
pub(super) const fn fitted(format: Format) -> bool {
    use Format::{IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K};
    matches!(format, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4_K | Q5_K | Q6_K | IQ4_NL | IQ4_XS)
}

/// Appends whole blocks of finite values; `w` are the values' weights, above zero.
pub(super) fn write(format: Format, x: &[f32], w: &[f32], out: &mut Vec<u8>) -> Result<(), Error> {
    let len = format.block_len();
    for (x, w) in x.chunks_exact(len).zip(w.chunks_exact(len)) {
        match format {
            Format::Q4_0 => symmetric(format, Whole { low: -8.0, high: 7.0 }, x, w, out)?,
            Format::Q5_0 => symmetric(format, Whole { low: -16.0, high: 15.0 }, x, w, out)?,
            Format::IQ4_NL => symmetric(format, Listed(&IQ4), x, w, out)?,
            Format::Q4_1 | Format::Q5_1 => offset(format, x, w, out)?,
            Format::Q4_K | Format::Q5_K => k_offset(format, x, w, out)?,
            Format::Q6_K => q6_k(x, w, out)?,
            Format::IQ4_XS => iq4_xs(x, w, out)?,
            _ => return Err(Error::NotWritable { format }),
        }
    }
    Ok(())
}

/// `scale` as it is stored.
fn half(format: Format, scale: f32, x: &[f32]) -> Result<(f32, [u8; 2]), Error> {
    let half = f16::from_f32(scale);
    if half.is_finite() {
        return Ok((half.to_f32(), half.to_le_bytes()));
    }
    let value = x.iter().fold(0.0f32, |found, v| if v.abs() > found.abs() { *v } else { found });
    Err(Error::Overflow { format, value })
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Low halves are values 0..16, high halves 16..32.
fn nibbles(q: &[u8], out: &mut Vec<u8>) {
    out.extend((0..16).map(|i| q[i] & 15 | q[i + 16] << 4));
}

fn fifth_bits(q: &[u8], out: &mut Vec<u8>) {
    let bits = q.iter().enumerate().fold(0u32, |bits, (i, q)| bits | u32::from(q >> 4 & 1) << i);
    out.extend_from_slice(&bits.to_le_bytes());
}

/// Q4_0, Q5_0 and IQ4_NL.
fn symmetric(
    format: Format,
    grid: impl Grid,
    x: &[f32],
    w: &[f32],
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let (scale, bytes) = half(format, fit::scale(grid, x, w), x)?;
    out.extend_from_slice(&bytes);
    let inverse = inverse(scale);
    let q: Vec<u8> = x.iter().map(|x| place(format, grid.nearest(x * inverse))).collect();
    if format == Format::Q5_0 {
        fifth_bits(&q, out);
    }
    nibbles(&q, out);
    Ok(())
}

/// How a value of the format's grid is stored.
fn place(format: Format, value: f32) -> u8 {
    match format {
        Format::Q4_0 => (value + 8.0) as u8,
        Format::Q5_0 => (value + 16.0) as u8,
        Format::Q6_K => (value + 32.0) as u8,
        _ => IQ4.iter().position(|v| f32::from(*v) == value).expect("of the table") as u8,
    }
}

/// Q4_1 and Q5_1.
fn offset(format: Format, x: &[f32], w: &[f32], out: &mut Vec<u8>) -> Result<(), Error> {
    let levels = if format == Format::Q4_1 { 15.0 } else { 31.0 };
    let (scale, minimum) = affine(x, w, levels, Offset::Any);
    let (scale, scale_bytes) = half(format, scale, x)?;
    let (minimum, minimum_bytes) = half(format, minimum, x)?;
    out.extend_from_slice(&scale_bytes);
    out.extend_from_slice(&minimum_bytes);
    let inverse = inverse(scale);
    let q: Vec<u8> =
        x.iter().map(|x| nearest((x - minimum) * inverse, 0.0, levels) as u8).collect();
    if format == Format::Q5_1 {
        fifth_bits(&q, out);
    }
    nibbles(&q, out);
    Ok(())
}

/// The scale of a block and those of its groups, which are whole numbers.
struct Groups {
    scale: f32,
    bytes: [u8; 2],
    own: Vec<f32>,
}

/// Scales of groups of `len` values, themselves rounded to `limits`.
fn groups(
    format: Format,
    grid: impl Grid,
    (x, w): (&[f32], &[f32]),
    len: usize,
    limits: [f32; 2],
) -> Result<Groups, Error> {
    let parts = || x.chunks_exact(len).zip(w.chunks_exact(len));
    let scales: Vec<f32> = parts().map(|(x, w)| fit::scale(grid, x, w)).collect();
    let extreme = scales.iter().fold(0.0f32, |a, s| if s.abs() > a.abs() { *s } else { a });
    let (mut scale, mut bytes) = half(format, extreme / limits[0], x)?;
    let mut own = vec![0.0; scales.len()];
    for round in 0..3 {
        let to_own = inverse(scale);
        let (mut xq, mut qq) = (0.0, 0.0);
        for (((x, w), own), found) in parts().zip(&mut own).zip(&scales) {
            let middle = nearest(found * to_own, limits[0], limits[1]);
            let near = [middle - 1.0, middle, middle + 1.0];
            let near = near.into_iter().filter(|own| (limits[0]..=limits[1]).contains(own));
            let mut best = (f32::INFINITY, 0.0, fit::Moments::default());
            for candidate in near {
                let moments = grid.moments(x, w, inverse(scale * candidate));
                let loss = moments.loss(scale * candidate);
                if loss < best.0 {
                    best = (loss, candidate, moments);
                }
            }
            *own = best.1;
            xq += best.1 * best.2.xq;
            qq += best.1 * best.1 * best.2.qq;
        }
        // The last round only fits the groups to the scale that stays.
        if round < 2 && qq > 0.0 {
            (scale, bytes) = half(format, xq / qq, x)?;
        }
    }
    Ok(Groups { scale, bytes, own })
}

fn q6_k(x: &[f32], w: &[f32], out: &mut Vec<u8>) -> Result<(), Error> {
    let format = Format::Q6_K;
    let grid = Whole { low: -32.0, high: 31.0 };
    let groups = groups(format, grid, (x, w), 16, [-128.0, 127.0])?;
    let (mut low, mut high) = ([0u8; 128], [0u8; 64]);
    for (i, value) in x.iter().enumerate() {
        let q = place(format, grid.nearest(value * inverse(groups.scale * groups.own[i / 16])));
        let (half, at) = (i / 128, i % 128);
        low[half * 64 + at % 64] |= (q & 15) << (at / 64 * 4);
        high[half * 32 + at % 32] |= q >> 4 << (at / 32 * 2);
    }
    out.extend_from_slice(&low);
    out.extend_from_slice(&high);
    out.extend(groups.own.iter().map(|own| *own as i8 as u8));
    out.extend_from_slice(&groups.bytes);
    Ok(())
}

fn iq4_xs(x: &[f32], w: &[f32], out: &mut Vec<u8>) -> Result<(), Error> {
    let format = Format::IQ4_XS;
    let grid = Listed(&IQ4);
    let groups = groups(format, grid, (x, w), 32, [-32.0, 31.0])?;
    out.extend_from_slice(&groups.bytes);
    let own: Vec<u16> = groups.own.iter().map(|own| (own + 32.0) as u16).collect();
    let high = own.iter().enumerate().fold(0u16, |bits, (i, own)| bits | own >> 4 << (2 * i));
    out.extend_from_slice(&high.to_le_bytes());
    out.extend(own.chunks_exact(2).map(|pair| (pair[0] & 15 | (pair[1] & 15) << 4) as u8));
    for (x, own) in x.chunks_exact(32).zip(&groups.own) {
        let inverse = inverse(groups.scale * own);
        let q: Vec<u8> = x.iter().map(|x| place(format, grid.nearest(x * inverse))).collect();
        nibbles(&q, out);
    }
    Ok(())
}

/// Q4_K and Q5_K: eight groups of 32 values, each with a scale and a minimum of 6 bits.
fn k_offset(format: Format, x: &[f32], w: &[f32], out: &mut Vec<u8>) -> Result<(), Error> {
    let levels = if format == Format::Q4_K { 15.0 } else { 31.0 };
    let found = KOffset::fit(format, x, w, levels)?;
    out.extend_from_slice(&found.bytes[0]);
    out.extend_from_slice(&found.bytes[1]);
    out.extend_from_slice(&blocks::pack_scales(&found.own.map(|own| own.map(|v| v as u8))));
    let mut q = [[0u8; 32]; 8];
    for ((q, x), [own, minimum]) in q.iter_mut().zip(x.as_chunks::<32>().0).zip(found.own) {
        let (inverse, minimum) = (inverse(found.scales[0] * own), found.scales[1] * minimum);
        for (q, x) in q.iter_mut().zip(x) {
            *q = nearest((x + minimum) * inverse, 0.0, levels) as u8;
        }
    }
    if format == Format::Q5_K {
        out.extend((0..32).map(|i| (0..8).fold(0, |bits, sub| bits | q[sub][i] >> 4 << sub)));
    }
    for [low, high] in q.as_chunks::<2>().0 {
        out.extend(low.iter().zip(high).map(|(low, high)| low & 15 | high << 4));
    }
    Ok(())
}

/// A value is `scales[0]·own[0]·q − scales[1]·own[1]`.
struct KOffset {
    scales: [f32; 2],
    bytes: [[u8; 2]; 2],
    own: [[f32; 2]; 8],
}

impl KOffset {
    fn fit(format: Format, x: &[f32], w: &[f32], levels: f32) -> Result<Self, Error> {
        let parts = || x.chunks_exact(32).zip(w.chunks_exact(32));
        let found: Vec<(f32, f32)> =
            parts().map(|(x, w)| affine(x, w, levels, Offset::Low)).collect();
        let scale = found.iter().fold(0.0f32, |a, (s, _)| a.max(*s)) / 63.0;
        let minimum = found.iter().fold(0.0f32, |a, (_, m)| a.max(-m)) / 63.0;
        let stored = |[scale, minimum]: [f32; 2]| -> Result<_, Error> {
            let (scale, minimum) = (half(format, scale, x)?, half(format, minimum, x)?);
            Ok(([scale.0, minimum.0], [scale.1, minimum.1]))
        };
        let (mut scales, mut bytes) = stored([scale, minimum])?;
        let mut own = [[0.0; 2]; 8];
        for round in 0..3 {
            let mut system = System::default();
            for (((x, w), own), found) in parts().zip(&mut own).zip(&found) {
                *own = nearest_pair(x, w, *found, scales, levels);
                let inverse = inverse(scales[0] * own[0]);
                let moments = affine_moments(x, w, -scales[1] * own[1], inverse, levels);
                system.add(Totals::of(x, w), moments, *own);
            }
            // The last round only fits the groups to the scales that stay.
            if round < 2
                && let Some(solved) = system.solve()
            {
                (scales, bytes) = stored(solved)?;
            }
        }
        Ok(KOffset { scales, bytes, own })
    }
}

/// The scale and minimum, of 6 bits each, that lose least among those beside what was found.
fn nearest_pair(
    x: &[f32],
    w: &[f32],
    (scale, offset): (f32, f32),
    scales: [f32; 2],
    levels: f32,
) -> [f32; 2] {
    let totals = Totals::of(x, w);
    let near = |value: f32, scale: f32| {
        let middle = nearest(value * inverse(scale), 0.0, 63.0);
        [middle - 1.0, middle, middle + 1.0]
    };
    let mut best = (f32::INFINITY, [0.0; 2]);
    for own in near(scale, scales[0]) {
        for minimum in near(-offset, scales[1]) {
            if !(0.0..=63.0).contains(&own) || !(0.0..=63.0).contains(&minimum) {
                continue;
            }
            let (s, m) = (scales[0] * own, -scales[1] * minimum);
            let moments = affine_moments(x, w, m, inverse(s), levels);
            let loss = totals.loss(moments, s, m);
            if loss < best.0 {
                best = (loss, [own, minimum]);
            }
        }
    }
    best.1
}

/// The normal equations of the two scales of a block, given everything else.
#[derive(Default)]
struct System {
    aa: f64,
    ab: f64,
    bb: f64,
    ax: f64,
    bx: f64,
}

impl System {
    /// A value of the group is `scales[0]·own[0]·q − scales[1]·own[1]`.
    fn add(&mut self, totals: Totals, at: fit::AffineMoments, own: [f32; 2]) {
        let [a, b] = own.map(f64::from);
        self.aa += a * a * f64::from(at.qq);
        self.ab -= a * b * f64::from(at.q);
        self.bb += b * b * f64::from(totals.w);
        self.ax += a * f64::from(at.xq);
        self.bx -= b * f64::from(totals.x);
    }

    fn solve(&self) -> Option<[f32; 2]> {
        let determinant = self.aa * self.bb - self.ab * self.ab;
        let alone = (self.aa > 0.0).then(|| [(self.ax / self.aa) as f32, 0.0]);
        if determinant <= 1e-9 * self.aa * self.bb {
            return alone.filter(|_| self.bb == 0.0);
        }
        let scale = (self.ax * self.bb - self.bx * self.ab) / determinant;
        let minimum = (self.bx * self.aa - self.ax * self.ab) / determinant;
        (scale > 0.0 && minimum >= 0.0).then_some([scale as f32, minimum as f32])
    }
}
