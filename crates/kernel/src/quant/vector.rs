//! The product for instruction sets whose registers hold four values of each of some rows of a
//! tile: all of its 16 rows, or a part of them.

mod few_bits;
mod lookup;

use super::Format;
use super::product::{Slice, one_scale};
use super::tiles::{SUB, TILE, Tile};

/// Registers of some instruction set.
///
/// # Safety
/// All functions need the instruction set, and pointers to as much as they say.
pub(super) trait Vector {
    /// Lanes of 32 bits, one for each row: a divisor of 16.
    const LANES: usize;
    /// Rows of activations whose sums fit the registers beside eight of weights.
    const ROWS: usize;
    type Words: Copy;
    type Floats: Copy;

    /// A word for each lane.
    unsafe fn load(at: *const u8) -> Self::Words;
    /// An f16 for each lane.
    unsafe fn halves(at: *const u8) -> Self::Floats;
    /// A u16 for each lane.
    unsafe fn shorts(at: *const u8) -> Self::Words;
    /// `2^(byte − 128)` of a byte for each lane.
    unsafe fn half_powers(at: *const u8) -> Self::Floats;
    unsafe fn store(at: *mut f32, values: Self::Floats);
    unsafe fn splat(value: f32) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The words shifted to the right, then of each byte the bits of `mask`.
    unsafe fn bits(words: Self::Words, shift: u32, mask: u8) -> Self::Words;
    /// The words turned to the left, then of each byte the bits of `mask`.
    unsafe fn turned_bits(words: Self::Words, left: u32, mask: u8) -> Self::Words;
    unsafe fn or(a: Self::Words, b: Self::Words) -> Self::Words;
    /// Of each byte, which is below 16, the table's value.
    unsafe fn look_up(bytes: Self::Words, table: &[u8; 16]) -> Self::Words;
    /// Adds 16 to each byte whose bit is set in the mask, which has a bit for each.
    unsafe fn add_fifth(bytes: Self::Words, mask: *const u8) -> Self::Words;
    /// The byte `index` of each word, as a number.
    unsafe fn byte(words: Self::Words, index: usize) -> Self::Floats;
    /// The same of an i8.
    unsafe fn signed_byte(words: Self::Words, index: usize) -> Self::Floats;
    /// For each lane the sum over `N` words of the products of four unsigned values, below
    /// `2^bits`, with four activations at `a`, those of the next word behind them.
    unsafe fn dot<const N: usize>(q: [Self::Words; N], a: *const i32, bits: u32) -> Self::Floats;
}

/// One tile against some rows of activations.
///
/// # Safety
/// The CPU must have the instruction set; the lengths must be those that `tile_product` checks.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector>(tile: &Tile, x: Slice, sums: &mut [[f32; TILE]]) {
    // SAFETY: passed on from the caller.
    unsafe {
        match tile.format {
            Format::Q8_0 => rows::<V, Q8_0>(tile, x, sums),
            Format::Q4_0 => rows::<V, Q4_0>(tile, x, sums),
            Format::Q4_1 => rows::<V, Q4_1>(tile, x, sums),
            Format::Q5_0 => rows::<V, Q5_0>(tile, x, sums),
            Format::Q5_1 => rows::<V, Q5_1>(tile, x, sums),
            Format::Q4_K => rows::<V, Q4K>(tile, x, sums),
            Format::Q5_K => rows::<V, Q5K>(tile, x, sums),
            Format::Q6_K => rows::<V, Q6K>(tile, x, sums),
            Format::Q2_K => rows::<V, few_bits::Q2K>(tile, x, sums),
            Format::Q3_K => rows::<V, few_bits::Q3K>(tile, x, sums),
            Format::IQ4_NL => rows::<V, lookup::Iq4Nl>(tile, x, sums),
            Format::IQ4_XS => rows::<V, lookup::Iq4Xs>(tile, x, sums),
            Format::MXFP4 => rows::<V, lookup::Mxfp4>(tile, x, sums),
            Format::F32 | Format::F16 | Format::Bf16 => unreachable!("not tiled"),
        }
    }
}

