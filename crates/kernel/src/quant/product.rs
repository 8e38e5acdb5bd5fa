//! Products of rounded activations with tiled weights.
//!
//! Of each sub-block of 32 values, a weight is `scale · q + offset`, `q` a small unsigned integer,
//! and an activation `s · a`, `a` of 8 bits. The sum over `q · a` is exact in 32 bits; the rest is
//! f32, in one order for each output, so that a row's result depends on nothing beside it.

use super::Format;
use super::activations::{Activations, Scale};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::portable;
use super::tiles::{SUB, TILE, Tile, Tiles};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::gate::{Gate, gate_tiles};
use crate::gemm::Output;
use crate::pool::{Pool, SendPtr};

/// Rows of activations that share the work of unpacking a tile.
pub(super) const ROW_BLOCK: usize = 64;
/// Bytes of weights that make a task worth claiming.
pub(super) const TASK_BYTES: usize = 24 * 1024;

/// The versions of the product, better ones behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    /// The oracle, vectorised by the compiler for the build's target.
    Portable,
    /// AVX2: `maddubs`.
    Avx2,
    /// AVX-512 with VNNI: `dpbusd`.
    Avx512Vnni,
    /// NEON: `smull`, `sadalp`.
    Neon,
    /// NEON with the dot product: `sdot`.
    NeonDot,
}

impl Isa {
    const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512Vnni, Isa::Neon, Isa::NeonDot];

    /// The best of this CPU.
    pub fn best() -> Isa {
        *Isa::ALL.iter().rfind(|isa| isa.runs()).expect("plain Rust runs everywhere")
    }

    /// Those that this CPU can run.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.runs()).collect()
    }

    fn runs(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;

            use crate::cpu::{Level, level};
            match self {
                Isa::Avx2 => return level() >= Level::Avx2 && has!("f16c"),
                Isa::Avx512Vnni => {
                    return level() == Level::Avx512 && has!("avx512vnni") && has!("f16c");
                }
                _ => {}
            }
        }
        #[cfg(target_arch = "aarch64")]
        match self {
            Isa::Neon => return true,
            Isa::NeonDot => return std::arch::is_aarch64_feature_detected!("dotprod"),
            _ => {}
        }
        self == Isa::Portable
    }

    /// `portable`, `avx2`, `avx512-vnni`, `neon`, `neon-dot`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Neon => "neon",
            Isa::NeonDot => "neon-dot",
        }
    }
}

/// `out = x · weightsᵀ`, or `out += x · weightsᵀ`.
///
/// The result is that of the rounded activations and the formats' own values, up to the rounding
/// of f32 sums.
///
/// **Shapes**: x `[m, cols]`, weights `[rows, cols]`, out `[m, rows]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn product(pool: &Pool, out: &mut [f32], x: &Activations, weights: &Tiles, mode: Output) {
    let isa = Isa::best();
    let (m, n) = (x.rows(), weights.rows());
    assert_eq!((x.cols, out.len()), (weights.cols(), m * n), "product of [{m}, {}]", x.cols);
    let group = group(pool, weights, weights.count(), m);
    let base = SendPtr(out.as_mut_ptr());
    pool.run(weights.count().div_ceil(group), &|task| {
        let tiles = task * group..weights.count().min((task + 1) * group);
        let mut sums = [[0.0; TILE]; ROW_BLOCK];
        for first in (0..m).step_by(ROW_BLOCK) {
            let rows = x.slice(first, ROW_BLOCK.min(m - first));
            for index in tiles.clone() {
                let tile = weights.tile(index);
                let sums = &mut sums[..rows.count];
                tile_product(isa, &tile, rows, sums);
                for (row, sums) in sums.iter().enumerate() {
                    // SAFETY: rows of `out` are n long and hold this tile's columns, which
                    // belong to this task alone.
                    let to = unsafe {
                        let at = base.get().add((first + row) * n + index * TILE);
                        std::slice::from_raw_parts_mut(at, tile.rows)
                    };
                    match mode {
                        Output::Replace => to.copy_from_slice(&sums[..to.len()]),
                        Output::Add => add(to, sums),
                    }
                }
            }
        }
    });
}

