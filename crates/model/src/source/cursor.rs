//! Reading of little-endian fields from bytes that may lie.

use std::path::Path;

use crate::Error;

pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Cursor { path, bytes, at: 0 }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn malformed(&self, problem: impl Into<String>) -> Error {
        self.malformed_at(self.at, problem)
    }

    pub(super) fn malformed_at(&self, at: usize, problem: impl Into<String>) -> Error {
        Error::Malformed { path: self.path.into(), at, problem: problem.into() }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let Some(found) = self.bytes[self.at..].get(..count) else {
            let left = self.left();
            let problem = format!("{count} bytes are needed, but the file ends after {left}");
            return Err(self.malformed(problem));
        };
        self.at += count;
        Ok(found)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        Ok(self.take(N)?.try_into().expect("take gives as many bytes as asked for"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count that is at most `limit`.
    pub(super) fn count(&mut self, what: &str, limit: u64) -> Result<u64, Error> {
        let value = self.u64()?;
        if value > limit {
            return Err(Error::Limit { path: self.path.into(), what: what.into(), value, limit });
        }
        Ok(value)
    }

    /// A length and as many bytes of UTF-8.
    pub(super) fn text(&mut self, what: &str, limit: u64) -> Result<String, Error> {
        let length = self.count(what, limit)?;
        let at = self.at;
        let bytes = self.take(length as usize)?;
        let text = std::str::from_utf8(bytes);
        Ok(text.map_err(|_| self.malformed_at(at, "a text is not UTF-8"))?.to_owned())
    }
}