#[inline(always)]
unsafe fn rows<V: Vector, B: Block>(tile: &Tile, x: Slice, sums: &mut [[f32; TILE]]) {
    for part in 0..TILE / V::LANES {
        let mut row = 0;
        while row < x.count {
            let to = &mut sums[row..];
            // SAFETY: passed on from the caller; `row` and as many rows as named are below the
            // count.
            row += unsafe {
                match V::ROWS.min(x.count - row) {
                    1 => some_rows::<V, B, 1>(tile, x, part, row, to),
                    2 => some_rows::<V, B, 2>(tile, x, part, row, to),
                    3 => some_rows::<V, B, 3>(tile, x, part, row, to),
                    4..8 => some_rows::<V, B, 4>(tile, x, part, row, to),
                    8..12 => some_rows::<V, B, 8>(tile, x, part, row, to),
                    _ => some_rows::<V, B, 12>(tile, x, part, row, to),
                }
            };
        }
    }
}

/// `M` rows from `row` on. Returns `M`.
#[inline(always)]
unsafe fn some_rows<V: Vector, B: Block, const M: usize>(
    tile: &Tile,
    x: Slice,
    part: usize,
    row: usize,
    sums: &mut [[f32; TILE]],
) -> usize {
    let subs = x.cols / SUB;
    // SAFETY: the tile holds its blocks, each of `B::SUBS` sub-blocks, and the slices the M rows
    // from `row` on; all offsets below stay within.
    unsafe {
        let mut quants = [x.quants.as_ptr(); M];
        let mut scales = [x.scales.as_ptr(); M];
        for m in 0..M {
            let row = x.row(row + m);
            quants[m] = quants[m].add(row * x.cols);
            scales[m] = scales[m].add(row * subs);
        }
        let mut acc = [V::splat(0.0); M];
        for block in 0..subs / B::SUBS {
            let start = tile.bytes.as_ptr().add(block * B::FORMAT.block_bytes() * TILE);
            let from = At { start, part };
            let header = B::header::<V>(from);
            for sub in 0..B::SUBS {
                let w = B::unpack::<V>(from, header, sub);
                let at = block * B::SUBS + sub;
                for m in 0..M {
                    let a = quants[m].add(at * SUB).cast::<i32>();
                    let s = &*scales[m].add(at);
                    let scale = V::splat(s.scale);
                    if one_scale(B::FORMAT) {
                        let dot = V::dot(w.q, a, B::BITS);
                        acc[m] = V::mul_add(dot, V::mul(w.scale[0], scale), acc[m]);
                        acc[m] = V::mul_add(w.offset[0], V::splat(s.sum), acc[m]);
                    } else {
                        let [low, high] = halves(w.q);
                        let (low, high) =
                            (V::dot(low, a, B::BITS), V::dot(high, a.add(4), B::BITS));
                        acc[m] = V::mul_add(low, V::mul(w.scale[0], scale), acc[m]);
                        acc[m] = V::mul_add(high, V::mul(w.scale[1], scale), acc[m]);
                        acc[m] = V::mul_add(w.offset[0], V::splat(s.low), acc[m]);
                        acc[m] = V::mul_add(w.offset[1], V::splat(s.high), acc[m]);
                    }
                }
            }
        }
        for m in 0..M {
            V::store(sums[m].as_mut_ptr().add(part * V::LANES), acc[m]);
        }
    }
    M
}

#[inline(always)]
fn halves<T: Copy>(q: [T; 8]) -> [[T; 4]; 2] {
    [[q[0], q[1], q[2], q[3]], [q[4], q[5], q[6], q[7]]]
}

/// A block of a tile, of which one part of the rows is looked at.
#[derive(Clone, Copy)]
struct At {
    start: *const u8,
    part: usize,
}

impl At {
    /// The f16 of each row, the first standing `at` bytes from the block's beginning.
    #[inline(always)]
    unsafe fn halves<V: Vector>(self, at: usize) -> V::Floats {
        // SAFETY: 16 f16 stand there.
        unsafe { V::halves(self.start.add(at + 2 * V::LANES * self.part)) }
    }

    #[inline(always)]
    unsafe fn word<V: Vector>(self, at: usize, index: usize) -> V::Words {
        // SAFETY: the words of 16 rows up to `index` stand there.
        unsafe { V::load(self.start.add(at + 64 * index + 4 * V::LANES * self.part)) }
    }

