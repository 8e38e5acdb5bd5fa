//! The state of a training run: the weights and what the optimiser remembers.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// `W` is what is trained: an expert, or a whole model. `M` is what the optimiser remembers of its
/// gradients.
pub(crate) struct State<W, M> {
    /// Steps done.
    pub(crate) step: usize,
    pub(crate) weights: W,
    pub(crate) means: M,
}

const PREFIX: &str = "checkpoint-";

impl<W, M> State<W, M> {
    /// Writes `folder/checkpoint-STEP`, whole or not at all, and removes older ones; `write` puts the
    /// files into the folder that it is given.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Model`], on a full disk for instance; older checkpoints stay.
    pub(crate) fn save(
        &self,
        folder: &Path,
        write: impl FnOnce(&Path) -> Result<(), model::Error>,
    ) -> Result<(), Error> {
        let temporary = folder.join("checkpoint.tmp");
        remove(&temporary)?;
        fs::create_dir_all(&temporary).map_err(|e| io("create", &temporary, e))?;
        write(&temporary)?;
        let target = folder.join(format!("{PREFIX}{}", self.step));
        remove(&target)?;
        fs::rename(&temporary, &target).map_err(|e| io("move", &target, e))?;
        for (step, path) in find(folder) {
            if step != self.step {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// The newest checkpoint in `folder`.
    ///
    /// # Errors
    /// [`Error::Model`] if it cannot be read.
    pub(crate) fn resume(
        folder: &Path,
        read: impl FnOnce(&Path) -> Result<(W, M), model::Error>,
    ) -> Result<Option<Self>, Error> {
        let Some((step, path)) = find(folder).into_iter().max() else { return Ok(None) };
        let (weights, means) = read(&path)?;
        Ok(Some(State { step, weights, means }))
    }
}

/// Removes all checkpoints from `folder`.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn discard(folder: &Path) -> Result<(), Error> {
    remove(&folder.join("checkpoint.tmp"))?;
    find(folder).iter().try_for_each(|(_, path)| remove(path))
}

fn find(folder: &Path) -> Vec<(usize, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            Some((name.to_str()?.strip_prefix(PREFIX)?.parse().ok()?, entry.path()))
        })
        .collect()
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path, e)),
        _ => Ok(()),
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { action, path: path.into(), source }
}
