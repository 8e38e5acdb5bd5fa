use half::{bf16, f16};

use super::{Error, Format};

/// The caller has checked that `bytes` are those of `out.len()` values.
pub(super) fn dequantise(format: Format, bytes: &[u8], out: &mut [f32]) {
    let block: fn(&[u8], &mut [f32]) = match format {
        Format::F32 => return plain(bytes, out, f32::from_le_bytes),
        Format::F16 => return plain(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        Format::Bf16 => return plain(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        Format::Q8_0 => q8_0,
        Format::Q4_0 => q4_0,
        Format::Q4_1 => q4_1,
        Format::Q5_0 => q5_0,
        Format::Q5_1 => q5_1,
        Format::Q4_K => q4_k,
        Format::Q5_K => q5_k,
        Format::Q6_K => q6_k,
        Format::Q2_K => q2_k,
        Format::Q3_K => q3_k,
        Format::IQ4_NL => iq4_nl,
        Format::IQ4_XS => iq4_xs,
        Format::MXFP4 => mxfp4,
    };
    let blocks = bytes.chunks_exact(format.block_bytes());
    for (from, to) in blocks.zip(out.chunks_exact_mut(format.block_len())) {
        block(from, to);
    }
}

fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (from, to) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *to = value(*from);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// scale f16, 32 × i8
fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (value, to) in block[2..].iter().zip(out) {
        *to = f32::from(*value as i8) * scale;
    }
}

/// scale f16, 16 bytes: low halves are values 0..16, high halves 16..32
fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for (i, byte) in block[2..].iter().enumerate() {
        low[i] = f32::from((byte & 15) as i8 - 8) * scale;
        high[i] = f32::from((byte >> 4) as i8 - 8) * scale;
    }
}

/// scale f16, minimum f16, 16 bytes as in q4_0
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for (i, byte) in block[4..].iter().enumerate() {
        low[i] = f32::from(byte & 15) * scale + minimum;
        high[i] = f32::from(byte >> 4) * scale + minimum;
    }
}

/// scale f16, 32 fifth bits, 16 bytes as in q4_0
fn q5_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (i, value) in five_bits(&block[2..]).into_iter().enumerate() {
        out[i] = f32::from(value as i8 - 16) * scale;
    }
}

/// scale f16, minimum f16, 32 fifth bits, 16 bytes as in q4_0
fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for (i, value) in five_bits(&block[4..]).into_iter().enumerate() {
        out[i] = f32::from(value) * scale + minimum;
    }
}

fn five_bits(bytes: &[u8]) -> [u8; 32] {
    let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    std::array::from_fn(|i| {
        let byte = bytes[4 + i % 16];
        let low = if i < 16 { byte & 15 } else { byte >> 4 };
        low | ((fifth >> i & 1) as u8) << 4
    })
}

/// The six-bit scale and minimum of sub-block `i` of 8, from the 12 bytes that hold them.
fn scale_and_minimum(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, minimum) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

/// The 12 bytes of eight scales and minima: the inverse of [`scale_and_minimum`].
pub(super) fn pack_scales(own: &[[u8; 2]; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => own[i][0] | own[i + 4][0] >> 4 << 6,
        4..8 => own[i - 4][1] | own[i][1] >> 4 << 6,
        _ => own[i - 4][0] & 15 | (own[i - 4][1] & 15) << 4,
    })
}

/// scale f16, scale of minima f16, 12 bytes of sub-scales, 128 bytes: each 32 hold two sub-blocks
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (packed, values) = (&block[4..16], &block[16..]);
    for (i, to) in out.chunks_exact_mut(32).enumerate() {
        let (s, m) = scale_and_minimum(packed, i);
        let (s, m) = (scale * s, minimum * m);
        for (byte, to) in values[i / 2 * 32..].iter().zip(to) {
            *to = s * f32::from(byte >> (i % 2 * 4) & 15) - m;
        }
    }
}

/// As q4_k, with 32 bytes of fifth bits (bit `i` belongs to sub-block `i`) before the values
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifth, values) = (&block[4..16], &block[16..48], &block[48..]);
    for (i, to) in out.chunks_exact_mut(32).enumerate() {
        let (s, m) = scale_and_minimum(packed, i);
        let (s, m) = (scale * s, minimum * m);
        let bytes = values[i / 2 * 32..].iter().zip(fifth);
        for ((byte, fifth), to) in bytes.zip(to) {
            let value = byte >> (i % 2 * 4) & 15 | (fifth >> i & 1) << 4;
            *to = s * f32::from(value) - m;
        }
    }
}

/// 128 bytes of low halves, 64 of upper two bits, 16 × i8 scales, scale f16
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (i, to) in out.iter_mut().enumerate() {
        // Each half of 128 values: 64 low bytes used twice, 32 high bytes used four times.
        let (half, at) = (i / 128, i % 128);
        let low = low[half * 64 + at % 64] >> (at / 64 * 4) & 15;
        let high = high[half * 32 + at % 32] >> (at / 32 * 2) & 3;
        let value = (low | high << 4) as i8 - 32;
        *to = scale * f32::from(scales[i / 16] as i8) * f32::from(value);
    }
}

