//! The path: which stage makes which artifact, from what, and whether it is up to date.
//!
//! The one place that knows the graph. Commands name stages; [`Stages::perform`] runs one.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kernel::Pool;
use serde_json::{Value, json};
use store::{Artifact, Hash, Kind, Recipe, Workspace};

use crate::Setup;
use crate::commands::{background, eval, ingest, join, scratch, synth, train, tune};
use crate::config::{Config, Department, Teacher};
use crate::failure::{self, Hint};

/// The examples that hold text written by the base itself. No department has this name, since
/// theirs begin with a letter or digit.
pub(crate) const BACKGROUND: &str = "_base";

/// One stage of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Ingest(String),
    Synth(String),
    /// The base writes text of its own, which is no expert's business.
    Background,
    /// The base writes what a department might be asked and knows nothing of.
    NearMisses(String),
    Train(String),
    /// A model of its own, beside the path.
    Scratch,
    /// The base itself, tuned, beside the path.
    Tune,
    Join,
    Eval,
    /// Another model than the joined one, beside the base.
    EvalModel(String),
}

/// How a stage's artifact stands to what it would be made from now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    Fresh,
    /// Made from something else than what is there now; with what differs.
    Stale(String),
    Missing,
    /// What it is made from is missing or stale itself.
    Waits(String),
}

/// What became of a stage.
pub(crate) struct Done {
    pub artifact: Artifact,
    /// None where it was fresh.
    pub time: Option<Duration>,
}

/// The stages over one company's folder.
pub(crate) struct Stages<'a> {
    pub config: &'a Config,
    pub workspace: Workspace,
    threads: Option<NonZeroUsize>,
}

impl Stage {
    /// The command that does it.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Stage::Ingest(_) => "ingest",
            Stage::Synth(_) => "synth",
            Stage::Background => "background",
            Stage::NearMisses(_) => "near misses",
            Stage::Train(_) | Stage::Scratch => "train",
            Stage::Tune => "tune",
            Stage::Join => "join",
            Stage::Eval | Stage::EvalModel(_) => "eval",
        }
    }
}

impl State {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            State::Fresh => "fresh",
            State::Stale(_) => "stale",
            State::Missing => "missing",
            State::Waits(_) => "waits",
        }
    }

    pub(crate) fn reason(&self) -> &str {
        match self {
            State::Stale(reason) | State::Waits(reason) => reason,
            State::Fresh | State::Missing => "",
        }
    }
}

impl<'a> Stages<'a> {
    pub(crate) fn new(config: &'a Config, setup: &Setup) -> Self {
        Stages { config, workspace: Workspace::at(&config.root), threads: setup.threads }
    }

    pub(crate) fn pool(&self) -> Pool {
        self.threads.map_or_else(Pool::machine, |threads| Pool::new(threads.get()))
    }

    /// The folder of the base model.
    pub(crate) fn base(&self) -> PathBuf {
        self.workspace.path(Kind::Model, &self.config.base_name())
    }