    /// Four words: low halves are values 0..16, high halves 16..32.
    #[inline(always)]
    unsafe fn nibbles<V: Vector>(self, at: usize) -> [V::Words; 8] {
        // SAFETY: four words stand there.
        unsafe {
            let words: [V::Words; 4] = [
                self.word::<V>(at, 0),
                self.word::<V>(at, 1),
                self.word::<V>(at, 2),
                self.word::<V>(at, 3),
            ];
            array(|quad| V::bits(words[quad % 4], quad as u32 / 4 * 4, 15))
        }
    }

    /// Adds 16 where the masks say so.
    #[inline(always)]
    unsafe fn fifths<V: Vector>(self, q: [V::Words; 8], at: usize) -> [V::Words; 8] {
        // SAFETY: eight masks of 64 bits stand there.
        unsafe {
            let masks = self.start.add(at + V::LANES / 2 * self.part);
            array(|quad| V::add_fifth(q[quad], masks.add(8 * quad)))
        }
    }
}

/// As `std::array::from_fn`, whose closure is not always inlined, and would then lack the
/// instruction set.
#[inline(always)]
fn array<T: Copy>(value: impl Fn(usize) -> T) -> [T; 8] {
    let (a, b, c, d) = (value(0), value(1), value(2), value(3));
    [a, b, c, d, value(4), value(5), value(6), value(7)]
}

/// A sub-block of a tile: 32 values of each row, each `scale · q + offset`. The second scale and
/// offset are those of the second 16 values, where they have their own.
struct Unpacked<V: Vector> {
    q: [V::Words; 8],
    scale: [V::Floats; 2],
    offset: [V::Floats; 2],
}

/// A format's block in a tile.
///
/// # Safety
/// All functions read the block, and need the instruction set.
trait Block {
    const FORMAT: Format;
    /// Sub-blocks of 32 values.
    const SUBS: usize = Self::FORMAT.block_len() / SUB;
    /// The unsigned values lie below `2^BITS`.
    const BITS: u32;
    /// What all sub-blocks need, decoded once.
    type Header<V: Vector>: Copy;
    unsafe fn header<V: Vector>(block: At) -> Self::Header<V>;
    unsafe fn unpack<V: Vector>(block: At, header: Self::Header<V>, sub: usize) -> Unpacked<V>;
}

/// Declares a format of 32 values: its scale, offset and values from the block.
///
/// A macro, because five formats differ in nothing but these expressions.
macro_rules! small {
    ($name:ident, $bits:literal, |$block:ident, $d:ident| $offset:expr, $q:expr) => {
        #[allow(non_camel_case_types)]
        struct $name;

        impl Block for $name {
            const FORMAT: Format = Format::$name;
            const BITS: u32 = $bits;
            type Header<V: Vector> = ();

            #[inline(always)]
            unsafe fn header<V: Vector>(_: At) {}

            #[inline(always)]
            unsafe fn unpack<V: Vector>($block: At, (): (), _: usize) -> Unpacked<V> {
                // SAFETY: the fields stand in the block where `tiles::fields` puts them.
                unsafe {
                    let $d = $block.halves::<V>(0);
                    let offset = $offset;
                    Unpacked { q: $q, scale: [$d; 2], offset: [offset; 2] }
                }
            }
        }
    };
}

small!(Q8_0, 8, |b, d| V::mul(d, V::splat(-128.0)), array(|quad| b.word::<V>(32, quad)));
small!(Q4_0, 4, |b, d| V::mul(d, V::splat(-8.0)), b.nibbles::<V>(32));
small!(Q4_1, 4, |b, d| b.halves::<V>(32), b.nibbles::<V>(64));
small!(Q5_0, 5, |b, d| V::mul(d, V::splat(-16.0)), b.fifths::<V>(b.nibbles::<V>(96), 32));
small!(Q5_1, 5, |b, d| b.halves::<V>(32), b.fifths::<V>(b.nibbles::<V>(128), 64));

/// Scales and minima of the eight sub-blocks of Q4_K and Q5_K, four in each word.
struct Scales<V: Vector> {
    d: V::Floats,
    minimum: V::Floats,
    scales: [V::Words; 2],
    minima: [V::Words; 2],
}

impl<V: Vector> Clone for Scales<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V: Vector> Copy for Scales<V> {}

