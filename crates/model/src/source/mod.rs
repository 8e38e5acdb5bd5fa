//! Where a model comes from: a Hugging Face folder or a GGUF file, under the same names.

mod cursor;
pub(crate) mod gguf;
pub(crate) mod names;
mod safetensors;

use std::io::Read;
use std::path::{Path, PathBuf};

use kernel::quant::{Format, dequantise};
use kernel::{Arena, Matrix};

use self::gguf::Gguf;
use self::names::Stored;
use self::safetensors::SafeTensors;
use crate::{ChatTemplate, Config, Error, Tokenizer, config, template, tokenizer};

/// The largest JSON file that is read: tokenizers of large vocabularies are tens of megabytes.
const MAX_JSON: u64 = 1 << 28;

/// An open model on disk. Weights are read when asked for.
pub enum Source {
    SafeTensors(HuggingFace),
    Gguf(GgufModel),
}

/// A folder in the Hugging Face layout.
pub struct HuggingFace {
    folder: PathBuf,
    config: Config,
    tensors: SafeTensors,
}

/// A GGUF file with a language model in it.
pub struct GgufModel {
    file: Gguf,
    config: Config,
}

impl Source {
    /// Opens a Hugging Face folder, a folder with one `.gguf` file, or a `.gguf` file.
    ///
    /// # Errors
    /// When there is no model, or its description is malformed or not supported.
    pub fn open(path: &Path) -> Result<Source, Error> {
        if path.is_file() {
            return Self::open_gguf(path);
        }
        if path.join("config.json").exists() {
            return Self::open_huggingface(path);
        }
        let io = |source| Error::Io { action: "open", path: path.into(), source };
        let mut files = vec![];
        for entry in std::fs::read_dir(path).map_err(io)? {
            let file = entry.map_err(io)?.path();
            if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
                files.push(file);
            }
        }
        match files.as_slice() {
            [file] => Self::open_gguf(file),
            files => Err(Error::NotAModel {
                path: path.into(),
                problem: format!(
                    "no model is here: it needs a config.json or one .gguf file, and has {} of these",
                    files.len()
                ),
            }),
        }
    }

    fn open_gguf(path: &Path) -> Result<Source, Error> {
        let file = Gguf::open(path)?;
        let config = config::from_gguf(&file)?;
        Ok(Source::Gguf(GgufModel { file, config }))
    }

    fn open_huggingface(folder: &Path) -> Result<Source, Error> {
        let path = folder.join("config.json");
        let json = read_json(&path)?;
        let generation = read_json_if_there(&folder.join("generation_config.json"))?;
        let mut config = config::from_huggingface(&path, &json, generation.as_ref())?;
        let tensors = SafeTensors::open(folder)?;
        // transformers writes its number without the block, which it leaves out.
        config.mtp &= tensors.has(&format!("model.layers.{}.eh_proj.weight", config.layers));
        Ok(Source::SafeTensors(HuggingFace { folder: folder.into(), config, tensors }))
    }

    /// The shape of the model.
    ///
    /// # Errors
    /// None: it was read and checked by [`Source::open`].
    pub fn config(&self) -> Result<Config, Error> {
        Ok(match self {
            Source::SafeTensors(model) => model.config.clone(),
            Source::Gguf(model) => model.config.clone(),
        })
    }

    /// # Errors
    /// When there is none, or it is of a kind that is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        match self {
            Source::SafeTensors(model) => Tokenizer::open(&model.folder.join("tokenizer.json")),
            Source::Gguf(model) => tokenizer::from_gguf(&model.file),
        }
    }

    /// The model's own template, or the plain one of [`ChatTemplate::plain`].
    ///
    /// # Errors
    /// When the template cannot be read or compiled.
    pub fn template(&self) -> Result<ChatTemplate, Error> {
        match self {
            Source::SafeTensors(model) => template::from_huggingface(&model.folder),
            Source::Gguf(model) => template::from_gguf(&model.file),
        }
    }

    /// The file that all is in, of a model that is one GGUF file.
    pub fn gguf_file(&self) -> Option<&Path> {
        match self {
            Source::SafeTensors(_) => None,
            Source::Gguf(model) => Some(&model.file.path),
        }
    }

    /// Room for all weights of a GGUF file in another one beside it, if they take more than `memory` bytes.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written to, or its disk is full.
    pub(crate) fn arena_beside(&self, memory: u64) -> Result<Option<Arena>, Error> {
        let Source::Gguf(GgufModel { file, .. }) = self else { return Ok(None) };
        if file.len() as u64 <= memory {
            return Ok(None);
        }
        let folder = file.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let action = "reserve room for weights beyond the memory in";
        let io = |source| Error::Io { action, path: folder.into(), source };
        Arena::in_file(folder, file.len()).map(Some).map_err(io)
    }

    /// The error that says why a sound model cannot be used.
    pub(crate) fn refuse(&self, problem: &str) -> Error {
        let path = match self {
            Source::SafeTensors(model) => &model.folder,
            Source::Gguf(model) => &model.file.path,
        };
        Error::NotAModel { path: path.clone(), problem: problem.into() }
    }

    /// Whether there is a tensor of this Hugging Face name.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Source::SafeTensors(model) => model.tensors.has(name),
            Source::Gguf(model) => {
                let has = |name: &str| model.file.has(name);
                match names::stored(model.config.family, name) {
                    None => false,
                    Some(Stored::Whole(name) | Stored::Interleaved(name)) => has(&name),
                    Some(Stored::GateUp { gate, up }) => has(&gate) && has(&up),
                    Some(Stored::Expert { all, .. }) => has(&all),
                    Some(Stored::KeyValueUp { whole, keys, values }) => {
                        has(&whole) || (has(&keys) && has(&values))
                    }
                }
            }
        }
    }

    /// The matrix `[rows, cols]`; of a tensor `[experts, rows, cols]` the experts' rows in turn.
    ///
    /// Rows of query and key projections are in the Hugging Face order in both layouts.
    ///
    /// # Errors
    /// When it is missing, or has another shape or an unsupported type.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        match self {
            Source::SafeTensors(model) => {
                let view = model.tensors.view(name)?;
                check_shape(view.path, name, view.shape, rows, cols)?;
                let bytes = view.bytes.to_vec();
                Ok(Matrix { rows, cols, format: view.format, bytes })
            }
            Source::Gguf(model) => model.matrix(name, rows, cols),
        }
    }

    /// The vector `[len]` in f32; of a norm, the factors themselves in every layout.
    ///
    /// # Errors
    /// As [`Source::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        match self {
            Source::SafeTensors(model) => {
                let view = model.tensors.view(name)?;
                let mut values = vector(view.path, name, view.shape, len, view.format, view.bytes)?;
                if model.config.family.norms_from_one() && name.ends_with("norm.weight") {
                    values.iter_mut().for_each(|value| *value += 1.0);
                }
                Ok(values)
            }
            Source::Gguf(model) => {
                let path = &model.file.path;
                let Some(Stored::Whole(stored)) = names::stored(model.config.family, name) else {
                    return Err(Error::NoTensor { path: path.clone(), name: name.into() });
                };
                let tensor = model.file.tensor(&stored)?;
                let bytes = model.file.bytes(tensor);
                vector(path, &stored, &tensor.shape, len, tensor.format, bytes)
            }
        }
    }
}

