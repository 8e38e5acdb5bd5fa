//! The product in plain Rust: the oracle of the others, and what runs where there is no other.

use half::f16;

use super::Format;
use super::blocks::{E2M1, IQ4, half_power};
use super::product::{Slice, one_scale};
use super::tiles::{SUB, TILE, Tile};
use crate::cpu::multiversion;

/// A sub-block of a tile: 32 values of 16 rows, each `scale · q + offset`.
pub(super) struct Unpacked {
    /// `[8, 16, 4]`: four values of each row, eight times.
    pub(super) q: [[[u8; 4]; TILE]; 8],
    /// Of the first and the second 16 values.
    pub(super) scale: [[f32; TILE]; 2],
    pub(super) offset: [[f32; TILE]; 2],
}

multiversion! {
/// One tile against some rows of activations.
pub(super) fn tile(tile: &Tile, x: Slice, sums: &mut [[f32; TILE]]) {
    let format = tile.format;
    let subs = format.block_len() / SUB;
    let size = format.block_bytes() * TILE;
    sums.fill([0.0; TILE]);
    for (index, block) in tile.bytes.chunks_exact(size).enumerate() {
        for sub in 0..subs {
            let weights = unpack(format, block, sub);
            let at = index * subs + sub;
            for (row, sums) in sums.iter_mut().enumerate() {
                let row = x.row(row);
                let quants = &x.quants[row * x.cols + at * SUB..][..SUB];
                let scale = &x.scales[row * (x.cols / SUB) + at];
                let mut dots = [[0i32; TILE]; 2];
                for quad in 0..8 {
                    for lane in 0..TILE {
                        for i in 0..4 {
                            let q = i32::from(weights.q[quad][lane][i]);
                            dots[quad / 4][lane] += q * i32::from(quants[4 * quad + i]);
                        }
                    }
                }
                for lane in 0..TILE {
                    let [low, high] = [dots[0][lane], dots[1][lane]];
                    if one_scale(format) {
                        let scales = weights.scale[0][lane] * scale.scale;
                        sums[lane] += (low + high) as f32 * scales;
                        sums[lane] += weights.offset[0][lane] * scale.sum;
                    } else {
                        sums[lane] += low as f32 * (weights.scale[0][lane] * scale.scale);
                        sums[lane] += high as f32 * (weights.scale[1][lane] * scale.scale);
                        sums[lane] += weights.offset[0][lane] * scale.low;
                        sums[lane] += weights.offset[1][lane] * scale.high;
                    }
                }
            }
        }
    }
}
}

/// Sub-block `sub` of a tile's block.
pub(super) fn unpack(format: Format, block: &[u8], sub: usize) -> Unpacked {
    let halves = |at: usize| -> [f32; TILE] {
        std::array::from_fn(|lane| {
            f16::from_le_bytes([block[at + 2 * lane], block[at + 2 * lane + 1]]).to_f32()
        })
    };
    let bytes = |word: usize, lane: usize, i: usize| block[word * 64 + 32 + 4 * lane + i];
    let d = halves(0);
    let zero = |zero: f32| d.map(|d| -zero * d);
    let both = |scale, offset, q| Unpacked { q, scale: [scale; 2], offset: [offset; 2] };
    match format {
        Format::Q8_0 => both(d, zero(128.0), quads(bytes)),
        Format::Q4_0 => both(d, zero(8.0), nibbles(&block[32..])),
        Format::Q4_1 => both(d, halves(32), nibbles(&block[64..])),
        Format::Q5_0 => both(d, zero(16.0), fifths(nibbles(&block[96..]), &block[32..])),
        Format::Q5_1 => both(d, halves(32), fifths(nibbles(&block[128..]), &block[64..])),
        Format::Q4_K | Format::Q5_K => {
            let (scale, offset) = scales_k(block, sub);
            let words = if format == Format::Q4_K { 256 } else { 256 + 512 };
            let q = quads(|quad, lane, i| {
                let byte = block[words + (sub / 2 * 8 + quad) * 64 + 4 * lane + i];
                byte >> (sub % 2 * 4) & 15
            });
            let q = if format == Format::Q4_K { q } else { fifths(q, &block[256 + sub * 64..]) };
            both(scale, offset, q)
        }
        Format::Q6_K => {
            let (half, group) = (sub / 4, sub % 4);
            let q = quads(|quad, lane, i| {
                let low =
                    block[32 + 256 + 1024 + (half * 16 + group % 2 * 8 + quad) * 64 + 4 * lane + i];
                let high = block[32 + 256 + (half * 8 + quad) * 64 + 4 * lane + i];
                low >> (group / 2 * 4) & 15 | (high >> (group * 2) & 3) << 4
            });
            let scale: [[f32; TILE]; 2] = std::array::from_fn(|part| {
                let index = 2 * sub + part;
                let byte = |lane: usize| block[32 + index / 4 * 64 + 4 * lane + index % 4] as i8;
                std::array::from_fn(|lane| d[lane] * f32::from(byte(lane)))
            });
            Unpacked { q, scale, offset: scale.map(|part| part.map(|s| -32.0 * s)) }
        }
        Format::Q2_K => {
            let byte =
                |lane: usize, index: usize| block[64 + index / 4 * 64 + 4 * lane + index % 4];
            let minimum = halves(32);
            let part = |value: &dyn Fn(usize, u8) -> f32| {
                [0, 1].map(|part| std::array::from_fn(|l| value(l, byte(l, 2 * sub + part))))
            };
            Unpacked {
                q: two_bits(&block[64 + 256..], sub),
                scale: part(&|lane, byte| d[lane] * f32::from(byte & 15)),
                offset: part(&|lane, byte| -minimum[lane] * f32::from(byte >> 4)),
            }
        }
        Format::Q3_K => {
            let low = two_bits(&block[32 + 192 + 512..], sub);
            let q = quads(|quad, lane, i| {
                let third = block[32 + 192 + quad * 64 + 4 * lane + i] >> sub & 1;
                low[quad][lane][i] | third << 2
            });
            let byte =
                |lane: usize, index: usize| block[32 + index / 4 * 64 + 4 * lane + index % 4];
            let scale = [0, 1].map(|part| {
                let i = 2 * sub + part;
                std::array::from_fn(|lane| {
                    let low = byte(lane, i % 8) >> (i / 8 * 4) & 15;
                    let high = byte(lane, 8 + i % 4) >> (i / 4 * 2) & 3;
                    d[lane] * f32::from((low | high << 4) as i8 - 32)
                })
            });
            Unpacked { q, scale, offset: scale.map(|part| part.map(|s| -4.0 * s)) }
        }
        Format::IQ4_NL => both(d, zero(128.0), looked_up(nibbles(&block[32..]), &IQ4, 128)),
        Format::IQ4_XS => {
            let scale = std::array::from_fn(|lane| {
                let high = u16::from_le_bytes([block[32 + 2 * lane], block[33 + 2 * lane]]);
                let low = block[64 + 4 * lane + sub / 2] >> (sub % 2 * 4) & 15;
                let sub_scale = low | ((high >> (2 * sub) & 3) as u8) << 4;
                d[lane] * f32::from(sub_scale as i8 - 32)
            });
            let q = looked_up(nibbles(&block[128 + 256 * sub..]), &IQ4, 128);
            both(scale, scale.map(|s| -128.0 * s), q)
        }
        Format::MXFP4 => {
            let scale = std::array::from_fn(|lane| half_power(block[lane]));
            let q = looked_up(nibbles(&block[16..]), &E2M1, 12);
            both(scale, scale.map(|s| -12.0 * s), q)
        }
        Format::F32 | Format::F16 | Format::Bf16 => unreachable!("{format} is not tiled"),
    }
}

