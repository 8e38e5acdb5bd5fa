use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use kernel::quant::Format;
use kernel::{Matrix, Pool, Precision};
use model::{ChatTemplate, Config, Export, TensorInfo, Tokenizer, Weights};
use serde::{Deserialize, Serialize};

use super::Options;
use super::balance::Balance;
use super::step::Trainer;
use crate::checkpoint::{self, State};
use crate::events::Scalars;
use crate::metrics::Metrics;
use crate::schedule::{Curve, Packing, Plan};
use crate::{Error, Sample};

/// One step's figures; a line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// From 1.
    pub step: usize,
    pub steps: usize,
    /// Cross-entropy, nats per token.
    pub loss: f32,
    pub gradient_norm: f32,
    pub learning_rate: f32,
    /// Tokens of the step.
    pub tokens: usize,
    pub seconds: f32,
    /// None in a dense model.
    pub balance: Option<Balance>,
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
        if let Some(balance) = self.balance {
            scalars.push(("max_violation", balance.max_violation));
            scalars.push(("idle_experts", balance.idle as f32));
            scalars.push(("sequence_balance", balance.sequence));
        }
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
    /// What should be looked at.
    pub alarms: Vec<String>,
}

/// A model to train.
pub struct Job<'a> {
    pub name: &'a str,
    /// Where the model, its metrics and its checkpoints are written.
    pub folder: &'a Path,
    pub config: &'a Config,
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
    pub samples: &'a [Sample],
    pub options: &'a Options,
}

/// MaxVio above this over the last tenth of a run is worth a word: some expert then has three times
/// its share.
const IMBALANCE: f32 = 2.0;

/// Trains a model and leaves it in the job's folder, in the Hugging Face layout. Checkpoints in it
/// from an interrupted run of the same job are gone on from, to the same bits.
///
/// # Errors
/// [`Error::Option`] before the start; [`Error::NotFinite`] if training diverges; what writing to
/// the folder gives.
pub fn train(
    job: &Job,
    pool: &Pool,
    precision: Precision,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Summary, Error> {
    let &Job { folder, config, samples, options, .. } = job;
    options.check()?;
    let packing =
        Packing { batch_tokens: options.batch_tokens, negative_share: 0.0, seed: options.seed };
    let plan = Plan::new(samples, &[], &packing);
    let mut trainer = match State::resume(folder, |path| Weights::read_file(config, path))? {
        Some(state) => Trainer::of(pool, config, precision, options, state),
        None => Trainer::new(pool, config, precision, options),
    };
    let write = |weights: &Weights, path: &Path| weights.write_file(config, path);
    let curve =
        Curve { shape: options.schedule, peak: options.learning_rate, warmup: options.warmup };
    let mut metrics = Metrics::<Progress>::resume(folder, trainer.state.step, SystemTime::now())?;
    let (mut saved, steps) = (Instant::now(), plan.steps.len());
    while trainer.state.step < steps {
        let started = Instant::now();
        let at = trainer.state.step;
        let batch: Vec<&Sample> = plan.steps[at].samples.iter().map(|&i| &samples[i]).collect();
        let learning_rate = curve.rate(at, steps);
        let figures = trainer.step(pool, &batch, learning_rate);
        if trainer.state.step == at {
            trainer.state.save(folder, write)?;
            return Err(Error::NotFinite { step: at + 1, learning_rate: options.learning_rate });
        }
        let line = Progress {
            step: at + 1,
            steps,
            loss: figures.loss,
            gradient_norm: figures.gradient_norm,
            learning_rate,
            tokens: batch.iter().map(|sample| sample.tokens.len()).sum(),
            seconds: started.elapsed().as_secs_f32(),
            balance: figures.balance,
        };
        metrics.push(line.clone())?;
        progress(&line);
        if saved.elapsed() >= Duration::from_secs(options.checkpoint_seconds) {
            metrics.sync()?;
            trainer.state.save(folder, write)?;
            saved = Instant::now();
        }
    }
    write_model(job, &trainer.state.weights)?;
    checkpoint::discard(folder)?;
    Ok(Summary {
        steps,
        tokens: samples.iter().map(|sample| sample.tokens.len()).sum(),
        parameters: trainer.parameters(),
        loss: metrics.final_mean(|line| Some(line.loss)),
        alarms: alarms(&metrics),
    })
}

/// Experts that are not used, or hardly, at the end of a run.
fn alarms(metrics: &Metrics<Progress>) -> Vec<String> {
    let idle = metrics.final_mean(|line| line.balance.map(|balance| balance.idle as f32));
    let violation = metrics.final_mean(|line| line.balance.map(|balance| balance.max_violation));
    let mut alarms = Vec::new();
    if idle >= 1.0 {
        alarms.push(format!(
            "{idle:.0} experts got no token in an average step; use fewer experts or larger steps"
        ));
    }
    if violation > IMBALANCE {
        alarms.push(format!(
            "the busiest expert has {:.1} times its share (MaxVio {violation:.2}); raise balance_rate",
            violation + 1.0
        ));
    }
    alarms
}

fn write_model(job: &Job, weights: &Weights) -> Result<(), Error> {
    let mut tensors = weights.tensors(job.config).into_iter();
    let mut next = |info: &TensorInfo| -> Result<Matrix, model::Error> {
        let (_, values) = tensors.next().expect("asked for once each, in this order");
        let (rows, cols) = info.rows_cols();
        Ok(Matrix::from_f32(rows, cols, values.to_vec()))
    };
    let export = Export {
        name: job.name,
        config: job.config,
        tokenizer: job.tokenizer,
        template: job.template,
        format: Format::F32,
    };
    Ok(export.write_huggingface(job.folder, &mut next)?)
}
