use std::ops::Range;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::cpu::{multiversion, prefetch};

/// How keys and values are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KvFormat {
    #[default]
    F32,
    /// Half the memory, and half of what is read for each token that is written.
    F16,
    /// 8 bits, with a scale for each head of each token: half of it again.
    Q8,
}

impl KvFormat {
    /// `f32`, `f16`, `q8`.
    pub const fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Q8 => "q8",
        }
    }

    /// Bytes of so many values of heads.
    pub const fn bytes(self, values: usize, head_dim: usize) -> usize {
        match self {
            KvFormat::F32 => 4 * values,
            KvFormat::F16 => 2 * values,
            KvFormat::Q8 => values + 4 * (values / head_dim),
        }
    }
}

/// Keys and values as they are kept: f32, the bits of f16, or what scales are multiplied with.
///
/// **Shapes**: scales `[kv_heads, 2, TOKENS]`, of keys and of values; the values as [`Pages`] says.
#[derive(Clone, Debug, PartialEq)]
pub enum KvValues {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Q8 { values: Vec<i8>, scales: Vec<f32> },
}

/// Part of [`KvValues`].
#[derive(Clone, Copy)]
pub enum KvPart<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    Q8 { values: &'a [i8], scales: &'a [f32] },
}

/// As [`KvPart`], to be written.
pub enum KvPartMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [u16]),
    Q8 { values: &'a mut [i8], scales: &'a mut [f32] },
}

impl KvValues {
    /// `len` zeros, of heads of `head_dim`.
    pub fn zeros(format: KvFormat, len: usize, head_dim: usize) -> Self {
        match format {
            KvFormat::F32 => KvValues::F32(vec![0.0; len]),
            KvFormat::F16 => KvValues::F16(vec![0; len]),
            KvFormat::Q8 => {
                KvValues::Q8 { values: vec![0; len], scales: vec![0.0; len / head_dim] }
            }
        }
    }

    pub fn part(&self, range: Range<usize>) -> KvPart<'_> {
        match self {
            KvValues::F32(values) => KvPart::F32(&values[range]),
            KvValues::F16(values) => KvPart::F16(&values[range]),
            KvValues::Q8 { values, scales } => KvPart::Q8 { values, scales }.slice(range),
        }
    }

    pub fn part_mut(&mut self, range: Range<usize>) -> KvPartMut<'_> {
        match self {
            KvValues::F32(values) => KvPartMut::F32(&mut values[range]),
            KvValues::F16(values) => KvPartMut::F16(&mut values[range]),
            KvValues::Q8 { values, scales } => {
                let of_scales = of_scales(&range, values.len() / scales.len());
                KvPartMut::Q8 { values: &mut values[range], scales: &mut scales[of_scales] }
            }
        }
    }
}

impl<'a> KvPart<'a> {
    pub(super) fn slice(self, range: Range<usize>) -> KvPart<'a> {
        match self {
            KvPart::F32(values) => KvPart::F32(&values[range]),
            KvPart::F16(values) => KvPart::F16(&values[range]),
            KvPart::Q8 { values, scales } => {
                let of_scales = of_scales(&range, values.len() / scales.len());
                KvPart::Q8 { values: &values[range], scales: &scales[of_scales] }
            }
        }
    }

    /// Asks for values that are read soon.
    #[inline(always)]
    pub(super) fn prefetch(self, range: Range<usize>) {
        match self {
            KvPart::F32(values) => prefetch(&values[range]),
            KvPart::F16(values) => prefetch(&values[range]),
            KvPart::Q8 { values, .. } => prefetch(&values[range]),
        }
    }

    /// Appends the values to `out`; `token` says which of a page's tokens a value is of.
    pub(super) fn widen(self, out: &mut Vec<f32>, token: impl Fn(usize) -> usize) {
        match self {
            KvPart::F32(values) => out.extend_from_slice(values),
            KvPart::F16(values) => {
                let from = out.len();
                out.resize(from + values.len(), 0.0);
                values.reinterpret_cast::<f16>().convert_to_f32_slice(&mut out[from..]);
            }
            KvPart::Q8 { values, scales } => {
                let values = values.iter().enumerate();
                out.extend(values.map(|(at, value)| f32::from(*value) * scales[token(at)]));
            }
        }
    }
}

/// Keys and values in pages, as they are kept while text is generated.
///
/// **Shapes**: each part `[kv_heads, 2, …]`: of each head the keys `[head_dim, TOKENS]`, so that the
/// scores of neighbouring tokens stand side by side, then the values `[TOKENS, head_dim]`.
#[derive(Clone, Copy)]
pub struct Pages<'a> {
    pub parts: &'a [KvPart<'a>],
    /// Tokens in all of them; the last page may have room for more.
    pub len: usize,
}

impl<'a> Pages<'a> {
    /// Tokens of a page.
    pub const TOKENS: usize = 32;