    /// The departments whose experts are in the joined model.
    pub(crate) fn active(&self) -> impl Iterator<Item = &'a Department> {
        self.config.departments.iter().filter(|department| !department.withdrawn)
    }

    /// Every stage up to the evaluation, in order.
    pub(crate) fn all(&self) -> Vec<Stage> {
        let each = |stage: fn(String) -> Stage| self.active().map(move |d| stage(d.name.clone()));
        let mut stages: Vec<Stage> = each(Stage::Ingest).collect();
        stages.extend(each(Stage::Synth));
        stages.push(Stage::Background);
        stages.extend(each(Stage::NearMisses));
        stages.extend(each(Stage::Train));
        stages.extend([Stage::Join, Stage::Eval]);
        stages
    }

    /// The artifact that a stage makes.
    pub(crate) fn target(&self, stage: &Stage) -> (Kind, String) {
        match stage {
            Stage::Ingest(name) => (Kind::Collection, name.clone()),
            Stage::Synth(name) => (Kind::Examples, name.clone()),
            Stage::Background => (Kind::Examples, BACKGROUND.into()),
            Stage::NearMisses(name) => (Kind::Examples, format!("{BACKGROUND}-{name}")),
            Stage::Train(name) => (Kind::Expert, name.clone()),
            Stage::Scratch => (Kind::Model, format!("{}-scratch", self.config.name)),
            Stage::Tune => (Kind::Model, format!("{}-tuned", self.config.name)),
            Stage::Join => (Kind::Model, self.config.name.clone()),
            Stage::Eval => (Kind::Report, self.config.name.clone()),
            Stage::EvalModel(name) => (Kind::Report, name.clone()),
        }
    }

    /// The stages whose artifacts a stage is made from.
    fn parents(&self, stage: &Stage) -> Vec<Stage> {
        match stage {
            Stage::Ingest(_) | Stage::Background => Vec::new(),
            Stage::Synth(name) => vec![Stage::Ingest(name.clone())],
            Stage::NearMisses(name) => vec![Stage::Synth(name.clone())],
            Stage::Train(name) => vec![
                Stage::Ingest(name.clone()),
                Stage::Synth(name.clone()),
                Stage::Background,
                Stage::NearMisses(name.clone()),
            ],
            Stage::Scratch => self.active().map(|d| Stage::Ingest(d.name.clone())).collect(),
            Stage::Tune => {
                let ingested = self.active().map(|d| Stage::Ingest(d.name.clone()));
                ingested.chain(self.active().map(|d| Stage::Synth(d.name.clone()))).collect()
            }
            Stage::Join => self.active().map(|d| Stage::Train(d.name.clone())).collect(),
            Stage::Eval => {
                let collections = eval::measured(self).map(|d| Stage::Ingest(d.name.clone()));
                collections.chain([Stage::Join]).collect()
            }
            Stage::EvalModel(_) => {
                eval::measured(self).map(|d| Stage::Ingest(d.name.clone())).collect()
            }
        }
    }

    /// What the stage would be made from now.
    ///
    /// # Errors
    /// An input is missing; the hint names the command that makes it.
    pub(crate) fn recipe(&self, stage: &Stage) -> Result<Recipe> {
        let mut inputs = BTreeMap::new();
        for parent in self.parents(stage) {
            let (kind, name) = self.target(&parent);
            let verb = match parent {
                // What the base writes is written when training asks for it.
                Stage::Background | Stage::NearMisses(_) => "train",
                _ => parent.verb(),
            };
            self.input(&mut inputs, kind, &name, verb)?;
        }
        let config = match stage {
            Stage::Ingest(name) => {
                let options = ingest::options(self, self.config.department(name)?);
                inputs.extend(ingest::inputs(&options)?);
                serde_json::to_value(options)?
            }
            Stage::Synth(name) => {
                if let Some(Teacher::Local { model }) = &self.config.teacher {
                    self.model_input(&mut inputs, model)?;
                }
                synth::recipe_config(self, name)?
            }
            Stage::Background => {
                self.model_input(&mut inputs, &self.config.base)?;
                background::recipe_config(self)
            }
            Stage::NearMisses(_) => {
                self.model_input(&mut inputs, &self.config.base)?;
                background::near_misses_config(self)
            }
            Stage::Train(name) => {
                self.model_input(&mut inputs, &self.config.base)?;
                train::recipe_config(self, name)?
            }
            Stage::Scratch => {
                // Its tokenizer and chat template.
                self.model_input(&mut inputs, &self.config.base)?;
                scratch::recipe_config(self)?
            }
            Stage::Tune => {
                self.model_input(&mut inputs, &self.config.base)?;
                tune::recipe_config(self)?
            }
            Stage::Join => {
                self.model_input(&mut inputs, &self.config.base)?;
                let names: Vec<&str> = self.active().map(|d| d.name.as_str()).collect();
                json!({ "experts": names })
            }
            Stage::Eval => {
                self.question_inputs(&mut inputs)?;
                eval::recipe_config(self)
            }
            Stage::EvalModel(name) => {
                self.model_input(&mut inputs, &self.config.base)?;
                self.model_input(&mut inputs, name)?;
                self.question_inputs(&mut inputs)?;
                eval::recipe_config(self)
            }
        };
        Ok(Recipe { inputs, config, seed: self.config.seed })
    }

    fn question_inputs(&self, inputs: &mut BTreeMap<String, Hash>) -> Result<()> {
        for department in eval::measured(self) {
            if let Some(file) = &department.questions {
                inputs.insert(self.config.relative(file), Hash::of_file(file)?);
            }
        }
        Ok(())
    }

    fn input(
        &self,
        inputs: &mut BTreeMap<String, Hash>,
        kind: Kind,
        name: &str,
        verb: &str,
    ) -> Result<()> {
        let artifact = self
            .workspace
            .open(kind, name)
            .with_context(|| format!("{}/{name} is needed", kind.folder()))
            .with_context(|| Hint::new(format!("`artel {verb}` or `artel run` makes it")))?;
        inputs.insert(format!("{}/{name}", kind.folder()), artifact.manifest.hash());
        Ok(())
    }

    fn model_input(&self, inputs: &mut BTreeMap<String, Hash>, source: &str) -> Result<()> {
        let name = crate::config::local_name(source);
        let artifact = self.workspace.open(Kind::Model, &name).map_err(|error| match error {
            store::Error::Missing { path, .. } => {
                anyhow::anyhow!("the model {name} is not here ({} does not exist)", path.display())
                    .context(Hint::new(format!("`artel pull {source}` fetches it, once")))
            }
            other => other.into(),
        })?;
        inputs.insert(format!("models/{name}"), artifact.manifest.hash());
        Ok(())
    }

    /// That the base model is there: said before the first stage, not after an hour.
    pub(crate) fn require_base(&self) -> Result<()> {
        self.model_input(&mut BTreeMap::new(), &self.config.base)
    }

    /// All stages with their states; those beside the path where they were done.
    pub(crate) fn survey(&self) -> Vec<(Stage, State)> {
        let mut known: Vec<(Stage, State)> = Vec::new();
        let done = |stage: &Stage| {
            let (kind, name) = self.target(stage);
            self.workspace.open(kind, &name).is_ok()
        };
        let beside = [Stage::Scratch, Stage::Tune].into_iter().filter(done);
        for stage in self.all().into_iter().chain(beside) {
            let waits_for = self.parents(&stage).into_iter().find(|parent| {
                known.iter().any(|(stage, state)| stage == parent && *state != State::Fresh)
            });
            let state = self.state(&stage, waits_for);
            known.push((stage, state));
        }
        known
    }

    fn state(&self, stage: &Stage, waits_for: Option<Stage>) -> State {
        let (kind, name) = self.target(stage);
        let Ok(artifact) = self.workspace.open(kind, &name) else { return State::Missing };
        if let Some(parent) = waits_for {
            let (kind, name) = self.target(&parent);
            return State::Waits(format!("for {}/{name}", kind.folder()));
        }
        match self.recipe(stage) {
            Ok(recipe) if recipe == artifact.manifest.recipe => State::Fresh,
            Ok(recipe) => State::Stale(difference(&artifact.manifest.recipe, &recipe)),
            Err(error) => State::Stale(failure::in_one_line(&error)),
        }
    }

    /// Runs a stage, unless its artifact is fresh. A stage that was interrupted goes on.
    pub(crate) fn perform(&self, stage: &Stage) -> Result<Done> {
        let (kind, name) = self.target(stage);
        let what = || format!("{} {name}", stage.verb());
        let recipe = self.recipe(stage).with_context(what)?;
        if self.workspace.is_fresh(kind, &name, &recipe) {
            return Ok(Done { artifact: self.workspace.open(kind, &name)?, time: None });
        }
        let begun = Instant::now();
        let mut draft = self.workspace.begin(kind, &name, recipe).with_context(what)?;
        if draft.resumed() {
            eprintln!("{}: goes on where it was", what());
        }
        let counts = match stage {
            Stage::Ingest(name) => ingest::stage(self, self.config.department(name)?, &mut draft),
            Stage::Synth(name) => synth::stage(self, self.config.department(name)?, &mut draft),
            Stage::Background => background::stage(self, &mut draft),
            Stage::NearMisses(name) => background::near_misses(self, name, &mut draft),
            Stage::Train(name) => train::stage(self, self.config.department(name)?, &mut draft),
            Stage::Scratch => scratch::stage(self, &mut draft),
            Stage::Tune => tune::stage(self, &mut draft),
            Stage::Join => join::stage(self, &mut draft),
            Stage::Eval => eval::stage(self, &mut draft),
            Stage::EvalModel(name) => eval::stage_of_model(self, name, &mut draft),
        }
        .with_context(what)?;
        let artifact = draft.finish(counts).with_context(what)?;
        Ok(Done { artifact, time: Some(begun.elapsed()) })
    }
}