/// The inner values of a gated feed-forward: `out = gate(x · Gᵀ) · (x · Uᵀ)`, `weights` being the
/// rows of `G`, then as many of `U`.
///
/// **Shapes**: x `[m, cols]`, weights `[2·width, cols]`, out `[m, width]`.
///
/// # Panics
/// If a length does not fit the shapes, or `width` is no multiple of 16.
pub fn gated_product(pool: &Pool, out: &mut [f32], x: &Activations, weights: &Tiles, gate: Gate) {
    let isa = Isa::best();
    let (m, width) = (x.rows(), weights.rows() / 2);
    assert!(width.is_multiple_of(TILE) && weights.rows() == 2 * width, "width {width}");
    assert_eq!((x.cols, out.len()), (weights.cols(), m * width), "product of [{m}, {}]", x.cols);
    let tiles = width / TILE;
    let group = group(pool, weights, tiles, m);
    let base = SendPtr(out.as_mut_ptr());
    pool.run(tiles.div_ceil(group), &|task| {
        let range = task * group..tiles.min((task + 1) * group);
        let mut gates = [[0.0; TILE]; ROW_BLOCK];
        let mut ups = [[0.0; TILE]; ROW_BLOCK];
        for first in (0..m).step_by(ROW_BLOCK) {
            let rows = x.slice(first, ROW_BLOCK.min(m - first));
            for index in range.clone() {
                let (gates, ups) = (&mut gates[..rows.count], &mut ups[..rows.count]);
                tile_product(isa, &weights.tile(index), rows, gates);
                tile_product(isa, &weights.tile(tiles + index), rows, ups);
                gate_tiles(gate, gates, ups);
                for (row, values) in gates.iter().enumerate() {
                    // SAFETY: rows of `out` are `width` long and hold this tile's columns, which
                    // belong to this task alone.
                    unsafe {
                        let at = base.get().add((first + row) * width + index * TILE);
                        std::ptr::copy_nonoverlapping(values.as_ptr(), at, TILE);
                    }
                }
            }
        }
    });
}

/// `to += sums`, in registers where all rows of the tile are there.
fn add(to: &mut [f32], sums: &[f32; TILE]) {
    if let Ok(to) = <&mut [f32; TILE]>::try_from(&mut *to) {
        for i in 0..TILE {
            to[i] += sums[i];
        }
        return;
    }
    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
}

/// Tiles of a task: several tasks for each thread, but none too small.
fn group(pool: &Pool, weights: &Tiles, tiles: usize, m: usize) -> usize {
    let least = (TASK_BYTES / m.min(16)).div_ceil(weights.tile_bytes());
    tiles.div_ceil(pool.threads() * 8).max(least)
}

/// Some rows of [`Activations`].
#[derive(Clone, Copy)]
pub(crate) struct Slice<'a> {
    pub(crate) count: usize,
    pub(crate) cols: usize,
    pub(crate) quants: &'a [i8],
    pub(crate) scales: &'a [Scale],
    /// Which rows they are, if not all in their order; they have been checked to be there.
    map: Option<&'a [u32]>,
}

impl Slice<'_> {
    /// Which row of `quants` and `scales` the row `index` is.
    #[inline(always)]
    pub(crate) fn row(self, index: usize) -> usize {
        self.map.map_or(index, |map| map[index] as usize)
    }
}

impl Activations<'_> {
    pub(super) fn slice(&self, first: usize, count: usize) -> Slice<'_> {
        let (cols, subs) = (self.cols, self.cols / SUB);
        let quants = &self.quants()[first * cols..(first + count) * cols];
        let scales = &self.scales()[first * subs..(first + count) * subs];
        Slice { count, cols, quants, scales, map: None }
    }

    /// The rows that `map` names.
    pub(super) fn mapped<'a>(&'a self, map: &'a [u32]) -> Slice<'a> {
        let (quants, scales) = (self.quants(), self.scales());
        assert!(map.iter().all(|row| (*row as usize) < self.rows()), "a row that is not there");
        Slice { count: map.len(), cols: self.cols, quants, scales, map: Some(map) }
    }
}

/// **Shapes**: sums `[x.count]`, each the outputs of the tile's rows.
pub(crate) fn tile_product(isa: Isa, tile: &Tile, x: Slice, sums: &mut [[f32; TILE]]) {
    let blocks = x.cols / tile.format.block_len();
    assert_eq!(tile.bytes.len(), blocks * tile.format.block_bytes() * TILE, "a tile's bytes");
    let rows = x.quants.len() / x.cols;
    assert!(sums.len() == x.count && x.quants.len() == rows * x.cols);
    assert_eq!(x.scales.len() * SUB, x.quants.len());
    assert!(x.map.is_some() || x.count == rows);
    match isa {
        Isa::Portable => portable::tile(tile, x, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::best` and `Isa::available` name only what the CPU has; the lengths were
        // just checked.
        Isa::Avx2 => unsafe { avx2::tile(tile, x, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512Vnni => unsafe { avx512::tile(tile, x, sums) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Isa::Neon => unsafe { neon::tile(tile, x, sums) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Isa::NeonDot => unsafe { neon::tile_dot(tile, x, sums) },
        _ => unreachable!("{} is not available on this CPU", isa.name()),
    }
}

/// Whether all values of a sub-block have one scale; in these formats its halves have one each.
pub(crate) const fn one_scale(format: Format) -> bool {
    !matches!(format, Format::Q6_K | Format::Q2_K | Format::Q3_K)
}
