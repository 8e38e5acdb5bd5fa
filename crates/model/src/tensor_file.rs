//! Safetensors files of our own, written whole or not at all.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use kernel::MappedFile;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Error, TensorInfo};

/// Tensors in f32 under names of their own: what is trained beside a model, for instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamedTensors(pub Vec<(TensorInfo, Vec<f32>)>);

impl NamedTensors {
    /// All zero.
    pub fn zeros(infos: impl IntoIterator<Item = TensorInfo>) -> Self {
        let zeros = |info: TensorInfo| (vec![0.0; info.len()], info);
        NamedTensors(infos.into_iter().map(zeros).map(|(values, info)| (info, values)).collect())
    }

    /// How many values there are.
    pub fn parameters(&self) -> usize {
        self.0.iter().map(|(info, _)| info.len()).sum()
    }

    /// Writes them as f32 safetensors; the file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] on a full disk, for instance.
    pub fn write_file(&self, path: &Path) -> Result<(), Error> {
        let tensors = self.0.iter();
        let tensors = tensors.map(|(info, values)| {
            (
                info.name.clone(),
                Dtype::F32,
                info.shape.clone(),
                bytemuck::cast_slice(values.as_slice()),
            )
        });
        write(path, Some(("format", "pt".into())), tensors)
    }

    /// Reads these tensors from a safetensors file in f32; others in it are left.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`], [`Error::NoTensor`] or [`Error::Shape`] if it is not a
    /// file with such tensors.
    pub fn read_file(
        path: &Path,
        infos: impl IntoIterator<Item = TensorInfo>,
    ) -> Result<Self, Error> {
        let map = map(path)?;
        let file = parse(path, &map)?;
        let read = |info: TensorInfo| {
            let values = floats(path, &file, &info.name, &info.shape)?;
            Ok((info, values))
        };
        Ok(NamedTensors(infos.into_iter().map(read).collect::<Result<_, Error>>()?))
    }
}

/// The values of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    U8(Vec<u8>),
}

/// Tensors under names of their own, some of which are bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamedValues(pub Vec<(String, Values)>);

impl NamedValues {
    /// As [`NamedTensors::write_file`], each as one row.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_file(&self, path: &Path) -> Result<(), Error> {
        let tensors = self.0.iter().map(|(name, values)| match values {
            Values::F32(values) => {
                (name.clone(), Dtype::F32, vec![values.len()], bytemuck::cast_slice(values))
            }
            Values::U8(bytes) => (name.clone(), Dtype::U8, vec![bytes.len()], bytes.as_slice()),
        });
        write(path, None, tensors)
    }

    /// Reads these tensors, which have their names and lengths already.
    ///
    /// # Errors
    /// As [`NamedTensors::read_file`].
    pub fn read_file(&mut self, path: &Path) -> Result<(), Error> {
        let map = map(path)?;
        let file = parse(path, &map)?;
        for (name, values) in &mut self.0 {
            match values {
                Values::F32(values) => *values = floats(path, &file, name, &[values.len()])?,
                Values::U8(bytes) => {
                    let found = tensor(path, &file, name, Dtype::U8, &[bytes.len()])?;
                    bytes.copy_from_slice(found);
                }
            }
        }
        Ok(())
    }
}

/// Writes tensors, name and type and shape and bytes of each, with one entry of metadata: the order of
/// several would differ from run to run, and with it the file.
pub(crate) fn write<'a>(
    path: &Path,
    metadata: Option<(&str, String)>,
    tensors: impl Iterator<Item = (String, Dtype, Vec<usize>, &'a [u8])>,
) -> Result<(), Error> {
    let views = tensors.map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(dtype, shape, bytes).expect("the bytes fit the shape");
        (name, view)
    });
    let metadata = metadata.map(|(key, text)| HashMap::from([(key.to_string(), text)]));
    let temporary = path.with_extension("tmp");
    let io = |path: &Path, source| Error::Io { action: "write", path: path.into(), source };
    safetensors::serialize_to_file(views, metadata, &temporary)
        .map_err(|e| io(&temporary, std::io::Error::other(e)))?;
    let synced = fs::File::open(&temporary).and_then(|file| file.sync_all());
    synced.and_then(|()| fs::rename(&temporary, path)).map_err(|source| io(path, source))
}

pub(crate) fn map(path: &Path) -> Result<MappedFile, Error> {
    MappedFile::open(path).map_err(|source| Error::Io { action: "open", path: path.into(), source })
}

/// # Errors
/// [`Error::Malformed`].
pub(crate) fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, Error> {
    SafeTensors::deserialize(bytes).map_err(|e| malformed(path, e.to_string()))
}

/// The entry of the file's metadata.
///
/// # Errors
/// [`Error::Malformed`].
pub(crate) fn metadata(path: &Path, bytes: &[u8], key: &str) -> Result<Option<String>, Error> {
    let (_, header) =
        SafeTensors::read_metadata(bytes).map_err(|e| malformed(path, e.to_string()))?;
    Ok(header.metadata().as_ref().and_then(|entries| entries.get(key).cloned()))
}

/// The values of a tensor.
///
/// # Errors
/// [`Error::NoTensor`] or [`Error::Shape`].
pub(crate) fn floats(
    path: &Path,
    file: &SafeTensors,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, Error> {
    let bytes = tensor(path, file, name, Dtype::F32, shape)?;
    Ok(bytemuck::pod_collect_to_vec::<u8, f32>(bytes))
}

/// The bytes of a tensor of this type and shape.
///
/// # Errors
/// [`Error::NoTensor`] or [`Error::Shape`].
fn tensor<'a>(
    path: &Path,
    file: &SafeTensors<'a>,
    name: &str,
    dtype: Dtype,
    shape: &[usize],
) -> Result<&'a [u8], Error> {
    let Ok(view) = file.tensor(name) else {
        return Err(Error::NoTensor { path: path.into(), name: name.into() });
    };
    if view.shape() != shape || view.dtype() != dtype {
        let (path, name) = (path.into(), name.into());
        let (found, expected) = (view.shape().to_vec(), shape.to_vec());
        return Err(Error::Shape { path, name, found, expected });
    }
    Ok(view.data())
}

pub(crate) fn malformed(path: &Path, problem: String) -> Error {
    Error::Malformed { path: path.into(), at: 0, problem }
}
