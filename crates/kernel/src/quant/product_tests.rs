use super::activations::Activations;
use super::product::*;
use super::tests::fixture;
use super::tiles::{SUB, TILE, Tiles};
use super::{Format, Matrix, dequantise};
use crate::arena::Arena;
use crate::gate::Gate;
use crate::gemm::Output;
use crate::pool::Pool;

const TILED: [Format; 13] = [
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

pub(super) fn wave(len: usize, phase: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.613 + phase).sin() * (1.0 + (i % 37) as f32)).collect()
}

/// Blocks made from the fixture's (random values, plausible scales), each with its bytes turned
/// against one another, so that no two rows are alike.
pub(super) fn matrix(format: Format, rows: usize, cols: usize) -> Matrix {
    let stored = fixture(&format!("{format}.blocks"));
    let size = format.block_bytes();
    // The last block's scale is subnormal; what it adds would be lost in the others.
    let blocks: Vec<&[u8]> = stored.chunks_exact(size).take(4).collect();
    let scales = scale_bytes(format);
    let mut bytes = Vec::new();
    for index in 0..rows * cols / format.block_len() {
        let from = blocks[index % blocks.len()];
        bytes.extend((0..size).map(|at| match scales.contains(&at) {
            true => from[at],
            false => ((2 * (index / 4) + 1) * usize::from(from[at]) + index) as u8,
        }));
    }
    Matrix::new(rows, cols, format, bytes).unwrap()
}

/// Where a block holds its scales, whose bytes must stay finite numbers.
fn scale_bytes(format: Format) -> std::ops::Range<usize> {
    match format {
        Format::Q6_K => 208..210,
        Format::Q2_K => 80..84,
        Format::Q3_K => 108..110,
        Format::MXFP4 => 0..1,
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::IQ4_NL | Format::IQ4_XS => 0..2,
        _ => 0..4,
    }
}

fn tiles(matrices: &[&Matrix]) -> Tiles {
    Tiles::new(&Pool::new(2), &mut Arena::new(), matrices).unwrap()
}

/// In f64, from the rounded activations and the reference's weights, with the sum of magnitudes.
fn oracle(x: &Activations, weights: &Matrix) -> Vec<(f64, f64)> {
    let values = weights.to_f32();
    let mut out = Vec::new();
    for row in 0..x.rows() {
        for w in values.chunks_exact(weights.cols) {
            let terms = w.iter().enumerate().map(|(i, w)| {
                let scale = x.scales()[(row * weights.cols + i) / SUB].scale;
                f64::from(*w) * f64::from(x.quants()[row * weights.cols + i]) * f64::from(scale)
            });
            out.push(terms.fold((0.0, 0.0), |(sum, all), t| (sum + t, all + t.abs())));
        }
    }
    out
}

#[test]
fn rows_come_back_as_they_were_stored() {
    for format in TILED {
        let (first, last) = (matrix(format, 32, 512), matrix(format, 21, 512));
        let tiles = tiles(&[&first, &last]);
        assert_eq!(tiles.rows(), 53);
        let mut row = vec![0.0; 512];
        for index in 0..53 {
            tiles.row(index, &mut row);
            let (from, at) = if index < 32 { (&first, index) } else { (&last, index - 32) };
            let mut expected = vec![0.0; 512];
            dequantise(format, from.row(at), &mut expected).unwrap();
            assert_eq!(row, expected, "{format} row {index}");
        }
    }
}

#[test]
fn tiles_take_the_bits_of_the_file() {
    for format in TILED {
        let stored = matrix(format, 48, 1024);
        assert_eq!(tiles(&[&stored]).bytes(), stored.bytes.len(), "{format}");
    }
}

