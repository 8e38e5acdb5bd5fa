//! `artel synth`: training examples from collections.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use corpus::Collection;
use engine::{Endpoint, Engine, Limits};
use serde_json::{Value, json};
use store::{Draft, Kind};
use synth::{Example, Options};

use crate::Setup;
use crate::config::{Department, Serve, Teacher, local_name};
use crate::failure::Hint;
use crate::progress::Progress;
use crate::stages::{Stage, Stages};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// [default: every department of artel.toml]
    departments: Vec<String>,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    super::run::stage_of_each(&args.departments, setup, Stage::Synth)
}

fn options(stages: &Stages, department: &str) -> Options {
    let config = stages.config;
    Options {
        collection: department.into(),
        seed: config.synth.seed.wrapping_add(config.seed),
        refused_paths: refused_paths(stages),
        ..config.synth.clone()
    }
}

/// The options and the teacher; folders that are refused change no example.
pub(crate) fn recipe_config(stages: &Stages, department: &str) -> Result<Value> {
    let options = Options { refused_paths: Vec::new(), ..options(stages, department) };
    let teacher = match &stages.config.teacher {
        None => Value::Null,
        Some(Teacher::Local { model }) => json!({ "model": local_name(model) }),
        Some(Teacher::Endpoint { url, model, .. }) => json!({ "model": model, "endpoint": url }),
    };
    Ok(json!({ "options": options, "teacher": teacher }))
}

pub(crate) fn stage(
    stages: &Stages,
    department: &Department,
    draft: &mut Draft,
) -> Result<BTreeMap<String, u64>> {
    let name = &department.name;
    let collection = Collection::open(&stages.workspace.path(Kind::Collection, name))?;
    let teacher =
        stages.config.teacher.as_ref().map(|teacher| open(stages, teacher)).transpose()?;
    let progress = Progress::new(format!("synth {name}"), "chunks");
    let options = options(stages, name);
    let summary = synth::synthesise(draft, &collection, &options, teacher.as_ref(), &|at| {
        let note = format!("{} examples", at.examples);
        progress.set(at.chunks_done as u64, at.chunks as u64, &note);
    })?;
    drop(progress);
    for repeat in repeats(stages, &synth::accepted(draft.folder())?)? {
        eprintln!(
            "synth {name}: example {} is kept out of training: it repeats question {} ({:?})",
            repeat.example, repeat.question, repeat.words
        );
    }
    let (total, made) = (&summary.total, summary.total.accepted + summary.total.refused);
    eprintln!(
        "synth {name}: {} of {made} examples accepted ({:.0} %)",
        total.accepted,
        100.0 * total.accepted as f64 / made.max(1) as f64
    );
    for (reason, count) in &total.reasons {
        eprintln!("synth {name}: {count} refused: {reason}");
    }
    let counts = [
        ("chunks", summary.chunks),
        ("facts", total.facts),
        ("accepted", total.accepted),
        ("refused", total.refused),
    ];
    Ok(counts.map(|(key, count)| (key.to_owned(), count as u64)).into())
}

fn open(stages: &Stages, teacher: &Teacher) -> Result<engine::Teacher> {
    match teacher {
        Teacher::Local { model } => {
            let folder = stages.workspace.path(Kind::Model, &local_name(model));
            let model = super::chat::load(&folder, &Serve::default())?;
            let engine = Engine::start(Arc::new(model), stages.pool(), Limits::default());
            Ok(engine::Teacher::Local(engine))
        }
        Teacher::Endpoint { url, model, api_key_env } => {
            let key = match api_key_env {
                None => None,
                Some(name) => Some(std::env::var(name).map_err(|_| {
                    anyhow!("teacher.api_key_env names {name}, which is not set")
                        .context(Hint::new(format!("export {name}=…, then run it again")))
                })?),
            };
            eprintln!("synth: passages go to the teacher at {url}");
            Ok(engine::Teacher::Endpoint(Endpoint::new(url, model, key)?))
        }
    }
}

/// The question files, and their folders where these hold no documents.
fn refused_paths(stages: &Stages) -> Vec<PathBuf> {
    let config = stages.config;
    let documents: Vec<&PathBuf> = config.departments.iter().flat_map(|d| &d.documents).collect();
    let mut paths = Vec::new();
    for file in config.departments.iter().filter_map(|d| d.questions.as_ref()) {
        paths.push(PathBuf::from(config.relative(file)));
        if let Some(folder) = file.parent()
            && !documents.iter().any(|documents| documents.starts_with(folder))
        {
            paths.push(PathBuf::from(config.relative(folder)));
        }
    }
    paths
}

/// An example that says a question's words.
pub(crate) struct Repeat {
    pub(crate) example: String,
    /// The question's id.
    pub(crate) question: String,
    pub(crate) words: String,
}

/// The examples that share 8 words in a row with a question of any department: none of them may
/// be trained on.
pub(crate) fn repeats(stages: &Stages, examples: &[Example]) -> Result<Vec<Repeat>> {
    let mut ids = Vec::new();
    let mut texts = Vec::new();
    for file in stages.config.departments.iter().filter_map(|d| d.questions.as_ref()) {
        for question in eval::read_questions(file)? {
            ids.push(question.id);
            texts.push(question.question);
        }
    }
    let repeat = |overlap: synth::Overlap| Repeat {
        example: overlap.example,
        question: ids[overlap.question].clone(),
        words: overlap.words,
    };
    Ok(synth::contamination(examples.iter(), &texts).into_iter().map(repeat).collect())
}
