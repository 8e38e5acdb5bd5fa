use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use kernel::quant::Format;
use kernel::{Matrix, Pool};
use model::{ChatTemplate, Config, Export, TensorInfo, Tokenizer, Weights};
use serde::{Deserialize, Serialize};

use super::balance::Balance;
use super::step::Trainer;
use super::{Flops, Training};
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
    /// Of the token after the next, where the model has a block for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtp_loss: Option<f32>,
    pub gradient_norm: f32,
    pub learning_rate: f32,
    /// Tokens of the step.
    pub tokens: usize,
    pub seconds: f32,
    /// Multiply-adds of the step, counted as two: see [`Flops`].
    #[serde(default)]
    pub flops: f64,
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
            ("gflops_per_second", (self.flops / 1e9) as f32 / self.seconds),
        ];
        scalars.extend(self.mtp_loss.map(|loss| ("mtp_loss", loss)));
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
    /// Values that were trained.
    pub parameters: usize,
    /// Mean loss over the last tenth of the steps, nats.
    pub loss: f32,
    /// What should be looked at.
    pub alarms: Vec<String>,
}

/// A model to train.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    pub name: &'a str,
    /// Where the model, its metrics and its checkpoints are written.
    pub folder: &'a Path,
    pub config: &'a Config,
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
    pub samples: &'a [Sample],
}

/// All steps that are left, with a checkpoint every now and then.
///
/// # Errors
/// [`Error::NotFinite`] if training diverges; what writing to the folder gives.
pub(crate) fn run(
    job: &Job,
    trainer: &mut Trainer,
    pool: &Pool,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Metrics<Progress>, Error> {
    let &Job { folder, samples, .. } = job;
    let training = trainer.training.clone();
    let Training { batch_tokens, seed, .. } = training;
    let plan = Plan::new(samples, &[], &Packing { batch_tokens, negative_share: 0.0, seed });
    let curve =
        Curve { shape: training.schedule, peak: training.learning_rate, warmup: training.warmup };
    let mut metrics =
        Metrics::<Progress>::resume(folder, trainer.learned.step(), SystemTime::now())?;
    let (mut saved, steps) = (Instant::now(), plan.steps.len());
    let flops = Flops::of(job.config);
    while trainer.learned.step() < steps {
        let started = Instant::now();
        let at = trainer.learned.step();
        let batch: Vec<&Sample> = plan.steps[at].samples.iter().map(|&i| &samples[i]).collect();
        let learning_rate = curve.rate(at, steps);
        let figures = trainer.step(pool, &batch, learning_rate);
        if trainer.learned.step() == at {
            trainer.learned.save(folder, job.config)?;
            return Err(Error::NotFinite { step: at + 1, learning_rate: training.learning_rate });
        }
        let line = Progress {
            step: at + 1,
            steps,
            loss: figures.loss,
            mtp_loss: figures.mtp_loss,
            gradient_norm: figures.gradient_norm,
            learning_rate,
            tokens: batch.iter().map(|sample| sample.tokens.len()).sum(),
            seconds: started.elapsed().as_secs_f32(),
            flops: flops.step(batch.iter().map(|sample| sample.tokens.len())),
            balance: figures.balance,
        };
        metrics.push(line.clone())?;
        progress(&line);
        if saved.elapsed() >= Duration::from_secs(training.checkpoint_seconds) {
            metrics.sync()?;
            trainer.learned.save(folder, job.config)?;
            saved = Instant::now();
        }
    }
    Ok(metrics)
}

/// What is said of a finished run.
pub(crate) fn summary(
    job: &Job,
    trainer: &Trainer,
    metrics: &Metrics<Progress>,
    alarms: Vec<String>,
) -> Summary {
    Summary {
        steps: metrics.lines.len(),
        tokens: job.samples.iter().map(|sample| sample.tokens.len()).sum(),
        parameters: trainer.parameters(),
        loss: metrics.final_mean(|line| Some(line.loss)),
        alarms,
    }
}

/// Writes the weights as a model in the Hugging Face layout.
///
/// # Errors
/// [`Error::Model`].
pub(crate) fn write_model(job: &Job, weights: &Weights) -> Result<(), Error> {
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
