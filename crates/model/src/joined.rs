//! Experts on disk: one file each, and the model that joins them to a base.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::{Error, ExpertLayer, ExpertWeights, tensor_file};

/// The file that makes a folder a joined model.
pub const JOINED_FILE: &str = "joined.json";

/// A base and the experts beside it. The folder holds the experts' files; the base is named by its
/// path, so that joining and forgetting copy no base weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joined {
    /// The base's folder, relative to the joined model's.
    pub base: PathBuf,
    /// In the order of [`crate::ExpertSet`].
    pub experts: Vec<JoinedExpert>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinedExpert {
    pub name: String,
    /// Relative to the joined model's folder.
    pub file: PathBuf,
}

/// The entry of an expert file's metadata that holds its [`Sizes`].
const METADATA: &str = "expert";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    width: usize,
    hidden: usize,
    layers: usize,
}

impl Sizes {
    fn are_sensible(&self) -> bool {
        [self.width, self.hidden, self.layers].iter().all(|size| (1..=1 << 20).contains(size))
    }
}

impl Joined {
    /// The description in `folder`, if it is a joined model's.
    ///
    /// # Errors
    /// [`Error::Json`] or [`Error::Io`] if there is one that cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(JOINED_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => {
                serde_json::from_str(&text).map(Some).map_err(|source| Error::Json { path, source })
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            // A path to a single file has no folder below it.
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Ok(None),
            Err(source) => Err(Error::Io { action: "read", path, source }),
        }
    }

    /// Writes the description into `folder`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(JOINED_FILE);
        let text = serde_json::to_string_pretty(self).expect("plain data");
        fs::write(&path, text + "\n").map_err(|source| Error::Io { action: "write", path, source })
    }

    /// The experts' weights with their names.
    ///
    /// # Errors
    /// As [`ExpertWeights::read`].
    pub fn read_experts(&self, folder: &Path) -> Result<Vec<(String, ExpertWeights)>, Error> {
        let read =
            |e: &JoinedExpert| Ok((e.name.clone(), ExpertWeights::read(&folder.join(&e.file))?));
        self.experts.iter().map(read).collect()
    }
}

impl ExpertWeights {
    /// Writes the weights as f32 safetensors; the file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] on a full disk, for instance.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let sizes = Sizes { width: self.width, hidden: self.hidden, layers: self.layers.len() };
        let text = serde_json::to_string(&sizes).expect("plain data");
        let tensors = self.tensors().map(|(name, shape, values)| {
            (name, Dtype::F32, shape.to_vec(), bytemuck::cast_slice(values.as_slice()))
        });
        tensor_file::write(path, Some((METADATA, text)), tensors)
    }

    /// Reads what [`ExpertWeights::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`], [`Error::Tensor`] or [`Error::Shape`] if it is no
    /// expert's file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let map = tensor_file::map(path)?;
        let text = tensor_file::metadata(path, &map, METADATA)?;
        let sizes = text.and_then(|text| serde_json::from_str::<Sizes>(&text).ok());
        let Some(Sizes { width, hidden, layers }) = sizes.filter(Sizes::are_sensible) else {
            let problem = format!("the metadata has no sensible {METADATA:?}");
            return Err(tensor_file::malformed(path, problem));
        };
        let file = tensor_file::parse(path, &map)?;
        let tensor = |layer: usize, part: &str, shape: [usize; 2]| {
            tensor_file::floats(path, &file, &format!("layers.{layer}.{part}"), &shape)
        };
        let layer = |index: usize| {
            if file.tensor(&format!("layers.{index}.router")).is_err() {
                return Ok(ExpertLayer::default());
            }
            Ok(ExpertLayer {
                router: tensor(index, "router", [1, hidden])?,
                gate_up: tensor(index, "gate_up", [2 * width, hidden])?,
                down: tensor(index, "down", [hidden, width])?,
            })
        };
        let layers = (0..layers).map(layer).collect::<Result<_, Error>>()?;
        Ok(ExpertWeights { width, hidden, layers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expert_file_round_trips_and_a_broken_one_is_refused() {
        let folder = std::env::temp_dir().join(format!("artel-expert-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("expert.safetensors");
        let mut weights = ExpertWeights::zeros(3, 1..3, 4, 2);
        for (index, values) in weights.tensors_mut().enumerate() {
            values.iter_mut().enumerate().for_each(|(i, v)| *v = (index * 100 + i) as f32 * 0.1);
        }
        weights.write(&path).unwrap();
        assert_eq!(ExpertWeights::read(&path).unwrap(), weights);
        let bytes = fs::read(&path).unwrap();
        for len in [0, 7, 20, bytes.len() - 1] {
            fs::write(&path, &bytes[..len]).unwrap();
            assert!(ExpertWeights::read(&path).is_err(), "cut to {len} bytes");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
