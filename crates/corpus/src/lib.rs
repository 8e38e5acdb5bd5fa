//! Reading and curating documents: from folders of files to a collection of chunks.
//!
//! [`ingest`] walks the folders, [reads](read) each file into Markdown blocks under section
//! paths, drops what is unusable or there twice and says why, chooses the held-out part, cuts the
//! rest into [chunks](Chunk), and writes all of it as a [`Collection`].

mod chunk;
mod collection;
mod dedup;
mod ingest;
mod quality;
pub mod read;
mod report;
mod split;
mod walk;

use std::path::PathBuf;

pub use chunk::MAX_CHUNK_WORDS;
pub use collection::{Chunk, Collection, DocumentRecord};
pub use ingest::{Options, Progress, ingest, inputs};
pub use quality::Quality;
pub use report::Summary;
pub use split::HeldOut;

/// What can go wrong with a collection as a whole. What is wrong with a single file is no error
/// but the [reason](DocumentRecord::dropped) why its document was dropped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path}: no such folder; check `folders` of this collection")]
    NoFolder { path: PathBuf },
    #[error("{folders}: no usable document among {files} files{reasons}; {hint}")]
    NothingUsable { folders: String, files: usize, reasons: String, hint: &'static str },
    #[error(
        "held-out pattern {pattern:?} matches no document; it is a path or glob below a folder of the collection"
    )]
    HeldOutPattern { pattern: String },
    #[error("held-out part: {reason}")]
    HeldOut { reason: String },
    #[error("{path} changed while it was read; run the stage again")]
    Changed { path: String },
    #[error("{path}: not a collection's Parquet file ({reason}); run `artel ingest` again")]
    Parquet { path: PathBuf, reason: String },
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
