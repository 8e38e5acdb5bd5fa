//! Reading of GGUF files: every count, length and offset is checked before it is used.
//!
//! Source: ggml `docs/gguf.md`, versions 2 and 3, little-endian.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use kernel::MappedFile;
use kernel::quant::Format;

use super::cursor::Cursor;
use crate::Error;

const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 17;
const MAX_DIMENSIONS: u64 = 4;
const MAX_NAME: u64 = 1 << 16;
const MAX_TEXT: u64 = 1 << 26;
const MAX_ALIGNMENT: u64 = 1 << 16;
pub(crate) const DEFAULT_ALIGNMENT: usize = 32;
pub(crate) const ALIGNMENT: &str = "general.alignment";

/// An open GGUF file.
pub(crate) struct Gguf {
    pub(crate) path: PathBuf,
    file: MappedFile,
    metadata: HashMap<String, Value>,
    /// Where each key and its value stand, in the order of the file.
    entries: Vec<(String, Range<usize>)>,
    tensors: HashMap<String, Tensor>,
    data: usize,
}

/// A value of the metadata; lists of lists are refused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    Texts(Vec<String>),
}

/// Where a tensor's bytes are: inside the file, as has been checked.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    /// Outermost dimension first, as in Hugging Face files; GGUF itself lists them in reverse.
    pub(crate) shape: Vec<usize>,
    pub(crate) format: Format,
    offset: usize,
    bytes: usize,
}