#[test]
fn every_instruction_set_gives_the_product_of_the_rounded_activations() {
    // What is left is the rounding of f32 sums, relative to the sum of magnitudes; the offsets of
    // unsigned values cancel and count too.
    const TOLERANCE: f64 = 4e-6;
    let isas = Isa::available();
    for format in TILED {
        let cols = 768;
        let weights = matrix(format, 20, cols);
        let tiles = tiles(&[&weights]);
        for m in [1, 2, 3, 4, 7, 8, 12, 13, 29] {
            let pool = Pool::new(1);
            let x = Activations::new(&pool, &wave(m * cols, 0.3), cols);
            let expected = oracle(&x, &weights);
            for &isa in &isas {
                for index in 0..2 {
                    let mut sums = vec![[0.0; TILE]; m];
                    let tile = tiles.tile(index);
                    tile_product(isa, &tile, x.slice(0, m), &mut sums);
                    for (row, sums) in sums.iter().enumerate() {
                        for lane in 0..tile.rows {
                            let (value, all) = expected[row * 20 + index * TILE + lane];
                            let error = (f64::from(sums[lane]) - value).abs();
                            assert!(
                                error <= TOLERANCE * all.max(1e-3),
                                "{format} {isa:?} m {m} row {row} lane {lane}: {} for {value} of {all}",
                                sums[lane]
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_best_instruction_set_is_one_that_was_tested() {
    assert_eq!(Isa::available().last(), Some(&Isa::best()));
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512vnni") {
        assert_eq!(Isa::best().name(), "avx512-vnni");
    } else if std::arch::is_x86_feature_detected!("avx2") {
        assert_eq!(Isa::best().name(), "avx2");
    }
    #[cfg(target_arch = "aarch64")]
    assert!(matches!(Isa::best(), Isa::Neon | Isa::NeonDot));
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_or_the_threads() {
    let (m, cols) = (70, 256);
    let (first, last) = (matrix(Format::Q5_0, 32, cols), matrix(Format::Q6_K, 64, cols));
    let tiles = tiles(&[&first, &last]);
    let x = wave(m * cols, 0.9);
    let (one, three) = (Pool::new(1), Pool::new(3));
    let mut all = vec![0.0; m * 96];
    product(&three, &mut all, &Activations::new(&three, &x, cols), &tiles, Output::Replace);
    for row in 0..m {
        let x = Activations::new(&one, &x[row * cols..][..cols], cols);
        let mut alone = vec![1.0; 96];
        product(&one, &mut alone, &x, &tiles, Output::Add);
        let added: Vec<f32> = all[row * 96..][..96].iter().map(|v| 1.0 + v).collect();
        assert_eq!(alone, added, "row {row}");
        let mut alone = vec![0.0; 96];
        product(&one, &mut alone, &x, &tiles, Output::Replace);
        assert_eq!(alone, all[row * 96..][..96], "row {row}");
    }
}

#[test]
fn gates_are_applied_to_the_first_half() {
    let cols = 64;
    let (gates, ups) = (matrix(Format::Q4_1, 48, cols), matrix(Format::Q8_0, 48, cols));
    let tiles = tiles(&[&gates, &ups]);
    let pool = Pool::new(2);
    let x = Activations::new(&pool, &wave(3 * cols, 0.1), cols);
    let mut both = vec![0.0; 3 * 96];
    product(&pool, &mut both, &x, &tiles, Output::Replace);
    for (gate, activation) in [
        (Gate::Silu, (|x| x / (1.0 + (-x).exp())) as fn(f64) -> f64),
        (Gate::GeluTanh, |x| {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + z.tanh())
        }),
    ] {
        let mut out = vec![0.0; 3 * 48];
        gated_product(&pool, &mut out, &x, &tiles, gate);
        for (index, value) in out.iter().enumerate() {
            let (row, col) = (index / 48, index % 48);
            let (g, u) = (f64::from(both[row * 96 + col]), f64::from(both[row * 96 + 48 + col]));
            let expected = activation(g) * u;
            assert!(
                (f64::from(*value) - expected).abs() <= 1e-5 * (1.0 + expected.abs()),
                "{gate:?} {index}"
            );
        }
    }
}

#[test]
fn rounding_is_within_half_a_step_and_faults_show() {
    let pool = Pool::new(2);
    let mut x = wave(40 * 96, 0.7);
    x[5 * 96..5 * 96 + 32].fill(0.0);
    let rounded = Activations::new(&pool, &x, 96);
    for (i, value) in x.iter().enumerate() {
        let scale = rounded.scales()[i / SUB];
        let error = (value - f32::from(rounded.quants()[i]) * scale.scale).abs();
        assert!(error <= 0.5001 * scale.scale, "{i}: {value}");
        let half: i32 = rounded.quants()[i / 16 * 16..][..16].iter().map(|q| i32::from(*q)).sum();
        let expected = half as f32 * scale.scale;
        assert_eq!(if i / 16 % 2 == 0 { scale.low } else { scale.high }, expected);
    }
    let weights = tiles(&[&matrix(Format::Q4_0, 16, 96)]);
    for fault in [f32::NAN, f32::INFINITY] {
        let mut x = wave(2 * 96, 0.7);
        x[40] = fault;
        let mut out = vec![0.0; 32];
        product(&pool, &mut out, &Activations::new(&pool, &x, 96), &weights, Output::Replace);
        assert!(out[..16].iter().all(|v| v.is_nan()) && out[16..].iter().all(|v| v.is_finite()));
    }
}

#[test]
fn plain_formats_and_broken_tiles_are_refused() {
    let pool = Pool::new(1);
    let refuse =
        |matrices: &[&Matrix]| Tiles::new(&pool, &mut Arena::new(), matrices).err().unwrap();
    let plain = Matrix::from_f32(16, 32, vec![0.0; 512]);
    let message = refuse(&[&plain]).to_string();
    assert_eq!(message, "16 rows in f32 cannot be stacked in tiles of 16 rows of a block format");
    let narrow = matrix(Format::Q4_0, 9, 32);
    assert!(matches!(refuse(&[&narrow, &narrow]), crate::quant::Error::Untiled { rows: 9, .. }));
}