/// In a few words, why the old recipe is not the new one.
fn difference(old: &Recipe, new: &Recipe) -> String {
    let mut reasons = Vec::new();
    let changed: Vec<&String> = new
        .inputs
        .iter()
        .filter(|(name, hash)| old.inputs.get(*name).is_some_and(|before| before != *hash))
        .map(|(name, _)| name)
        .collect();
    let added: Vec<&String> = new.inputs.keys().filter(|n| !old.inputs.contains_key(*n)).collect();
    let gone: Vec<&String> = old.inputs.keys().filter(|n| !new.inputs.contains_key(*n)).collect();
    for (names, word) in [(changed, "changed"), (added, "new"), (gone, "gone")] {
        match names[..] {
            [] => {}
            [one] => reasons.push(format!("{one} {word}")),
            [first, ..] => reasons.push(format!("{first} and {} more {word}", names.len() - 1)),
        }
    }
    if old.seed != new.seed {
        reasons.push(format!("seed {} instead of {}", new.seed, old.seed));
    }
    if old.config != new.config {
        reasons.push(format!("configuration changed: {}", keys(&old.config, &new.config)));
    }
    reasons.join("; ")
}

fn keys(old: &Value, new: &Value) -> String {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return "all of it".into() };
    let mut names: Vec<&str> = old.keys().chain(new.keys()).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| old.get(*name) != new.get(*name));
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staleness_says_what_differs() {
        let recipe = |inputs: &[(&str, &str)], config: Value| Recipe {
            inputs: inputs.iter().map(|(k, v)| ((*k).into(), Hash::of(v.as_bytes()))).collect(),
            config,
            seed: 0,
        };
        let old = recipe(&[("a.md", "1"), ("b.md", "1"), ("c.md", "1")], json!({"x": 1, "y": 2}));
        let new = recipe(&[("a.md", "2"), ("c.md", "1"), ("d.md", "1")], json!({"x": 1, "y": 3}));
        assert_eq!(
            difference(&old, &new),
            "a.md changed; d.md new; b.md gone; configuration changed: y"
        );
    }
}
