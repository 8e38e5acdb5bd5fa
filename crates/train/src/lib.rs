//! Training of department experts beside a frozen base, and of whole models.
//!
//! [`Material`] (restated facts, questions with answers, documents) becomes [`Sample`]s; an
//! expert learns them while text of the base's own holds its gates towards null elsewhere;
//! [`join`](join::join) puts experts and base together. [`scratch`] trains all weights of a model that
//! begins with random ones; [`tune`] those of a base, or some of them.

mod checkpoint;
mod events;
mod expert;
mod head;
pub mod join;
mod metrics;
mod muon;
mod options;
mod sample;
mod schedule;
pub mod scratch;
mod step;
pub mod tune;
pub mod whole;

use std::path::PathBuf;

pub use expert::{EXPERT_FILE, Job, Progress, Summary, train_expert};
pub use options::{Optimizer, Options};
pub use sample::{Language, Material, Reading, Sample, samples};
pub use schedule::Shape;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("option {name} is {value}; {expected}")]
    Option { name: &'static str, value: String, expected: String },
    #[error("nothing to learn from: {0}; add documents, or run `artel synth` again")]
    NoLabels(String),
    #[error(
        "the loss is not a number at step {step}; the last checkpoint is kept. Lower learning_rate ({learning_rate})"
    )]
    NotFinite { step: usize, learning_rate: f32 },
    #[error("training needs {ledger}; allowed are {limit} MiB; {change}")]
    Memory { ledger: String, limit: u64, change: &'static str },
    #[error("{}: {problem}", path.display())]
    Adapter { path: PathBuf, problem: String },
    #[error("expert {name}: {problem}")]
    Expert { name: String, problem: String },
}
