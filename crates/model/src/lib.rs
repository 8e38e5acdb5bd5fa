//! A language model: tokenizer, chat template, and the one decoder of all families.

mod config;
mod decoder;
mod importance;
mod joined;
mod source;
mod template;
mod tensor_file;
mod tokenizer;
mod write;

use std::path::{Path, PathBuf};

use kernel::Precision;

pub use kernel::attention::KvFormat;

pub use config::{
    Config, ExpertsConfig, Family, Groups, HeadNorms, Latent, Rope, Routing, Scales, Scaling,
    TensorInfo, Windows, Yarn,
};
pub use decoder::{
    Batch, Decoder, ExpertLayer, ExpertSet, ExpertWeights, Hidden, Input, Keep, KvCache,
    LayerWeights, MtpWeights, Page, Purpose, Tape, Weights, read_experts,
};
pub use importance::Importance;
pub use joined::{JOINED_FILE, Joined, JoinedExpert};
pub use source::Source;
pub use template::{ChatTemplate, Message};
pub use tensor_file::{NamedTensors, NamedValues, Values};
pub use tokenizer::Tokenizer;
pub use write::{Export, Mix, Quantise, StoredTensor, Tensors};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}", path.display())]
    NotAModel { path: PathBuf, problem: String },
    #[error("{}: not the JSON that belongs here: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: the key {key:?} is missing", path.display())]
    MissingKey { path: PathBuf, key: String },
    #[error("{}: {key} is {value}, but {expected}", path.display())]
    Value { path: PathBuf, key: String, value: String, expected: String },
    #[error("{}: {what} is {value}, above the limit of {limit}", path.display())]
    Limit { path: PathBuf, what: String, value: u64, limit: u64 },
    #[error("{}: malformed at byte {at}: {problem}", path.display())]
    Malformed { path: PathBuf, at: usize, problem: String },
    #[error("{}: tensor {name}: {problem}", path.display())]
    Tensor { path: PathBuf, name: String, problem: String },
    #[error("{}: tensor {name} is missing", path.display())]
    NoTensor { path: PathBuf, name: String },
    #[error("{}: tensor {name} has the shape {found:?}, but {expected:?} follows from the model's configuration", path.display())]
    Shape { path: PathBuf, name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tokenizer {}: {problem}", path.display())]
    Tokenizer { path: PathBuf, problem: String },
    #[error("chat template: {problem}")]
    Template { problem: String },
}

/// A model ready for use.
pub struct Model {
    pub name: String,
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
}

impl Model {
    /// Loads the model for scoring and generation from an HF folder, a folder with one GGUF file,
    /// or a GGUF file.
    ///
    /// # Errors
    /// What [`Source`] says of a file that is missing, broken or of an unknown family.
    pub fn load(path: &Path, precision: Precision) -> Result<Self, Error> {
        Self::load_for(Purpose::Inference, path, precision)
    }

    /// As [`Model::load`], prepared for `purpose`.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_for(purpose: Purpose, path: &Path, precision: Precision) -> Result<Self, Error> {
        Self::load_within(purpose, path, precision, u64::MAX)
    }

    /// As [`Model::load_for`], with weights in so many bytes of memory: see [`Decoder::load_within`].
    ///
    /// # Errors
    /// As [`Decoder::load_within`].
    pub fn load_within(
        purpose: Purpose,
        path: &Path,
        precision: Precision,
        memory: u64,
    ) -> Result<Self, Error> {
        let joined = Joined::read(path)?;
        let base = joined.as_ref().map_or(path.to_path_buf(), |j| path.join(&j.base));
        let source = Source::open(&base)?;
        let mut model = Model {
            name: path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            decoder: Decoder::load_within(&source, precision, purpose, memory)?,
            tokenizer: source.tokenizer()?,
            template: source.template()?,
        };
        if let Some(joined) = joined {
            model.attach(&joined.read_experts(path)?, path)?;
        }
        Ok(model)
    }

    /// Puts experts beside the base, in place of those that are there.
    ///
    /// # Errors
    /// [`Error::Value`] if an expert was trained on another base.
    fn attach(&mut self, experts: &[(String, ExpertWeights)], path: &Path) -> Result<(), Error> {
        let config = self.decoder.config();
        for (name, expert) in experts {
            if (expert.layers.len(), expert.hidden) != (config.layers, config.hidden) {
                return Err(Error::Value {
                    path: path.into(),
                    key: format!("expert {name}"),
                    value: format!("for {} layers of size {}", expert.layers.len(), expert.hidden),
                    expected: format!("the base has {} of {}", config.layers, config.hidden),
                });
            }
        }
        let experts: Vec<_> = experts.iter().map(|(name, e)| (name.as_str(), e)).collect();
        self.decoder.attach(&kernel::Pool::machine(), &experts);
        Ok(())
    }

    pub fn config(&self) -> &Config {
        self.decoder.config()
    }
}
