//! Tuning of a whole model on documents and examples: all of its weights, an adapter beside some, or
//! the experts that the material uses most.

mod adapter;
mod experts;
mod file;
mod options;

use std::path::Path;

use kernel::{Pool, Precision};
use model::{Config, NamedTensors, TensorInfo, Weights};

pub(crate) use adapter::Adapter;
pub use adapter::{ADAPTER_FOLDER, replay};
pub use options::{Method, Options, Score};

use crate::Error;
use crate::checkpoint::{self, State};
use crate::metrics::Metrics;
use crate::options::refuse;
use crate::whole::{self, How, Job, Learned, Parts, Progress, Summary, Trainer, Training};
use experts::{Chosen, EXPERTS_FILE};

/// Of each weight: it and its gradient.
const BYTES: u64 = 8;

/// What tuning a model of this shape keeps of weights, gradients and running means, in bytes.
///
/// # Errors
/// [`Error::Option`] if the model has not what the options ask for.
pub fn states(config: &Config, options: &Options) -> Result<u64, Error> {
    let (tensors, training) = (config.tensors(), &options.training());
    let all: u64 = tensors.iter().map(|info| info.len() as u64).sum();
    // While the base is read, and the model written, its largest tensor is there some times more.
    let reading = 12 * tensors.iter().map(|info| info.len() as u64).max().unwrap_or(0);
    Ok(reading
        + match options.method {
            Method::Full => whole::states_of(&tensors, training),
            Method::Lora => {
                let targets = adapter::targets_of(&tensors, options)?;
                let shapes = adapter::shapes(&tensors, &targets, options.rank);
                let own = whole::states_of(&shapes, training);
                let base: u64 = targets.iter().map(|&target| tensors[target].len() as u64).sum();
                let largest = targets.iter().map(|&target| tensors[target].len() as u64).max();
                BYTES * all + own + 4 * base + 4 * largest.unwrap_or(0)
            }
            Method::Experts => {
                let routing = routing(config)?;
                // Those with the highest scores have at least their share of them.
                let most = (f64::from(options.share) * routing.experts as f64).ceil() as usize;
                let layers = config.layers - routing.dense_layers;
                let shape = vec![most * layers, 3 * routing.width, config.hidden];
                let own = TensorInfo { name: "experts".into(), shape };
                BYTES * all + whole::states_of(&[own], training)
            }
        })
}

/// The model's own experts.
///
/// # Errors
/// [`Error::Option`] for a dense model.
fn routing(config: &Config) -> Result<model::Routing, Error> {
    match config.routing {
        Some(routing) => Ok(routing),
        None => {
            let expected = "the base has no experts of its own; use full or lora";
            refuse("method", "experts".into(), expected)
        }
    }
}

/// Tunes a model that begins with `weights`, and leaves it in the job's folder, in the Hugging Face
/// layout; an adapter in [`ADAPTER_FOLDER`] beside it, and which experts were tuned in
/// `expert_cfg.json`. Checkpoints in it from an interrupted run of the same job are gone on from, to the
/// same bits. `base` is the model's name.
///
/// # Errors
/// [`Error::Option`] before the start; [`Error::NotFinite`] if training diverges; what writing to
/// the folder gives.
pub fn tune(
    job: &Job,
    (base, weights): (&str, Weights),
    options: &Options,
    pool: &Pool,
    precision: Precision,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Summary, Error> {
    options.check()?;
    if options.sequence_tokens > job.config.context {
        let expected = format!("the base reads {} tokens", job.config.context);
        return refuse("sequence_tokens", options.sequence_tokens.to_string(), &expected);
    }
    let learned = match options.method {
        Method::Full => all(job, weights, &options.training())?,
        Method::Lora => adapted(job, weights, options, pool)?,
        Method::Experts => some_experts(job, weights, options, pool, precision)?,
    };
    if learned.parameters() == 0 {
        return refuse("method", format!("{:?}", options.method), "nothing of the base is trained");
    }
    let mut trainer = Trainer::of(pool, job.config, precision, &options.training(), learned);
    let metrics = whole::run(job, &mut trainer, pool, progress)?;
    whole::write_model(job, trainer.learned().weights())?;
    if let Learned::Some(Parts { state, how: How::Adapter(_), .. }) = trainer.learned() {
        adapter::write(&job.folder.join(ADAPTER_FOLDER), &state.weights, options, base)?;
    }
    checkpoint::discard(job.folder)?;
    Ok(whole::summary(job, &trainer, &metrics, alarms(&metrics)))
}

fn all(job: &Job, weights: Weights, training: &Training) -> Result<Learned, Error> {
    let (config, tensors) = (job.config, job.config.tensors());
    let read = |path: &Path| Weights::read_file(config, path);
    let state = State::resume_files(job.folder, &tensors, training, read)?;
    Ok(Learned::All(state.unwrap_or_else(|| State::new(weights, &tensors, training))))
}

fn adapted(job: &Job, weights: Weights, options: &Options, pool: &Pool) -> Result<Learned, Error> {
    let tensors = job.config.tensors();
    let targets = adapter::targets_of(&tensors, options)?;
    let shapes = adapter::shapes(&tensors, &targets, options.rank);
    let adapter = Adapter::new(&weights, job.config, &targets, options.scale());
    let own = adapter::initial(shapes, options.seed);
    parts(job, pool, (weights, How::Adapter(adapter)), own, &options.training())
}

fn some_experts(
    job: &Job,
    weights: Weights,
    options: &Options,
    pool: &Pool,
    precision: Precision,
) -> Result<Learned, Error> {
    let &Job { config, samples, folder, .. } = job;
    routing(config)?;
    let path = folder.join(EXPERTS_FILE);
    let chosen = match path.exists() {
        // Of an interrupted run.
        true => file::read_json::<Chosen>(&path)?,
        false => {
            let chosen = experts::probe(pool, precision, config, &weights, samples, options);
            file::write_json(&path, &chosen)?;
            chosen
        }
    };
    tracing::info!("{} experts are tuned", chosen.count());
    let (infos, places) = chosen.places(config);
    let own = experts::initial(&weights, config, infos, &places);
    parts(job, pool, (weights, How::Places(places)), own, &options.training())
}

/// What is trained of or beside the weights: as a checkpoint has it, or `own`.
fn parts(
    job: &Job,
    pool: &Pool,
    (weights, how): (Weights, How),
    own: NamedTensors,
    training: &Training,
) -> Result<Learned, Error> {
    let tensors: Vec<TensorInfo> = own.0.iter().map(|(info, _)| info.clone()).collect();
    let read = |path: &Path| NamedTensors::read_file(path, tensors.clone());
    let state = State::resume_files(job.folder, &tensors, training, read)?;
    let state = state.unwrap_or_else(|| State::new(own, &tensors, training));
    let mut parts = Parts { weights, state, how };
    parts.apply(pool, job.config);
    Ok(Learned::Some(parts))
}

/// A loss that did not fall.
fn alarms(metrics: &Metrics<Progress>) -> Vec<String> {
    let tenth = (metrics.lines.len() / 10).max(1);
    let first = &metrics.lines[..tenth.min(metrics.lines.len())];
    let first = first.iter().map(|line| line.loss).sum::<f32>() / first.len().max(1) as f32;
    let last = metrics.final_mean(|line| Some(line.loss));
    match last < first {
        true => Vec::new(),
        false => vec![format!(
            "the loss did not fall ({first:.3} in the first tenth of the steps, {last:.3} in the last); \
             try another learning_rate or more passes"
        )],
    }
}
