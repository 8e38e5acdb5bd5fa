//! Weights of the Hugging Face layout: one `model.safetensors` or several with an index.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use kernel::MappedFile;
use kernel::quant::Format;
use safetensors::tensor::{Dtype, Metadata, SafeTensors as Header};

use super::read_json;
use crate::Error;

const MAX_SHARDS: usize = 4096;

pub(crate) struct SafeTensors {
    folder: PathBuf,
    shards: Vec<Shard>,
    /// Index into `shards` of the file that holds a tensor.
    shard_of: HashMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    file: MappedFile,
    metadata: Metadata,
    data: usize,
}

/// A tensor as it is stored.
pub(crate) struct View<'a> {
    pub(crate) path: &'a Path,
    pub(crate) shape: &'a [usize],
    pub(crate) format: Format,
    pub(crate) bytes: &'a [u8],
}

impl SafeTensors {
    /// # Errors
    /// When a file is missing or not a well-formed safetensors file, naming it.
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let mut shards = vec![];
        let mut shard_of = HashMap::new();
        for path in files(folder)? {
            let shard = Shard::open(path)?;
            for name in shard.metadata.offset_keys() {
                if shard_of.insert(name.clone(), shards.len()).is_some() {
                    let problem = "stands in two files".into();
                    return Err(Error::Tensor { path: shard.path, name, problem });
                }
            }
            shards.push(shard);
        }
        Ok(SafeTensors { folder: folder.into(), shards, shard_of })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.shard_of.contains_key(name)
    }

    pub(crate) fn view(&self, name: &str) -> Result<View<'_>, Error> {
        let missing = || Error::NoTensor { path: self.folder.clone(), name: name.into() };
        let shard = &self.shards[*self.shard_of.get(name).ok_or_else(missing)?];
        let info = shard.metadata.info(name).ok_or_else(missing)?;
        let format = match info.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::Bf16,
            other => {
                let problem = format!("stored as {other:?}; supported are F32, F16 and BF16");
                return Err(Error::Tensor { path: shard.path.clone(), name: name.into(), problem });
            }
        };
        let (start, end) = info.data_offsets;
        let bytes = &shard.file[shard.data + start..shard.data + end];
        Ok(View { path: &shard.path, shape: &info.shape, format, bytes })
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let file = MappedFile::open(&path).map_err(|source| Error::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        // The header's offsets are checked here: none lies beyond the file, none overlap.
        let (header, metadata) = Header::read_metadata(&file).map_err(|error| {
            let problem = format!("not a whole safetensors file: {error}");
            Error::NotAModel { path: path.clone(), problem }
        })?;
        Ok(Shard { path, file, metadata, data: 8 + header })
    }
}

/// The files that hold the tensors.
fn files(folder: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(BTreeSet::from([folder.join("model.safetensors")]));
    }
    let json = read_json(&index)?;
    let wrong = |problem: String| Error::NotAModel { path: index.clone(), problem };
    let Some(map) = json.get("weight_map").and_then(|m| m.as_object()) else {
        return Err(Error::MissingKey { path: index, key: "weight_map".into() });
    };
    let mut files = BTreeSet::new();
    for (name, file) in map {
        // A name with a separator in it could reach outside the folder.
        let plain = |f: &&str| !f.contains(['/', '\\']) && f.ends_with(".safetensors");
        let Some(file) = file.as_str().filter(plain) else {
            return Err(wrong(format!("{name} is said to be in {file}, not a file of the folder")));
        };
        files.insert(folder.join(file));
    }
    if files.len() > MAX_SHARDS {
        let (value, limit) = (files.len() as u64, MAX_SHARDS as u64);
        return Err(Error::Limit { path: index, what: "the number of files".into(), value, limit });
    }
    Ok(files)
}