/// 16 bytes: each the four-bit scale and minimum of 16 values, 64 bytes of two-bit values, scale f16,
/// scale of minima f16
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, values) = (&block[..16], &block[16..80]);
    let (scale, minimum) = (half_at(block, 80), half_at(block, 82));
    for (i, to) in out.chunks_exact_mut(16).enumerate() {
        let (s, m) = (scale * f32::from(scales[i] & 15), minimum * f32::from(scales[i] >> 4));
        // Each half of 128 values: 32 bytes used four times.
        let bytes = &values[i / 8 * 32 + i % 2 * 16..];
        for (byte, to) in bytes.iter().zip(to) {
            *to = s * f32::from(byte >> (i % 8 / 2 * 2) & 3) - m;
        }
    }
}

/// 32 bytes of third bits (bit `i` belongs to sub-block `i`), 64 bytes of two-bit values as in q2_k,
/// 12 bytes of sub-scales, scale f16
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (third, values, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    for (i, to) in out.chunks_exact_mut(16).enumerate() {
        let low = scales[i % 8] >> (i / 8 * 4) & 15;
        let high = scales[8 + i % 4] >> (i / 4 * 2) & 3;
        let s = scale * f32::from((low | high << 4) as i8 - 32);
        let half = i % 2 * 16;
        let bytes = values[i / 8 * 32 + half..].iter().zip(&third[half..]);
        for ((byte, third), to) in bytes.zip(to) {
            let value = byte >> (i % 8 / 2 * 2) & 3 | (third >> (i / 2) & 1) << 2;
            *to = s * f32::from(value as i8 - 4);
        }
    }
}

/// What the 4 bits of IQ4_NL and IQ4_XS stand for.
pub(super) const IQ4: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What the 4 bits of MXFP4 stand for: twice the value of E2M1.
pub(super) const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

fn looked_up(table: &[i8; 16], scale: f32, bytes: &[u8], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(16);
    for (i, byte) in bytes.iter().enumerate() {
        low[i] = scale * f32::from(table[usize::from(byte & 15)]);
        high[i] = scale * f32::from(table[usize::from(byte >> 4)]);
    }
}

/// scale f16, 16 bytes as in q4_0, looked up
fn iq4_nl(block: &[u8], out: &mut [f32]) {
    looked_up(&IQ4, half_at(block, 0), &block[2..], out);
}

/// scale f16, u16 of the sub-scales' upper two bits, 4 bytes of their lower four, 8 × 16 bytes as in
/// iq4_nl
fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let high = u16::from_le_bytes([block[2], block[3]]);
    let (low, values) = (&block[4..8], &block[8..]);
    for (i, to) in out.chunks_exact_mut(32).enumerate() {
        let sub = low[i / 2] >> (i % 2 * 4) & 15 | ((high >> (2 * i) & 3) as u8) << 4;
        let scale = half_at(block, 0) * f32::from(sub as i8 - 32);
        looked_up(&IQ4, scale, &values[16 * i..][..16], to);
    }
}

/// exponent of two, 16 bytes as in q4_0, looked up
fn mxfp4(block: &[u8], out: &mut [f32]) {
    looked_up(&E2M1, half_power(block[0]), &block[1..], out);
}

/// `2^(exponent − 128)`: half of what E8M0 means, since [`E2M1`] holds doubled values.
pub(super) fn half_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 0x0020_0000 << exponent,
        _ => u32::from(exponent - 1) << 23,
    })
}

/// The caller has checked that `values` fill whole blocks.
pub(super) fn quantise(format: Format, values: &[f32], out: &mut Vec<u8>) -> Result<(), Error> {
    match format {
        Format::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Format::Bf16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        Format::F16 => {
            for &value in values {
                out.extend_from_slice(&to_half(format, value, value)?);
            }
        }
        Format::Q8_0 => {
            for block in values.chunks_exact(32) {
                write_q8_0(block, out)?;
            }
        }
        Format::Q4_0 => {
            for block in values.chunks_exact(32) {
                write_q4_0(block, out)?;
            }
        }
        _ => return Err(Error::NotWritable { format }),
    }
    Ok(())
}

/// `number` as f16; `value` is what the error names.
fn to_half(format: Format, number: f32, value: f32) -> Result<[u8; 2], Error> {
    let half = f16::from_f32(number);
    if half.is_finite() { Ok(half.to_le_bytes()) } else { Err(Error::Overflow { format, value }) }
}

/// The value furthest from zero, the first of equals; a NaN wins.
fn extreme(block: &[f32]) -> f32 {
    block.iter().fold(
        0.0f32,
        |found, &v| {
            if v.is_nan() || v.abs() > found.abs() { v } else { found }
        },
    )
}

fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn write_q8_0(block: &[f32], out: &mut Vec<u8>) -> Result<(), Error> {
    let extreme = extreme(block);
    let scale = extreme.abs() / 127.0;
    out.extend_from_slice(&to_half(Format::Q8_0, scale, extreme)?);
    let inverse = reciprocal(scale);
    out.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
    Ok(())
}

fn write_q4_0(block: &[f32], out: &mut Vec<u8>) -> Result<(), Error> {
    let extreme = extreme(block);
    let scale = extreme / -8.0;
    out.extend_from_slice(&to_half(Format::Q4_0, scale, extreme)?);
    let inverse = reciprocal(scale);
    let nibble = |v: f32| ((v * inverse + 8.5) as u8).min(15);
    out.extend((0..16).map(|i| nibble(block[i]) | nibble(block[i + 16]) << 4));
    Ok(())
}
