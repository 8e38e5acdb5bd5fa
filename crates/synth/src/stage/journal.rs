//! The examples' file and the record of the chunks that are whole in it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use store::lines::Appender;

use crate::example::Example;
use crate::{Error, io};

pub(super) const PROGRESS: &str = "progress.jsonl";

/// A chunk all of whose examples are within the first `bytes` of the examples' file.
#[derive(Serialize, Deserialize)]
struct Done {
    chunk: String,
    bytes: u64,
}

pub(super) struct Journal {
    path: PathBuf,
    examples: Appender,
    progress: Appender,
    done: usize,
}

impl Journal {
    /// Opens both files in `folder`, cuts off what an interrupted chunk left, and returns the
    /// examples of the whole ones. `chunks` are the ids of all chunks, in order.
    pub(super) fn resume(
        folder: &Path,
        examples: &str,
        chunks: &[&str],
    ) -> Result<(Self, Vec<Example>), Error> {
        let (path, progress_path) = (folder.join(examples), folder.join(PROGRESS));
        let (mut progress, mut done) = Appender::resume::<Done>(&progress_path)?;
        let length = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let in_order = done.len() <= chunks.len()
            && done.iter().zip(chunks).all(|(done, chunk)| done.chunk == **chunk);
        // After a loss of power the record may have reached the disk before the examples did.
        if !in_order || done.last().is_some_and(|last| last.bytes > length) {
            cut(&progress_path, 0)?;
            (progress, done) = Appender::resume(&progress_path)?;
        }
        cut(&path, done.last().map_or(0, |last| last.bytes))?;
        let (examples, found) = Appender::resume(&path)?;
        Ok((Journal { path, examples, progress, done: done.len() }, found))
    }

    /// Chunks that are whole.
    pub(super) fn done(&self) -> usize {
        self.done
    }

    pub(super) fn append(&mut self, chunk: &str, made: &[Example]) -> Result<(), Error> {
        self.examples.append(made)?;
        let bytes = std::fs::metadata(&self.path).map_err(io("measure", &self.path))?.len();
        self.progress.append(&[Done { chunk: chunk.into(), bytes }])?;
        self.done += 1;
        Ok(())
    }

    pub(super) fn finish(&self) -> Result<(), Error> {
        Ok(self.examples.sync()?)
    }
}

fn cut(path: &Path, bytes: u64) -> Result<(), Error> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(io("open", path))?;
    file.set_len(bytes).map_err(io("truncate", path))
}
