//! Scores and weighted sums of values, read once for all heads that share them.

use std::arch::x86_64::*;

use super::Pages;
use super::pages::KvPart;
use super::rows::{PART, Part, TOGETHER, Weights};

const TOKENS: usize = Pages::TOKENS;
/// Lanes of a register.
const LANES: usize = 16;

/// Values of 32, 16 or 8 bits.
trait Stored: Copy {
    /// 16 values as f32.
    ///
    /// # Safety
    /// They stand there, and the CPU has AVX-512 F.
    unsafe fn load(at: *const Self) -> __m512;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_loadu_ps(at) }
    }
}

impl Stored for i8 {
    #[inline(always)]
    unsafe fn load(at: *const i8) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
    }
}

impl Stored for u16 {
    #[inline(always)]
    unsafe fn load(at: *const u16) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
}

/// How many heads the query has. Checks what [`scores`] and [`values`] rely on.
///
/// **Shapes**: query `[heads, head_dim]`; out `[heads, 2 + head_dim]`.
pub(super) fn checked_heads(part: &Part, query: &[f32], dim: usize, out: &[f32]) -> usize {
    let heads = query.len() / dim;
    assert!((1..=TOGETHER).contains(&heads) && query.len() == heads * dim);
    assert!(dim.is_multiple_of(LANES) && out.len() == heads * (dim + 2));
    assert!(part.keys.len() == part.values.len() && part.keys.len() * TOKENS <= PART);
    assert!(part.seen.end <= part.keys.len() * TOKENS);
    let len = |page: &KvPart| match page {
        KvPart::F32(values) => values.len(),
        KvPart::F16(values) => values.len(),
        KvPart::Q8 { values, scales } => {
            assert_eq!(scales.len(), TOKENS);
            values.len()
        }
    };
    assert!(part.keys.iter().chain(part.values).all(|page| len(page) == TOKENS * dim));
    heads
}

/// Calls the version for so many heads.
///
/// A macro, because a closure cannot carry `target_feature`.
macro_rules! for_heads {
    ($heads:expr, $function:ident<$($of:tt),*>($($arg:expr),*)) => {
        match $heads {
            1 => $function::<$($of,)* 1>($($arg),*),
            2 => $function::<$($of,)* 2>($($arg),*),
            3 => $function::<$($of,)* 3>($($arg),*),
            _ => $function::<$($of,)* 4>($($arg),*),
        }
    };
}

/// # Safety
/// The CPU must have the features, and [`checked_heads`] have given `heads`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
pub(super) unsafe fn scores(
    part: &Part,
    query: &[f32],
    heads: usize,
    dim: usize,
    scores: &mut Weights,
) {
    for (page, keys) in part.keys.iter().enumerate() {
        let at = page * TOKENS;
        let next = *part.keys.get(page + 1).unwrap_or(&part.values[0]);
        // SAFETY: passed on from the caller; a page's keys are `[dim, TOKENS]`.
        unsafe {
            match *keys {
                KvPart::F32(keys) => {
                    let keys = (keys, None);
                    for_heads!(heads, page_scores<_>(keys, query, dim, part.scale, scores, at, next));
                }
                KvPart::F16(keys) => {
                    let keys = (keys, None);
                    for_heads!(heads, page_scores<_>(keys, query, dim, part.scale, scores, at, next));
                }
                KvPart::Q8 { values, scales } => {
                    let keys = (values, Some(scales));
                    for_heads!(heads, page_scores<_>(keys, query, dim, part.scale, scores, at, next));
                }
            }
        }
    }
}