impl<V: Vector> Scales<V> {
    #[inline(always)]
    unsafe fn read(block: At) -> Self {
        // SAFETY: two halves and three words stand at the block's beginning.
        unsafe {
            let (a, b, c) =
                (block.word::<V>(64, 0), block.word::<V>(64, 1), block.word::<V>(64, 2));
            // Bits 4 and 5 of the last four are bits 6 and 7 of the first four.
            let top = |word| V::bits(word, 2, 48);
            Scales {
                d: block.halves::<V>(0),
                minimum: V::mul(block.halves::<V>(32), V::splat(-1.0)),
                scales: [V::bits(a, 0, 63), V::or(V::bits(c, 0, 15), top(a))],
                minima: [V::bits(b, 0, 63), V::or(V::bits(c, 4, 15), top(b))],
            }
        }
    }

    /// The sub-block whose words stand `at` bytes from the block's beginning.
    #[inline(always)]
    unsafe fn unpack(self, block: At, at: usize, sub: usize) -> Unpacked<V> {
        // SAFETY: 32 words stand there, of which each eight hold two sub-blocks.
        unsafe {
            let scale = V::mul(self.d, V::byte(self.scales[sub / 4], sub % 4));
            let offset = V::mul(self.minimum, V::byte(self.minima[sub / 4], sub % 4));
            let shift = sub as u32 % 2 * 4;
            let q = array(|quad| V::bits(block.word::<V>(at, sub / 2 * 8 + quad), shift, 15));
            Unpacked { q, scale: [scale; 2], offset: [offset; 2] }
        }
    }
}

struct Q4K;

impl Block for Q4K {
    const FORMAT: Format = Format::Q4_K;
    const BITS: u32 = 4;
    type Header<V: Vector> = Scales<V>;

    #[inline(always)]
    unsafe fn header<V: Vector>(block: At) -> Scales<V> {
        // SAFETY: passed on from the caller.
        unsafe { Scales::read(block) }
    }

    #[inline(always)]
    unsafe fn unpack<V: Vector>(block: At, header: Scales<V>, sub: usize) -> Unpacked<V> {
        // SAFETY: the words stand behind the scales.
        unsafe { header.unpack(block, 256, sub) }
    }
}

struct Q5K;

impl Block for Q5K {
    const FORMAT: Format = Format::Q5_K;
    const BITS: u32 = 5;
    type Header<V: Vector> = Scales<V>;

    #[inline(always)]
    unsafe fn header<V: Vector>(block: At) -> Scales<V> {
        // SAFETY: passed on from the caller.
        unsafe { Scales::read(block) }
    }

    #[inline(always)]
    unsafe fn unpack<V: Vector>(block: At, header: Scales<V>, sub: usize) -> Unpacked<V> {
        // SAFETY: eight masks for each sub-block stand behind the scales, then the words.
        unsafe {
            let unpacked = header.unpack(block, 256 + 512, sub);
            Unpacked { q: block.fifths::<V>(unpacked.q, 256 + 64 * sub), ..unpacked }
        }
    }
}

struct Q6K;

impl Block for Q6K {
    const FORMAT: Format = Format::Q6_K;
    const BITS: u32 = 6;
    type Header<V: Vector> = V::Floats;

    #[inline(always)]
    unsafe fn header<V: Vector>(block: At) -> V::Floats {
        // SAFETY: the scale stands first.
        unsafe { block.halves::<V>(0) }
    }

    #[inline(always)]
    unsafe fn unpack<V: Vector>(block: At, d: V::Floats, sub: usize) -> Unpacked<V> {
        // SAFETY: behind the scale stand 4 words of scales, 16 of upper bits, 32 of lower.
        unsafe {
            let (half, group) = (sub / 4, sub % 4);
            let shift = group as u32 / 2 * 4;
            // Bits 2·group of each byte go to bit 4: to the left, none, or to the right.
            let left = (32 + 4 - 2 * group as u32) % 32;
            let q = array(|quad| {
                let low = block.word::<V>(1312, half * 16 + group % 2 * 8 + quad);
                let high = block.word::<V>(288, half * 8 + quad);
                V::or(V::bits(low, shift, 15), V::turned_bits(high, left, 48))
            });
            let words = block.word::<V>(32, sub / 2);
            let first = sub % 2 * 2;
            let scale = [
                V::mul(d, V::signed_byte(words, first)),
                V::mul(d, V::signed_byte(words, first + 1)),
            ];
            let offset = [V::mul(scale[0], V::splat(-32.0)), V::mul(scale[1], V::splat(-32.0))];
            Unpacked { q, scale, offset }
        }
    }
}
