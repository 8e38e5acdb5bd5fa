//! The background stage: text that the base writes itself, on nobody's business in particular.
//! Training shows it to the gate as what no expert shall touch.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use engine::{Engine, Limits, Request, Sampling};
use model::{Message, Model};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::lines::Appender;
use store::{Artifact, Draft};

use crate::progress::Progress;
use crate::stages::Stages;

const FILE: &str = "background.jsonl";
/// Texts of one wave, which the engine writes as one batch.
const WAVE: usize = 16;

/// One text of the base's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Text {
    pub(crate) prompt: String,
    pub(crate) text: String,
    /// What the gate is shown: both in the chat template or as turns alone, or the text by itself.
    pub(crate) tokens: Vec<u32>,
}

pub(crate) fn recipe_config(stages: &Stages) -> Value {
    let background = &stages.config.background;
    json!({
        "texts": background.texts.unwrap_or(192),
        "tokens": background.tokens.unwrap_or(48),
    })
}

pub(crate) fn stage(stages: &Stages, draft: &mut Draft) -> Result<BTreeMap<String, u64>> {
    let config = draft.recipe().config.clone();
    let size = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
    let (total, max_tokens) = (size("texts"), size("tokens"));
    let (mut lines, mut texts) = Appender::resume::<Text>(&draft.path(FILE))?;
    if texts.len() < total {
        let progress = Progress::new("the base writes", "texts");
        progress.say("loading the base");
        let model = Model::load(&stages.base(), kernel::Precision::best())?;
        let engine = Engine::start(Arc::new(model), stages.pool(), Limits::default());
        while texts.len() < total {
            progress.set(texts.len() as u64, total as u64, "");
            let wave = texts.len()..total.min(texts.len() + WAVE);
            let written = write(&engine, wave, max_tokens, draft.recipe().seed)?;
            lines.append(&written)?;
            texts.extend(written);
        }
    }
    lines.sync()?;
    let tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
    Ok(BTreeMap::from([("texts".into(), texts.len() as u64), ("tokens".into(), tokens as u64)]))
}

/// The texts of one wave; each has a seed of its own, so that the batch does not matter.
fn write(
    engine: &Engine,
    wave: std::ops::Range<usize>,
    max_tokens: usize,
    seed: u64,
) -> Result<Vec<Text>> {
    std::thread::scope(|scope| {
        let answers: Vec<_> = wave
            .map(|index| scope.spawn(move || write_one(engine, index, max_tokens, seed)))
            .collect();
        answers
            .into_iter()
            .map(|answer| answer.join().expect("writing returns its errors"))
            .collect()
    })
}

/// The base asks itself and answers: its own questions are as varied as what it was trained on,
/// and none is among those that `eval` measures forgetting with.
fn write_one(engine: &Engine, index: usize, max_tokens: usize, seed: u64) -> Result<Text> {
    let model = engine.model();
    let seed = seed.wrapping_add(1 + 2 * index as u64);
    let question = generate(engine, open_turn(model)?, max_tokens, seed)?;
    let question = Message { role: "user".into(), content: question.trim().into() };
    let prompt = engine::chat_prompt(model, std::slice::from_ref(&question))?;
    let answer = generate(engine, prompt, max_tokens, seed.wrapping_add(1))?;
    let turns = [question, Message { role: "assistant".into(), content: answer.trim().into() }];
    let tokens = match index % 4 {
        0 => model.tokenizer.encode(&model.template.render(&turns, false)?)?,
        1 if !turns[1].content.is_empty() => model.tokenizer.encode_plain(&turns[1].content)?,
        _ => model.tokenizer.encode(&model.template.render_turns(&turns, false)?)?,
    };
    let [question, answer] = turns;
    Ok(Text { prompt: question.content, text: answer.content, tokens })
}

/// What the chat template puts before a user's first words.
/// Source: Xu et al. 2024, "Magpie" (arXiv 2406.08464): from there a tuned model asks by itself.
fn open_turn(model: &Model) -> Result<Vec<u32>> {
    const WORDS: &str = "?artel?";
    let message = Message { role: "user".into(), content: WORDS.into() };
    let rendered = model.template.render(&[message], true)?;
    let before = rendered.split(WORDS).next().unwrap_or_default();
    let tokens = model.tokenizer.encode(before)?;
    ensure!(!tokens.is_empty(), "the chat template of {} begins with the user's words", model.name);
    Ok(tokens)
}

fn generate(engine: &Engine, prompt: Vec<u32>, max_tokens: usize, seed: u64) -> Result<String> {
    let sampling = Sampling { seed, ..Sampling::default() };
    let request = Request { prompt, max_tokens, sampling, ..Request::default() };
    Ok(engine.generate(request).context("the base writes on its own")?.text)
}

/// The texts of a finished artifact.
pub(crate) fn read(artifact: &Artifact) -> Result<Vec<Text>> {
    Ok(store::lines::read(&artifact.path.join(FILE))?)
}