impl GgufModel {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        let stored = names::stored(self.config.family, name)
            .ok_or_else(|| Error::NoTensor { path: self.file.path.clone(), name: name.into() })?;
        match stored {
            Stored::Whole(name) => self.part(&name, rows, cols),
            Stored::Interleaved(name) => {
                let head_dim = self.config.head_dim;
                if !rows.is_multiple_of(head_dim) {
                    let found = self.file.tensor(&name)?.shape.clone();
                    let (path, expected) = (self.file.path.clone(), vec![rows, cols]);
                    return Err(Error::Shape { path, name, found, expected });
                }
                let matrix = self.part(&name, rows, cols)?;
                Ok(matrix.select_rows(names::halves(rows, head_dim)))
            }
            Stored::GateUp { gate, up } => {
                let experts = match self.file.tensor(&gate)?.shape.as_slice() {
                    [experts, _, _] => *experts,
                    _ => 1,
                };
                let gate = self.part(&gate, rows / 2, cols)?;
                let up = self.part(&up, rows / 2, cols)?;
                Ok(names::join_gate_up(gate, up, experts.max(1)))
            }
            Stored::Expert { all, expert } => self.expert(&all, expert, rows, cols),
            Stored::KeyValueUp { whole, .. } if self.file.has(&whole) => {
                self.part(&whole, rows, cols)
            }
            Stored::KeyValueUp { keys, values, .. } => {
                self.key_value_up(&keys, &values, rows, cols)
            }
        }
    }

    /// One expert's matrix of a tensor of all.
    fn expert(&self, all: &str, at: usize, rows: usize, cols: usize) -> Result<Matrix, Error> {
        let tensor = self.file.tensor(all)?;
        let experts = self.config.routing.map_or(0, |routing| routing.experts);
        check_shape(&self.file.path, all, &tensor.shape, experts.saturating_mul(rows), cols)?;
        let bytes = self.file.bytes(tensor);
        let size = bytes.len() / experts.max(1);
        let bytes = bytes.get(at * size..(at + 1) * size).ok_or_else(|| Error::NoTensor {
            path: self.file.path.clone(),
            name: format!("{all}, expert {at}"),
        })?;
        Ok(Matrix { rows, cols, format: tensor.format, bytes: bytes.to_vec() })
    }

    /// Each head's keys and values one after the other, of keys `[heads, rank, plain]` and values
    /// `[heads, value_dim, rank]`.
    fn key_value_up(
        &self,
        keys: &str,
        values: &str,
        rows: usize,
        rank: usize,
    ) -> Result<Matrix, Error> {
        let heads = self.config.heads;
        let width = self.config.latent.map_or(0, |latent| latent.value_dim);
        let plain = (rows / heads).saturating_sub(width);
        let keys = self.part(keys, heads * rank, plain)?.to_f32();
        let values = self.part(values, heads * width, rank)?.to_f32();
        let mut out = Vec::with_capacity(rows * rank);
        for head in 0..heads {
            let keys = &keys[head * rank * plain..][..rank * plain];
            for row in 0..plain {
                out.extend((0..rank).map(|col| keys[col * plain + row]));
            }
            out.extend_from_slice(&values[head * width * rank..][..width * rank]);
        }
        Ok(Matrix::from_f32(rows, rank, out))
    }

    fn part(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        let tensor = self.file.tensor(name)?;
        check_shape(&self.file.path, name, &tensor.shape, rows, cols)?;
        let bytes = self.file.bytes(tensor).to_vec();
        Ok(Matrix { rows, cols, format: tensor.format, bytes })
    }
}

