//! `artel bench gemm`: the products of training, packing included, against the peak of multiply-adds.

use std::time::Instant;

use anyhow::Result;
use kernel::{
    Kernel, Lanes, Left, Output, Packed, Pool, Precision, matmul, matmul_transposed, peak,
};

use super::median;
use crate::Setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each product is measured; the median counts
    #[arg(long, default_value_t = 9)]
    rounds: usize,
}

/// One weight matrix and the tokens that go through it.
struct Shape {
    name: &'static str,
    tokens: usize,
    outputs: usize,
    inputs: usize,
}

const fn shape(name: &'static str, tokens: usize, outputs: usize, inputs: usize) -> Shape {
    Shape { name, tokens, outputs, inputs }
}

const SHAPES: [Shape; 11] = [
    shape("dense 384: queries, keys, values", 2048, 1152, 384),
    shape("dense 384: attention out", 2048, 384, 384),
    shape("dense 384: gate and up", 2048, 2048, 384),
    shape("dense 384: down", 2048, 384, 1024),
    shape("dense 384: head of 8192", 2048, 8192, 384),
    shape("expert 256: gate and up", 256, 512, 384),
    shape("expert 256: down", 256, 384, 256),
    shape("SmolLM2-135M: queries, keys, values", 2048, 960, 576),
    shape("SmolLM2-135M: attention out", 2048, 576, 576),
    shape("SmolLM2-135M: gate and up", 2048, 3072, 576),
    shape("SmolLM2-135M: down", 2048, 576, 1536),
];

/// The three products of a linear layer's training step.
#[derive(Clone, Copy, PartialEq)]
enum Product {
    /// `X·Wᵀ`
    Forward,
    /// `dY·W`
    Inputs,
    /// `dYᵀ·X`
    Weights,
}

const PRODUCTS: [(Product, &str); 3] =
    [(Product::Forward, "X·Wᵀ"), (Product::Inputs, "dY·W"), (Product::Weights, "dYᵀ·X")];

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let threads = setup.pool().threads();
    let mut counts = vec![1, threads];
    counts.dedup();
    let mut ratio = f64::INFINITY;
    for precision in [Precision::F32, Precision::best()] {
        for &threads in &counts {
            let achieved = table(&Pool::new(threads), precision, args.rounds);
            if precision == Precision::best() {
                ratio = achieved.min(ratio);
            }
        }
    }
    println!("ratio {ratio:.3}");
    Ok(())
}

/// Prints all shapes and returns what share of the peak they reach together.
fn table(pool: &Pool, precision: Precision, rounds: usize) -> f64 {
    let mut operands: Vec<Operands> =
        SHAPES.iter().map(|shape| Operands::new(pool, precision, shape)).collect();
    let kernel = Kernel::best(precision);
    let mut peaks = Vec::new();
    let mut seconds = vec![vec![Vec::new(); PRODUCTS.len()]; SHAPES.len()];
    for _ in 0..rounds {
        for (operands, seconds) in operands.iter_mut().zip(&mut seconds) {
            peaks.extend(peak(pool, kernel));
            for ((product, _), seconds) in PRODUCTS.iter().zip(seconds) {
                let started = Instant::now();
                operands.multiply(pool, precision, *product);
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
    }
    let peak = if peaks.is_empty() { f64::NAN } else { median(&mut peaks) };
    println!("{precision:?}, {} threads, {}", pool.threads(), kernel.name());
    println!("peak of multiply-adds: {:.0} GFLOP/s", peak / 1e9);
    let (mut all_flops, mut all_seconds) = (0.0, 0.0);
    for (shape, seconds) in SHAPES.iter().zip(&mut seconds) {
        let flops = 2.0 * (shape.tokens * shape.outputs * shape.inputs) as f64;
        let mut line = format!("{:36} {:5} tokens ", shape.name, shape.tokens);
        for ((_, name), seconds) in PRODUCTS.iter().zip(seconds) {
            let seconds = median(seconds);
            (all_flops, all_seconds) = (all_flops + flops, all_seconds + seconds);
            let (rate, share) = (flops / seconds / 1e9, flops / seconds / peak);
            line += &format!("  {name:5} {rate:4.0} GFLOP/s {:3.0} %", 100.0 * share);
        }
        println!("{line}");
    }
    let share = all_flops / all_seconds / peak;
    println!("together: {:.0} GFLOP/s, {share:.3} of the peak\n", all_flops / all_seconds / 1e9);
    share
}

struct Operands {
    shape: &'static Shape,
    x: Vec<f32>,
    weights: Vec<f32>,
    dy: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
    d_weights: Vec<f32>,
    by_rows: Packed,
    by_columns: Packed,
}

impl Operands {
    fn new(pool: &Pool, precision: Precision, shape: &'static Shape) -> Self {
        let wave = |len: usize| (0..len).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
        let (x, y) = (shape.tokens * shape.inputs, shape.tokens * shape.outputs);
        let (outputs, inputs) = (shape.outputs, shape.inputs);
        let weights = wave(outputs * inputs);
        Operands {
            shape,
            x: wave(x),
            by_rows: Packed::rows(pool, precision, &weights, outputs, inputs),
            by_columns: Packed::columns(pool, precision, &weights, outputs, inputs),
            d_weights: vec![0.0; weights.len()],
            weights,
            dy: wave(y),
            y: vec![0.0; y],
            dx: vec![0.0; x],
        }
    }

    /// Converting and packing both sides included, into memory that is there, as in training.
    fn multiply(&mut self, pool: &Pool, precision: Precision, product: Product) {
        let &Shape { outputs, inputs, .. } = self.shape;
        match product {
            Product::Forward => {
                self.by_rows.fill_rows(pool, &self.weights);
                matmul(pool, &mut self.y, Left::Rows(&self.x), &self.by_rows, Output::Replace);
            }
            Product::Inputs => {
                self.by_columns.fill_columns(pool, &self.weights);
                let left = Left::Rows(&self.dy);
                matmul(pool, &mut self.dx, left, &self.by_columns, Output::Replace);
            }
            Product::Weights => {
                let dy = Lanes::new(pool, precision, &self.dy, outputs);
                let x = Lanes::new(pool, precision, &self.x, inputs);
                matmul_transposed(pool, &mut self.d_weights, &dy, &x, Output::Replace);
            }
        }
    }
}
