//! `artel tune`: the base itself, trained on the documents and examples of all departments.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use kernel::{Pool, Precision};
use model::{Source, Weights};
use serde_json::{Value, json};
use store::{Draft, Recipe};
use train::tune::{self, ADAPTER_FOLDER, Method, Options};
use train::whole::Job;
use train::{Language, Material};

use super::train::{LEFT_OUT, check_artifact, left_out, left_out_examples, material};
use super::whole::{NO_WEIGHT, checked_memory, shown, tell};
use crate::Setup;
use crate::progress::Progress;
use crate::stages::{Stage, Stages};

#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, setup: &Setup) -> Result<()> {
    let config = setup.config()?;
    let stages = Stages::new(&config, setup);
    config.select(&[])?;
    let (_, name) = stages.target(&Stage::Tune);
    ensure!(
        name != config.base_name(),
        "base.model is {name}, which is what tuning would make: give artel.toml another `name`"
    );
    let done = stages.perform(&Stage::Tune)?;
    super::run::tell(&stages, &Stage::Tune, &done);
    println!("{}", done.artifact.path.display());
    Ok(())
}

fn options(stages: &Stages) -> Options {
    let mut options = stages.config.tune.clone();
    options.seed = options.seed.wrapping_add(stages.config.seed);
    options
}

/// The examples left out because they repeat questions, and the options that change a weight: those of
/// other methods do not.
pub(crate) fn recipe_config(stages: &Stages) -> Result<Value> {
    let options = options(stages);
    let mut keys = NO_WEIGHT.to_vec();
    if options.method != Method::Lora {
        keys.extend(["rank", "alpha", "targets"]);
    }
    if options.method != Method::Experts {
        keys.extend(["share", "score", "probe_tokens"]);
    }
    let mut value = serde_json::to_value(options)?;
    if let Value::Object(map) = &mut value {
        map.retain(|key, _| !keys.contains(&key.as_str()));
    }
    let mut left_out = Vec::new();
    for department in stages.active() {
        left_out.extend(left_out_examples(stages, &department.name)?);
    }
    Ok(json!({ "options": value, LEFT_OUT: left_out }))
}

/// As [`super::train::check_left_out`], of the tuned model.
pub(super) fn check_left_out(stages: &Stages) -> Result<()> {
    let (kind, name) = stages.target(&Stage::Tune);
    let model = stages.workspace.open(kind, &name)?;
    for department in stages.active() {
        let what = format!("models/{name}");
        check_artifact(stages, &model.manifest.recipe, &what, &department.name)?;
    }
    Ok(())
}

pub(crate) fn stage(stages: &Stages, draft: &mut Draft) -> Result<BTreeMap<String, u64>> {
    let (_, name) = stages.target(&Stage::Tune);
    let label = format!("tune {name}");
    let progress = Progress::new(&label, "steps");
    progress.say("reading the documents and examples");
    let base = Source::open(&stages.base())?;
    let config = base.trainable_config()?;
    let options = options(stages);
    let (tokenizer, template) = (base.tokenizer()?, base.template()?);
    let language = Language { tokenizer: &tokenizer, template: &template };
    let material = all_material(stages, draft.recipe())?;
    let samples = train::samples(language, &material, &options.reading())?;
    drop(material);
    let pool = stages.pool();
    let needs = (&config, &options.training(), tune::states(&config, &options)?);
    let otherwise = "tune less of it (method lora or experts, a lower rank or share in [tune]), choose a \
                     smaller base, or raise memory_mb if there is more memory";
    let ledger = checked_memory(&label, needs, &pool, (options.memory_mb, otherwise))?;
    progress.say("reading the base");
    let weights = Weights::read(&base, &config)?;
    let job = Job {
        name: &name,
        folder: draft.folder(),
        config: &config,
        tokenizer: &tokenizer,
        template: &template,
        samples: &samples,
    };
    let base_name = stages.config.base_name();
    let base_weights = (base_name.as_str(), weights);
    let summary = tune::tune(
        &job,
        base_weights,
        &options,
        &pool,
        Precision::best(),
        &mut shown(&progress, &pool),
    )?;
    drop(progress);
    eprintln!("{label}: loss {:.3} nats/token", summary.loss);
    let counts = tell(&label, &ledger, &summary);
    if options.method == Method::Lora {
        replay(&pool, &base, draft)?;
    }
    Ok(counts)
}

/// The accepted examples and the documents of all departments, without what is held out.
fn all_material(stages: &Stages, recipe: &Recipe) -> Result<Vec<Material>> {
    let left_out = left_out(recipe);
    let mut all = Vec::new();
    for department in stages.active() {
        all.extend(material(stages, &department.name, &left_out)?);
    }
    Ok(all)
}

/// That the adapter as it was written, put beside the base, is the model as it was written.
fn replay(pool: &Pool, base: &Source, draft: &Draft) -> Result<()> {
    let model = Source::open(draft.folder()).context("read the model again")?;
    let same = tune::replay(pool, &draft.path(ADAPTER_FOLDER), base, &model)
        .context("read the adapter again")?;
    ensure!(same, "the adapter beside the base is not the model that was written");
    Ok(())
}
