use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, io};

/// A BLAKE3 content hash, in hexadecimal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Hash(String);

impl TryFrom<String> for Hash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(Hash(text)),
            false => Err(format!("{text:?} is not a hash of 64 hexadecimal digits")),
        }
    }
}

impl Hash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Hash(blake3::hash(bytes).to_hex().to_string())
    }

    /// The hash of a file's content.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    pub fn of_file(path: &Path) -> Result<Self, Error> {
        let mut hasher = blake3::Hasher::new();
        let file = std::fs::File::open(path).map_err(io("open", path))?;
        hasher.update_reader(file).map_err(io("read", path))?;
        Ok(Hash(hasher.finalize().to_hex().to_string()))
    }

    /// The first 16 characters: enough to tell artifacts apart on a screen or in a folder name.
    pub fn short(&self) -> &str {
        &self.0[..self.0.len().min(16)]
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// All that decides what an artifact will hold: the same recipe gives the same artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What it is made from, by content: `"collections/maintenance"` or a file's path → its hash.
    pub inputs: BTreeMap<String, Hash>,
    /// The stage's resolved configuration.
    pub config: Value,
    pub seed: u64,
}

impl Recipe {
    /// The hash of inputs, configuration and seed.
    pub fn key(&self) -> Hash {
        Hash::of(canonical(&serde_json::to_value(self).expect("a recipe is plain data")).as_bytes())
    }
}

/// JSON with sorted keys, so that the order of fields does not change a key.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let inner: Vec<String> = entries
                .iter()
                .map(|(k, v)| format!("{}:{}", Value::from(k.as_str()), canonical(v)))
                .collect();
            format!("{{{}}}", inner.join(","))
        }
        Value::Array(items) => {
            let inner: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", inner.join(","))
        }
        other => other.to_string(),
    }
}

/// One file of an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub bytes: u64,
    pub hash: Hash,
}

/// What an artifact says of itself; `manifest.json`, written last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `collections`, `examples`, `experts`, …
    pub kind: String,
    pub name: String,
    pub recipe: Recipe,
    /// The version of Artel that wrote it.
    pub tool_version: String,
    /// The stage's own figures: documents read, examples accepted, steps trained.
    pub counts: BTreeMap<String, u64>,
    /// Every other file of the folder, by path relative to it.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    pub(crate) const FILE: &str = "manifest.json";

    /// Reads `folder/manifest.json`.
    ///
    /// # Errors
    /// [`Error::Missing`] without one, [`Error::Manifest`] if it is not of this version's form.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(Self::FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let hint = "run the stage that makes it (`artel status` names it)".into();
                return Err(Error::Missing { path: folder.into(), hint });
            }
            Err(e) => return Err(io("read", &path)(e)),
        };
        serde_json::from_str(&text).map_err(|e| Error::Manifest { path, reason: e.to_string() })
    }

    /// The artifact's identity: the hash of all it holds. What is made from it names this hash.
    pub fn hash(&self) -> Hash {
        Hash::of(
            canonical(&serde_json::to_value(self).expect("a manifest is plain data")).as_bytes(),
        )
    }
}
