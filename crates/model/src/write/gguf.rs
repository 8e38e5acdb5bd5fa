//! Source: ggml `docs/gguf.md`; keys and tensors as llama.cpp's `convert_hf_to_gguf.py` writes them
//! (`LlamaModel`, `GraniteMoeModel`).

mod metadata;

use std::path::Path;

use kernel::Matrix;
use kernel::quant::Format;

use super::{Export, NewFile, Tensors, ask, stored};
use crate::config::ROPE_FACTORS;
use crate::source::gguf::{DEFAULT_ALIGNMENT, type_id};
use crate::source::names::{self, Stored};
use crate::{Config, Error, Family, Scaling, TensorInfo};
pub(super) use metadata::{Bytes, Metadata};

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
    pub fn write_gguf(&self, path: &Path, tensors: Tensors) -> Result<(), Error> {
        // llama.cpp reads the block of this family only.
        let mtp = self.config.mtp && self.config.family == Family::Glm4Moe;
        let config = Config { mtp, ..self.config.clone() };
        Export { config: &config, ..*self }.write_gguf_of(path, tensors)
    }

    fn write_gguf_of(&self, path: &Path, tensors: Tensors) -> Result<(), Error> {
        if let Some(problem) = metadata::problem(self.config) {
            let problem = format!("GGUF cannot express {problem}; use --format hf");
            return Err(Error::NotAModel { path: path.into(), problem });
        }
        let writable = [Format::F32, Format::F16, Format::Bf16, Format::Q8_0, Format::Q4_0];
        if !writable.contains(&self.format) {
            let problem = format!("cannot be written in {}; use one of {writable:?}", self.format);
            return Err(Error::NotAModel { path: path.into(), problem });
        }
        let infos = self.config.tensors();
        let metadata = self.metadata()?;
        let (parts, pieces) = self.layout(&infos);
        let factors = self.rope_factors();

        let mut header = Bytes::default();
        header.0.extend_from_slice(b"GGUF");
        header.u32(3);
        header.u64((parts.len() + factors.iter().len()) as u64);
        metadata.append_to(&mut header);
        let mut offset = 0;
        let mut enter = |name: &str, shape: &[usize], format: Format, bytes: usize| {
            header.text(name);
            header.u32(shape.len() as u32);
            shape.iter().rev().for_each(|size| header.u64(*size as u64));
            header.u32(type_id(format));
            header.u64(offset as u64);
            offset = (offset + bytes).next_multiple_of(DEFAULT_ALIGNMENT);
        };
        if let Some(factors) = &factors {
            enter(ROPE_FACTORS, &[factors.len()], Format::F32, 4 * factors.len());
        }
        for part in &parts {
            enter(&part.name, &part.shape, part.format, part.bytes(path)?);
        }
        header.pad();

        let mut file = NewFile::create(path)?;
        file.write(&header.0)?;
        if let Some(factors) = &factors {
            let mut bytes = Bytes(bytemuck::cast_slice(factors).to_vec());
            bytes.pad();
            file.write(&bytes.0)?;
        }
        self.write_parts(&mut file, path, (&infos, &pieces), &parts, tensors)?;
        file.finish()
    }

    /// Writes each part when all that it is made of has been given.
    fn write_parts(
        &self,
        file: &mut NewFile,
        path: &Path,
        (infos, pieces): (&[TensorInfo], &[Vec<Piece>]),
        parts: &[Part],
        mut tensors: Tensors,
    ) -> Result<(), Error> {
        let mut next = 0;
        let mut given: Vec<Bytes> = parts.iter().map(|_| Bytes::default()).collect();
        for (info, pieces) in infos.iter().zip(pieces) {
            let matrix = ask(&mut tensors, info, path)?;
            for piece in pieces {
                let part = &parts[piece.part];
                let matrix = piece.take(&matrix, self.config.head_dim);
                let bytes = stored(&matrix, part.format, &part.name, path)?;
                given[piece.part].0.extend_from_slice(&bytes);
            }
            while next < parts.len() && given[next].0.len() == parts[next].bytes(path)? {
                let mut bytes = std::mem::take(&mut given[next]);
                bytes.pad();
                file.write(&bytes.0)?;
                next += 1;
            }
        }
        Ok(())
    }

    /// What positions' frequencies are divided by, where that is a tensor.
    fn rope_factors(&self) -> Option<Vec<f32>> {
        let rope = &self.config.rope;
        let listed = matches!(rope.scaling, Some(Scaling::Llama3 { .. } | Scaling::Factors(_)));
        listed.then(|| rope.factors())
    }

    /// The tensors of the file, and what each of the Hugging Face layout gives to them.
    fn layout(&self, infos: &[TensorInfo]) -> (Vec<Part>, Vec<Vec<Piece>>) {
        let mut parts: Vec<Part> = Vec::new();
        let mut pieces = Vec::new();
        for info in infos {
            let mut add = |name: String, shape: Vec<usize>, rows: Rows| {
                // Of the parts, only an expert's is there already, not far back.
                let found = parts.iter().rposition(|part| part.name == name);
                let part = found.unwrap_or_else(|| {
                    let format = names::gguf_format(&name, &shape, self.format);
                    parts.push(Part { name, shape, format });
                    parts.len() - 1
                });
                Piece { part, rows }
            };
            let shape = info.shape.clone();
            pieces.push(
                match names::stored(self.config.family, &info.name)
                    .expect("every tensor of a configuration has a GGUF name")
                {
                    Stored::Whole(name) | Stored::KeyValueUp { whole: name, .. } => {
                        vec![add(name, shape, Rows::All)]
                    }
                    Stored::Interleaved(name) => vec![add(name, shape, Rows::Interleaved)],
                    Stored::Expert { all, .. } => {
                        let experts = self.config.routing.map_or(0, |routing| routing.experts);
                        let shape = [&[experts], shape.as_slice()].concat();
                        vec![add(all, shape, Rows::All)]
                    }
                    Stored::GateUp { gate, up } => {
                        let mut half = shape;
                        let rows = half.len() - 2;
                        half[rows] /= 2;
                        let experts = half[..rows].iter().product();
                        let take = |up| Rows::GateOrUp { experts, up };
                        vec![add(gate, half.clone(), take(false)), add(up, half, take(true))]
                    }
                },
            );
        }
        (parts, pieces)
    }
}

/// A tensor of the file.
struct Part {
    name: String,
    shape: Vec<usize>,
    format: Format,
}

/// What a tensor of the Hugging Face layout gives to one of the file.
struct Piece {
    part: usize,
    rows: Rows,
}

/// Which rows of the Hugging Face tensor.
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
}

impl Piece {
    fn take(&self, matrix: &Matrix, head_dim: usize) -> Matrix {
        match self.rows {
            Rows::All => matrix.clone(),
            Rows::Interleaved => matrix.select_rows(names::interleaved(matrix.rows, head_dim)),
            Rows::GateOrUp { experts, up } => names::gate_or_up(matrix, experts, up),
        }
    }
}
