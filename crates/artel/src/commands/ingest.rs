//! `artel ingest`: documents into collections.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use store::{Draft, Hash};

use crate::Setup;
use crate::config::{Department, HeldOut};
use crate::failure::Hint;
use crate::progress::Progress;
use crate::stages::{Stage, Stages};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// [default: every department of artel.toml]
    departments: Vec<String>,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    super::run::stage_of_each(&args.departments, setup, Stage::Ingest)
}

pub(crate) fn options(stages: &Stages, department: &Department) -> corpus::Options {
    let config = stages.config;
    let folders = department.documents.iter();
    let defaults = corpus::Options::default();
    corpus::Options {
        collection: department.name.clone(),
        folders: folders.map(|folder| PathBuf::from(config.relative(folder))).collect(),
        held_out: match &department.held_out {
            HeldOut::Fraction(fraction) => corpus::HeldOut::Fraction(*fraction),
            HeldOut::Documents(patterns) => corpus::HeldOut::Documents(patterns.clone()),
        },
        min_words: config.ingest.min_words.unwrap_or(defaults.min_words),
        near_duplicate: config.ingest.near_duplicate.unwrap_or(defaults.near_duplicate),
        root: config.root.clone(),
    }
}

pub(crate) fn inputs(options: &corpus::Options) -> Result<BTreeMap<String, Hash>> {
    corpus::inputs(&options.folders, &options.root).with_context(|| {
        Hint::new(format!("put documents there, or change `documents` of {:?}", options.collection))
    })
}

pub(crate) fn stage(
    stages: &Stages,
    department: &Department,
    draft: &mut Draft,
) -> Result<BTreeMap<String, u64>> {
    let progress = Progress::new(format!("ingest {}", department.name), "files");
    let summary = corpus::ingest(draft, &options(stages, department), &|at| {
        progress.set(at.done as u64, at.total as u64, &at.file);
    })?;
    drop(progress);
    for note in &summary.notes {
        eprintln!("ingest {}: {note}", department.name);
    }
    for (reason, count) in &summary.dropped {
        eprintln!("ingest {}: {count} dropped: {reason}", department.name);
    }
    Ok(summary.counts())
}
