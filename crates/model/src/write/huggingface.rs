//! Source: the safetensors format (huggingface/safetensors, README, "Format").

use std::path::Path;

use kernel::Matrix;
use kernel::quant::Format;
use serde_json::{Map, Value, json};

use super::{Export, NewFile, Tensors, ask, stored};
use crate::config::ids_json;
use crate::{Error, Scaling, tokenizer};

impl Export<'_> {
    /// Writes `model.safetensors`, `config.json`, `generation_config.json`, `tokenizer.json` and
    /// `tokenizer_config.json` into `folder`, which must exist.
    ///
    /// # Errors
    /// When a file cannot be written, a tensor is not given as asked for, or the format is none of
    /// f32, f16 and bf16. A file that is not whole does not stay.
    pub fn write_huggingface(&self, folder: &Path, mut tensors: Tensors) -> Result<(), Error> {
        if matches!(self.config.rope.scaling, Some(Scaling::Factors(_))) {
            let problem = "its rotary positions are scaled by a list of factors, which the Hugging \
                           Face layout cannot express; use --format gguf";
            return Err(Error::NotAModel { path: folder.into(), problem: problem.into() });
        }
        let (dtype, name) = match self.format {
            Format::F32 => ("F32", "float32"),
            Format::F16 => ("F16", "float16"),
            Format::Bf16 => ("BF16", "bfloat16"),
            other => {
                let problem = format!("cannot be written in {other}; use f32, f16 or bf16");
                return Err(Error::NotAModel { path: folder.into(), problem });
            }
        };
        self.write_tensors(&folder.join("model.safetensors"), dtype, &mut tensors)?;
        write_json(&folder.join("config.json"), &self.config.to_huggingface(name))?;
        let generation = json!({
            "bos_token_id": self.config.bos,
            "eos_token_id": ids_json(&self.config.eos),
        });
        write_json(&folder.join("generation_config.json"), &generation)?;
        let config =
            tokenizer::huggingface_config(self.tokenizer, self.template, self.config.context);
        write_json(&folder.join("tokenizer_config.json"), &config)?;
        let mut file = NewFile::create(&folder.join("tokenizer.json"))?;
        file.write(self.tokenizer.json().as_bytes())?;
        file.finish()
    }

    fn write_tensors(&self, path: &Path, dtype: &str, tensors: &mut Tensors) -> Result<(), Error> {
        let infos = self.config.tensors();
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut offset = 0;
        for info in &infos {
            let bytes = info.shape.iter().product::<usize>() * self.format.block_bytes();
            let end = offset + bytes;
            let entry =
                json!({ "dtype": dtype, "shape": info.shape, "data_offsets": [offset, end] });
            header.insert(info.name.clone(), entry);
            offset = end;
        }
        let mut header = Value::Object(header).to_string();
        // The data shall begin at a multiple of 8.
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

        let mut file = NewFile::create(path)?;
        file.write(&(header.len() as u64).to_le_bytes())?;
        file.write(header.as_bytes())?;
        for info in &infos {
            let mut matrix = ask(tensors, info, path)?;
            if self.config.family.norms_from_one() && info.name.ends_with("norm.weight") {
                let values = matrix.to_f32().into_iter().map(|value| value - 1.0).collect();
                matrix = Matrix::from_f32(matrix.rows, matrix.cols, values);
            }
            file.write(&stored(&matrix, self.format, &info.name, path)?)?;
        }
        file.finish()
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), Error> {
    let mut file = NewFile::create(path)?;
    file.write(format!("{value:#}\n").as_bytes())?;
    file.finish()
}
