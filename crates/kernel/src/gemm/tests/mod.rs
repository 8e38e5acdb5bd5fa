mod grouped;

use super::*;
use crate::cpu::{Level, level};

/// The oracle: `out = left · right` with both stored `[m, k]` and `[k, n]`, in f64.
fn oracle(left: &[f32], right: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let sum: f64 =
                (0..k).map(|s| f64::from(left[i * k + s]) * f64::from(right[s * n + j])).sum();
            out[i * n + j] = sum as f32;
        }
    }
    out
}

fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols * rows).map(|i| values[i % rows * cols + i / rows]).collect()
}

/// Small integers, so that bf16 holds them and every sum is exact.
fn integers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + seed * 11) % 17) as f32 - 8.0).collect()
}

#[test]
fn every_layout_gives_the_oracle_product() {
    let pool = Pool::new(2);
    for (m, k, n) in
        [(1, 1, 1), (1, 64, 65), (5, 3, 63), (7, 33, 130), (200, 515, 70), (13, 1030, 300)]
    {
        let (left, right) = (integers(m * k, 1), integers(k * n, 2));
        let expected = oracle(&left, &right, m, k, n);
        let left_t = transpose(&left, m, k);
        let right_t = transpose(&right, k, n);
        for precision in [Precision::F32, Precision::best()] {
            let by_rows = Packed::rows(&pool, precision, &right_t, n, k);
            let by_columns = Packed::columns(&pool, precision, &right, k, n);
            for packed in [&by_rows, &by_columns] {
                for left in [Left::Rows(&left), Left::Transposed(&left_t)] {
                    let mut out = vec![1.0; m * n];
                    matmul(&pool, &mut out, left, packed, Output::Replace);
                    assert_eq!(out, expected, "{precision:?} [{m}, {k}, {n}]");
                    matmul(&pool, &mut out, left, packed, Output::Add);
                    assert!(out.iter().zip(&expected).all(|(a, b)| *a == 2.0 * b));
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_or_the_threads() {
    let (m, k, n) = (23, 700, 130);
    let left: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
    let right: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.11).cos()).collect();
    let (one, three) = (Pool::new(1), Pool::new(3));
    let packed = Packed::columns(&one, Precision::best(), &right, k, n);
    let mut all = vec![0.0; m * n];
    matmul(&three, &mut all, Left::Rows(&left), &packed, Output::Replace);
    for row in 0..m {
        let mut alone = vec![0.0; n];
        matmul(&one, &mut alone, Left::Rows(&left[row * k..][..k]), &packed, Output::Replace);
        assert_eq!(alone, all[row * n..][..n], "row {row}");
    }
}

/// An AVX-512 machine must not fall back to the scalar kernels unnoticed.
#[test]
fn the_kernel_that_runs_is_the_best_of_this_cpu() {
    let expected = match level() {
        Level::Avx512 if Precision::best() == Precision::Bf16 => {
            [Kernel::Avx512F32, Kernel::Avx512Bf16]
        }
        Level::Avx512 => [Kernel::Avx512F32; 2],
        _ => [Kernel::Narrow; 2],
    };
    assert_eq!([Precision::F32, Precision::best()].map(Kernel::best), expected);
}

#[test]
fn scalar_tiles_are_the_oracle_of_the_others() {
    let (m, k, n) = (6, 101, 64);
    let wave = |len: usize| (0..len).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
    let (left, right) = (wave(m * k), wave(k * n));
    let pool = Pool::new(1);
    for precision in [Precision::F32, Precision::best()] {
        let mut panels = Panels::zeros(precision, Order::Plain, 1, n, k);
        panels.fill_columns(&pool, &right);
        let lanes = Lanes::new(&pool, precision, &left, k);
        let run = |kernel| {
            let mut sums = [[0.0; PANEL]; tile::TILE];
            let panel = panels.part(0, 0, 0, panels.steps());
            tile::tile(kernel, lanes.view(None), 0..m, 0, panel, &mut sums);
            sums
        };
        let narrow = (precision == Precision::F32).then_some(Kernel::Narrow);
        let scalar = run(Kernel::Scalar(precision));
        for kernel in narrow.into_iter().chain([Kernel::best(precision)]) {
            for (a, b) in scalar.iter().flatten().zip(run(kernel).iter().flatten()) {
                // The order within a pair, and fused additions, differ.
                assert!((a - b).abs() < 1e-4, "{}: {a} against {b}", kernel.name());
            }
        }
    }
}

#[test]
fn transposed_lanes_give_the_weight_gradient() {
    let (k, m, n) = (131, 70, 90);
    let (left, right) = (integers(k * m, 3), integers(k * n, 4));
    let expected = oracle(&transpose(&left, k, m), &right, m, k, n);
    let pool = Pool::new(2);
    for precision in [Precision::F32, Precision::best()] {
        let left = Lanes::new(&pool, precision, &left, m);
        let right = Lanes::new(&pool, precision, &right, n);
        let mut out = vec![1.0; m * n];
        matmul_transposed(&pool, &mut out, &left, &right, Output::Replace);
        assert_eq!(out, expected, "{precision:?}");
    }
}
