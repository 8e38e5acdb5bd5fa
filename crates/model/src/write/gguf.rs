//! Source: ggml `docs/gguf.md`; keys and tensors as llama.cpp's `convert_hf_to_gguf.py` writes them
//! (`LlamaModel`, `GraniteMoeModel`).

use std::path::Path;

use kernel::Matrix;
use kernel::quant::Format;

use super::{Export, NewFile, Tensors, ask, stored};
use crate::config::EXPERT_NAMES;
use crate::source::gguf::{ALIGNMENT, DEFAULT_ALIGNMENT, type_id};
use crate::source::names::{self, Stored};
use crate::{Error, Family, TensorInfo, tokenizer};

impl Export<'_> {
    /// Writes one GGUF file with weights, tokenizer and template, which llama.cpp and programs
    /// built on it load.
    ///
    /// Matrices are in the export's format; vectors and routers are f32, and matrices whose rows do
    /// not fill whole blocks are f16.
    ///
    /// # Errors
    /// When the file cannot be written, a tensor is not given as asked for, the format is
    /// read-only, or GGUF cannot express the tokenizer. A file that is not whole does not stay.
    pub fn write_gguf(&self, path: &Path, mut tensors: Tensors) -> Result<(), Error> {
        super::check_family(self.config, path)?;
        if self.config.routing.is_some() {
            let problem = "a model with experts of its own is not written as GGUF; use --format hf";
            return Err(Error::NotAModel { path: path.into(), problem: problem.into() });
        }
        let writable = [Format::F32, Format::F16, Format::Bf16, Format::Q8_0, Format::Q4_0];
        if !writable.contains(&self.format) {
            let problem = format!("cannot be written in {}; use one of {writable:?}", self.format);
            return Err(Error::NotAModel { path: path.into(), problem });
        }
        let infos = self.config.tensors();
        let metadata = self.metadata()?;
        let parts: Vec<Part> = infos.iter().flat_map(|info| self.parts(info)).collect();

        let mut header = Bytes::default();
        header.0.extend_from_slice(b"GGUF");
        header.u32(3);
        header.u64(parts.len() as u64);
        metadata.append_to(&mut header);
        let mut offset = 0;
        for part in &parts {
            header.text(&part.name);
            header.u32(part.shape.len() as u32);
            part.shape.iter().rev().for_each(|size| header.u64(*size as u64));
            header.u32(type_id(part.format));
            header.u64(offset as u64);
            offset = (offset + part.bytes(path)?).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        header.pad();

        let mut file = NewFile::create(path)?;
        file.write(&header.0)?;
        for info in &infos {
            let matrix = ask(&mut tensors, info, path)?;
            for part in self.parts(info) {
                let matrix = part.take(&matrix, self.config.head_dim);
                let mut bytes = Bytes(stored(&matrix, part.format, &part.name, path)?);
                bytes.pad();
                file.write(&bytes.0)?;
            }
        }
        file.finish()
    }

    /// The tensors of the file that together hold one of the Hugging Face layout.
    fn parts(&self, info: &TensorInfo) -> Vec<Part> {
        let part = |name: String, shape: Vec<usize>, rows| {
            let format = names::gguf_format(&name, &shape, self.format);
            Part { name, shape, format, rows }
        };
        let shape = info.shape.clone();
        match names::stored(self.config.family, &info.name)
            .expect("every tensor of a configuration has a GGUF name")
        {
            Stored::Whole(name) => vec![part(name, shape, Rows::All)],
            Stored::Interleaved(name) => vec![part(name, shape, Rows::Interleaved)],
            Stored::GateUp { gate, up } => {
                let mut half = shape;
                let rows = half.len() - 2;
                half[rows] /= 2;
                let experts = half[..rows].iter().product();
                let take = |up| Rows::GateOrUp { experts, up };
                vec![part(gate, half.clone(), take(false)), part(up, half, take(true))]
            }
        }
    }

    fn metadata(&self) -> Result<Metadata, Error> {
        let mut data = Metadata::default();
        let config = self.config;
        let arch = match config.family {
            Family::Llama => "llama",
            Family::GraniteMoeShared => "granitemoe",
            Family::Gemma3
            | Family::Mixtral
            | Family::GraniteMoe
            | Family::Qwen3Moe
            | Family::Glm4Moe => {
                unreachable!("`Export` refuses to write it")
            }
        };
        data.text("general.architecture", arch);
        data.text("general.type", "model");
        data.text("general.name", self.name);
        data.u32(ALIGNMENT, DEFAULT_ALIGNMENT as u32);
        data.u32("general.file_type", file_type(self.format));
        data.u32("general.quantization_version", 2);
        let key = |key: &str| format!("{arch}.{key}");
        data.u32(&key("vocab_size"), config.vocab as u32);
        data.u32(&key("context_length"), config.context as u32);
        data.u32(&key("embedding_length"), config.hidden as u32);
        data.u32(&key("block_count"), config.layers as u32);
        data.u32(&key("attention.head_count"), config.heads as u32);
        data.u32(&key("attention.head_count_kv"), config.kv_heads as u32);
        data.u32(&key("attention.key_length"), config.head_dim as u32);
        data.u32(&key("attention.value_length"), config.head_dim as u32);
        data.u32(&key("rope.dimension_count"), config.head_dim as u32);
        data.f32(&key("rope.freq_base"), config.rope_theta);
        data.f32(&key("attention.layer_norm_rms_epsilon"), config.norm_eps);
        let width = config.experts.as_ref().map_or(config.intermediate, |e| e.width);
        data.u32(&key("feed_forward_length"), width as u32);
        if let Some(experts) = &config.experts {
            let shared = config.intermediate as u32;
            data.u32(&key("expert_shared_feed_forward_length"), shared);
            data.u32(&key("expert_count"), experts.names.len() as u32 + 1);
            data.u32(&key("expert_used_count"), 2);
            data.f32(&key("attention.scale"), (config.head_dim as f64).powf(-0.5) as f32);
            data.f32(&key("embedding_scale"), 1.0);
            data.f32(&key("residual_scale"), 1.0);
            data.f32(&key("logit_scale"), 1.0);
            data.texts(EXPERT_NAMES, &experts.names);
        }
        self.tokenizer_metadata(&mut data)?;
        Ok(data)
    }

    fn tokenizer_metadata(&self, data: &mut Metadata) -> Result<(), Error> {
        let vocabulary = tokenizer::vocabulary(self.tokenizer, self.config.vocab)?;
        let (model, pre) = match &vocabulary.kind {
            tokenizer::Kind::Bytes { pre, .. } => ("gpt2", *pre),
            tokenizer::Kind::Pieces { .. } => ("llama", "default"),
        };
        data.text("tokenizer.ggml.model", model);
        data.text("tokenizer.ggml.pre", pre);
        data.texts("tokenizer.ggml.tokens", &vocabulary.tokens);
        data.i32s("tokenizer.ggml.token_type", &vocabulary.types);
        let prefix = match &vocabulary.kind {
            tokenizer::Kind::Bytes { merges, .. } => {
                data.texts("tokenizer.ggml.merges", merges);
                false
            }
            tokenizer::Kind::Pieces { scores, prefix } => {
                data.f32s("tokenizer.ggml.scores", scores);
                *prefix
            }
        };
        if let Some(id) = self.config.bos {
            data.u32("tokenizer.ggml.bos_token_id", id);
        }
        // The format has three names for what ends an answer.
        for (which, id) in ["eos", "eot", "eom"].iter().zip(&self.config.eos) {
            data.u32(&format!("tokenizer.ggml.{which}_token_id"), *id);
        }
        // The template writes what stands at the beginning.
        data.bool("tokenizer.ggml.add_bos_token", false);
        data.bool("tokenizer.ggml.add_space_prefix", prefix);
        data.text("tokenizer.chat_template", self.template.source());
        Ok(())
    }
}

