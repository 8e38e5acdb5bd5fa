//! What the stage says of its work: the summary, and `report.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ingest::Source;
use crate::{Chunk, DocumentRecord, Error, Options, Quality};

const FORMATS: &str = "formats read are .pdf, .docx, .html, .md and .txt";

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Files found, in any format.
    pub files: usize,
    /// Documents kept.
    pub documents: usize,
    /// Files and documents dropped, by reason.
    pub dropped: BTreeMap<String, usize>,
    /// Documents among the dropped that are there twice or nearly so.
    pub duplicates: usize,
    /// Chunks dropped because another chunk says the same.
    pub duplicate_chunks: usize,
    /// Training chunks dropped because they repeat held-out text.
    pub leaked_chunks: usize,
    /// In the kept documents.
    pub words: usize,
    pub chunks: usize,
    pub held_out_documents: usize,
    pub held_out_chunks: usize,
    /// Kept documents by ISO 639-3 code; `unknown` for those too short to tell.
    pub languages: BTreeMap<String, usize>,
    /// What the reader of the report should know.
    pub notes: Vec<String>,
}

impl Summary {
    /// The figures for the manifest.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let counts = [
            ("files", self.files),
            ("documents", self.documents),
            ("dropped", self.dropped.values().sum()),
            ("words", self.words),
            ("chunks", self.chunks),
            ("held_out_documents", self.held_out_documents),
            ("held_out_chunks", self.held_out_chunks),
        ];
        counts.into_iter().map(|(name, count)| (name.to_owned(), count as u64)).collect()
    }
}

/// A chunk that was dropped, and the one that says the same.
#[derive(Serialize)]
pub(crate) struct Superfluous {
    pub(crate) document: String,
    pub(crate) section: Vec<String>,
    pub(crate) reason: &'static str,
    pub(crate) kept_document: String,
    pub(crate) kept_section: Vec<String>,
}

/// The reason of a [`Superfluous`] training chunk.
pub(crate) const LEAKED: &str = "repeats held-out text";

/// What dropped files have in common: the reason up to its colon.
fn category(reason: &str) -> String {
    reason.split(": ").next().unwrap_or(reason).to_owned()
}

fn dropped_by_reason(sources: &[Source]) -> BTreeMap<String, usize> {
    let mut dropped = BTreeMap::new();
    for reason in sources.iter().filter_map(|source| source.record.dropped.as_deref()) {
        *dropped.entry(category(reason)).or_default() += 1;
    }
    dropped
}

pub(crate) fn nothing_usable(options: &Options, sources: &[Source]) -> Error {
    let folders: Vec<String> =
        options.folders.iter().map(|f| options.root.join(f).display().to_string()).collect();
    let reasons: Vec<String> = dropped_by_reason(sources)
        .iter()
        .map(|(reason, count)| format!("{count} × {reason}"))
        .collect();
    let reasons =
        if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    Error::NothingUsable {
        folders: folders.join(", "),
        files: sources.len(),
        reasons,
        hint: FORMATS,
    }
}

pub(crate) fn summarise(
    sources: &[Source],
    chunks: &[Chunk],
    superfluous: &[Superfluous],
    notes: Vec<String>,
) -> Summary {
    let kept: Vec<&DocumentRecord> =
        sources.iter().map(|s| &s.record).filter(|record| record.dropped.is_none()).collect();
    let mut languages = BTreeMap::new();
    for record in &kept {
        let language = if record.language.is_empty() { "unknown" } else { &record.language };
        *languages.entry(language.to_owned()).or_default() += 1;
    }
    let dropped = dropped_by_reason(sources);
    let twice = ["duplicate", "near-duplicate"].iter().filter_map(|reason| dropped.get(*reason));
    let leaked = superfluous.iter().filter(|s| s.reason == LEAKED).count();
    Summary {
        files: sources.len(),
        documents: kept.len(),
        duplicates: twice.sum(),
        dropped,
        duplicate_chunks: superfluous.len() - leaked,
        leaked_chunks: leaked,
        words: kept.iter().map(|record| record.words as usize).sum(),
        chunks: chunks.len(),
        held_out_documents: kept.iter().filter(|record| record.held_out).count(),
        held_out_chunks: chunks.iter().filter(|chunk| chunk.held_out).count(),
        languages,
        notes,
    }
}

/// `report.json`: for people, and for `artel status`.
#[derive(Serialize)]
pub(crate) struct Report<'a> {
    summary: &'a Summary,
    files: Vec<FileReport<'a>>,
    superfluous_chunks: &'a [Superfluous],
}

#[derive(Serialize)]
struct FileReport<'a> {
    path: &'a str,
    format: &'a str,
    words: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<&'a str>,
    held_out: bool,
    language: &'a str,
    language_score: f32,
    quality: Quality,
    /// Figures that the usual filters would not accept.
    unusual: Vec<&'static str>,
}

pub(crate) fn report<'a>(
    summary: &'a Summary,
    sources: &'a [Source],
    superfluous: &'a [Superfluous],
) -> Report<'a> {
    let file = |source: &'a Source| {
        let record = &source.record;
        FileReport {
            path: &record.path,
            format: &record.format,
            words: record.words,
            dropped: record.dropped.as_deref(),
            held_out: record.held_out,
            language: &record.language,
            language_score: record.language_score,
            quality: record.quality,
            unusual: if source.document.is_some() { record.quality.unusual() } else { Vec::new() },
        }
    };
    Report { summary, files: sources.iter().map(file).collect(), superfluous_chunks: superfluous }
}
