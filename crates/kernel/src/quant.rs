//! The stored number formats of GGUF and safetensors files.
//!
//! The formats above `Bf16` are GGML's: a row is a sequence of blocks, each with its own scale.
//! This is the plain version of their arithmetic, equal bit for bit to GGML's reference.
//!
//! Source: ggml `ggml-quants.c` (`dequantize_row_*`, `quantize_row_*_ref`) and `gguf/quants.py`;
//! MXFP4: OCP Microscaling Formats 1.0, section 5.2.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
mod experts;
mod fit;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod product;
#[cfg(test)]
mod product_tests;
mod tiles;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;
mod write;

pub use activations::Activations;
pub use experts::TiledExperts;
pub use product::{Isa, gated_product, product};
pub use tiles::Tiles;

use crate::pool::Pool;

/// How the numbers of a matrix are stored.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K,
    Q5_K,
    Q6_K,
    Q2_K,
    Q3_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("{format} stores {block} values at a time, which {values} values are no multiple of")]
    PartialBlock { format: Format, block: usize, values: usize },
    #[error("{values} values in {format} take {expected} bytes, but there are {found}")]
    Length { format: Format, values: usize, expected: usize, found: usize },
    #[error("a matrix of {rows} × {cols} is larger than this machine can address")]
    TooLarge { rows: usize, cols: usize },
    #[error("{format} can be read but not written; write f32, f16, bf16, q8_0 or q4_0")]
    NotWritable { format: Format },
    #[error("{value} does not fit {format}; write bf16 or f32")]
    Overflow { format: Format, value: f32 },
    #[error("{rows} rows in {format} cannot be stacked in tiles of 16 rows of a block format")]
    Untiled { format: Format, rows: usize },
}

impl Format {
    pub const ALL: [Format; 16] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::Q2_K,
        Format::Q3_K,
        Format::IQ4_NL,
        Format::IQ4_XS,
        Format::MXFP4,
    ];

    /// The usual name, in lower case: `f32`, `q4_k`.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::Q8_0 => "q8_0",
            Format::Q4_0 => "q4_0",
            Format::Q4_1 => "q4_1",
            Format::Q5_0 => "q5_0",
            Format::Q5_1 => "q5_1",
            Format::Q4_K => "q4_k",
            Format::Q5_K => "q5_k",
            Format::Q6_K => "q6_k",
            Format::Q2_K => "q2_k",
            Format::Q3_K => "q3_k",
            Format::IQ4_NL => "iq4_nl",
            Format::IQ4_XS => "iq4_xs",
            Format::MXFP4 => "mxfp4",
        }
    }

    /// Values in one block; 1 for the plain formats.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => 1,
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => 32,
            Format::IQ4_NL | Format::MXFP4 => 32,
            Format::Q2_K | Format::Q3_K | Format::Q4_K | Format::Q5_K | Format::Q6_K => 256,
            Format::IQ4_XS => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q4_K => 144,
            Format::Q5_K => 176,
            Format::Q6_K => 210,
            Format::Q2_K => 84,
            Format::Q3_K => 110,
            Format::IQ4_NL => 18,
            Format::IQ4_XS => 136,
            Format::MXFP4 => 17,
        }
    }

    /// Bytes of a row of `cols` values.
    ///
    /// # Errors
    /// When `cols` is no multiple of the block, or the bytes cannot be counted in a `usize`.
    pub fn row_bytes(self, cols: usize) -> Result<usize, Error> {
        let block = self.block_len();
        if !cols.is_multiple_of(block) {
            return Err(Error::PartialBlock { format: self, block, values: cols });
        }
        (cols / block).checked_mul(self.block_bytes()).ok_or(Error::TooLarge { rows: 1, cols })
    }

    /// Bytes of a matrix `[rows, cols]`.
    ///
    /// # Errors
    /// As [`Format::row_bytes`].
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> Result<usize, Error> {
        self.row_bytes(cols)?.checked_mul(rows).ok_or(Error::TooLarge { rows, cols })
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Expands stored values to f32, exactly as GGML's reference does.
///
/// # Errors
/// When `bytes` is not what `out.len()` values take in this format.
pub fn dequantise(format: Format, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    let expected = format.row_bytes(out.len())?;
    if bytes.len() != expected {
        let (values, found) = (out.len(), bytes.len());
        return Err(Error::Length { format, values, expected, found });
    }
    blocks::dequantise(format, bytes, out);
    Ok(())
}

/// Appends `values`, stored in `format`, to `out`. Nothing is appended on an error.
///
/// # Errors
/// When the format is read-only ([`Error::NotWritable`]), the values do not fill whole blocks, or
/// one is too large or not a number; plain f32 and bf16 take every value.
pub fn quantise(format: Format, values: &[f32], out: &mut Vec<u8>) -> Result<(), Error> {
    let bytes = format.row_bytes(values.len())?;
    let before = out.len();
    out.reserve(bytes);
    let done = blocks::quantise(format, values, out);
    if done.is_err() {
        out.truncate(before);
    }
    done
}

/// As [`quantise`], with the scales that lose least, in more formats and more time.
///
/// What is minimised is the squared error of the values, each weighted with `importance`, the mean
/// square of what it is multiplied with, and more the larger it is itself.
///
/// **Shapes**: values, importance `[cols]`, a row.
///
/// # Errors
/// As [`quantise`]; [`Error::NotWritable`] of MXFP4, Q2_K and Q3_K.
///
/// # Panics
/// If there are not as many importances as values.
pub fn fit(
    format: Format,
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    if !write::fitted(format) {
        return quantise(format, values, out);
    }
    out.reserve(format.row_bytes(values.len())?);
    // Far beyond what scales of f16 reach, and near enough that no sum of squares overflows.
    if let Some(&value) = values.iter().find(|v| v.is_nan() || v.abs() > 1e9) {
        return Err(Error::Overflow { format, value });
    }
    let mean = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
    let mut weights: Vec<f32> = values.iter().map(|v| (mean + v * v).sqrt()).collect();
    if let Some(importance) = importance {
        assert_eq!(importance.len(), values.len(), "an importance for each value");
        // A column that was never used must not be lost altogether.
        let least = 1e-6 * importance.iter().fold(0.0f32, |a, v| a.max(*v)).max(1e-30);
        weights.iter_mut().zip(importance).for_each(|(weight, i)| *weight *= i.max(least));
    }
    // Their size does not matter, but that of their sums must stay within f32.
    let largest = weights.iter().fold(0.0f32, |a, v| a.max(*v));
    match largest > 0.0 && largest.is_finite() {
        true => weights.iter_mut().for_each(|w| *w = (*w / largest).max(1e-12)),
        false => weights.fill(1.0),
    }
    let before = out.len();
    let done = write::write(format, values, &weights, out);
    if done.is_err() {
        out.truncate(before);
    }
    done
}

/// A matrix as it is stored: row-major `[rows, cols]` in `format`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub format: Format,
    pub bytes: Vec<u8>,
}

