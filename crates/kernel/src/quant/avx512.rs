//! A tile's 16 rows in one register; `dpbusd` multiplies four values of each with four activations.

use std::arch::x86_64::*;

use super::product::Slice;
use super::tiles::{TILE, Tile};
use super::vector::{self, Vector};

/// One tile against some rows of activations.
///
/// # Safety
/// The CPU must have AVX-512 F, BW, DQ, VL and VNNI; the lengths must be those that
/// `tile_product` checks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
pub(super) unsafe fn tile(tile: &Tile, x: Slice, sums: &mut [[f32; TILE]]) {
    // SAFETY: passed on from the caller.
    unsafe { vector::tile::<Avx512>(tile, x, sums) }
}

struct Avx512;

// Each function's contract is that of `Vector`; it carries no target feature of its own, since it
// is always inlined into `tile`, which does.
impl Vector for Avx512 {
    const LANES: usize = 16;
    const ROWS: usize = 12;
    type Words = __m512i;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn shorts(at: *const u8) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn half_powers(at: *const u8) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe {
            let byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
            let one = _mm512_set1_epi32(1);
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(byte, one));
            let subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), byte);
            let normal_at = _mm512_cmpgt_epi32_mask(byte, one);
            _mm512_castsi512_ps(_mm512_mask_mov_epi32(subnormal, normal_at, normal))
        }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, values: __m512) {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_storeu_ps(at, values) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn bits(words: __m512i, shift: u32, mask: u8) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe {
            let shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32(shift as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    unsafe fn turned_bits(words: __m512i, left: u32, mask: u8) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe {
            let turned = _mm512_rolv_epi32(words, _mm512_set1_epi32(left as i32));
            _mm512_and_si512(turned, _mm512_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn look_up(bytes: __m512i, table: &[u8; 16]) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, bytes)
        }
    }

    #[inline(always)]
    unsafe fn add_fifth(bytes: __m512i, mask: *const u8) -> __m512i {
        // SAFETY: by the trait's contract.
        unsafe {
            let mask = mask.cast::<u64>().read_unaligned();
            _mm512_mask_add_epi8(bytes, mask, bytes, _mm512_set1_epi8(16))
        }
    }

    #[inline(always)]
    unsafe fn byte(words: __m512i, index: usize) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe {
            let shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32(8 * index as i32));
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
        }
    }

    #[inline(always)]
    unsafe fn signed_byte(words: __m512i, index: usize) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe {
            let up = _mm512_sllv_epi32(words, _mm512_set1_epi32(24 - 8 * index as i32));
            _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(up))
        }
    }

    #[inline(always)]
    unsafe fn dot<const N: usize>(q: [__m512i; N], a: *const i32, _: u32) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe {
            let mut sum = _mm512_setzero_si512();
            for i in 0..N {
                sum = _mm512_dpbusd_epi32(sum, q[i], _mm512_set1_epi32(a.add(i).read_unaligned()));
            }
            _mm512_cvtepi32_ps(sum)
        }
    }
}
