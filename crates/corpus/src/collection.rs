//! A collection on disk: `documents.parquet` and `chunks.parquet`, with the columns that pandas
//! and datatrove expect (`id`, `text`) and the rest beside them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt32Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, RecordBatch, StringArray, UInt32Array,
};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use store::Hash;

use crate::{Error, Quality, io};

/// The documents and chunks of one collection.
#[derive(Clone, Debug, PartialEq)]
pub struct Collection {
    pub name: String,
    /// Every file that was found, the dropped ones too, ordered by path.
    pub documents: Vec<DocumentRecord>,
    /// The chunks of the documents that were kept, in document order.
    pub chunks: Vec<Chunk>,
}

/// What is known of one source file.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentRecord {
    /// Stays the same while the file keeps its path.
    pub id: String,
    /// Relative to the workspace where the file lies in it, with `/` between the parts.
    pub path: String,
    /// `pdf`, `markdown`, …; empty if unknown.
    pub format: String,
    pub title: String,
    /// Of the file's bytes; `None` if it was not read.
    pub hash: Option<Hash>,
    pub words: u32,
    /// ISO 639-3 code of the most likely language, or empty for a text too short to tell.
    pub language: String,
    /// Confidence of that, 0 to 1.
    pub language_score: f32,
    pub quality: Quality,
    /// The whole document is held out.
    pub held_out: bool,
    /// Why the document is not used.
    pub dropped: Option<String>,
}

/// A piece of a document, at most about [`MAX_CHUNK_WORDS`](crate::MAX_CHUNK_WORDS) words of one
/// section.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    pub id: String,
    /// [`DocumentRecord::id`].
    pub document: String,
    /// The document's title.
    pub title: String,
    /// The headings above the text, outermost first.
    pub section: Vec<String>,
    /// The page where the text begins, counted from 1, in formats that have pages.
    pub page: Option<u32>,
    /// Markdown without the headings: tables are pipe tables, definitions `**Term**: text`.
    pub text: String,
    pub held_out: bool,
}

const DOCUMENTS: &str = "documents.parquet";
const CHUNKS: &str = "chunks.parquet";
/// A row group is held in memory while it is written.
const ROWS_PER_GROUP: usize = 10_000;

impl Collection {
    /// Reads the collection in `dir`; its name is the folder's.
    ///
    /// # Errors
    /// [`Error::Parquet`] if a file is broken or lacks a column; [`Error::Io`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut documents = Vec::new();
        for batch in read(&dir.join(DOCUMENTS), &["text"])? {
            documents_of(&batch, &mut documents)
                .map_err(|reason| Error::Parquet { path: dir.join(DOCUMENTS), reason })?;
        }
        let mut chunks = Vec::new();
        for batch in read(&dir.join(CHUNKS), &[])? {
            chunks_of(&batch, &mut chunks)
                .map_err(|reason| Error::Parquet { path: dir.join(CHUNKS), reason })?;
        }
        Ok(Collection { name, documents, chunks })
    }

    /// Writes both Parquet files into `dir`. `texts` holds each document's whole Markdown, empty
    /// for the dropped ones.
    pub(crate) fn write(&self, dir: &Path, texts: &[String]) -> Result<(), Error> {
        write(&dir.join(DOCUMENTS), &document_columns(&self.documents, texts))?;
        write(&dir.join(CHUNKS), &chunk_columns(&self.chunks))
    }
}

type Columns = Vec<(&'static str, ArrayRef)>;

fn document_columns(documents: &[DocumentRecord], texts: &[String]) -> Columns {
    let text = |of: fn(&DocumentRecord) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(documents.iter().map(of)))
    };
    let optional = |of: fn(&DocumentRecord) -> Option<&str>| -> ArrayRef {
        Arc::new(StringArray::from_iter(documents.iter().map(of)))
    };
    let mut columns: Columns = vec![
        ("id", text(|d| &d.id)),
        ("text", Arc::new(StringArray::from_iter_values(texts))),
        ("path", text(|d| &d.path)),
        ("format", text(|d| &d.format)),
        ("title", text(|d| &d.title)),
        ("hash", optional(|d| d.hash.as_ref().map(Hash::as_str))),
        ("words", Arc::new(UInt32Array::from_iter_values(documents.iter().map(|d| d.words)))),
        ("language", text(|d| &d.language)),
        (
            "language_score",
            Arc::new(Float32Array::from_iter_values(documents.iter().map(|d| d.language_score))),
        ),
        (
            "held_out",
            Arc::new(BooleanArray::from(documents.iter().map(|d| d.held_out).collect::<Vec<_>>())),
        ),
        ("dropped", optional(|d| d.dropped.as_deref())),
    ];
    for (index, name) in Quality::NAMES.into_iter().enumerate() {
        let values = documents.iter().map(|d| d.quality.figures()[index]);
        columns.push((name, Arc::new(Float32Array::from_iter_values(values))));
    }
    columns
}