fn check_shape(
    path: &Path,
    name: &str,
    found: &[usize],
    rows: usize,
    cols: usize,
) -> Result<(), Error> {
    let fits = found.split_last().is_some_and(|(last, leading)| {
        *last == cols && leading.iter().try_fold(1, |n: usize, d| n.checked_mul(*d)) == Some(rows)
    });
    if fits {
        return Ok(());
    }
    let (path, name) = (path.into(), name.into());
    Err(Error::Shape { path, name, found: found.to_vec(), expected: vec![rows, cols] })
}

fn vector(
    path: &Path,
    name: &str,
    shape: &[usize],
    len: usize,
    format: Format,
    bytes: &[u8],
) -> Result<Vec<f32>, Error> {
    if shape != [len] {
        let (path, name) = (path.into(), name.into());
        return Err(Error::Shape { path, name, found: shape.to_vec(), expected: vec![len] });
    }
    let mut out = vec![0.0; len];
    let problem = |error: kernel::quant::Error| Error::Tensor {
        path: path.into(),
        name: name.into(),
        problem: error.to_string(),
    };
    dequantise(format, bytes, &mut out).map_err(problem)?;
    Ok(out)
}

/// Reads a file of at most [`MAX_JSON`] bytes.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    let io = |source| Error::Io { action: "read", path: path.into(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let mut text = String::new();
    file.take(MAX_JSON + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_JSON {
        return Err(Error::Limit {
            path: path.into(),
            what: "its length in bytes".into(),
            value: text.len() as u64,
            limit: MAX_JSON,
        });
    }
    Ok(text)
}

pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value, Error> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|source| Error::Json { path: path.into(), source })
}

pub(crate) fn read_json_if_there(path: &Path) -> Result<Option<serde_json::Value>, Error> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}
