//! Training of a whole model from random weights.

mod initial;
mod options;

pub use initial::initial;
pub use options::Options;

use std::path::Path;

use kernel::{Pool, Precision};
use model::{Tokenizer, Weights};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::checkpoint::{self, State};
use crate::metrics::Metrics;
use crate::whole::{self, Job, Learned, Progress, Summary, Trainer};
use crate::{Error, Sample};

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
    options: &Options,
    pool: &Pool,
    precision: Precision,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Summary, Error> {
    options.check()?;
    let (config, training) = (job.config, options.training());
    let read = |path: &Path| Weights::read_file(config, path);
    let state = State::resume_files(job.folder, &config.tensors(), &training, read)?;
    let mut trainer = match state {
        Some(state) => Trainer::of(pool, config, precision, &training, Learned::All(state)),
        None => Trainer::new(pool, config, precision, &training, initial(config, options.seed)),
    };
    let metrics = whole::run(job, &mut trainer, pool, progress)?;
    whole::write_model(job, trainer.learned().weights())?;
    checkpoint::discard(job.folder)?;
    Ok(whole::summary(job, &trainer, &metrics, alarms(&metrics)))
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

/// Texts as sequences of at most the model's context, each text's end marked by `end`: all of them, or
/// those drawn by the seed until they have as many tokens as the options say. With the sequences comes
/// how many bytes of text they hold.
///
/// # Errors
/// [`Error::Model`] if the tokenizer refuses; [`Error::NoLabels`] if nothing is left to predict.
pub fn sequences(
    tokenizer: &Tokenizer,
    texts: &[String],
    end: Option<u32>,
    options: &Options,
) -> Result<(Vec<Sample>, usize), Error> {
    let mut order: Vec<&String> = texts.iter().collect();
    let mut left = usize::MAX;
    if options.tokens > 0 {
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(options.seed));
        left = options.tokens;
    }
    let (mut samples, mut bytes) = (Vec::new(), 0);
    for text in order {
        if left == 0 {
            break;
        }
        let mut tokens = tokenizer.encode_plain(text)?;
        tokens.extend(end);
        let kept = tokens.len().min(left);
        bytes += text.len() * kept / tokens.len().max(1);
        left -= kept;
        samples.extend(tokens[..kept].chunks(options.context).filter(|part| part.len() > 1).map(
            |tokens| Sample {
                tokens: tokens.to_vec(),
                weights: vec![1.0; tokens.len()],
                softened: false,
                passes: options.passes,
            },
        ));
    }
    if samples.is_empty() {
        return Err(Error::NoLabels(format!("{} texts", texts.len())));
    }
    Ok((samples, bytes))
}
