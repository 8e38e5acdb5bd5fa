//! Artifacts: what the stages of the path hand to each other.
//!
//! An artifact is a folder with a `manifest.json` that is written last. A stage asks for a
//! [`Draft`], fills it, and [finishes](Draft::finish) it: only then does the folder appear under
//! its name, whole. A draft that a kill interrupted is found again by the next run of the same
//! stage with the same [`Recipe`], and goes on from what it holds.

pub mod lines;
mod manifest;
mod workspace;

use std::path::PathBuf;

pub use manifest::{FileEntry, Hash, Manifest, Recipe};
pub use workspace::{Artifact, Draft, Kind, Link, Workspace};

/// What can go wrong with artifacts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} does not exist; {hint}")]
    Missing { path: PathBuf, hint: String },
    #[error("{path}: not a manifest this version can read: {reason}")]
    Manifest { path: PathBuf, reason: String },
    #[error("{path}, line {line}: {reason}")]
    Line { path: PathBuf, line: usize, reason: String },
    #[error("{path} is in use by another process; wait for it or stop it")]
    Busy { path: PathBuf },
    #[error(
        "{path}: content differs from its manifest ({detail}); run the stage that makes it again"
    )]
    Corrupt { path: PathBuf, detail: String },
    #[error("name {name:?}: {reason}")]
    Name { name: String, reason: &'static str },
}

pub(crate) fn io(
    action: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}
