//! Stored matrices in an order that products read from one end to the other.
//!
//! A tile is 16 rows; its blocks are those of its rows side by side, with each field permuted so
//! that one 512-bit register holds the same four values of all 16 rows. Nothing is decoded: the
//! bits per weight stay the file's, and [`Tiles::row`] gives every row back exactly.

use std::ops::Range;

use super::{Error, Format, Matrix, blocks};
use crate::arena::{Arena, Region};
use crate::pool::Pool;

/// Rows of a tile: the 32-bit lanes of a 512-bit register.
pub(crate) const TILE: usize = 16;
/// Values that share one scale of the activations, and at most one of the weights in most formats.
pub(crate) const SUB: usize = 32;

/// Matrices `[rows, cols]` stacked on one another, each in its own format.
pub struct Tiles {
    rows: usize,
    cols: usize,
    parts: Vec<Part>,
}

pub(crate) struct Part {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    /// Tile of the stack at which the part begins.
    first: usize,
    region: Region,
}

/// One tile: its blocks one after the other.
pub(crate) struct Tile<'a> {
    pub(crate) format: Format,
    pub(crate) bytes: &'a [u8],
    /// How many of its 16 rows there are.
    pub(crate) rows: usize,
}

/// One field of a stored block and what becomes of it in a tile's block. Fields follow one another
/// in the tile's order; the number is where the field begins in the stored block.
enum Field {
    /// 2 bytes of each row, row after row.
    Half(usize),
    /// 1 byte of each row.
    Byte(usize),
    /// Words of 4 bytes: the first of every row, then the second of every row, and so on.
    Words(usize, usize),
    /// As `Words`, the sign bit flipped: i8 becomes the u8 that is 128 larger.
    Flipped(usize, usize),
    /// 32 bits, one for each value: for each four values a mask of 64 bits, one for each row and
    /// value.
    Bits(usize),
    /// 32 bytes, whose bit `s` belongs to sub-block `s` of 8: masks as in `Bits`.
    BitPlanes(usize),
}

use Field::{BitPlanes, Bits, Byte, Flipped, Half, Words};

const fn fields(format: Format) -> &'static [Field] {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => &[],
        Format::Q8_0 => &[Half(0), Flipped(2, 8)],
        Format::Q4_0 => &[Half(0), Words(2, 4)],
        Format::Q4_1 => &[Half(0), Half(2), Words(4, 4)],
        Format::Q5_0 => &[Half(0), Bits(2), Words(6, 4)],
        Format::Q5_1 => &[Half(0), Half(2), Bits(4), Words(8, 4)],
        Format::Q4_K => &[Half(0), Half(2), Words(4, 3), Words(16, 32)],
        Format::Q5_K => &[Half(0), Half(2), Words(4, 3), BitPlanes(16), Words(48, 32)],
        Format::Q6_K => &[Half(208), Words(192, 4), Words(128, 16), Words(0, 32)],
        Format::Q2_K => &[Half(80), Half(82), Words(0, 4), Words(16, 16)],
        Format::Q3_K => &[Half(108), Words(96, 3), Words(0, 8), Words(32, 16)],
        Format::IQ4_NL => &[Half(0), Words(2, 4)],
        Format::IQ4_XS => &[Half(0), Half(2), Words(4, 1), Words(8, 32)],
        Format::MXFP4 => &[Byte(0), Words(1, 4)],
    }
}

impl Tiles {
    /// Rows of a tile.
    pub const ROWS: usize = TILE;

    /// Whether matrices in this format can be tiled: the block formats can.
    pub fn supports(format: Format) -> bool {
        !fields(format).is_empty()
    }

    /// Stacks the matrices, in the memory of `arena`.
    ///
    /// # Errors
    /// [`Error::Untiled`] if a format is none that tiles are made of, or a matrix that is not the
    /// last has rows that do not fill its tiles.
    ///
    /// # Panics
    /// If there is no matrix, or their columns differ.
    pub fn new(pool: &Pool, arena: &mut Arena, matrices: &[&Matrix]) -> Result<Self, Error> {
        let cols = matrices.first().expect("a stack has a matrix").cols;
        let mut tiles = Tiles { rows: 0, cols, parts: Vec::new() };
        for (index, matrix) in matrices.iter().enumerate() {
            assert_eq!(matrix.cols, cols, "columns of stacked matrices");
            let whole = matrix.rows.is_multiple_of(TILE) || index + 1 == matrices.len();
            if !Tiles::supports(matrix.format) || !whole {
                return Err(Error::Untiled { format: matrix.format, rows: matrix.rows });
            }
            let first = tiles.rows / TILE;
            tiles.rows += matrix.rows;
            tiles.parts.push(Part::new(pool, arena, matrix, first));
        }
        Ok(tiles)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.region.bytes().len()).sum()
    }

    /// Whether they lie in a file: see [`Arena::in_file`].
    pub fn in_file(&self) -> bool {
        self.parts.iter().any(|part| part.region.in_file())
    }

    /// Has these tiles read, while other work goes on. They must belong to one stacked matrix.
    pub(super) fn will_need(&self, tiles: Range<usize>) {
        let (part, at) = self.part(tiles.start);
        let size = part.tile_bytes();
        part.region.will_need(at * size..(at + tiles.len()) * size);
    }

    /// Writes the values of one row, exactly those that the format's reference gives.
    ///
    /// **Shapes**: out `[cols]`.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {}", self.rows);
        let tile = self.tile(row / TILE);
        let size = tile.format.block_bytes();
        let mut block = [0; 256];
        let tiled = tile.bytes.chunks_exact(size * TILE);
        for (from, to) in tiled.zip(out.chunks_exact_mut(tile.format.block_len())) {
            gather(tile.format, from, row % TILE, &mut block[..size]);
            blocks::dequantise(tile.format, &block[..size], to);
        }
    }

    /// Bytes of a tile, on the average.
    pub(super) fn tile_bytes(&self) -> usize {
        self.bytes() / self.count()
    }

    pub(crate) fn count(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    pub(crate) fn tile(&self, index: usize) -> Tile<'_> {
        let (part, at) = self.part(index);
        let size = part.tile_bytes();
        let bytes = &part.region.bytes()[at * size..(at + 1) * size];
        Tile { format: part.format, bytes, rows: TILE.min(part.rows - at * TILE) }
    }

    /// Where a tile stands: in which matrix, and its number there.
    fn part(&self, index: usize) -> (&Part, usize) {
        let part = self.parts.iter().rfind(|part| part.first <= index).expect("parts begin at 0");
        (part, index - part.first)
    }
}

