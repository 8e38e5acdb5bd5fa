//! The stage: folders in, collection out. What is read of each file is kept in the draft, so a run
//! that was killed goes on with the files that are missing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use serde::{Deserialize, Serialize};
use store::{Draft, Hash, lines::Appender};

use crate::dedup::{duplicates, leaks};
use crate::read::{self, Document, Format};
use crate::report::{LEAKED, Summary, Superfluous, nothing_usable, report, summarise};
use crate::split::{Candidate, Part, choose};
use crate::walk::{Found, walk};
use crate::{Chunk, Collection, DocumentRecord, Error, HeldOut, MAX_CHUNK_WORDS, Quality, io};

/// Configuration of the stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The collection's name.
    pub collection: String,
    /// Where the files are, with all folders below; relative ones start at `root`.
    pub folders: Vec<PathBuf>,
    pub held_out: HeldOut,
    /// Documents with fewer words are dropped.
    pub min_words: u32,
    /// The Jaccard similarity of 5-word shingles from which one of two texts is dropped; above 1,
    /// exact duplicates only.
    pub near_duplicate: f64,
    /// The workspace. Names of documents are relative to it, and it is no part of the recipe, so a
    /// workspace can be moved.
    #[serde(skip)]
    pub root: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            collection: String::new(),
            folders: Vec::new(),
            held_out: HeldOut::default(),
            min_words: 1,
            near_duplicate: 0.8,
            root: PathBuf::new(),
        }
    }
}

/// A file was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    pub done: usize,
    pub total: usize,
    pub file: String,
}

const REPORT: &str = "report.json";
/// What was read so far, one file a line.
const PARSED: &str = "parsed.jsonl";
/// Readers recurse over nested elements; this is ample for the depths they allow.
const STACK_BYTES: usize = 64 << 20;

/// The hashes of all source files in a format that is read, by the name that documents have:
/// the inputs of the stage's recipe. `root` is the workspace.
///
/// # Errors
/// [`Error::NoFolder`]; [`Error::Io`] if a file cannot be read to its end.
pub fn inputs(folders: &[PathBuf], root: &Path) -> Result<BTreeMap<String, Hash>, Error> {
    let mut inputs = BTreeMap::new();
    for found in walk(folders, root)?.into_iter().filter(|found| found.trouble.is_none()) {
        // An unreadable file is reported by the stage and becomes an input once it is readable.
        if let Ok(hash) = Hash::of_file(&found.path) {
            inputs.insert(found.name, hash);
        }
    }
    Ok(inputs)
}

/// Reads, curates and splits the documents, and writes the collection into `draft`.
///
/// Files are read by several threads; the result does not depend on their number or on how often
/// the run was interrupted.
///
/// # Errors
/// [`Error::NothingUsable`] if no document is left; otherwise as the parts say. What was read so
/// far stays in the draft.
pub fn ingest(
    draft: &mut Draft,
    options: &Options,
    progress: &dyn Fn(Progress),
) -> Result<Summary, Error> {
    let found = walk(&options.folders, &options.root)?;
    let mut parsed = parse_all(draft, &found, progress)?;
    let mut sources: Vec<Source> = Vec::new();
    for found in &found {
        let parsed = parsed.remove(&found.name);
        sources.push(Source::new(found, parsed, options.min_words));
    }
    drop_duplicates(&mut sources, options.near_duplicate);
    if sources.iter().all(|source| source.record.dropped.is_some()) {
        return Err(nothing_usable(options, &sources));
    }
    let mut notes = Vec::new();
    let parts = split(&mut sources, options, draft.recipe().seed, &mut notes)?;
    let (chunks, superfluous) = cut(&sources, &parts, options.near_duplicate);
    drop_emptied(&mut sources, &chunks, &superfluous);
    let summary = summarise(&sources, &chunks, &superfluous, notes);
    let texts: Vec<String> = sources
        .iter()
        .map(|source| match (&source.record.dropped, &source.document) {
            (None, Some(document)) => document.markdown(),
            _ => String::new(),
        })
        .collect();
    let report = serde_json::to_string_pretty(&report(&summary, &sources, &superfluous))
        .expect("a report is plain data");
    let documents = sources.into_iter().map(|source| source.record).collect();
    Collection { name: options.collection.clone(), documents, chunks }
        .write(draft.folder(), &texts)?;
    let path = draft.path(REPORT);
    fs::write(&path, report + "\n").map_err(io("write", &path))?;
    draft.discard(PARSED)?;
    Ok(summary)
}

/// What was read of one file: a line of the draft's working file.
#[derive(Serialize, Deserialize)]
struct Parsed {
    name: String,
    hash: Option<Hash>,
    result: Result<Document, String>,
}

