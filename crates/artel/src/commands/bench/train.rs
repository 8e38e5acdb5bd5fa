//! `artel bench train`: steps on all weights of a model. The model and its batches come from files,
//! so that another program can train the same; or they are random.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use kernel::{Kernel, Pool, Precision};
use model::{Config, Source, Weights};
use train::scratch::{Options, initial};
use train::whole::{self, Ledger, Trainer};
use train::{Optimizer, Sample};

use super::median;
use crate::Setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A model's folder to begin with [default: random weights of the shape below]
    #[arg(long, requires = "batches")]
    model: Option<PathBuf>,
    /// JSON lines, each one step: a list of sequences of token ids [default: random tokens]
    #[arg(long, requires = "model")]
    batches: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
    /// Constant over the steps
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f32,
    /// Multiply in f32
    #[arg(long)]
    f32: bool,
    /// Steps
    #[arg(long, default_value_t = 12)]
    steps: usize,
}

#[derive(clap::Args)]
pub(crate) struct ThreadsArgs {
    #[command(flatten)]
    shape: Shape,
    /// How often each side is measured; the median counts
    #[arg(long, default_value_t = 9)]
    rounds: usize,
}

/// The random model.
#[derive(clap::Args)]
struct Shape {
    #[arg(long, default_value_t = 384)]
    hidden: usize,
    #[arg(long, default_value_t = 6)]
    layers: usize,
    #[arg(long, default_value_t = 6)]
    heads: usize,
    /// Routed experts; 0 for a dense feed-forward as wide as all experts of a token
    #[arg(long, default_value_t = 0)]
    experts: usize,
    /// Experts of each token
    #[arg(long, default_value_t = 4)]
    top_k: usize,
    /// Width of an expert
    #[arg(long, default_value_t = 256)]
    expert_width: usize,
    /// Sequences of a step
    #[arg(long, default_value_t = 8)]
    sequences: usize,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Tokens that are computed at once; a step of more adds up gradients [default: all of a step]
    #[arg(long)]
    micro_batch_tokens: Option<usize>,
    /// Keep each layer's input alone and compute it again on the way back
    #[arg(long)]
    recompute: bool,
    /// Bits of a value of the optimiser's running means: 32 or 8
    #[arg(long, default_value_t = 32)]
    state_bits: u32,
}

/// Tokens of the random model's vocabulary.
const VOCAB: usize = 8192;

/// A model and what it is trained on.
struct Subject {
    config: Config,
    options: Options,
    weights: Option<Weights>,
    steps: Vec<Vec<Sample>>,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    ensure!(args.steps > 2, "--steps is {}: the first two are not measured", args.steps);
    let pool = setup.pool();
    let subject = match (&args.model, &args.batches) {
        (Some(model), Some(batches)) => Subject::read(model, batches)?,
        _ => args.shape.subject()?,
    };
    let precision = if args.f32 { Precision::F32 } else { Precision::best() };
    let ledger = subject.ledger(&pool, precision);
    let mut trainer = subject.trainer(&pool, precision);
    let kernel = Kernel::best(precision);
    let (mut losses, mut times) = (Vec::new(), Vec::new());
    for step in subject.steps.iter().cycle().take(args.steps) {
        let (loss, seconds) = timed_step(&mut trainer, &pool, step, args.learning_rate);
        losses.push(format!("{loss:.4}"));
        times.push(seconds);
    }
    let tokens = tokens(&subject.steps[0]);
    let rate = tokens as f64 / median(&mut times[2..]);
    let lengths = subject.steps[0].iter().map(|sample| sample.tokens.len());
    let flops = whole::Flops::of(&subject.config).step(lengths) * rate / tokens as f64;
    let peak = kernel::peak(&pool, kernel);
    let peak = peak.map_or_else(String::new, |peak| {
        format!(" of {:.0}, {:.3} of the peak", peak / 1e9, flops / peak)
    });
    println!("losses {}", losses.join(" "));
    if let Some([held, _]) = kernel::held_memory() {
        println!("memory {} MiB at most, {} predicted", held >> 20, ledger.total() >> 20);
    }
    println!(
        "{} parameters, {tokens} tokens a step, {} threads, {}: {:.0} GFLOP/s{peak}",
        trainer.parameters(),
        pool.threads(),
        kernel.name(),
        flops / 1e9,
    );
    println!("train {rate:.1} tokens/s");
    Ok(())
}

