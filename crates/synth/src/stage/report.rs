//! What a synthesis made: counts by recipe and document; `report.json`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use corpus::{Chunk, DocumentRecord};
use serde::{Deserialize, Serialize};

use crate::example::{Example, Verdict};
use crate::{Error, io};

const REPORT: &str = "report.json";
/// Characters of English text in a token, about.
const CHARACTERS_PER_TOKEN: usize = 4;

/// Chunks that were passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Skipped {
    pub(super) held_out: usize,
    pub(super) foreign: usize,
}

/// The figures of a synthesis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub collection: String,
    /// Chunks worked on.
    pub chunks: usize,
    /// Chunks left out because they or their documents are held out.
    pub chunks_held_out: usize,
    /// Chunks left out because their documents are not in English.
    pub chunks_foreign: usize,
    pub total: Count,
    /// By recipe: `structure/attribute`, `qa`, …
    pub recipes: BTreeMap<String, Count>,
    /// By the document's path.
    pub documents: BTreeMap<String, Count>,
}

/// Figures of a recipe, a document, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Different facts among the accepted examples.
    pub facts: usize,
    pub accepted: usize,
    /// Estimated tokens of the accepted examples.
    pub tokens: usize,
    pub refused: usize,
    /// By the kind of reason.
    pub reasons: BTreeMap<String, usize>,
}

impl Summary {
    pub(super) fn of(
        collection: &str,
        skipped: &Skipped,
        chunks: &[(&Chunk, &DocumentRecord)],
        examples: &[Example],
    ) -> Self {
        let mut summary = Summary {
            collection: collection.into(),
            chunks: chunks.len(),
            chunks_held_out: skipped.held_out,
            chunks_foreign: skipped.foreign,
            ..Summary::default()
        };
        let mut paths: BTreeMap<&str, &str> = BTreeMap::new();
        for (_, document) in chunks {
            paths.insert(&document.id, &document.path);
            // A document that gave nothing is in the report too.
            summary.documents.entry(document.path.clone()).or_default();
        }
        let mut facts: HashSet<&str> = HashSet::new();
        for example in examples {
            let new = example.is_accepted() && facts.insert(&example.fact);
            let path = paths.get(example.document.as_str()).copied().unwrap_or("");
            summary.total.add(example, new);
            summary.recipes.entry(example.recipe.clone()).or_default().add(example, new);
            summary.documents.entry(path.into()).or_default().add(example, new);
        }
        summary
    }

    /// Figures for the artifact's manifest.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let figures = [
            ("chunks", self.chunks),
            ("chunks_held_out", self.chunks_held_out),
            ("facts", self.total.facts),
            ("accepted", self.total.accepted),
            ("refused", self.total.refused),
            ("tokens", self.total.tokens),
        ];
        figures.into_iter().map(|(name, value)| (name.to_owned(), value as u64)).collect()
    }
}

impl Count {
    fn add(&mut self, example: &Example, new_fact: bool) {
        match &example.verdict {
            Verdict::Accepted => {
                self.facts += usize::from(new_fact);
                self.accepted += 1;
                self.tokens += example.body.text().chars().count().div_ceil(CHARACTERS_PER_TOKEN);
            }
            Verdict::Refused(reason) => {
                self.refused += 1;
                // What the reason quotes differs each time.
                let kind = reason.split([':', '"']).next().unwrap_or("").trim().to_owned();
                *self.reasons.entry(kind).or_default() += 1;
            }
        }
    }

    /// Share of the examples that were accepted; 1 where there are none.
    pub fn acceptance(&self) -> f64 {
        match self.accepted + self.refused {
            0 => 1.0,
            all => self.accepted as f64 / all as f64,
        }
    }
}

/// The report of a draft that was finished but not yet given its name.
pub(super) fn finished(folder: &Path) -> Result<Option<Summary>, Error> {
    let path = folder.join(REPORT);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", &path)(error)),
    }
}

/// Written beside and renamed, so that a report that is there is whole.
pub(super) fn write(folder: &Path, summary: &Summary) -> Result<(), Error> {
    let (path, part) = (folder.join(REPORT), folder.join("report.part"));
    let text = serde_json::to_string_pretty(summary).expect("a summary is plain data");
    std::fs::write(&part, text + "\n").map_err(io("write", &part))?;
    std::fs::rename(&part, &path).map_err(io("rename", &part))
}
