use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use kernel::Pool;
use kernel::ops::{self, AdamW};
use model::{Decoder, ExpertWeights};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, State};
use crate::events::Scalars;
use crate::metrics::Metrics;
use crate::muon::{self, Matrix};
use crate::options::gradient_scale;
use crate::schedule::{Curve, Packing, Plan, Shape};
use crate::step::{self, Losses, Material};
use crate::{Error, Optimizer, Options, Sample};

/// The finished expert in its artifact's folder.
pub const EXPERT_FILE: &str = "expert.safetensors";

/// One step's figures; a line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// From 1.
    pub step: usize,
    pub steps: usize,
    /// Cross-entropy on the material, nats per weighted token.
    pub loss: f32,
    /// KL(base ‖ model) on the base's own text, nats per token; none in a step without such text.
    pub kl: Option<f32>,
    pub gradient_norm: f32,
    pub learning_rate: f32,
    /// Tokens of the step, the base's own text included.
    pub tokens: usize,
    pub seconds: f32,
}

impl Scalars for Progress {
    fn step(&self) -> usize {
        self.step
    }

    fn seconds(&self) -> f32 {
        self.seconds
    }

    fn scalars(&self) -> Vec<(&'static str, f32)> {
        let mut scalars = vec![
            ("loss", self.loss),
            ("gradient_norm", self.gradient_norm),
            ("learning_rate", self.learning_rate),
            ("tokens_per_second", self.tokens as f32 / self.seconds),
        ];
        scalars.extend(self.kl.map(|kl| ("kl", kl)));
        scalars
    }
}

/// What a finished run reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub steps: usize,
    /// Tokens of one pass over the material.
    pub tokens: usize,
    pub parameters: usize,
    /// Mean loss over the last tenth of the steps, nats.
    pub loss: f32,
    pub kl: f32,
}

/// One expert to train.
pub struct Job<'a> {
    pub name: &'a str,
    /// Where the expert, its metrics and its checkpoints are written.
    pub folder: &'a Path,
    pub samples: &'a [Sample],
    /// Texts that the base wrote itself, as tokens.
    pub negatives: &'a [Vec<u32>],
    pub options: &'a Options,
}

/// Trains one expert and leaves it as [`EXPERT_FILE`] in the job's folder. Checkpoints in it from
/// an interrupted run of the same job are gone on from, to the same bits.
///
/// `decoder` must be loaded for training and have no expert.
///
/// # Errors
/// [`Error::Option`] before the start; [`Error::NotFinite`] if training diverges; what writing to
/// the folder gives.
pub fn train_expert(
    job: &Job,
    pool: &Pool,
    decoder: &mut Decoder,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Summary, Error> {
    let &Job { name, folder, samples, negatives, options } = job;
    options.check()?;
    let plan = Plan::new(samples, negatives, &packing(options));
    let first = options.first_layer_of(decoder.config().layers);
    let mut material = Material::new(pool, decoder, samples, negatives, first);
    let state = begin(folder, decoder, options)?;
    let gradients = state.weights.clone();
    let mut run = Run { folder, name, pool, options, plan, state, gradients };
    let mut metrics = Metrics::resume(folder, run.state.step, SystemTime::now())?;
    let mut saved = Instant::now();
    while run.state.step < run.plan.steps.len() {
        let line = run.step(decoder, &mut material)?;
        metrics.push(line.clone())?;
        progress(&line);
        if saved.elapsed() >= Duration::from_secs(options.checkpoint_seconds) {
            metrics.sync()?;
            run.save()?;
            saved = Instant::now();
        }
    }
    run.state.weights.write(&folder.join(EXPERT_FILE))?;
    checkpoint::discard(folder)?;
    Ok(Summary {
        steps: metrics.lines.len(),
        tokens: samples.iter().map(|s| s.tokens.len()).sum(),
        parameters: run.state.weights.parameters(),
        loss: metrics.final_mean(|l| Some(l.loss)),
        kl: metrics.final_mean(|l| l.kl),
    })
}

fn packing(options: &Options) -> Packing {
    Packing {
        batch_tokens: options.batch_tokens,
        negative_share: options.negative_share,
        seed: options.seed,
    }
}

/// The running means of the gradient, Muon's momentum, and of its square, which is zero where Muon moves
/// the weights.
struct Means {
    mean: ExpertWeights,
    square: ExpertWeights,
}

const WEIGHTS: &str = "weights.safetensors";
const MEAN: &str = "mean.safetensors";
const SQUARE: &str = "square.safetensors";

/// A checkpoint's files.
fn read(folder: &Path) -> Result<(ExpertWeights, Means), model::Error> {
    let read = |name: &str| ExpertWeights::read(&folder.join(name));
    Ok((read(WEIGHTS)?, Means { mean: read(MEAN)?, square: read(SQUARE)? }))
}

fn begin(
    folder: &Path,
    decoder: &Decoder,
    options: &Options,
) -> Result<State<ExpertWeights, Means>, Error> {
    if let Some(state) = State::resume(folder, read)? {
        return Ok(state);
    }
    let config = decoder.config();
    let first = options.first_layer_of(config.layers);
    let zeros =
        || ExpertWeights::zeros(config.layers, first..config.layers, config.hidden, options.width);
    let mut weights = zeros();
    initialise(&mut weights, decoder, options.seed);
    Ok(State { step: 0, weights, means: Means { mean: zeros(), square: zeros() } })
}

/// The deviation of a neuron's input before its activation, at the start.
const PREACTIVATION: f32 = 0.2;

/// Gate and up rows are drawn from a uniform distribution, such that what they give has the
/// deviation [`PREACTIVATION`] whatever the scale of the layer's input; down and router stay zero, so that
/// training starts from the base exactly. With much smaller rows the first tenth of a run only
/// makes them grow.
fn initialise(weights: &mut ExpertWeights, decoder: &Decoder, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(2));
    for (index, layer) in weights.layers.iter_mut().enumerate() {
        let norm = decoder.feed_forward_norm(index);
        // A normed row, with its weights: the squares add up to about those of the weights.
        let length = norm.iter().map(|weight| weight * weight).sum::<f32>().sqrt();
        let limit = PREACTIVATION / length.max(f32::MIN_POSITIVE) * 3.0f32.sqrt();
        for value in &mut layer.gate_up {
            *value = rng.random_range(-limit..limit);
        }
    }
}

