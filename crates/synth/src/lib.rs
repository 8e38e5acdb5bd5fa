//! Synthesis: from a collection's chunks to training examples that restate its facts.
//!
//! A small model does not learn a fact from reading it often, but from reading it in many forms
//! and in both directions. The recipe `structure` takes facts from tables, definitions,
//! procedures, lists and sentences and writes each in about sixteen forms, with no model at all;
//! `qa` and `rephrase` ask a teacher and keep only what the document bears out. Held-out
//! documents and chunks are never used, and neither are question files: [`contamination`] checks
//! that afterwards.

mod stage;

mod structure;
mod teacher_qa;
mod verify;

mod facts;
mod restate;

mod contamination;
mod english;
mod example;
mod markdown;

use std::path::PathBuf;

pub use contamination::{NGRAM, Overlap, contamination};
pub use example::{Body, Example, Verdict};
pub use stage::{Count, Method, Options, Progress, Summary, accepted, read, synthesise};

/// What can go wrong with a synthesis as a whole. An example that is not good enough is no error
/// but [refused](Verdict::Refused).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "document {path} lies in {refused}, which holds questions: a model must not be trained on \
         what judges it; move the document or correct `folders` and `questions`"
    )]
    ForbiddenPath { path: PathBuf, refused: PathBuf },
    #[error(
        "collection {collection}: none of its {chunks} chunks can be used \
         ({held_out} held out, {foreign} not in English)"
    )]
    NothingUsable { collection: String, chunks: usize, held_out: usize, foreign: usize },
    #[error("recipe {recipe:?} needs a teacher; name one in `artel.toml` or leave the recipe out")]
    NoTeacher { recipe: &'static str },
    #[error(
        "teacher {teacher} failed at chunk {chunk} of {document}: {reason}; \
         what was made so far is kept, run the stage again to go on"
    )]
    Teacher { teacher: String, chunk: String, document: String, reason: String },
    #[error("{name} = {value} is outside {limit}")]
    Option { name: &'static str, value: String, limit: &'static str },
    #[error(transparent)]
    Store(#[from] store::Error),
}

pub(crate) fn io(
    action: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}
