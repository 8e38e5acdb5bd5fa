//! Half of a tile's rows in one register; `maddubs` multiplies values with activations and adds
//! neighbours in 16 bits.

use std::arch::x86_64::*;

use super::product::Slice;
use super::tiles::{TILE, Tile};
use super::vector::{self, Vector};

/// One tile against some rows of activations.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C; the lengths must be those that `tile_product` checks.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile(tile: &Tile, x: Slice, sums: &mut [[f32; TILE]]) {
    // SAFETY: passed on from the caller.
    unsafe { vector::tile::<Avx2>(tile, x, sums) }
}

struct Avx2;

// Each function's contract is that of `Vector`; it carries no target feature of its own, since it
// is always inlined into `tile`, which does.
impl Vector for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 4;
    type Words = __m256i;
    type Floats = __m256;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256i {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_loadu_si256(at.cast()) }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn shorts(at: *const u8) -> __m256i {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn half_powers(at: *const u8) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe {
            let byte = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
            let one = _mm256_set1_epi32(1);
            let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(byte, one));
            let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), byte);
            let normal_at = _mm256_cmpgt_epi32(byte, one);
            _mm256_castsi256_ps(_mm256_blendv_epi8(subnormal, normal, normal_at))
        }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, values: __m256) {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_storeu_ps(at, values) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn bits(words: __m256i, shift: u32, mask: u8) -> __m256i {
        // SAFETY: by the trait's contract.
        unsafe {
            let shifted = _mm256_srlv_epi32(words, _mm256_set1_epi32(shift as i32));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    unsafe fn turned_bits(words: __m256i, left: u32, mask: u8) -> __m256i {
        // SAFETY: by the trait's contract. A shift by 32 gives zero, as it must.
        unsafe {
            let turned = _mm256_or_si256(
                _mm256_sllv_epi32(words, _mm256_set1_epi32(left as i32)),
                _mm256_srlv_epi32(words, _mm256_set1_epi32(32 - left as i32)),
            );
            _mm256_and_si256(turned, _mm256_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    unsafe fn look_up(bytes: __m256i, table: &[u8; 16]) -> __m256i {
        // SAFETY: by the trait's contract.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, bytes)
        }
    }

    #[inline(always)]
    unsafe fn add_fifth(bytes: __m256i, mask: *const u8) -> __m256i {
        // SAFETY: by the trait's contract.
        unsafe {
            // Each byte of the mask to the eight bytes it speaks of, then its bit to each.
            let mask = _mm256_set1_epi32(mask.cast::<i32>().read_unaligned());
            let spread = _mm256_setr_epi64x(
                0,
                0x0101_0101_0101_0101,
                0x0202_0202_0202_0202,
                0x0303_0303_0303_0303,
            );
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let own = _mm256_and_si256(_mm256_shuffle_epi8(mask, spread), bit);
            let fifth = _mm256_and_si256(_mm256_cmpeq_epi8(own, bit), _mm256_set1_epi8(16));
            _mm256_or_si256(bytes, fifth)
        }
    }

    #[inline(always)]
    unsafe fn byte(words: __m256i, index: usize) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe {
            let shifted = _mm256_srlv_epi32(words, _mm256_set1_epi32(8 * index as i32));
            _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(255)))
        }
    }

    #[inline(always)]
    unsafe fn signed_byte(words: __m256i, index: usize) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe {
            let up = _mm256_sllv_epi32(words, _mm256_set1_epi32(24 - 8 * index as i32));
            _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(up))
        }
    }

    #[inline(always)]
    unsafe fn dot<const N: usize>(q: [__m256i; N], a: *const i32, bits: u32) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe {
            if bits <= 6 {
                return _mm256_cvtepi32_ps(narrow_dot(q, a, bits));
            }
            // `maddubs` saturates at 16 bits, which two products of 8 bits exceed.
            let mask = _mm256_set1_epi8(15);
            let (mut low, mut high) = (q, q);
            for i in 0..N {
                low[i] = _mm256_and_si256(q[i], mask);
                high[i] = _mm256_and_si256(_mm256_srli_epi16::<4>(q[i]), mask);
            }
            let high = _mm256_slli_epi32::<4>(narrow_dot(high, a, 4));
            _mm256_cvtepi32_ps(_mm256_add_epi32(narrow_dot(low, a, 4), high))
        }
    }
}

/// Values of up to 6 bits: as many words are added in 16 bits as cannot exceed them.
#[inline(always)]
unsafe fn narrow_dot<const N: usize>(q: [__m256i; N], a: *const i32, bits: u32) -> __m256i {
    // A word adds at most 2 · 127 · (2^bits − 1).
    let together = 32767 / (254 * ((1 << bits) - 1));
    // SAFETY: passed on from the caller.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut sum = _mm256_setzero_si256();
        let mut pairs = _mm256_setzero_si256();
        for i in 0..N {
            let a = _mm256_set1_epi32(a.add(i).read_unaligned());
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(q[i], a));
            if (i + 1) % together == 0 || i + 1 == N {
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                pairs = _mm256_setzero_si256();
            }
        }
        sum
    }
}
