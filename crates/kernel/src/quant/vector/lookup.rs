//! IQ4_NL, IQ4_XS and MXFP4: the four bits of a value are its place in a table.

use super::{At, Block, Unpacked, Vector, array};
use crate::quant::Format;
use crate::quant::blocks::{E2M1, IQ4};

/// The table's values, made unsigned by adding `zero`.
const fn unsigned(table: [i8; 16], zero: i16) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (table[i] as i16 + zero) as u8;
        i += 1;
    }
    out
}

static IQ4_UNSIGNED: [u8; 16] = unsigned(IQ4, 128);
static E2M1_UNSIGNED: [u8; 16] = unsigned(E2M1, 12);

/// Four words of each row, `at` bytes from the block's beginning, looked up.
#[inline(always)]
unsafe fn values<V: Vector>(block: At, at: usize, table: &[u8; 16]) -> [V::Words; 8] {
    // SAFETY: four words stand there.
    unsafe {
        let places = block.nibbles::<V>(at);
        array(|quad| V::look_up(places[quad], table))
    }
}

pub(super) struct Iq4Nl;

impl Block for Iq4Nl {
    const FORMAT: Format = Format::IQ4_NL;
    const BITS: u32 = 8;
    type Header<V: Vector> = ();

    #[inline(always)]
    unsafe fn header<V: Vector>(_: At) {}

    #[inline(always)]
    unsafe fn unpack<V: Vector>(block: At, (): (), _: usize) -> Unpacked<V> {
        // SAFETY: the fields stand in the block where `tiles::fields` puts them.
        unsafe {
            let d = block.halves::<V>(0);
            let q = values::<V>(block, 32, &IQ4_UNSIGNED);
            Unpacked { q, scale: [d; 2], offset: [V::mul(d, V::splat(-128.0)); 2] }
        }
    }
}

pub(super) struct Iq4Xs;

impl Block for Iq4Xs {
    const FORMAT: Format = Format::IQ4_XS;
    const BITS: u32 = 8;
    /// The scale, and the upper and the lower bits of those of the sub-blocks.
    type Header<V: Vector> = (V::Floats, V::Words, V::Words);

    #[inline(always)]
    unsafe fn header<V: Vector>(block: At) -> Self::Header<V> {
        // SAFETY: a half, a short and a word of each row stand at the block's beginning.
        unsafe {
            let high = V::shorts(block.start.add(32 + 2 * V::LANES * block.part));
            (block.halves::<V>(0), high, block.word::<V>(64, 0))
        }
    }

    #[inline(always)]
    unsafe fn unpack<V: Vector>(block: At, header: Self::Header<V>, sub: usize) -> Unpacked<V> {
        // SAFETY: behind the scales stand four words for each sub-block.
        unsafe {
            let (d, high, low) = header;
            let sub_bits = sub as u32;
            // Bits 2·sub and 2·sub + 1 go to bits 4 and 5 of the first byte.
            let high = V::turned_bits(high, (32 + 4 - 2 * sub_bits) % 32, 48);
            let own = V::byte(V::or(V::bits(low, 4 * sub_bits, 15), high), 0);
            let scale = V::mul(d, V::mul_add(own, V::splat(1.0), V::splat(-32.0)));
            let q = values::<V>(block, 128 + 256 * sub, &IQ4_UNSIGNED);
            Unpacked { q, scale: [scale; 2], offset: [V::mul(scale, V::splat(-128.0)); 2] }
        }
    }
}

pub(super) struct Mxfp4;

impl Block for Mxfp4 {
    const FORMAT: Format = Format::MXFP4;
    const BITS: u32 = 5;
    type Header<V: Vector> = ();

    #[inline(always)]
    unsafe fn header<V: Vector>(_: At) {}

    #[inline(always)]
    unsafe fn unpack<V: Vector>(block: At, (): (), _: usize) -> Unpacked<V> {
        // SAFETY: a byte and four words of each row stand in the block.
        unsafe {
            let d = V::half_powers(block.start.add(V::LANES * block.part));
            let q = values::<V>(block, 16, &E2M1_UNSIGNED);
            Unpacked { q, scale: [d; 2], offset: [V::mul(d, V::splat(-12.0)); 2] }
        }
    }
}
