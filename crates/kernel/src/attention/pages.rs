use std::ops::Range;

use crate::cpu::prefetch;
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// How keys and values are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KvFormat {
    #[default]
    F32,
    /// Half the memory, and half of what is read for each token that is written.
    F16,
}

impl KvFormat {
    /// `f32`, `f16`.
    pub const fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
        }
    }

    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            KvFormat::F32 => 4,
            KvFormat::F16 => 2,
        }
    }
}

/// Keys and values as they are kept: f32, or the bits of f16.
#[derive(Clone, Debug, PartialEq)]
pub enum KvValues {
    F32(Vec<f32>),
    F16(Vec<u16>),
}

/// Part of [`KvValues`].
#[derive(Clone, Copy)]
pub enum KvPart<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
}

/// As [`KvPart`], to be written.
pub enum KvPartMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [u16]),
}

impl KvValues {
    /// `len` zeros.
    pub fn zeros(format: KvFormat, len: usize) -> Self {
        match format {
            KvFormat::F32 => KvValues::F32(vec![0.0; len]),
            KvFormat::F16 => KvValues::F16(vec![0; len]),
        }
    }

    pub fn part(&self, range: Range<usize>) -> KvPart<'_> {
        match self {
            KvValues::F32(values) => KvPart::F32(&values[range]),
            KvValues::F16(values) => KvPart::F16(&values[range]),
        }
    }

    pub fn part_mut(&mut self, range: Range<usize>) -> KvPartMut<'_> {
        match self {
            KvValues::F32(values) => KvPartMut::F32(&mut values[range]),
            KvValues::F16(values) => KvPartMut::F16(&mut values[range]),
        }
    }
}

impl<'a> KvPart<'a> {
    pub(super) fn slice(self, range: Range<usize>) -> KvPart<'a> {
        match self {
            KvPart::F32(values) => KvPart::F32(&values[range]),
            KvPart::F16(values) => KvPart::F16(&values[range]),
        }
    }

    /// Asks for values that are read soon.
    #[inline(always)]
    pub(super) fn prefetch(self, range: Range<usize>) {
        match self {
            KvPart::F32(values) => prefetch(&values[range]),
            KvPart::F16(values) => prefetch(&values[range]),
        }
    }

    /// Appends the values to `out`.
    pub(super) fn widen(self, out: &mut Vec<f32>) {
        match self {
            KvPart::F32(values) => out.extend_from_slice(values),
            KvPart::F16(values) => {
                let from = out.len();
                out.resize(from + values.len(), 0.0);
                values.reinterpret_cast::<f16>().convert_to_f32_slice(&mut out[from..]);
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
            self.keys(page, head, dim).widen(&mut wide);
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
            self.values(page, head, dim).slice(0..rest).widen(&mut copy);
        }
        copy
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
