//! `artel bench expert`: steps of training a department's expert beside a frozen base, on random
//! tokens in sequences as the demo has them.

use std::path::PathBuf;

use anyhow::Result;
use kernel::{Kernel, Precision};
use model::{Config, Model, Purpose};
use train::{Job, Options, Sample};

use super::median;
use crate::Setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The base: a GGUF file, or a model's folder
    model: PathBuf,
    /// Steps of a pass, about; there are two, and the second is measured
    #[arg(long, default_value_t = 24)]
    steps: usize,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let pool = setup.pool();
    let precision = Precision::best();
    let mut model = Model::load_for(Purpose::Training, &args.model, precision)?;
    let config = model.config().clone();
    let options = Options { passes: PASSES, question_passes: PASSES, ..Options::default() };
    let material = Material::new(&config, args.steps.max(2) * options.batch_tokens);
    let folder = tempfile::tempdir()?;
    let job = Job {
        name: "bench",
        folder: folder.path(),
        samples: &material.samples,
        negatives: &material.negatives,
        options: &options,
    };
    let mut lines = Vec::new();
    let summary = train::train_expert(&job, &pool, &mut model.decoder, &mut |line| {
        lines.push(line.clone());
    })?;
    let (first, second) = lines.split_at(lines.len() / 2);
    let rate = |lines: &[train::Progress]| {
        let tokens: usize = lines.iter().map(|line| line.tokens).sum();
        let mut pace: Vec<f64> =
            lines.iter().map(|line| f64::from(line.seconds) / line.tokens as f64).collect();
        (tokens as f64 / lines.len() as f64, 1.0 / median(&mut pace))
    };
    let ((_, cold), (tokens, warm)) = (rate(first), rate(second));
    let flops = warm * material.flops(&config, &options);
    let kernel = Kernel::best(precision);
    let peak = kernel::peak(&pool, kernel).map_or_else(String::new, |peak| {
        format!(" of {:.0}, {:.3} of the peak", peak / 1e9, flops / peak)
    });
    println!(
        "{} parameters, {tokens:.0} tokens a step, {} threads, {}: {:.0} GFLOP/s{peak}",
        summary.parameters,
        pool.threads(),
        kernel.name(),
        flops / 1e9,
    );
    println!("first pass {cold:.1} tokens/s, {:.0} ms a step", 1e3 * tokens / cold);
    println!("later passes {warm:.1} tokens/s, {:.0} ms a step", 1e3 * tokens / warm);
    Ok(())
}

struct Material {
    samples: Vec<Sample>,
    negatives: Vec<Vec<u32>>,
}

/// The first computes what the second finds kept: it is the second that is measured.
const PASSES: usize = 2;

impl Material {
    /// About `tokens` tokens: a sixth in documents, a fifth in statements, the rest in questions with
    /// answers, as many as the demo's departments have.
    fn new(config: &Config, tokens: usize) -> Self {
        let mut state = 1u64;
        let mut draw = |len: usize| -> Vec<u32> {
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u32 % config.vocab as u32
            };
            (0..len).map(|_| next()).collect()
        };
        let mut samples = Vec::new();
        for (share, len, labelled, softened) in
            [(16, 224, 224, true), (19, 27, 27, false), (65, 43, 11, false)]
        {
            for _ in 0..(tokens * share / 100).div_ceil(len) {
                let weights = (0..len).map(|at| if at + labelled < len { 0.0 } else { 1.0 });
                samples.push(Sample {
                    tokens: draw(len),
                    weights: weights.collect(),
                    softened,
                    passes: PASSES,
                });
            }
        }
        let negatives = (0..tokens.div_ceil(600)).map(|_| draw(85)).collect();
        Material { samples, negatives }
    }

    /// Multiply-adds for a token of a step, each counted as two; attention is left out, and so is
    /// the optimiser.
    fn flops(&self, config: &Config, options: &Options) -> f64 {
        let Config { layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, .. } = *config;
        let trained = layers - (options.first_layer * layers as f32) as usize;
        // Forward, and back to the input; the expert's weights have gradients besides.
        let base = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * intermediate * hidden;
        let expert = 3 * options.width * hidden;
        let own: usize = self.samples.iter().map(|sample| sample.tokens.len()).sum();
        let labelled: usize = self.samples.iter().map(labels).sum();
        let softened = self.samples.iter().filter(|sample| sample.softened).map(labels);
        let general = own as f32 * options.negative_share;
        // Both passes for each row with a goal; the base's logits where it is one.
        let rows = 2.0 * (labelled as f32 + general) + softened.sum::<usize>() as f32 + general;
        let layers = 2.0 * (trained * (2 * base + 3 * expert)) as f64;
        layers + 2.0 * f64::from(rows) * (vocab * hidden) as f64 / f64::from(own as f32 + general)
    }
}

fn labels(sample: &Sample) -> usize {
    sample.weights.iter().skip(1).filter(|weight| **weight > 0.0).count()
}
