//! Did it get better? Question sets, scoring, statistics and the report.
//!
//! Everything is scored twice with the same weights and tokenizer, with and without the
//! department experts, so each question, document and text is its own control: only paired
//! differences are judged, and their standard errors are clustered by document.

mod choice;
mod distance;
mod forgetting;
mod perplexity;
mod question;
mod report;
mod stats;

use std::path::PathBuf;

use kernel::Pool;
use model::{ExpertSet, Model};

pub use choice::{ChoiceScore, Outcome, Rule, evaluate_choices, neutral_question, resume_choices};
pub use distance::{Distance, beginning, distance};
pub use forgetting::{
    BaseText, Forgetting, Writing, forgetting, read_base_texts, write_base_texts,
};
pub use perplexity::{DocumentScore, HeldOutText, bits_per_byte, gate_shares, resume_perplexity};
pub use question::{Question, read_questions};
pub use report::{Answer, Department, GateShare, Report};
pub use stats::{
    Change, Comparison, Direction, Estimate, Interval, Proportion, Share, Verdict, compare,
    compare_bits, ratio, student_quantile, wilson,
};

/// What can go wrong with an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path}, line {line}: not a question: {reason}")]
    Syntax { path: PathBuf, line: usize, reason: String },
    #[error("{path}, line {line}, field `{field}`: {reason}")]
    Field { path: PathBuf, line: usize, field: &'static str, reason: String },
    #[error("{path} holds no questions; write one JSON object a line")]
    NoQuestions { path: PathBuf },
    #[error(
        "question {id:?}: prompt and longest choice take {tokens} tokens, the model's context is {limit}; \
         shorten the question"
    )]
    TooLong { id: String, tokens: usize, limit: usize },
    #[error(
        "question {id:?}: choice {choice} adds no token to the prompt; give it a text of its own"
    )]
    EmptyChoice { id: String, choice: usize },
    #[error(
        "scoring {what:?}: the model gives {value}, not a finite number; its weights are damaged"
    )]
    NotFinite { what: String, value: f64 },
    #[error("{path} holds results of other {what} ({detail}); remove it and evaluate again")]
    Stale { path: PathBuf, what: &'static str, detail: String },
    #[error("before and after cannot be compared: {reason}")]
    Unpaired { reason: String },
    #[error("writing with {model:?}: {reason}")]
    Writing { model: String, reason: String },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error("scoring {what:?}: {source}")]
    Scoring { what: String, source: Box<engine::Error> },
}

/// A model as it is judged: with these experts permitted.
///
/// The base is the same model with [`ExpertSet::NONE`].
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub model: &'a Model,
    pub pool: &'a Pool,
    pub experts: ExpertSet,
}

impl<'a> Subject<'a> {
    fn scorer(&self) -> engine::Scorer<'a> {
        engine::Scorer { model: self.model, pool: self.pool }
    }

    /// The same model without any expert.
    pub fn base(&self) -> Subject<'a> {
        Subject { experts: ExpertSet::NONE, ..*self }
    }
}

/// How far an evaluation is: `done` of `total` questions, documents or texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: usize,
    pub total: usize,
}

fn scoring(what: &str) -> impl FnOnce(engine::Error) -> Error {
    let what = what.into();
    move |source| Error::Scoring { what, source: Box::new(source) }
}