pub(crate) fn threads(args: &ThreadsArgs, setup: &Setup) -> Result<()> {
    let (one, all) = (Pool::new(1), setup.pool());
    let subject = args.shape.subject()?;
    let mut trainer = subject.trainer(&all, Precision::best());
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..=args.rounds {
        alone.push(timed_step(&mut trainer, &one, &subject.steps[0], 1e-3).1);
        together.push(timed_step(&mut trainer, &all, &subject.steps[0], 1e-3).1);
    }
    let tokens = tokens(&subject.steps[0]) as f64;
    // The first round finds memory and code cold.
    let (alone, together) = (median(&mut alone[1..]), median(&mut together[1..]));
    println!("1 thread {:.1} tokens/s", tokens / alone);
    println!("{} threads {:.1} tokens/s", all.threads(), tokens / together);
    println!("ratio {:.3}", alone / together);
    Ok(())
}

fn timed_step(
    trainer: &mut Trainer,
    pool: &Pool,
    samples: &[Sample],
    learning_rate: f32,
) -> (f32, f64) {
    let samples: Vec<&Sample> = samples.iter().collect();
    let started = Instant::now();
    let figures = trainer.step(pool, &samples, learning_rate);
    (figures.loss, started.elapsed().as_secs_f64())
}

fn tokens(step: &[Sample]) -> usize {
    step.iter().map(|sample| sample.tokens.len()).sum()
}

impl Shape {
    /// The models of `bench/train-dense` and `bench/train-moe`, but for how experts are chosen.
    fn subject(&self) -> Result<Subject> {
        let all = self.sequences * self.tokens;
        let options = Options {
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.heads,
            width: if self.experts > 0 {
                self.expert_width
            } else {
                self.top_k * self.expert_width
            },
            experts: self.experts,
            // One of them is the expert that all tokens share.
            top_k: self.top_k.saturating_sub(1),
            expert_width: self.expert_width,
            context: self.tokens,
            batch_tokens: all,
            micro_batch_tokens: self.micro_batch_tokens.unwrap_or(all),
            recompute: self.recompute,
            state_bits: self.state_bits,
            ..options()
        };
        options.check()?;
        let mut state = 1u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32 % VOCAB as u32
        };
        let mut sequence = || sample((0..self.tokens).map(|_| draw()).collect());
        let step = (0..self.sequences).map(|_| sequence()).collect();
        let config = Config { tied_embeddings: false, ..options.config(VOCAB, None, vec![]) };
        Ok(Subject { config, options, weights: None, steps: vec![step] })
    }
}

impl Subject {
    fn read(model: &Path, batches: &Path) -> Result<Self> {
        let source = Source::open(model)?;
        let config = source.trainable_config()?;
        let weights = Some(Weights::read(&source, &config)?);
        let steps: Vec<Vec<Vec<u32>>> = store::lines::read(batches)?;
        let steps = steps.into_iter().map(|step| step.into_iter().map(sample).collect());
        let steps: Vec<Vec<Sample>> = steps.collect();
        ensure!(!steps.is_empty(), "{}: no batch", batches.display());
        for sample in steps.iter().flatten() {
            let fits = sample.tokens.iter().all(|&t| (t as usize) < config.vocab);
            ensure!(fits, "{}: a token lies beyond the vocabulary", batches.display());
            ensure!(sample.tokens.len() <= config.context, "{}: too long", batches.display());
        }
        Ok(Subject { config, options: options(), weights, steps })
    }

    fn ledger(&self, pool: &Pool, precision: Precision) -> Ledger {
        let [_, held] = kernel::held_memory().unwrap_or_default();
        let training = self.options.training();
        let held = [held, whole::all_states(&self.config, &training)];
        Ledger::predict(&self.config, &training, precision, pool.threads(), held)
    }

    fn trainer(&self, pool: &Pool, precision: Precision) -> Trainer {
        let weights =
            self.weights.clone().unwrap_or_else(|| initial(&self.config, self.options.seed));
        Trainer::new(pool, &self.config, precision, &self.options.training(), weights)
    }
}

/// What both sides of the comparison use.
fn options() -> Options {
    Options {
        optimizer: Optimizer::AdamW,
        sequence_balance: 0.0,
        mtp: 0.0,
        micro_batch_tokens: 1 << 20,
        ..Options::default()
    }
}

fn sample(tokens: Vec<u32>) -> Sample {
    Sample { weights: vec![1.0; tokens.len()], tokens, softened: false, passes: 1 }
}
