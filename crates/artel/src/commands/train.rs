//! `artel train`: one expert per department, beside the frozen base. With `--from scratch`, a model of
//! its own.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, ensure};
use corpus::Collection;
use kernel::Precision;
use model::{Model, Purpose};
use serde_json::{Value, json};
use store::{Draft, Kind, Recipe};
use train::{Language, Material, Options};

use super::background;
use super::synth::repeats;
use crate::Setup;
use crate::config::Department;
use crate::failure::Hint;
use crate::progress::Progress;
use crate::stages::{Stage, Stages};

/// The recipe's list of examples that repeat questions.
pub(super) const LEFT_OUT: &str = "left_out";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// [default: every department of artel.toml]
    departments: Vec<String>,
    /// What training begins with: experts beside the base, or random weights of a model of its own,
    /// as `[scratch]` in artel.toml says
    #[arg(long, value_enum, default_value_t = From::Base)]
    from: From,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum From {
    Base,
    Scratch,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let config = setup.config()?;
    let stages = Stages::new(&config, setup);
    if args.from == From::Scratch {
        ensure!(
            args.departments.is_empty(),
            "--from scratch learns from the documents of all departments; name none"
        );
        config.select(&[])?;
        let done = stages.perform(&Stage::Scratch)?;
        super::run::tell(&stages, &Stage::Scratch, &done);
        println!("{}", done.artifact.path.display());
        return Ok(());
    }
    let departments = config.select(&args.departments)?.into_iter();
    let near_misses = departments.map(|department| Stage::NearMisses(department.name.clone()));
    for stage in std::iter::once(Stage::Background).chain(near_misses) {
        let done = stages.perform(&stage)?;
        super::run::tell(&stages, &stage, &done);
    }
    super::run::stage_of_each(&args.departments, setup, Stage::Train)
}

fn options(stages: &Stages) -> Options {
    let mut options = stages.config.train.clone();
    options.seed = options.seed.wrapping_add(stages.config.seed);
    options
}

/// The examples left out because they repeat questions, and the options, but for how often a
/// checkpoint is written: that changes no weight.
pub(crate) fn recipe_config(stages: &Stages, department: &str) -> Result<Value> {
    let mut options = serde_json::to_value(options(stages))?;
    if let Value::Object(map) = &mut options {
        map.shift_remove("checkpoint_seconds");
    }
    Ok(json!({ "options": options, LEFT_OUT: left_out_examples(stages, department)? }))
}

/// The examples of a department that repeat questions.
pub(super) fn left_out_examples(stages: &Stages, department: &str) -> Result<Vec<String>> {
    let examples = synth::accepted(&stages.workspace.path(Kind::Examples, department))?;
    let mut left_out: Vec<String> =
        repeats(stages, &examples)?.into_iter().map(|repeat| repeat.example).collect();
    left_out.sort();
    left_out.dedup();
    Ok(left_out)
}

/// Refuses experts that were trained on what now is a question: they would be asked what they
/// were told.
pub(crate) fn check_left_out(stages: &Stages) -> Result<()> {
    for department in stages.active() {
        let expert = stages.workspace.open(Kind::Expert, &department.name)?;
        let what = format!("experts/{}", department.name);
        check_artifact(stages, &expert.manifest.recipe, &what, &department.name)?;
    }
    Ok(())
}

/// That what was made by this recipe was not trained on examples of a department that repeat questions.
pub(super) fn check_artifact(
    stages: &Stages,
    recipe: &Recipe,
    what: &str,
    department: &str,
) -> Result<()> {
    let left_out = left_out(recipe);
    let examples = synth::accepted(&stages.workspace.path(Kind::Examples, department))?;
    for repeat in repeats(stages, &examples)? {
        ensure!(
            left_out.contains(&repeat.example.as_str()),
            anyhow!(
                "{what} was trained on example {}, which repeats question {} ({:?})",
                repeat.example,
                repeat.question,
                repeat.words
            )
            .context(Hint::new("`artel run` or `artel tune` trains it again without the example"))
        );
    }
    Ok(())
}

pub(super) fn left_out(recipe: &Recipe) -> Vec<&str> {
    let list = recipe.config[LEFT_OUT].as_array();
    list.map_or_else(Vec::new, |list| list.iter().filter_map(Value::as_str).collect())
}

pub(crate) fn stage(
    stages: &Stages,
    department: &Department,
    draft: &mut Draft,
) -> Result<BTreeMap<String, u64>> {
    let name = &department.name;
    let progress = Progress::new(format!("train {name}"), "steps");
    progress.say("loading the base");
    let mut model = Model::load_for(Purpose::Training, &stages.base(), Precision::best())?;
    let options = options(stages);
    let material = material(stages, name, &left_out(draft.recipe()))?;
    let language = Language { tokenizer: &model.tokenizer, template: &model.template };
    let samples = train::samples(language, &material, &options.reading())?;
    let mut negatives: Vec<Vec<u32>> = Vec::new();
    for written in [Stage::Background, Stage::NearMisses(name.clone())] {
        let (kind, name) = stages.target(&written);
        let texts = background::read(&stages.workspace.open(kind, &name)?)?;
        negatives.extend(texts.into_iter().map(|text| text.tokens));
    }
    let job = train::Job {
        name,
        folder: draft.folder(),
        samples: &samples,
        negatives: &negatives,
        options: &options,
    };
    // Of the last step that had some of the base's own text.
    let mut divergence = 0.0;
    let summary = train::train_expert(&job, &stages.pool(), &mut model.decoder, &mut |at| {
        divergence = at.kl.unwrap_or(divergence);
        let note = format!("loss {:.2}, KL {divergence:.3}", at.loss);
        progress.set(at.step as u64, at.steps as u64, &note);
    })?;
    drop(progress);
    eprintln!(
        "train {name}: loss {:.3} nats/token, KL to the base on its own text {:.3}",
        summary.loss, summary.kl
    );
    Ok(BTreeMap::from([
        ("steps".into(), summary.steps as u64),
        ("tokens".into(), summary.tokens as u64),
        ("parameters".into(), summary.parameters as u64),
    ]))
}

/// The accepted examples and the documents, without what is held out.
pub(super) fn material(stages: &Stages, name: &str, left_out: &[&str]) -> Result<Vec<Material>> {
    let collection = Collection::open(&stages.workspace.path(Kind::Collection, name))?;
    let mut material: Vec<Material> = documents(&collection).map(Material::Document).collect();
    let mut examples = synth::accepted(&stages.workspace.path(Kind::Examples, name))?;
    examples.retain(|example| !left_out.contains(&example.id.as_str()));
    for example in examples {
        material.push(match example.body {
            synth::Body::Text(text) => Material::Text(text),
            synth::Body::Chat(messages) => Material::Chat(messages),
        });
    }
    Ok(material)
}

/// Each document as one text with its headings, as a reader would see it.
pub(super) fn documents(collection: &Collection) -> impl Iterator<Item = String> {
    let chunks = collection.chunks.iter().filter(|chunk| !chunk.held_out);
    let mut texts: Vec<(&str, String)> = Vec::new();
    let mut section: &[String] = &[];
    for chunk in chunks {
        if texts.last().is_none_or(|(document, _)| *document != chunk.document) {
            texts.push((&chunk.document, format!("# {}\n", chunk.title)));
            section = &[];
        }
        let Some((_, text)) = texts.last_mut() else { continue };
        if chunk.section != section {
            section = &chunk.section;
            *text += &format!("\n## {}\n", section.join(" / "));
        }
        *text += &format!("\n{}\n", chunk.text);
    }
    texts.into_iter().map(|(_, text)| text)
}
