//! A model written for other programs: the Hugging Face layout, and GGUF.

mod gguf;
mod huggingface;
mod mix;
mod quantise;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use kernel::Matrix;
use kernel::quant::Format;

use crate::{ChatTemplate, Config, Error, TensorInfo, Tokenizer};

pub use mix::Mix;
pub use quantise::{Quantise, StoredTensor};

/// What is written beside the tensors, and in which format these are.
#[derive(Clone, Copy)]
pub struct Export<'a> {
    /// The name that the file gives itself.
    pub name: &'a str,
    pub config: &'a Config,
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
    pub format: Format,
}

/// Gives a tensor of [`Config::tensors`] in any format, a vector as one row; called once for each,
/// in that order, so that one tensor at a time is in memory.
pub type Tensors<'a> = &'a mut dyn FnMut(&TensorInfo) -> Result<Matrix, Error>;

/// Asks for a tensor and checks that it has the shape that was asked for.
fn ask(tensors: &mut Tensors, info: &TensorInfo, path: &Path) -> Result<Matrix, Error> {
    let matrix = tensors(info)?;
    if (matrix.rows, matrix.cols) == info.rows_cols() {
        return Ok(matrix);
    }
    let (found, expected) = (vec![matrix.rows, matrix.cols], info.shape.clone());
    Err(Error::Shape { path: path.into(), name: info.name.clone(), found, expected })
}

fn stored(matrix: &Matrix, format: Format, name: &str, path: &Path) -> Result<Vec<u8>, Error> {
    let problem = |error: kernel::quant::Error| Error::Tensor {
        path: path.into(),
        name: name.into(),
        problem: error.to_string(),
    };
    Ok(matrix.to_format(format).map_err(problem)?.bytes)
}

/// A file that gets its name when it is whole; dropped before that, it is removed.
struct NewFile {
    path: PathBuf,
    partial: PathBuf,
    writer: BufWriter<File>,
}

impl NewFile {
    fn create(path: &Path) -> Result<Self, Error> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(|source| writing(path, source))?;
        Ok(NewFile { path: path.into(), partial, writer: BufWriter::with_capacity(1 << 20, file) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.writer.write_all(bytes).map_err(|source| writing(&self.path, source))
    }

    fn finish(mut self) -> Result<(), Error> {
        let whole = self.writer.flush().and_then(|()| self.writer.get_ref().sync_all());
        let named = whole.and_then(|()| std::fs::rename(&self.partial, &self.path));
        named.map_err(|source| writing(&self.path, source))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After `finish` there is nothing of this name; otherwise an error is already on its way.
        let _ = std::fs::remove_file(&self.partial);
    }
}

fn writing(path: &Path, source: std::io::Error) -> Error {
    Error::Io { action: "write", path: path.into(), source }
}
