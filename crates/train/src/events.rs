//! The figures of a run as TensorBoard reads them: `events.out.tfevents.0.artel`.
//!
//! **Source**: TensorFlow `record_writer.cc` (records: length, its checksum, data, its checksum),
//! `event.proto` and `summary.proto` (fields 1 wall_time, 2 step, 3 file_version, 5 summary; of a
//! value 1 tag, 2 simple_value); the checksum is CRC-32C, RFC 3720 appendix B.4, rotated and shifted.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::Error;

const FILE: &str = "events.out.tfevents.0.artel";

/// Figures of a step that can be drawn.
pub(crate) trait Scalars {
    fn step(&self) -> usize;
    /// How long the step took.
    fn seconds(&self) -> f32;
    fn scalars(&self) -> Vec<(&'static str, f32)>;
}

/// An event file that grows.
pub(crate) struct Events {
    file: File,
    path: PathBuf,
    /// Seconds since 1970, as if the run had never been interrupted.
    time: f64,
}

impl Events {
    /// Writes the events of the steps so far anew, so that nothing of a killed run's last line is
    /// left; `now` are seconds since 1970.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn begin<T: Scalars>(folder: &Path, lines: &[T], now: f64) -> Result<Self, Error> {
        let path = folder.join(FILE);
        let io = |source| Error::Io { action: "write", path: path.clone(), source };
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(&path);
        let passed: f64 = lines.iter().map(|line| f64::from(line.seconds())).sum();
        let mut events = Events { file: file.map_err(io)?, path: path.clone(), time: now - passed };
        let mut bytes = Vec::new();
        record(&mut bytes, &version(events.time));
        for line in lines {
            events.time += f64::from(line.seconds());
            record(&mut bytes, &event(events.time, line));
        }
        events.file.write_all(&bytes).map_err(io)?;
        Ok(events)
    }

    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn push<T: Scalars>(&mut self, line: &T) -> Result<(), Error> {
        self.time += f64::from(line.seconds());
        let mut bytes = Vec::new();
        record(&mut bytes, &event(self.time, line));
        let io = |source| Error::Io { action: "write", path: self.path.clone(), source };
        self.file.write_all(&bytes).map_err(io)
    }
}

fn version(time: f64) -> Vec<u8> {
    let mut event = vec![0x09];
    event.extend_from_slice(&time.to_le_bytes());
    field(&mut event, 0x1a, b"brain.Event:2");
    event
}

fn event<T: Scalars>(time: f64, line: &T) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, number) in line.scalars() {
        let mut value = Vec::new();
        field(&mut value, 0x0a, tag.as_bytes());
        value.push(0x15);
        value.extend_from_slice(&number.to_le_bytes());
        field(&mut summary, 0x0a, &value);
    }
    let mut event = vec![0x09];
    event.extend_from_slice(&time.to_le_bytes());
    event.push(0x10);
    varint(&mut event, line.step() as u64);
    field(&mut event, 0x2a, &summary);
    event
}

/// A field of bytes: its tag, their number, themselves.
fn field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn record(out: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked(&length).to_le_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(&masked(data).to_le_bytes());
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C, bit by bit: a record has some hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Line(usize);

    impl Scalars for Line {
        fn step(&self) -> usize {
            self.0
        }

        fn seconds(&self) -> f32 {
            0.5
        }

        fn scalars(&self) -> Vec<(&'static str, f32)> {
            vec![("loss", 4.0 / self.0 as f32), ("rate", 1e-3)]
        }
    }

    #[test]
    fn checksums_are_those_of_the_specification() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// `tests/reference/events.py` reads the same bytes with TensorBoard.
    #[test]
    fn a_file_is_the_one_that_tensorboard_reads() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::begin(folder.path(), &[Line(1), Line(2)], 1000.0).unwrap();
        events.push(&Line(300)).unwrap();
        drop(events);
        let found = std::fs::read(folder.path().join(FILE)).unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(FILE);
        if std::env::var_os("ARTEL_WRITE_EVENTS").is_some() {
            std::fs::write(&fixture, &found).unwrap();
        }
        assert!(found == std::fs::read(fixture).unwrap());
    }

    #[test]
    fn a_resumed_file_is_as_if_written_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let read = || std::fs::read(folder.path().join(FILE)).unwrap();
        Events::begin(folder.path(), &[Line(1), Line(2), Line(3)], 77.5).unwrap();
        let whole = read();
        Events::begin::<Line>(folder.path(), &[], 76.0).unwrap().push(&Line(1)).unwrap();
        let mut events = Events::begin(folder.path(), &[Line(1)], 76.5).unwrap();
        events.push(&Line(2)).unwrap();
        events.push(&Line(3)).unwrap();
        assert!(read() == whole);
    }
}
