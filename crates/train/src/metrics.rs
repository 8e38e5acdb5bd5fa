//! `metrics.jsonl`: a line of figures for each step, and the same for TensorBoard.

use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;
use serde::de::DeserializeOwned;
use store::lines::Appender;

use crate::Error;
use crate::events::{Events, Scalars};

const FILE: &str = "metrics.jsonl";

/// The figures so far, in memory and on disk.
pub(crate) struct Metrics<T> {
    pub(crate) lines: Vec<T>,
    file: Appender,
    events: Events,
}

impl<T: Serialize + DeserializeOwned + Scalars> Metrics<T> {
    /// Goes on after `steps` steps: those after the last checkpoint are done again.
    pub(crate) fn resume(folder: &Path, steps: usize, now: SystemTime) -> Result<Self, Error> {
        let path = folder.join(FILE);
        let (mut file, mut lines) = Appender::resume::<T>(&path)?;
        if lines.len() > steps {
            lines.truncate(steps);
            std::fs::remove_file(&path).map_err(|source| Error::Io {
                action: "remove",
                path: path.clone(),
                source,
            })?;
            file = Appender::resume::<T>(&path)?.0;
            file.append(&lines)?;
        }
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let events = Events::begin(folder, &lines, now)?;
        Ok(Metrics { lines, file, events })
    }

    pub(crate) fn push(&mut self, line: T) -> Result<(), Error> {
        self.file.append(std::slice::from_ref(&line))?;
        self.events.push(&line)?;
        self.lines.push(line);
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        Ok(self.file.sync()?)
    }

    /// The mean of a figure over the last tenth of the steps.
    pub(crate) fn final_mean(&self, value: fn(&T) -> Option<f32>) -> f32 {
        let last = &self.lines[self.lines.len() - (self.lines.len() / 10).max(1)..];
        let values: Vec<f32> = last.iter().filter_map(value).collect();
        values.iter().sum::<f32>() / values.len().max(1) as f32
    }
}