fn documents_of(batch: &RecordBatch, documents: &mut Vec<DocumentRecord>) -> Result<(), String> {
    let [id, path, format, title, hash, language, dropped] =
        ["id", "path", "format", "title", "hash", "language", "dropped"]
            .map(|name| strings(batch, name));
    let (id, path, format, title) = (id?, path?, format?, title?);
    let (hash, language, dropped) = (hash?, language?, dropped?);
    let words = column(batch, "words")?.as_primitive_opt::<UInt32Type>().ok_or("words: type")?;
    let score = floats(batch, "language_score")?;
    let held_out = column(batch, "held_out")?.as_boolean_opt().ok_or("held_out: type")?;
    let quality: Vec<&Float32Array> =
        Quality::NAMES.iter().map(|name| floats(batch, name)).collect::<Result<_, _>>()?;
    for row in 0..batch.num_rows() {
        let text = |array: &StringArray| array.value(row).to_owned();
        documents.push(DocumentRecord {
            id: text(id),
            path: text(path),
            format: text(format),
            title: text(title),
            hash: match hash.is_null(row) {
                true => None,
                false => Some(parse_hash(hash.value(row))?),
            },
            words: words.value(row),
            language: text(language),
            language_score: score.value(row),
            quality: Quality::from_figures(std::array::from_fn(|i| quality[i].value(row))),
            held_out: held_out.value(row),
            dropped: (!dropped.is_null(row)).then(|| text(dropped)),
        });
    }
    Ok(())
}

fn parse_hash(text: &str) -> Result<Hash, String> {
    serde_json::from_value(text.into()).map_err(|e| format!("hash {text:?}: {e}"))
}

fn chunk_columns(chunks: &[Chunk]) -> Columns {
    let text = |of: fn(&Chunk) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(chunks.iter().map(of)))
    };
    let mut sections = ListBuilder::new(StringBuilder::new());
    for chunk in chunks {
        for heading in &chunk.section {
            sections.values().append_value(heading);
        }
        sections.append(true);
    }
    vec![
        ("id", text(|c| &c.id)),
        ("text", text(|c| &c.text)),
        ("document", text(|c| &c.document)),
        ("title", text(|c| &c.title)),
        ("section", Arc::new(sections.finish())),
        ("page", Arc::new(UInt32Array::from_iter(chunks.iter().map(|c| c.page)))),
        (
            "held_out",
            Arc::new(BooleanArray::from(chunks.iter().map(|c| c.held_out).collect::<Vec<_>>())),
        ),
    ]
}

fn chunks_of(batch: &RecordBatch, chunks: &mut Vec<Chunk>) -> Result<(), String> {
    let [id, document, title, text] =
        ["id", "document", "title", "text"].map(|name| strings(batch, name));
    let (id, document, title, text) = (id?, document?, title?, text?);
    let sections = column(batch, "section")?.as_list_opt::<i32>().ok_or("section: type")?;
    let page = column(batch, "page")?.as_primitive_opt::<UInt32Type>().ok_or("page: type")?;
    let held_out = column(batch, "held_out")?.as_boolean_opt().ok_or("held_out: type")?;
    for row in 0..batch.num_rows() {
        let section = sections.value(row);
        let section = section.as_string_opt::<i32>().ok_or("section: not a list of strings")?;
        chunks.push(Chunk {
            id: id.value(row).into(),
            document: document.value(row).into(),
            title: title.value(row).into(),
            section: section.iter().map(|s| s.unwrap_or_default().to_owned()).collect(),
            page: (!page.is_null(row)).then(|| page.value(row)),
            text: text.value(row).into(),
            held_out: held_out.value(row),
        });
    }
    Ok(())
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, String> {
    batch.column_by_name(name).ok_or_else(|| format!("no column {name:?}"))
}

fn strings<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray, String> {
    column(batch, name)?.as_string_opt().ok_or_else(|| format!("column {name:?} is not text"))
}

fn floats<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a Float32Array, String> {
    let array = column(batch, name)?.as_primitive_opt::<Float32Type>();
    array.ok_or_else(|| format!("column {name:?} is not 32-bit float"))
}

fn read(path: &Path, without: &[&str]) -> Result<Vec<RecordBatch>, Error> {
    let broken = |reason: String| Error::Parquet { path: path.into(), reason };
    let file = File::open(path).map_err(io("open", path))?;
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| broken(e.to_string()))?;
    let schema = builder.schema().clone();
    let kept =
        (0..schema.fields().len()).filter(|&i| !without.contains(&schema.field(i).name().as_str()));
    let mask = ProjectionMask::roots(builder.parquet_schema(), kept);
    let reader = builder.with_projection(mask).build().map_err(|e| broken(e.to_string()))?;
    reader.collect::<Result<_, _>>().map_err(|e| broken(e.to_string()))
}

/// Overwrites what an interrupted run may have left.
fn write(path: &Path, columns: &Columns) -> Result<(), Error> {
    let failed = |reason: String| Error::Io {
        action: "write",
        path: path.into(),
        source: std::io::Error::other(reason),
    };
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.iter().map(|(name, array)| (*name, array.clone(), true)),
    )
    .map_err(|e| failed(e.to_string()))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by("artel".into())
        .build();
    let file = File::create(path).map_err(io("create", path))?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties))
        .map_err(|e| failed(e.to_string()))?;
    for start in (0..batch.num_rows()).step_by(ROWS_PER_GROUP) {
        let rows = ROWS_PER_GROUP.min(batch.num_rows() - start);
        writer.write(&batch.slice(start, rows)).map_err(|e| failed(e.to_string()))?;
        writer.flush().map_err(|e| failed(e.to_string()))?;
    }
    writer.close().map_err(|e| failed(e.to_string()))?;
    Ok(())
}
