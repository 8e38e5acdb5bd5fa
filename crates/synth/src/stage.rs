//! The stage: chunk by chunk, resumable, with its report.

mod journal;
mod paths;
mod report;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use corpus::{Chunk, Collection, DocumentRecord};
use engine::{Sampling, Teacher};
use model::Message;
use serde::{Deserialize, Serialize};

use crate::example::{Example, Verdict};
use crate::facts::Passage;
use crate::structure::{self, Limits, Names};
use crate::teacher_qa;
use crate::verify::normalise;
use crate::{Body, Error};
use journal::Journal;
pub use report::{Count, Summary};

const EXAMPLES: &str = "examples.jsonl";

/// The resolved configuration of a synthesis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The collection's name, for messages and the report.
    pub collection: String,
    pub recipes: Vec<Method>,
    /// Forms of each fact (recipe `structure`); half as many of what the forms of a whole table row
    /// or procedure say too, a quarter of a mere sentence, a sixteenth of one without a number or a
    /// name.
    pub forms: usize,
    /// At most so many examples from a chunk; with many facts, each gets fewer forms.
    pub examples_per_chunk: usize,
    /// Questions asked of the teacher for each chunk (recipe `qa`).
    pub questions_per_chunk: usize,
    /// Of the teacher.
    pub temperature: f32,
    pub seed: u64,
    /// Files and folders of questions; a document inside one is an error.
    pub refused_paths: Vec<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            collection: String::new(),
            recipes: vec![Method::Structure],
            forms: 16,
            examples_per_chunk: 4000,
            questions_per_chunk: 8,
            temperature: 0.5,
            seed: 0,
            refused_paths: Vec::new(),
        }
    }
}

/// A way to make examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Facts of tables, definitions, procedures and sentences, restated; no teacher.
    Structure,
    /// A teacher's questions and answers with evidence.
    Qa,
    /// A teacher's rewriting of each chunk.
    Rephrase,
}

/// How far the stage is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub chunks_done: usize,
    pub chunks: usize,
    /// Written so far, refused ones too.
    pub examples: usize,
    /// Path of the document worked on.
    pub document: String,
}

/// Synthesises examples from a collection's chunks into the draft: `examples.jsonl` and
/// `report.json`. An interrupted draft is gone on with from its last finished chunk; the result
/// is the same as that of an unbroken run.
///
/// # Errors
/// [`Error::ForbiddenPath`] before anything is written; [`Error::NoTeacher`];
/// [`Error::NothingUsable`]; [`Error::Teacher`], after which the draft can be resumed;
/// [`Error::Option`]; [`Error::Store`] and [`Error::Io`], on a full disk for instance.
pub fn synthesise(
    draft: &mut store::Draft,
    collection: &Collection,
    options: &Options,
    teacher: Option<&Teacher>,
    progress: &dyn Fn(Progress),
) -> Result<Summary, Error> {
    let ask = |messages: &[Message], tokens: usize, seed: u64| {
        let sampling =
            Sampling { temperature: options.temperature, top_p: 0.9, seed, ..Sampling::default() };
        let teacher = teacher.expect("checked before a recipe asks");
        teacher.chat(messages, sampling, tokens).map_err(|error| error.to_string())
    };
    let name = teacher.map(Teacher::name);
    let teacher = name.as_deref().map(|name| Asked { name, ask: &ask });
    run(draft, collection, options, teacher, progress)
}

/// All examples of an artifact, refused ones too; see [`Example::is_accepted`].
///
/// # Errors
/// [`Error::Store`] if the file is missing or not of this version's form.
pub fn read(dir: &Path) -> Result<Vec<Example>, Error> {
    Ok(store::lines::read(&dir.join(EXAMPLES))?)
}

/// The examples of an artifact that may be trained on.
///
/// # Errors
/// As [`read`].
pub fn accepted(dir: &Path) -> Result<Vec<Example>, Error> {
    Ok(read(dir)?.into_iter().filter(Example::is_accepted).collect())
}

/// A teacher by its name and a function: messages, token limit and seed in, answer out.
#[derive(Clone, Copy)]
struct Asked<'a> {
    name: &'a str,
    ask: &'a SeededAsk<'a>,
}

type SeededAsk<'a> = dyn Fn(&[Message], usize, u64) -> Result<String, String> + 'a;

fn run(
    draft: &mut store::Draft,
    collection: &Collection,
    options: &Options,
    teacher: Option<Asked>,
    progress: &dyn Fn(Progress),
) -> Result<Summary, Error> {
    check(options, teacher.is_some())?;
    paths::refuse(&collection.documents, &options.refused_paths)?;
    if let Some(summary) = report::finished(draft.folder())? {
        return Ok(summary);
    }
    let work = Work::select(collection, options)?;
    let ids: Vec<&str> = work.chunks.iter().map(|(chunk, _)| chunk.id.as_str()).collect();
    let (mut journal, written) = Journal::resume(draft.folder(), EXAMPLES, &ids)?;
    let mut seen = Seen::of(&written);
    let mut examples = written;
    let names = Names::of(work.chunks.iter().map(|(chunk, _)| passage(chunk)));
    for (index, (chunk, document)) in work.chunks.iter().enumerate().skip(journal.done()) {
        progress(Progress {
            chunks_done: index,
            chunks: work.chunks.len(),
            examples: examples.len(),
            document: document.path.clone(),
        });
        let made = synthesise_chunk(chunk, document, options, teacher, &names, &mut seen)?;
        journal.append(&chunk.id, &made)?;
        examples.extend(made);
    }
    let summary = Summary::of(&options.collection, &work.skipped, &work.chunks, &examples);
    journal.finish()?;
    report::write(draft.folder(), &summary)?;
    draft.discard(journal::PROGRESS)?;
    Ok(summary)
}