/// Reads what an earlier run has not, and returns everything by name.
fn parse_all(
    draft: &Draft,
    found: &[Found],
    progress: &dyn Fn(Progress),
) -> Result<HashMap<String, Parsed>, Error> {
    let (mut appender, lines) = Appender::resume::<Parsed>(&draft.path(PARSED))?;
    let mut parsed: HashMap<String, Parsed> =
        lines.into_iter().map(|line| (line.name.clone(), line)).collect();
    let readable = found.iter().filter(|found| found.trouble.is_none());
    let missing: Vec<&Found> =
        readable.clone().filter(|found| !parsed.contains_key(&found.name)).collect();
    let total = readable.count();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::sync_channel::<Parsed>(0);
        for _ in 0..threads {
            let sender = sender.clone();
            let (next, missing) = (&next, &missing);
            let work = move || {
                while let Some(found) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if sender.send(parse(found)).is_err() {
                        return;
                    }
                }
            };
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            builder.spawn_scoped(scope, work).map_err(io("start a reader for", draft.folder()))?;
        }
        drop(sender);
        for line in results {
            let expected = draft.recipe().inputs.get(&line.name);
            if expected.is_some() && line.hash.is_some() && expected != line.hash.as_ref() {
                return Err(Error::Changed { path: line.name });
            }
            appender.append(std::slice::from_ref(&line))?;
            let name = line.name.clone();
            parsed.insert(name.clone(), line);
            progress(Progress { done: parsed.len(), total, file: name });
        }
        Ok(parsed)
    })
}

fn parse(found: &Found) -> Parsed {
    let bytes = match fs::read(&found.path) {
        Ok(bytes) => bytes,
        Err(e) => {
            return Parsed {
                name: found.name.clone(),
                hash: None,
                result: Err(format!("unreadable: {e}")),
            };
        }
    };
    let format = Format::of(&found.path).expect("others have trouble and are not parsed");
    // Readers return errors; this is for a bug in one of them or in a library below it, which must
    // not cost the documents that were read before.
    let result = std::panic::catch_unwind(|| read::read(format, &found.path, &bytes));
    let result = match result {
        Ok(result) => result.map_err(|reason| reason.to_string()),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(format!("reader failed: {said}"))
        }
    };
    Parsed { name: found.name.clone(), hash: Some(Hash::of(&bytes)), result }
}

/// A source file with what is known of it.
pub(crate) struct Source {
    pub(crate) record: DocumentRecord,
    in_folder: String,
    pub(crate) document: Option<Document>,
}

impl Source {
    fn new(found: &Found, parsed: Option<Parsed>, min_words: u32) -> Self {
        let (hash, result) = match parsed {
            Some(parsed) => (parsed.hash, parsed.result),
            None => (None, Err(found.trouble.clone().unwrap_or_default())),
        };
        let mut record = DocumentRecord {
            id: Hash::of(found.name.as_bytes()).short().into(),
            path: found.name.clone(),
            format: Format::of(&found.path).map_or("", Format::name).into(),
            title: String::new(),
            hash,
            words: 0,
            language: String::new(),
            language_score: 0.0,
            quality: Quality::default(),
            held_out: false,
            dropped: None,
        };
        let document = match result {
            Ok(document) => document,
            Err(reason) => {
                record.dropped = Some(reason);
                return Source { record, in_folder: found.in_folder.clone(), document: None };
            }
        };
        let text = joined(&document);
        record.title = document.title.clone();
        record.words = crate::chunk::words(&text) as u32;
        (record.language, record.language_score) = crate::quality::language(&text);
        record.quality = Quality::of(&text);
        if record.words < min_words {
            record.dropped = Some(format!("fewer than {min_words} words"));
        }
        Source { record, in_folder: found.in_folder.clone(), document: Some(document) }
    }

    fn kept(&self) -> Option<&Document> {
        self.document.as_ref().filter(|_| self.record.dropped.is_none())
    }
}

/// A document's text without its headings, as its chunks have it.
fn joined(document: &Document) -> String {
    let texts: Vec<&str> = document.blocks.iter().map(|block| block.text.as_str()).collect();
    texts.join("\n\n")
}

fn drop_duplicates(sources: &mut [Source], similarity: f64) {
    let kept: Vec<usize> = (0..sources.len()).filter(|&i| sources[i].kept().is_some()).collect();
    let texts: Vec<String> = kept.iter().filter_map(|&i| sources[i].kept()).map(joined).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for (index, duplicate) in duplicates(&texts, similarity).into_iter().enumerate() {
        if let Some(duplicate) = duplicate {
            let of = sources[kept[duplicate.of]].record.path.clone();
            let degree = if duplicate.exact { "duplicate" } else { "near-duplicate" };
            sources[kept[index]].record.dropped = Some(format!("{degree}: {of} is kept"));
        }
    }
}

