//! A quarter of a tile's rows in one register; `sdot` multiplies four values of each with four
//! activations, or, where the CPU has none, products of 16 bits are added in pairs.

use std::arch::aarch64::*;

use super::product::Slice;
use super::tiles::{TILE, Tile};
use super::vector::{self, Vector};

/// One tile against some rows of activations.
///
/// # Safety
/// The lengths must be those that `tile_product` checks.
pub(super) unsafe fn tile(tile: &Tile, x: Slice, sums: &mut [[f32; TILE]]) {
    // SAFETY: passed on from the caller; every aarch64 CPU has NEON.
    unsafe { vector::tile::<Neon<false>>(tile, x, sums) }
}

/// As [`tile`], by `sdot`.
///
/// # Safety
/// The CPU must have the dot product instructions; the lengths must be those that `tile_product`
/// checks.
#[target_feature(enable = "dotprod")]
pub(super) unsafe fn tile_dot(tile: &Tile, x: Slice, sums: &mut [[f32; TILE]]) {
    // SAFETY: passed on from the caller.
    unsafe { vector::tile::<Neon<true>>(tile, x, sums) }
}

struct Neon<const DOT: bool>;

// Each function's contract is that of `Vector`.
impl<const DOT: bool> Vector for Neon<DOT> {
    const LANES: usize = 4;
    const ROWS: usize = 8;
    type Words = uint32x4_t;
    type Floats = float32x4_t;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> uint32x4_t {
        // SAFETY: by the trait's contract.
        unsafe { vreinterpretq_u32_u8(vld1q_u8(at)) }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> float32x4_t {
        // SAFETY: by the trait's contract.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at))) }
    }

    #[inline(always)]
    unsafe fn shorts(at: *const u8) -> uint32x4_t {
        // SAFETY: by the trait's contract.
        unsafe { vmovl_u16(vreinterpret_u16_u8(vld1_u8(at))) }
    }

    #[inline(always)]
    unsafe fn half_powers(at: *const u8) -> float32x4_t {
        // SAFETY: by the trait's contract.
        unsafe {
            let bytes = vcreate_u8(u64::from(at.cast::<u32>().read_unaligned()));
            let byte = vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
            let one = vdupq_n_u32(1);
            let normal = vshlq_n_u32::<23>(vsubq_u32(byte, one));
            let subnormal = vshlq_u32(vdupq_n_u32(0x0020_0000), vreinterpretq_s32_u32(byte));
            vreinterpretq_f32_u32(vbslq_u32(vcgtq_u32(byte, one), normal, subnormal))
        }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, values: float32x4_t) {
        // SAFETY: by the trait's contract.
        unsafe { vst1q_f32(at, values) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        // SAFETY: by the trait's contract.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: by the trait's contract.
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: by the trait's contract.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn bits(words: uint32x4_t, shift: u32, mask: u8) -> uint32x4_t {
        // SAFETY: by the trait's contract.
        unsafe { masked(vshlq_u32(words, vdupq_n_s32(-(shift as i32))), mask) }
    }

    #[inline(always)]
    unsafe fn turned_bits(words: uint32x4_t, left: u32, mask: u8) -> uint32x4_t {
        // SAFETY: by the trait's contract. A shift by 32 gives zero, as it must.
        unsafe {
            let up = vshlq_u32(words, vdupq_n_s32(left as i32));
            masked(vorrq_u32(up, vshlq_u32(words, vdupq_n_s32(left as i32 - 32))), mask)
        }
    }

    #[inline(always)]
    unsafe fn or(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        // SAFETY: by the trait's contract.
        unsafe { vorrq_u32(a, b) }
    }

    #[inline(always)]
    unsafe fn look_up(bytes: uint32x4_t, table: &[u8; 16]) -> uint32x4_t {
        // SAFETY: by the trait's contract.
        unsafe {
            let found = vqtbl1q_u8(vld1q_u8(table.as_ptr()), vreinterpretq_u8_u32(bytes));
            vreinterpretq_u32_u8(found)
        }
    }

    #[inline(always)]
    unsafe fn add_fifth(bytes: uint32x4_t, mask: *const u8) -> uint32x4_t {
        // SAFETY: by the trait's contract.
        unsafe {
            // Each byte of the mask to the eight bytes it speaks of, then its bit to each.
            let mask = vcombine_u8(vdup_n_u8(mask.read()), vdup_n_u8(mask.add(1).read()));
            let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let fifth = vandq_u8(vtstq_u8(mask, bit), vdupq_n_u8(16));
            vorrq_u32(bytes, vreinterpretq_u32_u8(fifth))
        }
    }

    #[inline(always)]
    unsafe fn byte(words: uint32x4_t, index: usize) -> float32x4_t {
        // SAFETY: by the trait's contract.
        unsafe {
            let shifted = vshlq_u32(words, vdupq_n_s32(-(8 * index as i32)));
            vcvtq_f32_u32(vandq_u32(shifted, vdupq_n_u32(255)))
        }
    }

    #[inline(always)]
    unsafe fn signed_byte(words: uint32x4_t, index: usize) -> float32x4_t {
        // SAFETY: by the trait's contract.
        unsafe {
            let up = vshlq_u32(words, vdupq_n_s32(24 - 8 * index as i32));
            vcvtq_f32_s32(vshrq_n_s32::<24>(vreinterpretq_s32_u32(up)))
        }
    }

    #[inline(always)]
    unsafe fn dot<const N: usize>(q: [uint32x4_t; N], a: *const i32, bits: u32) -> float32x4_t {
        // SAFETY: by the trait's contract.
        unsafe {
            let mut sum = vdupq_n_s32(0);
            // Both factors are signed here: 128 is taken from values of 8 bits, and what that takes
            // from the sum is added again.
            let mut activations = vdupq_n_s32(0);
            for i in 0..N {
                let a = vreinterpretq_s8_s32(vdupq_n_s32(a.add(i).read_unaligned()));
                let mut q = vreinterpretq_s8_u32(q[i]);
                if bits == 8 {
                    q = veorq_s8(q, vdupq_n_s8(i8::MIN));
                    activations = add_products::<DOT>(activations, vdupq_n_s8(1), a);
                }
                sum = add_products::<DOT>(sum, q, a);
            }
            vcvtq_f32_s32(vaddq_s32(sum, vshlq_n_s32::<7>(activations)))
        }
    }
}

#[inline(always)]
unsafe fn masked(words: uint32x4_t, mask: u8) -> uint32x4_t {
    // SAFETY: every aarch64 CPU has NEON.
    unsafe {
        let bytes = vandq_u8(vreinterpretq_u8_u32(words), vdupq_n_u8(mask));
        vreinterpretq_u32_u8(bytes)
    }
}

/// Adds to each lane the products of its four values.
///
/// # Safety
/// With `DOT` the CPU must have the dot product instructions. No byte of `a` may be −128: two
/// products would not fit 16 bits.
#[inline(always)]
unsafe fn add_products<const DOT: bool>(sum: int32x4_t, q: int8x16_t, a: int8x16_t) -> int32x4_t {
    if DOT {
        let mut sum = sum;
        // SAFETY: registers alone. The intrinsic is not stable yet.
        unsafe {
            std::arch::asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {q:v}.16b, {a:v}.16b",
                sum = inout(vreg) sum,
                q = in(vreg) q,
                a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        return sum;
    }
    // SAFETY: every aarch64 CPU has NEON.
    unsafe {
        let low = vmull_s8(vget_low_s8(q), vget_low_s8(a));
        vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(q, a)))
    }
}
