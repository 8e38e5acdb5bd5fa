//! A GGUF file written again in fewer bits.
//!
//! The metadata are copied byte for byte, so that what this program does not know of stays. Hence
//! it works for families that the decoder does not read.

use std::path::Path;

use kernel::quant::Format;
use kernel::{Matrix, Pool};

use super::NewFile;
use super::gguf::{Bytes, Metadata};
use super::mix::{Choice, Mix, Place};
use crate::source::gguf::{ALIGNMENT, DEFAULT_ALIGNMENT, Gguf, Tensor, type_id};
use crate::{Error, Importance};

/// How a tensor was written.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub format: Format,
    /// Whether its rows were too short for the format that the mix has for it.
    pub fell_back: bool,
    /// Whether it is as it was.
    pub kept: bool,
}

impl StoredTensor {
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn bytes(&self) -> usize {
        self.values() / self.format.block_len() * self.format.block_bytes()
    }
}

/// What a quantised file is made with.
#[derive(Clone, Copy)]
pub struct Quantise<'a> {
    pub mix: Mix,
    /// Of the columns of the matrices, where it is known.
    pub importance: Option<&'a Importance>,
}

/// Keys that are written anew.
const OWN: [&str; 3] = ["general.file_type", "general.quantization_version", ALIGNMENT];

impl Quantise<'_> {
    /// Writes the file `from` again as `to`, and says how each tensor is stored there. `progress`
    /// is told how many tensors are done, and of how many.
    ///
    /// # Errors
    /// When `from` is no GGUF file, the importance is of another model, a value does not fit its
    /// format, or `to` cannot be written. A file that is not whole does not stay.
    pub fn write(
        &self,
        pool: &Pool,
        from: &Path,
        to: &Path,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<StoredTensor>, Error> {
        let file = Gguf::open(from)?;
        let plan = self.plan(&file)?;
        let mut out = NewFile::create(to)?;
        out.write(&self.header(&file, &plan)?.0)?;
        for (index, stored) in plan.iter().enumerate() {
            progress(index, plan.len());
            let tensor = file.tensor(&stored.name)?;
            let mut bytes = Bytes(match stored.kept {
                true => file.bytes(tensor).to_vec(),
                false => self.convert(pool, &file, tensor, stored)?,
            });
            bytes.pad();
            out.write(&bytes.0)?;
        }
        out.finish()?;
        Ok(plan)
    }

    /// The tensors in the order of the file.
    fn plan(&self, file: &Gguf) -> Result<Vec<StoredTensor>, Error> {
        let layers = file.names().filter_map(layer_of).max().map_or(0, |last| last + 1);
        let tied = !file.has("output.weight");
        let mut plan = Vec::new();
        for name in file.names_in_order() {
            let tensor = file.tensor(name)?;
            let place = Place { name, shape: &tensor.shape, stored: tensor.format, layers, tied };
            let choice = self.mix.choose(&place);
            let format = match choice {
                Choice::Kept => tensor.format,
                Choice::To(format) | Choice::Instead(format) => format,
            };
            plan.push(StoredTensor {
                name: name.into(),
                shape: tensor.shape.clone(),
                format,
                fell_back: matches!(choice, Choice::Instead(_)),
                kept: choice == Choice::Kept,
            });
        }
        Ok(plan)
    }

    fn header(&self, file: &Gguf, plan: &[StoredTensor]) -> Result<Bytes, Error> {
        let mut metadata = Metadata::default();
        for (_, entry) in file.entries().filter(|(key, _)| !OWN.contains(key)) {
            metadata.copy(entry);
        }
        metadata.u32("general.file_type", self.mix.file_type);
        metadata.u32("general.quantization_version", 2);
        metadata.u32(ALIGNMENT, DEFAULT_ALIGNMENT as u32);
        let mut header = Bytes::default();
        header.0.extend_from_slice(b"GGUF");
        header.u32(3);
        header.u64(plan.len() as u64);
        metadata.append_to(&mut header);
        let mut offset = 0;
        for stored in plan {
            header.text(&stored.name);
            header.u32(stored.shape.len() as u32);
            stored.shape.iter().rev().for_each(|size| header.u64(*size as u64));
            header.u32(type_id(stored.format));
            header.u64(offset as u64);
            offset = (offset + stored.bytes()).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        header.pad();
        Ok(header)
    }

    fn convert(
        &self,
        pool: &Pool,
        file: &Gguf,
        tensor: &Tensor,
        stored: &StoredTensor,
    ) -> Result<Vec<u8>, Error> {
        let problem = |problem: String| Error::Tensor {
            path: file.path.clone(),
            name: stored.name.clone(),
            problem,
        };
        let (cols, leading) = stored.shape.split_last().expect("only matrices are converted");
        let rows = leading.iter().product();
        let importance = self.importance.and_then(|found| found.of(&stored.name));
        if let Some(importance) = &importance {
            let parts = importance.len() / cols.max(&1);
            if parts == 0 || parts * cols != importance.len() || rows % parts != 0 {
                let found = importance.len();
                return Err(problem(format!(
                    "its rows have {cols} columns, but the importance has {found}; \
                     it is of another model"
                )));
            }
        }
        let matrix = Matrix::new(rows, *cols, tensor.format, file.bytes(tensor).to_vec());
        let fitted = matrix.and_then(|m| m.fitted(pool, stored.format, importance.as_deref()));
        Ok(fitted.map_err(|error| problem(error.to_string()))?.bytes)
    }
}

/// The number of a layer, from the name of a tensor in it.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}