struct Run<'a> {
    folder: &'a Path,
    name: &'a str,
    pool: &'a Pool,
    options: &'a Options,
    plan: Plan,
    state: State<ExpertWeights, Means>,
    /// Memory for the gradients of a step.
    gradients: ExpertWeights,
}

impl Run<'_> {
    fn step(&mut self, decoder: &mut Decoder, material: &mut Material) -> Result<Progress, Error> {
        let started = Instant::now();
        let step = self.plan.steps[self.state.step].clone();
        decoder.attach(self.pool, &[(self.name, &self.state.weights)]);
        self.gradients.tensors_mut().for_each(|values| values.fill(0.0));
        let gradients = &mut self.gradients;
        let losses = step::run(self.pool, decoder, material, &step, self.options, gradients);
        let norm: f64 =
            gradients.tensors().map(|(_, _, values)| ops::sum_of_squares(self.pool, values)).sum();
        let norm = norm.sqrt() as f32;
        let curve = Curve {
            shape: Shape::Cosine,
            peak: self.options.learning_rate,
            warmup: self.options.warmup,
        };
        let learning_rate = curve.rate(self.state.step, self.plan.steps.len());
        let Losses { material: loss, kl } = losses;
        if ![loss, kl.unwrap_or(0.0), norm].iter().all(|figure| figure.is_finite()) {
            self.save()?;
            return Err(Error::NotFinite {
                step: self.state.step + 1,
                learning_rate: self.options.learning_rate,
            });
        }
        self.update(norm, learning_rate);
        self.state.step += 1;
        let tokens = step.samples.iter().map(|&i| material.samples[i].tokens.len()).sum::<usize>()
            + step.negatives.iter().map(|&i| material.negatives[i].len()).sum::<usize>();
        Ok(Progress {
            step: self.state.step,
            steps: self.plan.steps.len(),
            loss,
            kl,
            gradient_norm: norm,
            learning_rate,
            tokens,
            seconds: started.elapsed().as_secs_f32(),
        })
    }

    fn save(&self) -> Result<(), Error> {
        let State { weights, means, .. } = &self.state;
        self.state.save(self.folder, |folder| {
            let files = [(WEIGHTS, weights), (MEAN, &means.mean), (SQUARE, &means.square)];
            files.iter().try_for_each(|(name, part)| part.write(&folder.join(name)))
        })
    }

    fn update(&mut self, norm: f32, learning_rate: f32) {
        let options = self.options;
        let adamw = AdamW {
            learning_rate,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: options.weight_decay,
            step: self.state.step as u32 + 1,
            gradient_scale: gradient_scale(options.clip, norm),
        };
        let router = AdamW { learning_rate: options.router_rate * learning_rate, ..adamw };
        let Means { mean, square } = &mut self.state.means;
        let means = mean.tensors_mut().zip(square.tensors_mut());
        let tensors = self.gradients.tensors().zip(self.state.weights.tensors_mut()).zip(means);
        let mut matrices = Vec::new();
        for (((name, [rows, _], gradient), weights), (mean, square)) in tensors {
            if name.ends_with("router") {
                ops::adamw(self.pool, weights, gradient, mean, square, router);
            } else if options.optimizer == Optimizer::AdamW {
                ops::adamw(self.pool, weights, gradient, mean, square, adamw);
            } else {
                // Gate and up stand one above the other and are matrices of their own.
                let count = if name.ends_with("gate_up") { 2 } else { 1 };
                matrices.extend(Matrix::stacked(rows / count, count, [weights, mean], gradient));
            }
        }
        muon::update(self.pool, &mut matrices, learning_rate, options.weight_decay);
    }
}
