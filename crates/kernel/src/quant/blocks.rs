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