impl Part {
    fn tile_bytes(&self) -> usize {
        self.region.bytes().len() / self.rows.div_ceil(TILE)
    }

    fn new(pool: &Pool, arena: &mut Arena, matrix: &Matrix, first: usize) -> Self {
        let format = matrix.format;
        let size = format.block_bytes();
        let row_bytes = matrix.cols / format.block_len() * size;
        let mut region = arena.take(matrix.rows.div_ceil(TILE) * TILE * row_bytes);
        pool.pieces(region.bytes_mut(), TILE * row_bytes, |index, tile| {
            // Rows that are not there stay zero.
            let rows = index * TILE..matrix.rows.min((index + 1) * TILE);
            for (lane, row) in rows.enumerate() {
                let stored = matrix.row(row).chunks_exact(size);
                for (from, to) in stored.zip(tile.chunks_exact_mut(TILE * size)) {
                    scatter(format, from, lane, to);
                }
            }
        });
        Part { format, rows: matrix.rows, first, region }
    }
}

/// Puts the stored block of one row into a tile's block.
fn scatter(format: Format, block: &[u8], lane: usize, tile: &mut [u8]) {
    let mut at = 0;
    for field in fields(format) {
        match *field {
            Half(from) => {
                tile[at + 2 * lane..][..2].copy_from_slice(&block[from..from + 2]);
                at += 2 * TILE;
            }
            Byte(from) => {
                tile[at + lane] = block[from];
                at += TILE;
            }
            Words(from, count) | Flipped(from, count) => {
                let flip = if matches!(field, Flipped(..)) { 0x80 } else { 0 };
                for (index, byte) in block[from..from + 4 * count].iter().enumerate() {
                    tile[at + index / 4 * 64 + 4 * lane + index % 4] = byte ^ flip;
                }
                at += 64 * count;
            }
            Bits(_) | BitPlanes(_) => {
                let (from, planes) = planes(field);
                for value in 0..SUB {
                    for plane in 0..planes {
                        let bit = bit(&block[from..], value, plane, planes);
                        let (byte, shift) = mask_bit(lane, value, plane);
                        tile[at + byte] |= bit << shift;
                    }
                }
                at += 64 * planes;
            }
        }
    }
}

/// The inverse of [`scatter`].
fn gather(format: Format, tile: &[u8], lane: usize, block: &mut [u8]) {
    let mut at = 0;
    for field in fields(format) {
        match *field {
            Half(to) => {
                block[to..to + 2].copy_from_slice(&tile[at + 2 * lane..][..2]);
                at += 2 * TILE;
            }
            Byte(to) => {
                block[to] = tile[at + lane];
                at += TILE;
            }
            Words(to, count) | Flipped(to, count) => {
                let flip = if matches!(field, Flipped(..)) { 0x80 } else { 0 };
                for (index, byte) in block[to..to + 4 * count].iter_mut().enumerate() {
                    *byte = tile[at + index / 4 * 64 + 4 * lane + index % 4] ^ flip;
                }
                at += 64 * count;
            }
            Bits(_) | BitPlanes(_) => {
                let (to, planes) = planes(field);
                block[to..to + SUB / 8 * planes].fill(0);
                for value in 0..SUB {
                    for plane in 0..planes {
                        let (byte, shift) = mask_bit(lane, value, plane);
                        let bit = tile[at + byte] >> shift & 1;
                        let (byte, shift) = stored_bit(value, plane, planes);
                        block[to + byte] |= bit << shift;
                    }
                }
                at += 64 * planes;
            }
        }
    }
}

/// Where the field begins in the stored block, and how many sub-blocks it has bits for.
fn planes(field: &Field) -> (usize, usize) {
    match *field {
        Bits(at) => (at, 1),
        BitPlanes(at) => (at, 8),
        Half(at) | Byte(at) | Words(at, _) | Flipped(at, _) => (at, 0),
    }
}

fn bit(bytes: &[u8], value: usize, plane: usize, planes: usize) -> u8 {
    let (byte, shift) = stored_bit(value, plane, planes);
    bytes[byte] >> shift & 1
}

/// Byte and shift, in the stored field, of the bit of a sub-block's value.
fn stored_bit(value: usize, plane: usize, planes: usize) -> (usize, usize) {
    if planes == 1 { (value / 8, value % 8) } else { (value, plane) }
}

/// Byte and shift of the same bit in the tile's masks: 8 masks of 64 bits for each sub-block.
fn mask_bit(lane: usize, value: usize, plane: usize) -> (usize, usize) {
    let within = 4 * lane + value % 4;
    ((plane * 8 + value / 4) * 8 + within / 8, within % 8)
}