/// Chooses the held-out part of each kept document and marks the documents.
fn split(
    sources: &mut [Source],
    options: &Options,
    seed: u64,
    notes: &mut Vec<String>,
) -> Result<Vec<Part>, Error> {
    let candidates: Vec<Candidate> = sources
        .iter()
        .filter_map(|source| {
            let document = source.kept()?;
            Some(Candidate { names: [&source.record.path, &source.in_folder], document })
        })
        .collect();
    let chosen = choose(&candidates, &options.held_out, seed)?;
    if chosen.iter().all(|part| *part == Part::Nothing)
        && options.held_out != HeldOut::Fraction(0.0)
    {
        notes
            .push("nothing is held out: a single document without sections cannot be split".into());
    }
    let mut chosen = chosen.into_iter();
    let mut parts = Vec::new();
    for source in sources {
        let part = match source.kept() {
            Some(_) => chosen.next().expect("a part for each candidate"),
            None => Part::Nothing,
        };
        source.record.held_out = part == Part::All;
        parts.push(part);
    }
    Ok(parts)
}

/// A document whose chunks were all dropped is dropped too.
fn drop_emptied(sources: &mut [Source], chunks: &[Chunk], superfluous: &[Superfluous]) {
    let left: HashSet<&str> = chunks.iter().map(|chunk| chunk.document.as_str()).collect();
    for source in sources.iter_mut().filter(|source| source.record.dropped.is_none()) {
        let record = &mut source.record;
        if left.contains(record.id.as_str()) {
            continue;
        }
        let of_it = || superfluous.iter().filter(|chunk| chunk.document == record.path);
        let cause = of_it().find(|chunk| chunk.reason == LEAKED).or_else(|| of_it().next());
        if let Some(cause) = cause {
            record.dropped = Some(match cause.reason {
                LEAKED => format!("{LEAKED}: {} is held out", cause.kept_document),
                _ => {
                    format!("{}: its parts are in {} and others", cause.reason, cause.kept_document)
                }
            });
        }
    }
}

/// Cuts the kept documents into chunks. Among training chunks, and among held-out ones, duplicates
/// are dropped; then training chunks that repeat held-out text.
fn cut(sources: &[Source], parts: &[Part], similarity: f64) -> (Vec<Chunk>, Vec<Superfluous>) {
    let paths: HashMap<&str, &str> =
        sources.iter().map(|s| (s.record.id.as_str(), s.record.path.as_str())).collect();
    let mut all = Vec::new();
    for (source, part) in sources.iter().zip(parts) {
        let Some(document) = source.kept() else { continue };
        let mut chunks = crate::chunk::chunks(
            &source.record.id,
            &source.record.title,
            &document.blocks,
            MAX_CHUNK_WORDS,
        );
        chunks.iter_mut().for_each(|chunk| chunk.held_out = part.holds(&chunk.section));
        all.extend(chunks);
    }
    let mut dropped: BTreeMap<usize, (&'static str, usize)> = BTreeMap::new();
    for side in [false, true] {
        let members: Vec<usize> = (0..all.len()).filter(|&i| all[i].held_out == side).collect();
        let texts: Vec<&str> = members.iter().map(|&i| all[i].text.as_str()).collect();
        for (index, duplicate) in duplicates(&texts, similarity).into_iter().enumerate() {
            if let Some(duplicate) = duplicate {
                let reason = if duplicate.exact { "duplicate" } else { "near-duplicate" };
                dropped.insert(members[index], (reason, members[duplicate.of]));
            }
        }
    }
    let side = |held_out| -> Vec<usize> {
        (0..all.len()).filter(|&i| all[i].held_out == held_out).collect()
    };
    let (training, held_out) = (side(false), side(true));
    let texts = |of: &[usize]| -> Vec<&str> { of.iter().map(|&i| all[i].text.as_str()).collect() };
    for (index, leak) in leaks(&texts(&training), &texts(&held_out)).into_iter().enumerate() {
        if let Some(leak) = leak {
            dropped.insert(training[index], (LEAKED, held_out[leak]));
        }
    }
    let superfluous = dropped.iter().map(|(&index, &(reason, kept))| Superfluous {
        document: paths[all[index].document.as_str()].into(),
        section: all[index].section.clone(),
        reason,
        kept_document: paths[all[kept].document.as_str()].into(),
        kept_section: all[kept].section.clone(),
    });
    let superfluous = superfluous.collect();
    let chunks =
        all.into_iter().enumerate().filter(|(i, _)| !dropped.contains_key(i)).map(|(_, c)| c);
    (chunks.collect(), superfluous)
}