    /// Values of a page.
    pub fn page_len(kv_heads: usize, head_dim: usize) -> usize {
        kv_heads * head_dim * 2 * Self::TOKENS
    }

    /// Puts the keys and values of tokens that follow each other in a page, from its place `first`.
    ///
    /// **Shapes**: rows `[tokens, stride]`, each of which begins with the keys `[kv_heads, head_dim]`
    /// and then the values.
    pub fn write(
        page: &mut KvPartMut,
        first: usize,
        rows: &[f32],
        stride: usize,
        [kv_heads, head_dim]: [usize; 2],
    ) {
        let width = kv_heads * head_dim;
        match page {
            KvPartMut::F32(page) => {
                for (index, row) in rows.chunks(stride).enumerate() {
                    place(page, first + index, row[..2 * width].split_at(width), head_dim);
                }
            }
            KvPartMut::F16(page) => {
                let mut halves = vec![f16::ZERO; 2 * width];
                for (index, row) in rows.chunks(stride).enumerate() {
                    halves.convert_from_f32_slice(&row[..2 * width]);
                    let row = halves.reinterpret_cast().split_at(width);
                    place(page, first + index, row, head_dim);
                }
            }
            KvPartMut::Q8 { values: page, scales } => {
                let mut bytes = vec![0; 2 * width];
                for (index, row) in rows.chunks(stride).enumerate() {
                    let parts = row[..2 * width].chunks(head_dim).zip(bytes.chunks_mut(head_dim));
                    for (part, (values, bytes)) in parts.enumerate() {
                        // All heads' keys come first, but each head's keys and values stand together.
                        let of_head = part % kv_heads * 2 + part / kv_heads;
                        scales[of_head * Self::TOKENS + first + index] = round(values, bytes);
                    }
                    place(page, first + index, bytes.split_at(width), head_dim);
                }
            }
        }
    }

    pub(super) fn keys(self, page: usize, head: usize, dim: usize) -> KvPart<'a> {
        let from = head * 2 * Self::TOKENS * dim;
        self.parts[page].slice(from..from + Self::TOKENS * dim)
    }

    pub(super) fn values(self, page: usize, head: usize, dim: usize) -> KvPart<'a> {
        let from = (head * 2 + 1) * Self::TOKENS * dim;
        self.parts[page].slice(from..from + Self::TOKENS * dim)
    }

    /// A head's keys `[head_dim, len]`.
    pub(super) fn copy_keys(self, head: usize, dim: usize) -> Vec<f32> {
        let mut copy = vec![0.0; dim * self.len];
        let mut wide = Vec::with_capacity(Self::TOKENS * dim);
        for (page, first) in (0..self.len).step_by(Self::TOKENS).enumerate() {
            let count = Self::TOKENS.min(self.len - first);
            wide.clear();
            self.keys(page, head, dim).widen(&mut wide, |at| at % Self::TOKENS);
            let keys = wide.chunks_exact(Self::TOKENS);
            for (to, keys) in copy.chunks_exact_mut(self.len).zip(keys) {
                to[first..first + count].copy_from_slice(&keys[..count]);
            }
        }
        copy
    }

    /// A head's values `[len, head_dim]`.
    pub(super) fn copy_values(self, head: usize, dim: usize) -> Vec<f32> {
        let mut copy = Vec::with_capacity(dim * self.len);
        for page in 0..self.len.div_ceil(Self::TOKENS) {
            let rest = (dim * self.len - copy.len()).min(Self::TOKENS * dim);
            self.values(page, head, dim).slice(0..rest).widen(&mut copy, |at| at / dim);
        }
        copy
    }
}

/// The scales of a range of whole heads of tokens.
fn of_scales(range: &Range<usize>, head_dim: usize) -> Range<usize> {
    range.start / head_dim..range.end / head_dim
}

multiversion! {
/// Values as multiples of the scale that is returned, of which the largest is 127.
fn round(values: &[f32], bytes: &mut [i8]) -> f32 {
    /// 1.5·2²³: adding it rounds to an integer and leaves that integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let sizes = values.iter().map(|value| value.abs().to_bits());
    let scale = f32::from_bits(sizes.fold(0, u32::max)) / 127.0;
    let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = (value * inverse + MAGIC).to_bits() as i8;
    }
    scale
}
}

/// Puts a token's keys and values in the place `at` of a page.
fn place<T: Copy>(page: &mut [T], at: usize, (keys, values): (&[T], &[T]), head_dim: usize) {
    const TOKENS: usize = Pages::TOKENS;
    assert!(at < TOKENS);
    let heads = page.chunks_exact_mut(2 * TOKENS * head_dim);
    let rows = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
    for (head, (keys, values)) in heads.zip(rows) {
        let (to_keys, to_values) = head.split_at_mut(TOKENS * head_dim);
        for (to, key) in to_keys.chunks_exact_mut(TOKENS).zip(keys) {
            to[at] = *key;
        }
        to_values[at * head_dim..(at + 1) * head_dim].copy_from_slice(values);
    }
}
