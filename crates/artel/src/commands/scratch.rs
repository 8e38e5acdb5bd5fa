//! `artel train --from scratch`: a model of its own, from the documents of all departments.

use std::collections::BTreeMap;

use anyhow::Result;
use corpus::Collection;
use kernel::Precision;
use model::Source;
use serde_json::Value;
use store::{Draft, Kind};
use train::scratch;

use crate::progress::Progress;
use crate::stages::{Stage, Stages};

fn options(stages: &Stages) -> scratch::Options {
    let mut options = stages.config.scratch.clone();
    options.seed = options.seed.wrapping_add(stages.config.seed);
    options
}

/// The options, but for how often a checkpoint is written: that changes no weight.
pub(crate) fn recipe_config(stages: &Stages) -> Result<Value> {
    let mut options = serde_json::to_value(options(stages))?;
    if let Value::Object(map) = &mut options {
        map.shift_remove("checkpoint_seconds");
    }
    Ok(options)
}

pub(crate) fn stage(stages: &Stages, draft: &mut Draft) -> Result<BTreeMap<String, u64>> {
    let (_, name) = stages.target(&Stage::Scratch);
    let progress = Progress::new(format!("train {name}"), "steps");
    progress.say("reading the documents");
    let base = Source::open(&stages.base())?;
    let (tokenizer, template, of_base) = (base.tokenizer()?, base.template()?, base.config()?);
    let options = options(stages);
    options.check()?;
    let mut texts = Vec::new();
    for department in stages.active() {
        let folder = stages.workspace.path(Kind::Collection, &department.name);
        texts.extend(super::train::documents(&Collection::open(&folder)?));
    }
    let end = of_base.eos.first().copied();
    let samples = scratch::sequences(&tokenizer, &texts, end, &options)?;
    let config = options.config(of_base.vocab, of_base.bos, of_base.eos);
    let job = scratch::Job {
        name: &name,
        folder: draft.folder(),
        config: &config,
        tokenizer: &tokenizer,
        template: &template,
        samples: &samples,
        options: &options,
    };
    let mut at = |at: &scratch::Progress| {
        let rate = at.tokens as f32 / at.seconds;
        let balance = at.balance.map_or_else(String::new, |balance| {
            format!(", MaxVio {:.1}, idle experts {}", balance.max_violation, balance.idle)
        });
        let note = format!("loss {:.2}, {rate:.0} tokens/s{balance}", at.loss);
        progress.set(at.step as u64, at.steps as u64, &note);
    };
    let summary = scratch::train(&job, &stages.pool(), Precision::best(), &mut at)?;
    drop(progress);
    for alarm in &summary.alarms {
        eprintln!("train {name}: warning: {alarm}");
    }
    eprintln!("train {name}: loss {:.3} nats/token", summary.loss);
    Ok(BTreeMap::from([
        ("steps".into(), summary.steps as u64),
        ("tokens".into(), summary.tokens as u64),
        ("parameters".into(), summary.parameters as u64),
    ]))
}
