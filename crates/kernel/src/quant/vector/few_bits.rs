//! Q2_K and Q3_K: two bits of a value, four sub-blocks in each eight words, a scale for each 16.

use super::{At, Block, Unpacked, Vector, array};
use crate::quant::Format;

/// The two bits of a sub-block, whose words stand `at` bytes from the block's beginning.
#[inline(always)]
unsafe fn two_bits<V: Vector>(block: At, at: usize, sub: usize) -> [V::Words; 8] {
    // SAFETY: sixteen words stand there.
    unsafe {
        let shift = sub as u32 % 4 * 2;
        array(|quad| V::bits(block.word::<V>(at, sub / 4 * 8 + quad), shift, 3))
    }
}

pub(super) struct Q2K;

impl Block for Q2K {
    const FORMAT: Format = Format::Q2_K;
    const BITS: u32 = 2;
    /// The scale, and that of the minima, negative.
    type Header<V: Vector> = (V::Floats, V::Floats);

    #[inline(always)]
    unsafe fn header<V: Vector>(block: At) -> (V::Floats, V::Floats) {
        // SAFETY: two halves stand at the block's beginning.
        unsafe { (block.halves::<V>(0), V::mul(block.halves::<V>(32), V::splat(-1.0))) }
    }

    #[inline(always)]
    unsafe fn unpack<V: Vector>(
        block: At,
        (d, minimum): (V::Floats, V::Floats),
        sub: usize,
    ) -> Unpacked<V> {
        // SAFETY: behind the halves stand 4 words of scales and minima, then 16 of values.
        unsafe {
            let both = block.word::<V>(64, sub / 2);
            let (scales, minima) = (V::bits(both, 0, 15), V::bits(both, 4, 15));
            let first = sub % 2 * 2;
            Unpacked {
                q: two_bits::<V>(block, 64 + 256, sub),
                scale: [V::mul(d, V::byte(scales, first)), V::mul(d, V::byte(scales, first + 1))],
                offset: [
                    V::mul(minimum, V::byte(minima, first)),
                    V::mul(minimum, V::byte(minima, first + 1)),
                ],
            }
        }
    }
}

pub(super) struct Q3K;

/// The scale, and the sixteen of the half sub-blocks, 32 too large, four in each word.
pub(super) struct Scales3<V: Vector> {
    d: V::Floats,
    scales: [V::Words; 4],
}

impl<V: Vector> Clone for Scales3<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V: Vector> Copy for Scales3<V> {}

impl Block for Q3K {
    const FORMAT: Format = Format::Q3_K;
    const BITS: u32 = 3;
    type Header<V: Vector> = Scales3<V>;

    #[inline(always)]
    unsafe fn header<V: Vector>(block: At) -> Scales3<V> {
        // SAFETY: a half and three words stand at the block's beginning.
        unsafe {
            let (a, b, c) =
                (block.word::<V>(32, 0), block.word::<V>(32, 1), block.word::<V>(32, 2));
            Scales3 {
                d: block.halves::<V>(0),
                scales: [
                    V::or(V::bits(a, 0, 15), V::turned_bits(c, 4, 48)),
                    V::or(V::bits(b, 0, 15), V::turned_bits(c, 2, 48)),
                    V::or(V::bits(a, 4, 15), V::bits(c, 0, 48)),
                    V::or(V::bits(b, 4, 15), V::bits(c, 2, 48)),
                ],
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack<V: Vector>(block: At, header: Scales3<V>, sub: usize) -> Unpacked<V> {
        // SAFETY: behind the scales stand 8 words of third bits, then 16 of values.
        unsafe {
            let low = two_bits::<V>(block, 32 + 192 + 512, sub);
            // Bit `sub` of each byte goes to bit 2.
            let left = (32 + 2 - sub as u32) % 32;
            let q = array(|quad| {
                V::or(low[quad], V::turned_bits(block.word::<V>(32 + 192, quad), left, 4))
            });
            let words = header.scales[sub / 2];
            let scale = |index: usize| {
                let own = V::mul_add(V::byte(words, index), V::splat(1.0), V::splat(-32.0));
                V::mul(header.d, own)
            };
            let scale = [scale(sub % 2 * 2), scale(sub % 2 * 2 + 1)];
            let offset = [V::mul(scale[0], V::splat(-4.0)), V::mul(scale[1], V::splat(-4.0))];
            Unpacked { q, scale, offset }
        }
    }
}
