//! `artel train --from scratch`: a model of its own, from the documents of all departments.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use corpus::Collection;
use kernel::Precision;
use model::{ChatTemplate, Source, Tokenizer};
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

/// The options, but for how often a checkpoint is written and what memory is allowed: that changes
/// no weight.
pub(crate) fn recipe_config(stages: &Stages) -> Result<Value> {
    let mut options = serde_json::to_value(options(stages))?;
    if let Value::Object(map) = &mut options {
        map.shift_remove("checkpoint_seconds");
        map.shift_remove("memory_mb");
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

/// The memory that training will take, which must be allowed and there.
fn ledger(
    config: &model::Config,
    options: &scratch::Options,
    threads: usize,
) -> Result<scratch::Ledger> {
    let [_, now] = scratch::held().unwrap_or_default();
    let ledger = scratch::Ledger::predict(config, options, Precision::best(), threads, now);
    let limit = match (options.memory_mb, scratch::available()) {
        (0, Some(free)) => free + now,
        (0, None) => u64::MAX,
        (allowed, _) => allowed << 20,
    };
    ledger.check(limit)?;
    Ok(ledger)
}

pub(crate) fn stage(stages: &Stages, draft: &mut Draft) -> Result<BTreeMap<String, u64>> {
    let (_, name) = stages.target(&Stage::Scratch);
    let progress = Progress::new(format!("train {name}"), "steps");
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
    let samples = scratch::sequences(&tokenizer, &texts, ends.first().copied(), &options)?;
    let config = options.config(vocab, begin, ends);
    let bytes: usize = texts.iter().map(String::len).sum();
    drop(texts);
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
    let pool = stages.pool();
    let ledger = ledger(&config, &options, pool.threads())?;
    eprintln!("train {name}: memory {ledger}");
    let summary = scratch::train(&job, &pool, Precision::best(), &mut at)?;
    drop(progress);
    if let Some([peak, _]) = scratch::held() {
        let predicted = ledger.total() >> 20;
        eprintln!("train {name}: {} MiB at most, {predicted} predicted", peak >> 20);
    }
    for alarm in &summary.alarms {
        eprintln!("train {name}: warning: {alarm}");
    }
    let bits = f64::from(summary.loss) * summary.tokens as f64 / bytes.max(1) as f64;
    eprintln!(
        "train {name}: loss {:.3} nats/token, {:.3} bits/byte",
        summary.loss,
        bits / std::f64::consts::LN_2
    );
    Ok(BTreeMap::from([
        ("steps".into(), summary.steps as u64),
        ("tokens".into(), summary.tokens as u64),
        ("parameters".into(), summary.parameters as u64),
    ]))
}
