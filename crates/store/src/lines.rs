//! JSON lines that are appended to while a stage runs, and survive a kill.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, io};

/// A JSONL file open for appending. Each line reaches the disk whole or is cut off at the next
/// [`Appender::resume`].
pub struct Appender {
    file: File,
    path: PathBuf,
}

impl Appender {
    /// Opens `path`, creating it if need be, cuts off a torn last line, and returns the lines that
    /// are there.
    ///
    /// # Errors
    /// [`Error::Line`] if a whole line is not a `T`; [`Error::Io`].
    pub fn resume<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>), Error> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)
            .map_err(io("open", path))?;
        let bytes = std::fs::read(path).map_err(io("read", path))?;
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(io("truncate", path))?;
        }
        let lines = parse(path, &bytes[..whole])?;
        Ok((Appender { file, path: path.into() }, lines))
    }

    /// Appends `values`, a line each, with one write.
    ///
    /// # Errors
    /// [`Error::Io`], on a full disk for instance; the file then ends in a torn line at worst.
    pub fn append<T: Serialize>(&mut self, values: &[T]) -> Result<(), Error> {
        let mut text = String::new();
        for value in values {
            text.push_str(&serde_json::to_string(value).map_err(|e| Error::Line {
                path: self.path.clone(),
                line: 0,
                reason: e.to_string(),
            })?);
            text.push('\n');
        }
        let length = self.file.metadata().map_err(io("measure", &self.path))?.len();
        self.file.write_all(text.as_bytes()).map_err(|e| {
            // Half a line would swallow the next one; if this fails too, `resume` cuts it off.
            let _ = self.file.set_len(length);
            io("append to", &self.path)(e)
        })
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(io("sync", &self.path))
    }
}

/// Reads a whole JSONL file; blank lines are passed over.
///
/// # Errors
/// [`Error::Line`] with the line's number if one is not a `T`; [`Error::Io`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
    parse(path, &std::fs::read(path).map_err(io("read", path))?)
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<Vec<T>, Error> {
    let mut values = Vec::new();
    for (index, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        values.push(serde_json::from_slice(line).map_err(|e| Error::Line {
            path: path.into(),
            line: index + 1,
            reason: e.to_string(),
        })?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_cut_off_and_the_rest_kept() {
        let dir = std::env::temp_dir().join(format!("artel-lines-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("x.jsonl");
        std::fs::write(&path, "[1]\n[2]\n[3").unwrap();
        let (mut lines, found) = Appender::resume::<Vec<u32>>(&path).unwrap();
        assert_eq!(found, [vec![1], vec![2]]);
        lines.append(&[vec![4u32], vec![5]]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[1]\n[2]\n[4]\n[5]\n");
        std::fs::write(&path, "[1]\nx\n").unwrap();
        let error = read::<Vec<u32>>(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