fn check(options: &Options, teacher: bool) -> Result<(), Error> {
    let outside =
        |name, value: usize, limit| Err(Error::Option { name, value: value.to_string(), limit });
    if !(1..=64).contains(&options.forms) {
        return outside("forms", options.forms, "1 to 64");
    }
    if !(1..=100_000).contains(&options.examples_per_chunk) {
        return outside("examples_per_chunk", options.examples_per_chunk, "1 to 100000");
    }
    if !(1..=50).contains(&options.questions_per_chunk) {
        return outside("questions_per_chunk", options.questions_per_chunk, "1 to 50");
    }
    if options.recipes.is_empty() {
        return outside("recipes", 0, "at least one recipe");
    }
    for (method, recipe) in [(Method::Qa, "qa"), (Method::Rephrase, "rephrase")] {
        if options.recipes.contains(&method) && !teacher {
            return Err(Error::NoTeacher { recipe });
        }
    }
    Ok(())
}

/// The chunks to work on, with their documents, and how many were passed over.
struct Work<'a> {
    chunks: Vec<(&'a Chunk, &'a DocumentRecord)>,
    skipped: report::Skipped,
}

/// Below this confidence the language of a document is unknown, and it is taken as English.
const SURE_OF_LANGUAGE: f32 = 0.65;

impl<'a> Work<'a> {
    fn select(collection: &'a Collection, options: &Options) -> Result<Self, Error> {
        let documents: HashMap<&str, &DocumentRecord> =
            collection.documents.iter().map(|d| (d.id.as_str(), d)).collect();
        let mut work = Work { chunks: Vec::new(), skipped: report::Skipped::default() };
        for chunk in &collection.chunks {
            let Some(document) = documents.get(chunk.document.as_str()) else { continue };
            let foreign = !["", "eng"].contains(&document.language.as_str())
                && document.language_score >= SURE_OF_LANGUAGE;
            if chunk.held_out || document.held_out {
                work.skipped.held_out += 1;
            } else if foreign {
                work.skipped.foreign += 1;
            } else if document.dropped.is_none() {
                work.chunks.push((chunk, document));
            }
        }
        if work.chunks.is_empty() {
            return Err(Error::NothingUsable {
                collection: options.collection.clone(),
                chunks: collection.chunks.len(),
                held_out: work.skipped.held_out,
                foreign: work.skipped.foreign,
            });
        }
        Ok(work)
    }
}

fn passage(chunk: &Chunk) -> Passage<'_> {
    Passage {
        document: &chunk.document,
        chunk: &chunk.id,
        title: &chunk.title,
        section: &chunk.section,
        text: &chunk.text,
    }
}

/// What the collection's examples hold so far, so that none is there twice.
struct Seen {
    bodies: HashSet<String>,
    /// Normalised questions of accepted teacher examples.
    questions: HashSet<String>,
}

impl Seen {
    fn of(examples: &[Example]) -> Self {
        let mut seen = Seen { bodies: HashSet::new(), questions: HashSet::new() };
        for example in examples {
            seen.bodies.insert(normalise(&example.body.text()));
            if let (Body::Chat(messages), "qa", true) =
                (&example.body, example.recipe.as_str(), example.is_accepted())
                && let Some(question) = messages.first()
            {
                seen.questions.insert(normalise(&question.content));
            }
        }
        seen
    }

    fn admit(&mut self, example: &Example) -> bool {
        let new = self.bodies.insert(normalise(&example.body.text()));
        // What was refused stays in the file, so that the rate of acceptance is right.
        new || example.verdict != Verdict::Accepted
    }
}

fn synthesise_chunk(
    chunk: &Chunk,
    document: &DocumentRecord,
    options: &Options,
    teacher: Option<Asked>,
    names: &Names,
    seen: &mut Seen,
) -> Result<Vec<Example>, Error> {
    let passage = passage(chunk);
    let mut made = Vec::new();
    for method in &options.recipes {
        if *method == Method::Structure {
            let limits = Limits {
                forms: options.forms,
                per_chunk: options.examples_per_chunk,
                seed: options.seed,
            };
            made.extend(structure::forms(&passage, names, &limits));
            continue;
        }
        let Asked { name, ask } = teacher.expect("checked before the first chunk");
        let failed = |reason| Error::Teacher {
            teacher: name.into(),
            chunk: chunk.id.clone(),
            document: document.path.clone(),
            reason,
        };
        let seed = seed_of(chunk, options.seed);
        let ask = |messages: &[Message], tokens: usize| ask(messages, tokens, seed);
        if *method == Method::Qa {
            let count = options.questions_per_chunk;
            let known = &mut seen.questions;
            made.extend(teacher_qa::questions(&passage, count, name, &ask, known).map_err(failed)?);
        } else {
            made.push(teacher_qa::rephrasing(&passage, name, &ask).map_err(failed)?);
        }
    }
    made.retain(|example| seen.admit(example));
    Ok(made)
}

fn seed_of(chunk: &Chunk, seed: u64) -> u64 {
    let hash = blake3::hash(format!("{seed}/{}", chunk.id).as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests;
