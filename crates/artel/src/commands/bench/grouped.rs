//! `artel bench grouped`: the feed-forward of many experts against a dense one of equal FLOPs.

use std::time::Instant;

use anyhow::Result;
use kernel::{ExpertGradients, Experts, Lanes, Output, Pool, Precision, Routes};

use super::median;
use crate::Setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Experts
    #[arg(long, default_value_t = 32)]
    experts: usize,
    /// Experts of each token
    #[arg(long, default_value_t = 4)]
    top_k: usize,
    /// Width of each expert
    #[arg(long, default_value_t = 256)]
    width: usize,
    /// Hidden size
    #[arg(long, default_value_t = 384)]
    hidden: usize,
    /// Tokens
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// How often each side is measured; the median counts
    #[arg(long, default_value_t = 15)]
    rounds: usize,
}

/// Times of one side, seconds.
#[derive(Default)]
struct Times {
    layout: Vec<f64>,
    forward: Vec<f64>,
    backward: Vec<f64>,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let pool = setup.pool();
    let precision = Precision::best();
    let &Args { experts, top_k, width, hidden, tokens, rounds } = args;
    anyhow::ensure!(
        (1..=experts).contains(&top_k) && tokens > 0,
        "--top-k is {top_k} of {experts} experts, --tokens is {tokens}; use 1 to {experts}, and some tokens"
    );
    let gates = vec![1.0 / top_k as f32; tokens * top_k];
    let routes = Routes::new(experts, top_k, &spread(tokens, experts, top_k), &gates);
    let mut grouped = Side::new(precision, experts, hidden, width, routes);
    let mut dense = Side::new(precision, 1, hidden, top_k * width, Routes::dense(tokens));
    for _ in 0..rounds {
        dense.measure(&pool);
        grouped.measure(&pool);
    }
    let flops = 18.0 * (tokens * top_k * width * hidden) as f64;
    println!("{precision:?}, {} threads, {tokens} tokens, hidden size {hidden}", pool.threads());
    let dense = dense.report(&format!("dense, width {}", top_k * width), flops);
    let grouped = grouped.report(&format!("{experts} experts, top {top_k}, width {width}"), flops);
    println!("ratio {:.3}", grouped / dense);
    Ok(())
}

/// Each token's experts, different ones, all experts about equally often but not in equal groups.
fn spread(tokens: usize, experts: usize, top_k: usize) -> Vec<u32> {
    let mut state = 1u64;
    let mut draw = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut chosen = Vec::with_capacity(tokens * top_k);
    for _ in 0..tokens {
        let mut left: Vec<u32> = (0..experts as u32).collect();
        chosen.extend((0..top_k).map(|_| left.swap_remove(draw() % left.len())));
    }
    chosen
}

struct Side {
    experts: Experts,
    routes: Routes,
    hidden: usize,
    precision: Precision,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    d_gate_up: Vec<f32>,
    d_down: Vec<f32>,
    times: Times,
}

impl Side {
    fn new(
        precision: Precision,
        experts: usize,
        hidden: usize,
        width: usize,
        routes: Routes,
    ) -> Self {
        let wave = |len: usize| (0..len).map(|i| (i as f32 * 0.37).sin() * 0.1).collect();
        let (gate_up, down) = (experts * 2 * width * hidden, experts * hidden * width);
        Side {
            experts: Experts::new(precision, experts, hidden, width, true),
            routes,
            hidden,
            precision,
            gate_up: wave(gate_up),
            down: wave(down),
            d_gate_up: vec![0.0; gate_up],
            d_down: vec![0.0; down],
            times: Times::default(),
        }
    }

    /// Laying out the weights, then both passes from f32 rows to f32 rows.
    fn measure(&mut self, pool: &Pool) {
        let len = self.routes.tokens() * self.hidden;
        let (mut x, mut dy) = (pool.buffer(len), pool.buffer(len));
        for (i, (x, dy)) in x.iter_mut().zip(dy.iter_mut()).enumerate() {
            (*x, *dy) = ((i % 97) as f32 / 97.0 - 0.5, (i % 89) as f32 / 89.0 - 0.5);
        }
        let (mut y, mut dx) = (pool.zeros(len), pool.zeros(len));
        let started = Instant::now();
        self.experts.fill(pool, &self.gate_up, &self.down);
        self.times.layout.push(started.elapsed().as_secs_f64());

        let started = Instant::now();
        let x = Lanes::new(pool, self.precision, &x, self.hidden);
        let kept = self.experts.forward(pool, &mut y, &x, &self.routes);
        self.times.forward.push(started.elapsed().as_secs_f64());

        let started = Instant::now();
        let dy = Lanes::new(pool, self.precision, &dy, self.hidden);
        let gradients = ExpertGradients {
            weights: Some([&mut self.d_gate_up, &mut self.d_down]),
            gates: None,
            mode: Output::Replace,
        };
        self.experts.backward(pool, &mut dx, (&x, &dy), &self.routes, kept, gradients);
        self.times.backward.push(started.elapsed().as_secs_f64());
    }

    /// Prints a line; returns FLOP/s of both passes together.
    fn report(&mut self, name: &str, flops: f64) -> f64 {
        let [layout, forward, backward] =
            [&mut self.times.layout, &mut self.times.forward, &mut self.times.backward]
                .map(|times| median(times));
        let rate = |share: f64, seconds: f64| share * flops / seconds / 1e9;
        println!(
            "{name:32} forward {:4.0} GFLOP/s, backward {:4.0}, together {:4.0}; laying out the weights {:.1} ms",
            rate(1.0 / 3.0, forward),
            rate(2.0 / 3.0, backward),
            rate(1.0, forward + backward),
            1e3 * layout,
        );
        flops / (forward + backward)
    }
}