fn quads(value: impl Fn(usize, usize, usize) -> u8) -> [[[u8; 4]; TILE]; 8] {
    std::array::from_fn(|quad| {
        std::array::from_fn(|lane| std::array::from_fn(|i| value(quad, lane, i)))
    })
}

/// Four words of each row: low halves are values 0..16, high halves 16..32.
fn nibbles(words: &[u8]) -> [[[u8; 4]; TILE]; 8] {
    quads(|quad, lane, i| words[quad % 4 * 64 + 4 * lane + i] >> (quad / 4 * 4) & 15)
}

/// Sixteen words of each row, each eight of which hold four sub-blocks.
fn two_bits(words: &[u8], sub: usize) -> [[[u8; 4]; TILE]; 8] {
    quads(|quad, lane, i| words[(sub / 4 * 8 + quad) * 64 + 4 * lane + i] >> (sub % 4 * 2) & 3)
}

/// What the values stand for in `table`, made unsigned by adding `zero`.
fn looked_up(q: [[[u8; 4]; TILE]; 8], table: &[i8; 16], zero: i16) -> [[[u8; 4]; TILE]; 8] {
    let table = table.map(|value| (i16::from(value) + zero) as u8);
    q.map(|quad| quad.map(|lane| lane.map(|q| table[usize::from(q)])))
}

/// Sets bit 4 where the masks say so.
fn fifths(q: [[[u8; 4]; TILE]; 8], masks: &[u8]) -> [[[u8; 4]; TILE]; 8] {
    quads(|quad, lane, i| {
        let bit = masks[quad * 8 + lane / 2] >> (lane % 2 * 4 + i) & 1;
        q[quad][lane][i] | bit << 4
    })
}

/// Scales and offsets of a sub-block of Q4_K or Q5_K.
fn scales_k(block: &[u8], sub: usize) -> ([f32; TILE], [f32; TILE]) {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let byte = |lane: usize, index: usize| block[64 + index / 4 * 64 + 4 * lane + index % 4];
    let scale = |lane: usize| match sub {
        0..4 => byte(lane, sub) & 63,
        _ => byte(lane, sub + 4) & 15 | byte(lane, sub - 4) >> 6 << 4,
    };
    let minimum = |lane: usize| match sub {
        0..4 => byte(lane, sub + 4) & 63,
        _ => byte(lane, sub + 4) >> 4 | byte(lane, sub) >> 6 << 4,
    };
    (
        std::array::from_fn(|lane| half(2 * lane) * f32::from(scale(lane))),
        std::array::from_fn(|lane| -half(32 + 2 * lane) * f32::from(minimum(lane))),
    )
}