/// A tensor of the file.
struct Part {
    name: String,
    shape: Vec<usize>,
    format: Format,
    rows: Rows,
}

/// Which rows of the Hugging Face tensor it has.
enum Rows {
    All,
    Interleaved,
    GateOrUp { experts: usize, up: bool },
}

impl Part {
    fn bytes(&self, path: &Path) -> Result<usize, Error> {
        let cols = self.shape[self.shape.len() - 1];
        let rows = self.shape[..self.shape.len() - 1].iter().product();
        self.format.matrix_bytes(rows, cols).map_err(|error| Error::Tensor {
            path: path.into(),
            name: self.name.clone(),
            problem: error.to_string(),
        })
    }

    fn take(&self, matrix: &Matrix, head_dim: usize) -> Matrix {
        match self.rows {
            Rows::All => matrix.clone(),
            Rows::Interleaved => matrix.select_rows(names::interleaved(matrix.rows, head_dim)),
            Rows::GateOrUp { experts, up } => names::gate_or_up(matrix, experts, up),
        }
    }
}

/// llama.cpp's number for a file whose matrices are mostly in this format.
fn file_type(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::Q4_0 => 2,
        Format::Q8_0 => 7,
        Format::Bf16 => 32,
        // The others are not written.
        _ => 1,
    }
}

#[derive(Default)]
pub(super) struct Metadata {
    count: u64,
    bytes: Bytes,
}

impl Metadata {
    /// Their number, then the keys with their values.
    pub(super) fn append_to(&self, header: &mut Bytes) {
        header.u64(self.count);
        header.0.extend_from_slice(&self.bytes.0);
    }

    /// A key with its value as another file has them.
    pub(super) fn copy(&mut self, entry: &[u8]) {
        self.count += 1;
        self.bytes.0.extend_from_slice(entry);
    }

    fn key(&mut self, key: &str, kind: u32) -> &mut Bytes {
        self.count += 1;
        self.bytes.text(key);
        self.bytes.u32(kind);
        &mut self.bytes
    }

    pub(super) fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4).u32(value);
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6).0.extend_from_slice(&value.to_le_bytes());
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7).0.push(u8::from(value));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8).text(value);
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        let bytes = self.key(key, 9);
        bytes.u32(8);
        bytes.u64(values.len() as u64);
        values.iter().for_each(|value| bytes.text(value));
    }

    fn f32s(&mut self, key: &str, values: &[f32]) {
        let bytes = self.key(key, 9);
        bytes.u32(6);
        bytes.u64(values.len() as u64);
        values.iter().for_each(|value| bytes.0.extend_from_slice(&value.to_le_bytes()));
    }

    fn i32s(&mut self, key: &str, values: &[i32]) {
        let bytes = self.key(key, 9);
        bytes.u32(5);
        bytes.u64(values.len() as u64);
        values.iter().for_each(|value| bytes.0.extend_from_slice(&value.to_le_bytes()));
    }
}

#[derive(Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn text(&mut self, value: &str) {
        self.u64(value.len() as u64);
        self.0.extend_from_slice(value.as_bytes());
    }

    pub(super) fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
    }
}
