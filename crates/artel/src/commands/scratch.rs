//! `artel train --from scratch`: a model of its own, from the documents of all departments.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use corpus::Collection;
use kernel::Precision;
use model::{ChatTemplate, Source, Tokenizer};
use serde_json::Value;
use store::{Draft, Kind};
use train::scratch;
use train::whole::{self, Job};

use super::whole::{NO_WEIGHT, checked_memory, shown, tell};
use crate::progress::Progress;
use crate::stages::{Stage, Stages};

fn options(stages: &Stages) -> scratch::Options {
    let mut options = stages.config.scratch.clone();
    options.seed = options.seed.wrapping_add(stages.config.seed);
    options
}

/// The options that change a weight.
pub(crate) fn recipe_config(stages: &Stages) -> Result<Value> {
    let mut options = serde_json::to_value(options(stages))?;
    if let Value::Object(map) = &mut options {
        map.retain(|key, _| !NO_WEIGHT.contains(&key.as_str()));
    }
    Ok(options)
}

/// What a model's texts are made of.
struct Language {
    tokenizer: Tokenizer,
    vocab: usize,
    begin: Option<u32>,
    ends: Vec<u32>,
}

/// The base's tokenizer, or one that is trained on the texts, with the base's marks.
fn language(
    base: &Source,
    template: &ChatTemplate,
    texts: &[String],
    options: &scratch::Options,
) -> Result<Language> {
    let (of_base, config) = (base.tokenizer()?, base.config()?);
    let model::Config { vocab, bos, eos, .. } = config;
    if options.vocab == 0 {
        return Ok(Language { tokenizer: of_base, vocab, begin: bos, ends: eos });
    }
    let used = |token: &String| {
        let id = of_base.id(token);
        id.is_some_and(|id| bos == Some(id) || eos.contains(&id))
            || template.source().contains(token.as_str())
    };
    let marks: Vec<String> = of_base.special_tokens().filter(used).collect();
    let tokenizer = Tokenizer::train(texts, options.vocab, &marks)?;
    let id = |old: &u32| renamed(&of_base, &tokenizer, *old);
    let begin = bos.as_ref().map(id).transpose()?;
    let ends = eos.iter().map(id).collect::<Result<Vec<u32>>>()?;
    Ok(Language { vocab: tokenizer.vocab(), begin, ends, tokenizer })
}

/// The id of a token of the base's tokenizer in another.
fn renamed(base: &Tokenizer, tokenizer: &Tokenizer, old: u32) -> Result<u32> {
    let id = base.token(old).and_then(|name| tokenizer.id(&name));
    id.with_context(|| format!("token {old} of the base ends or begins texts, but is no mark"))
}

pub(crate) fn stage(stages: &Stages, draft: &mut Draft) -> Result<BTreeMap<String, u64>> {
    let (_, name) = stages.target(&Stage::Scratch);
    let label = format!("train {name}");
    let progress = Progress::new(&label, "steps");
    progress.say("reading the documents");
    let base = Source::open(&stages.base())?;
    let template = base.template()?;
    let options = options(stages);
    options.check()?;
    let mut texts = Vec::new();
    for department in stages.active() {
        let folder = stages.workspace.path(Kind::Collection, &department.name);
        texts.extend(super::train::documents(&Collection::open(&folder)?));
    }
    progress.say("making tokens of the documents");
    let Language { tokenizer, vocab, begin, ends } = language(&base, &template, &texts, &options)?;
    let end = ends.first().copied();
    let (samples, bytes) = scratch::sequences(&tokenizer, &texts, end, &options)?;
    let config = options.config(vocab, begin, ends);
    drop(texts);
    let job = Job {
        name: &name,
        folder: draft.folder(),
        config: &config,
        tokenizer: &tokenizer,
        template: &template,
        samples: &samples,
    };
    let pool = stages.pool();
    let training = options.training();
    let needs = (&config, &training, whole::all_states(&config, &training));
    let otherwise = "make the model smaller (hidden, layers, experts, vocab in [scratch]), or raise \
                     memory_mb if there is more memory";
    let ledger = checked_memory(&label, needs, &pool, (options.memory_mb, otherwise))?;
    let summary =
        scratch::train(&job, &options, &pool, Precision::best(), &mut shown(&progress, &pool))?;
    drop(progress);
    let bits = f64::from(summary.loss) * summary.tokens as f64 / bytes.max(1) as f64;
    eprintln!(
        "{label}: loss {:.3} nats/token, {:.3} bits/byte",
        summary.loss,
        bits / std::f64::consts::LN_2
    );
    Ok(tell(&label, &ledger, &summary))
}