impl Matrix {
    /// # Errors
    /// When `bytes` is not what the shape takes in this format.
    pub fn new(rows: usize, cols: usize, format: Format, bytes: Vec<u8>) -> Result<Self, Error> {
        let expected = format.matrix_bytes(rows, cols)?;
        if bytes.len() != expected {
            let (values, found) = (rows * cols, bytes.len());
            return Err(Error::Length { format, values, expected, found });
        }
        Ok(Matrix { rows, cols, format, bytes })
    }

    /// A matrix in f32.
    ///
    /// # Panics
    /// When there are not `rows * cols` values.
    pub fn from_f32(rows: usize, cols: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * cols, "values of a matrix [{rows}, {cols}]");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Matrix { rows, cols, format: Format::F32, bytes }
    }

    /// All values, `[rows, cols]`.
    ///
    /// # Panics
    /// When the public fields contradict each other; [`Matrix::new`] rules that out.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        dequantise(self.format, &self.bytes, &mut out).expect("bytes agree with the shape");
        out
    }

    /// The same values stored otherwise. No copy of the whole in f32 is made.
    ///
    /// # Errors
    /// As [`quantise`].
    pub fn to_format(&self, format: Format) -> Result<Matrix, Error> {
        if format == self.format {
            return Ok(self.clone());
        }
        let mut bytes = Vec::with_capacity(format.matrix_bytes(self.rows, self.cols)?);
        let mut row = vec![0.0; self.cols];
        for index in 0..self.rows {
            dequantise(self.format, self.row(index), &mut row)?;
            quantise(format, &row, &mut bytes)?;
        }
        Matrix::new(self.rows, self.cols, format, bytes)
    }

    /// The same values stored otherwise, as [`fit`] stores them.
    ///
    /// **Shapes**: importance `[parts, cols]`: where the rows are those of several experts in turn,
    /// one for each.
    ///
    /// # Errors
    /// As [`fit`].
    ///
    /// # Panics
    /// If the rows or the importances do not divide into parts.
    pub fn fitted(
        &self,
        pool: &Pool,
        format: Format,
        importance: Option<&[f32]>,
    ) -> Result<Matrix, Error> {
        /// Rows of a task.
        const ROWS: usize = 8;
        let (rows, cols) = (self.rows, self.cols);
        let parts = importance.map_or(1, |importance| importance.len() / cols.max(1)).max(1);
        assert!(rows.is_multiple_of(parts), "{rows} rows in {parts} parts");
        let row_bytes = format.row_bytes(cols)?;
        let mut bytes = vec![0; format.matrix_bytes(rows, cols)?];
        let failed = std::sync::Mutex::new(None);
        pool.pieces(&mut bytes, (ROWS * row_bytes).max(1), |task, piece| {
            let mut values = vec![0.0; cols];
            let mut stored = Vec::with_capacity(row_bytes);
            for (offset, to) in piece.chunks_exact_mut(row_bytes).enumerate() {
                let row = task * ROWS + offset;
                let part = row / (rows / parts);
                let importance = importance.map(|all| &all[part * cols..(part + 1) * cols]);
                stored.clear();
                let done = dequantise(self.format, self.row(row), &mut values)
                    .and_then(|()| fit(format, &values, importance, &mut stored));
                match done {
                    Ok(()) => to.copy_from_slice(&stored),
                    Err(error) => *failed.lock().expect("no task panics with it") = Some(error),
                }
            }
        });
        match failed.into_inner().expect("no task panics with it") {
            Some(error) => Err(error),
            None => Matrix::new(rows, cols, format, bytes),
        }
    }

    /// The stored bytes of one row.
    pub fn row(&self, index: usize) -> &[u8] {
        let width = self.bytes.len() / self.rows;
        &self.bytes[index * width..(index + 1) * width]
    }

    /// A matrix of the named rows, in the order named.
    ///
    /// # Panics
    /// When a row is not there.
    pub fn select_rows(&self, rows: impl IntoIterator<Item = usize>) -> Matrix {
        let mut bytes = Vec::new();
        let mut count = 0;
        for row in rows {
            assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
            bytes.extend_from_slice(self.row(row));
            count += 1;
        }
        Matrix { rows: count, cols: self.cols, format: self.format, bytes }
    }
}

#[cfg(test)]
mod fit_tests;
#[cfg(test)]
mod tests;
