//! Training of a whole model from random weights.

mod balance;
mod initial;
mod ledger;
mod options;
mod run;
mod step;
mod update;

pub use balance::Balance;
pub use ledger::{Ledger, available, held};
pub use options::Options;
pub use run::{Job, Progress, Summary, train};
pub use step::{Figures, Trainer};

use model::Tokenizer;

use crate::{Error, Sample};

/// Texts as sequences of at most the model's context, each text's end marked by `end`.
///
/// # Errors
/// [`Error::Model`] if the tokenizer refuses; [`Error::NoLabels`] if nothing is left to predict.
pub fn sequences(
    tokenizer: &Tokenizer,
    texts: &[String],
    end: Option<u32>,
    options: &Options,
) -> Result<Vec<Sample>, Error> {
    let mut samples = Vec::new();
    for text in texts {
        let mut tokens = tokenizer.encode_plain(text)?;
        tokens.extend(end);
        samples.extend(tokens.chunks(options.context).filter(|tokens| tokens.len() > 1).map(
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
    Ok(samples)
}
