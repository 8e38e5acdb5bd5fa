//! Small JSON files, written whole or not at all.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// The largest that is read.
const MAX_BYTES: u64 = 1 << 24;

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let io = |source| Error::Io { action: "write", path: path.into(), source };
    let mut text = serde_json::to_string_pretty(value).map_err(|e| io(e.into()))?;
    text.push('\n');
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary).map_err(io)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.and_then(|()| fs::rename(&temporary, path)).map_err(io)
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let io = |source| Error::Io { action: "read", path: path.into(), source };
    let bytes = fs::metadata(path).map_err(io)?.len();
    let refused = |problem: String| Error::Adapter { path: path.into(), problem };
    if bytes > MAX_BYTES {
        return Err(refused(format!("has {bytes} bytes, above the limit of {MAX_BYTES}")));
    }
    let text = fs::read(path).map_err(io)?;
    serde_json::from_slice(&text).map_err(|e| refused(format!("is not what belongs here: {e}")))
}