/// The scores of one page, for `HEADS` heads. `next` is the page that is read after it: it lies elsewhere,
/// and the processor does not foresee where. With `keys` come their scales, where they have such.
#[inline(always)]
unsafe fn page_scores<T: Stored, const HEADS: usize>(
    (keys, scales): (&[T], Option<&[f32]>),
    query: &[f32],
    dim: usize,
    scale: f32,
    scores: &mut Weights,
    at: usize,
    next: KvPart,
) {
    // SAFETY: `checked_heads` holds: the page has `dim` columns of TOKENS keys, `dim` is even, the
    // query `HEADS` rows of `dim`, and the scores room for the page.
    unsafe {
        // Two sums for each register of tokens, of even and odd columns: one would wait for itself.
        let mut sums = [[[_mm512_setzero_ps(); 2]; 2]; HEADS];
        for pair in 0..dim / 2 {
            next.prefetch(2 * pair * TOKENS..2 * (pair + 1) * TOKENS);
            for odd in 0..2 {
                let column = keys.as_ptr().add((2 * pair + odd) * TOKENS);
                let keys = [T::load(column), T::load(column.add(LANES))];
                for head in 0..HEADS {
                    let query = *query.as_ptr().add(head * dim + 2 * pair + odd);
                    let query = _mm512_set1_ps(query);
                    for half in 0..2 {
                        let sum = &mut sums[head][odd][half];
                        *sum = _mm512_fmadd_ps(query, keys[half], *sum);
                    }
                }
            }
        }
        for head in 0..HEADS {
            for half in 0..2 {
                let sum = _mm512_add_ps(sums[head][0][half], sums[head][1][half]);
                let to = scores[head].as_mut_ptr().add(at + half * LANES);
                let mut score = _mm512_mul_ps(sum, _mm512_set1_ps(scale));
                if let Some(scales) = scales {
                    let scales = _mm512_loadu_ps(scales.as_ptr().add(half * LANES));
                    score = _mm512_mul_ps(score, scales);
                }
                _mm512_storeu_ps(to, score);
            }
        }
    }
}

/// Writes the weighted sums of values behind each head's first two places of `out`.
///
/// # Safety
/// As for [`scores`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
pub(super) unsafe fn values(
    part: &Part,
    weights: &Weights,
    heads: usize,
    dim: usize,
    out: &mut [f32],
) {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut column = 0;
        while column + 4 * LANES <= dim {
            for_heads!(heads, strip<4>(part, weights, dim, column, out));
            column += 4 * LANES;
        }
        while column < dim {
            for_heads!(heads, strip<1>(part, weights, dim, column, out));
            column += LANES;
        }
    }
}

/// The sums over all tokens of `N` registers of values from `column` on, for `HEADS` heads: they
/// stay in registers.
#[inline(always)]
unsafe fn strip<const N: usize, const HEADS: usize>(
    part: &Part,
    weights: &Weights,
    dim: usize,
    column: usize,
    out: &mut [f32],
) {
    // SAFETY: `checked_heads` holds: a page has TOKENS rows of `dim` values, of which the strip's
    // lie within a row, and `out` has room for each head's.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); N]; HEADS];
        for (page, values) in part.values.iter().enumerate() {
            let first = page * TOKENS;
            let tokens = part.seen.start.max(first)..part.seen.end.min(first + TOKENS);
            let next = part.values.get(page + 1).copied();
            match *values {
                KvPart::F32(values) => {
                    let values = (values, None);
                    page_values(values, tokens, first, weights, (dim, column), &mut sums, next);
                }
                KvPart::F16(values) => {
                    let values = (values, None);
                    page_values(values, tokens, first, weights, (dim, column), &mut sums, next);
                }
                KvPart::Q8 { values, scales } => {
                    let values = (values, Some(scales));
                    page_values(values, tokens, first, weights, (dim, column), &mut sums, next);
                }
            }
        }
        for (head, sums) in sums.iter().enumerate() {
            for (register, sum) in sums.iter().enumerate() {
                let at = head * (dim + 2) + 2 + column + register * LANES;
                _mm512_storeu_ps(out.as_mut_ptr().add(at), *sum);
            }
        }
    }
}

/// Adds the values of one page, whose first token is `first` of the part. `next` and scales as in
/// [`page_scores`].
#[inline(always)]
unsafe fn page_values<T: Stored, const N: usize, const HEADS: usize>(
    (values, scales): (&[T], Option<&[f32]>),
    tokens: std::ops::Range<usize>,
    first: usize,
    weights: &Weights,
    (dim, column): (usize, usize),
    sums: &mut [[__m512; N]; HEADS],
    next: Option<KvPart>,
) {
    let mut kept = *sums;
    for token in tokens {
        if let Some(next) = next {
            let at = (token - first) * dim + column;
            next.prefetch(at..at + N * LANES);
        }
        // SAFETY: as in `strip`; the token is one of the page's.
        unsafe {
            let row = values.as_ptr().add((token - first) * dim + column);
            let mut loaded = [_mm512_setzero_ps(); N];
            for register in 0..N {
                loaded[register] = T::load(row.add(register * LANES));
            }
            for head in 0..HEADS {
                let mut weight = *weights[head].as_ptr().add(token);
                if let Some(scales) = scales {
                    weight *= scales.as_ptr().add(token - first).read();
                }
                let weight = _mm512_set1_ps(weight);
                for register in 0..N {
                    kept[head][register] =
                        _mm512_fmadd_ps(weight, loaded[register], kept[head][register]);
                }
            }
        }
    }
    *sums = kept;
}