impl Gguf {
    /// # Errors
    /// When the file cannot be read, or is not a whole and well-formed GGUF of supported types.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { action: "read", path: path.into(), source };
        Self::parse(path, MappedFile::open(path).map_err(io)?)
    }

    fn parse(path: &Path, file: MappedFile) -> Result<Self, Error> {
        let mut cursor = Cursor::new(path, &file);
        let (tensor_count, key_count) = read_header(&mut cursor)?;
        let mut metadata = HashMap::new();
        let mut entries = vec![];
        for _ in 0..key_count {
            let at = cursor.at();
            let key = cursor.text("the length of a key", MAX_NAME)?;
            let kind = cursor.u32()?;
            let value = read_value(&mut cursor, kind)?;
            if metadata.contains_key(&key) {
                return Err(cursor.malformed_at(at, format!("the key {key:?} stands twice")));
            }
            entries.push((key.clone(), at..cursor.at()));
            metadata.insert(key, value);
        }
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            let at = cursor.at();
            let (name, tensor) = read_tensor(&mut cursor)?;
            if tensors.contains_key(&name) {
                return Err(cursor.malformed_at(at, format!("the tensor {name} stands twice")));
            }
            tensors.insert(name, tensor);
        }
        let alignment = alignment(path, metadata.get(ALIGNMENT))?;
        let data = cursor.at().next_multiple_of(alignment);
        let mut gguf = Gguf { path: path.into(), file, metadata, entries, tensors, data };
        gguf.check_offsets(alignment)?;
        Ok(gguf)
    }

    fn check_offsets(&mut self, alignment: usize) -> Result<(), Error> {
        let len = self.file.len();
        for (name, tensor) in &mut self.tensors {
            let problem = |problem| {
                let (path, name) = (self.path.clone(), name.clone());
                Error::Tensor { path, name, problem }
            };
            if !tensor.offset.is_multiple_of(alignment) {
                let offset = tensor.offset;
                return Err(problem(format!("offset {offset} is no multiple of {alignment}")));
            }
            let start = self.data.checked_add(tensor.offset);
            match start.and_then(|start| start.checked_add(tensor.bytes)) {
                Some(end) if end <= len => {}
                _ => {
                    let (bytes, offset) = (tensor.bytes, tensor.offset);
                    return Err(problem(format!(
                        "{bytes} bytes at {offset} end beyond the file's {len} bytes; \
                         the download may be incomplete"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> usize {
        self.file.len()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(crate) fn need(&self, key: &str) -> Result<&Value, Error> {
        let missing = || Error::MissingKey { path: self.path.clone(), key: key.into() };
        self.get(key).ok_or_else(missing)
    }

    pub(crate) fn text(&self, key: &str) -> Result<&str, Error> {
        let value = self.need(key)?;
        value.text().ok_or_else(|| self.wrong(key, "must be text"))
    }

    pub(crate) fn wrong(&self, key: &str, expected: &str) -> Error {
        let value = self.get(key).map_or("missing".into(), Value::to_string);
        let (path, key, expected) = (self.path.clone(), key.into(), expected.into());
        Error::Value { path, key, value, expected }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensors' names in the order of their bytes.
    pub(crate) fn names_in_order(&self) -> Vec<&str> {
        let mut names: Vec<(usize, &str)> =
            self.tensors.iter().map(|(name, tensor)| (tensor.offset, name.as_str())).collect();
        names.sort_unstable();
        names.into_iter().map(|(_, name)| name).collect()
    }

    /// Each key of the metadata with its bytes, from the key's length on, in the file's order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|(key, range)| (key.as_str(), &self.file[range.clone()]))
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        let missing = || Error::NoTensor { path: self.path.clone(), name: name.into() };
        self.tensors.get(name).ok_or_else(missing)
    }

    pub(crate) fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.file[self.data + tensor.offset..][..tensor.bytes]
    }
}

/// The counts of tensors and of metadata keys.
fn read_header(cursor: &mut Cursor) -> Result<(u64, u64), Error> {
    if cursor.take(4)? != b"GGUF" {
        return Err(cursor.malformed_at(0, "not a GGUF file: it does not begin with \"GGUF\""));
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        let problem = if matches!(version.swap_bytes(), 1..=3) {
            "a big-endian GGUF file; only little-endian ones are supported".to_owned()
        } else {
            format!("GGUF version {version}; supported are 2 and 3")
        };
        return Err(cursor.malformed_at(4, problem));
    }
    let tensors = cursor.count("the number of tensors", MAX_TENSORS)?;
    let keys = cursor.count("the number of metadata keys", MAX_KEYS)?;
    Ok((tensors, keys))
}

fn read_value(cursor: &mut Cursor, kind: u32) -> Result<Value, Error> {
    Ok(match kind {
        0..=5 | 10 | 11 => Value::Integer(read_integer(cursor, kind)?),
        6 | 12 => Value::Float(read_float(cursor, kind)?),
        7 => Value::Bool(read_bool(cursor)?),
        8 => Value::Text(cursor.text("the length of a text", MAX_TEXT)?),
        9 => read_list(cursor)?,
        _ => return Err(cursor.malformed(format!("no metadata type {kind} is known"))),
    })
}

fn read_integer(cursor: &mut Cursor, kind: u32) -> Result<i128, Error> {
    Ok(match kind {
        0 => cursor.array::<1>()?[0].into(),
        1 => (cursor.array::<1>()?[0] as i8).into(),
        2 => u16::from_le_bytes(cursor.array()?).into(),
        3 => i16::from_le_bytes(cursor.array()?).into(),
        4 => cursor.u32()?.into(),
        5 => i32::from_le_bytes(cursor.array()?).into(),
        10 => cursor.u64()?.into(),
        _ => i64::from_le_bytes(cursor.array()?).into(),
    })
}

fn read_float(cursor: &mut Cursor, kind: u32) -> Result<f64, Error> {
    Ok(match kind {
        6 => f32::from_le_bytes(cursor.array()?).into(),
        _ => f64::from_le_bytes(cursor.array()?),
    })
}

fn read_bool(cursor: &mut Cursor) -> Result<bool, Error> {
    match cursor.array::<1>()?[0] {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(cursor.malformed(format!("{other} is neither true (1) nor false (0)"))),
    }
}

fn read_list(cursor: &mut Cursor) -> Result<Value, Error> {
    let kind = cursor.u32()?;
    let smallest = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => return Err(cursor.malformed("a list of lists is not supported")),
        _ => return Err(cursor.malformed(format!("no metadata type {kind} is known"))),
    };
    // So many elements fit in what is left of the file; the list's memory is bounded by that.
    let limit = (cursor.left() / smallest) as u64;
    let count = cursor.count("the length of a list", limit)?;
    match kind {
        6 | 12 => Ok(Value::Floats(
            (0..count).map(|_| read_float(cursor, kind)).collect::<Result<_, _>>()?,
        )),
        8 => {
            let text = |_| cursor.text("the length of a text", MAX_TEXT);
            Ok(Value::Texts((0..count).map(text).collect::<Result<_, _>>()?))
        }
        _ => {
            let mut list = vec![];
            for _ in 0..count {
                let value = match kind {
                    7 => read_bool(cursor)?.into(),
                    _ => read_integer(cursor, kind)?,
                };
                let value = i64::try_from(value);
                list.push(value.map_err(|_| cursor.malformed("a number in a list is too large"))?);
            }
            Ok(Value::Integers(list))
        }
    }
}

fn read_tensor(cursor: &mut Cursor) -> Result<(String, Tensor), Error> {
    let name = cursor.text("the length of a tensor's name", MAX_NAME)?;
    let path = cursor.path().to_owned();
    let problem = |problem| Error::Tensor { path: path.clone(), name: name.clone(), problem };
    let dimensions = cursor.u32()?;
    if dimensions == 0 || u64::from(dimensions) > MAX_DIMENSIONS {
        return Err(problem(format!(
            "{dimensions} dimensions; supported are 1 to {MAX_DIMENSIONS}"
        )));
    }
    let mut shape = vec![];
    for _ in 0..dimensions {
        let size = cursor.u64()?;
        let too_large = |_| problem(format!("a dimension of {size} is too large"));
        shape.push(usize::try_from(size).map_err(too_large)?);
    }
    shape.reverse();
    let id = cursor.u32()?;
    let Some(format) = format_of(id) else {
        return Err(problem(format!(
            "stored as {}, which is not supported; supported are f32, f16, bf16, q8_0, q4_0, q4_1, \
             q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs and mxfp4",
            unsupported_name(id)
        )));
    };
    let offset = cursor.u64()?;
    let offset = usize::try_from(offset)
        .map_err(|_| problem(format!("an offset of {offset} is too large")))?;
    let (cols, leading) = shape.split_last().expect("there is at least one dimension");
    let rows = leading.iter().try_fold(1usize, |rows, size| rows.checked_mul(*size));
    let rows = rows.ok_or_else(|| problem(format!("the shape {shape:?} is too large")))?;
    let bytes = format.matrix_bytes(rows, *cols).map_err(|error| problem(error.to_string()))?;
    Ok((name, Tensor { shape, format, offset, bytes }))
}

fn alignment(path: &Path, value: Option<&Value>) -> Result<usize, Error> {
    let Some(value) = value else { return Ok(DEFAULT_ALIGNMENT) };
    let number = value.integer().and_then(|v| u64::try_from(v).ok());
    let fits = |n: &u64| n.is_power_of_two() && *n <= MAX_ALIGNMENT;
    number.filter(fits).map(|n| n as usize).ok_or_else(|| Error::Value {
        path: path.into(),
        key: ALIGNMENT.into(),
        value: value.to_string(),
        expected: format!("must be a power of two up to {MAX_ALIGNMENT}"),
    })
}

const TYPE_IDS: [(u32, Format); 16] = [
    (0, Format::F32),
    (1, Format::F16),
    (2, Format::Q4_0),
    (3, Format::Q4_1),
    (6, Format::Q5_0),
    (7, Format::Q5_1),
    (8, Format::Q8_0),
    (10, Format::Q2_K),
    (11, Format::Q3_K),
    (12, Format::Q4_K),
    (13, Format::Q5_K),
    (14, Format::Q6_K),
    (20, Format::IQ4_NL),
    (23, Format::IQ4_XS),
    (30, Format::Bf16),
    (39, Format::MXFP4),
];

fn format_of(id: u32) -> Option<Format> {
    TYPE_IDS.iter().find(|(known, _)| *known == id).map(|(_, format)| *format)
}

/// GGML's number for a format.
pub(crate) fn type_id(format: Format) -> u32 {
    let found = TYPE_IDS.iter().find(|(_, known)| *known == format);
    found.map(|(id, _)| *id).expect("the table lists every format")
}

fn unsupported_name(id: u32) -> String {
    let name = match id {
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        21 => "iq3_s",
        22 => "iq2_s",
        29 => "iq1_m",
        34 => "tq1_0",
        35 => "tq2_0",
        _ => return format!("type {id}"),
    };
    name.into()
}

impl Value {
    pub(crate) fn integer(&self) -> Option<i128> {
        if let Value::Integer(value) = self { Some(*value) } else { None }
    }

    pub(crate) fn bool(&self) -> Option<bool> {
        if let Value::Bool(value) = self { Some(*value) } else { None }
    }

    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Value::Integer(value) => Some(*value as f64),
            Value::Float(value) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        if let Value::Text(value) = self { Some(value) } else { None }
    }

    pub(crate) fn integers(&self) -> Option<&[i64]> {
        if let Value::Integers(value) = self { Some(value) } else { None }
    }

    pub(crate) fn floats(&self) -> Option<&[f64]> {
        if let Value::Floats(value) = self { Some(value) } else { None }
    }

    pub(crate) fn texts(&self) -> Option<&[String]> {
        if let Value::Texts(value) = self { Some(value) } else { None }
    }
}

/// As an error names it: long texts and lists are not shown whole.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Integer(value) => write!(f, "{value}"),
            Value::Float(value) => write!(f, "{value}"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Text(value) if value.chars().count() > 64 => {
                write!(f, "{:?}…", value.chars().take(64).collect::<String>())
            }
            Value::Text(value) => write!(f, "{value:?}"),
            Value::Integers(list) => write!(f, "a list of {} numbers", list.len()),
            Value::Floats(list) => write!(f, "a list of {} numbers", list.len()),
            Value::Texts(list) => write!(f, "a list of {} texts", list.len()),
        }
    }
}
