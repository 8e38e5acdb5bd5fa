//! Text that the base writes itself, which training shows to the gate as what the expert shall not
//! touch: on nobody's business in particular, and in the manner of what a department is asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use engine::{Engine, Limits, Request, Sampling};
use model::{Message, Model};
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::lines::Appender;
use store::{Artifact, Draft, Kind};

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

pub(crate) fn near_misses_config(stages: &Stages) -> Value {
    let background = &stages.config.background;
    json!({
        "texts": background.near_misses.unwrap_or(128),
        "tokens": background.tokens.unwrap_or(48),
    })
}

pub(crate) fn stage(stages: &Stages, draft: &mut Draft) -> Result<BTreeMap<String, u64>> {
    write_texts(stages, draft, "the base writes", wanted(draft), &write_freely)
}

/// What the base makes up when it is shown what the department is asked: of the same manner, and
/// on nothing that the department's documents say.
pub(crate) fn near_misses(
    stages: &Stages,
    department: &str,
    draft: &mut Draft,
) -> Result<BTreeMap<String, u64>> {
    let examples = synth::accepted(&stages.workspace.path(Kind::Examples, department))?;
    let asked: Vec<[Message; 2]> = examples
        .into_iter()
        .filter_map(|example| match example.body {
            synth::Body::Chat(messages) => messages.try_into().ok(),
            synth::Body::Text(_) => None,
        })
        .collect();
    let what = format!("near misses of {department}");
    let write = |writer: &Writer, index| write_like(&asked, writer, index);
    match asked.is_empty() {
        // Nothing but statements: nothing to resemble.
        true => write_texts(stages, draft, &what, 0, &write),
        false => write_texts(stages, draft, &what, wanted(draft), &write),
    }
}

/// The base with what one text is written by.
struct Writer<'a> {
    engine: &'a Engine,
    max_tokens: usize,
    seed: u64,
}

/// Writes the text of a number.
type Write<'a> = &'a (dyn Fn(&Writer, usize) -> Result<Text> + Sync);

fn size(draft: &Draft, key: &str) -> usize {
    draft.recipe().config[key].as_u64().unwrap_or(0) as usize
}

fn wanted(draft: &Draft) -> usize {
    size(draft, "texts")
}

/// Writes `total` texts, wave by wave.
fn write_texts(
    stages: &Stages,
    draft: &mut Draft,
    what: &str,
    total: usize,
    write: Write,
) -> Result<BTreeMap<String, u64>> {
    let (mut lines, mut texts) = Appender::resume::<Text>(&draft.path(FILE))?;
    if texts.len() < total {
        let progress = Progress::new(what, "texts");
        progress.say("loading the base");
        let model = Model::load(&stages.base(), kernel::Precision::best())?;
        let engine = Engine::start(Arc::new(model), stages.pool(), Limits::default());
        let max_tokens = size(draft, "tokens");
        let writer = Writer { engine: &engine, max_tokens, seed: draft.recipe().seed };
        while texts.len() < total {
            progress.set(texts.len() as u64, total as u64, "");
            let wave = texts.len()..total.min(texts.len() + WAVE);
            let written = write_wave(&writer, wave, write)?;
            lines.append(&written)?;
            texts.extend(written);
        }
    }
    lines.sync()?;
    let tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
    Ok(BTreeMap::from([("texts".into(), texts.len() as u64), ("tokens".into(), tokens as u64)]))
}

/// The texts of one wave, which the engine answers as a batch; each has a seed of its own, so that
/// the batch does not matter.
fn write_wave(writer: &Writer, wave: std::ops::Range<usize>, write: Write) -> Result<Vec<Text>> {
    std::thread::scope(|scope| {
        let answers: Vec<_> = wave.map(|index| scope.spawn(move || write(writer, index))).collect();
        answers
            .into_iter()
            .map(|answer| answer.join().expect("writing returns its errors"))
            .collect()
    })
}

/// The base asks itself and answers: its own questions are as varied as what it was trained on,
/// and none is among those that `eval` measures forgetting with.
fn write_freely(writer: &Writer, index: usize) -> Result<Text> {
    let model = writer.engine.model();
    let seed = writer.seed.wrapping_add(1 + 2 * index as u64);
    let question =
        generate(writer, open_turn(model)?, &[], Sampling { seed, ..Sampling::default() })?;
    let question = Message { role: "user".into(), content: question.trim().into() };
    let prompt = engine::chat_prompt(model, std::slice::from_ref(&question))?;
    let seed = seed.wrapping_add(1);
    let answer = generate(writer, prompt, &[], Sampling { seed, ..Sampling::default() })?;
    let turns = [question, Message { role: "assistant".into(), content: answer.trim().into() }];
    let alone = index % 4 == 1 && !turns[1].content.is_empty();
    text(model, turns, if alone { Form::Answer } else { Form::turns(index, 4) })
}

/// The base goes on with a list of what the department is asked. One wave shares its list, so
/// that the engine reads it once.
fn write_like(asked: &[[Message; 2]], writer: &Writer, index: usize) -> Result<Text> {
    const SHOWN: usize = 6;
    let model = writer.engine.model();
    let mut rng = ChaCha8Rng::seed_from_u64(writer.seed.wrapping_add((index / WAVE) as u64));
    let room = model.config().context / 2;
    let (mut list, mut prompt) = (String::new(), Vec::new());
    for [question, answer] in asked.choose_multiple(&mut rng, SHOWN) {
        list += &format!("Question: {}\nAnswer: {}\n\n", question.content, answer.content);
        let longer = model.tokenizer.encode_plain(&format!("{list}Question:"))?;
        if !prompt.is_empty() && longer.len() > room {
            break;
        }
        prompt = longer;
    }
    prompt.truncate(room);
    // Cooler than free text, or a small base leaves the manner.
    let seed = writer.seed.wrapping_add(1 + index as u64);
    let sampling = Sampling { temperature: 0.8, top_p: 0.95, seed, ..Sampling::default() };
    let written = generate(writer, prompt, &["\n\n"], sampling)?;
    let (question, answer) = written.split_once("\nAnswer:").unwrap_or((&written, ""));
    let turn = |role: &str, text: &str| Message { role: role.into(), content: text.trim().into() };
    text(model, [turn("user", question), turn("assistant", answer)], Form::turns(index, 8))
}

/// How a text is shown to the gate.
enum Form {
    /// In the chat template.
    Whole,
    /// Without what the template puts before the first turn.
    Turns,
    /// What was answered, by itself.
    Answer,
}

impl Form {
    /// Whole once in `every`.
    fn turns(index: usize, every: usize) -> Self {
        if index.is_multiple_of(every) { Form::Whole } else { Form::Turns }
    }
}

fn text(model: &Model, turns: [Message; 2], form: Form) -> Result<Text> {
    let tokens = match form {
        Form::Whole => model.tokenizer.encode(&model.template.render(&turns, false)?)?,
        Form::Turns => model.tokenizer.encode(&model.template.render_turns(&turns, false)?)?,
        Form::Answer => model.tokenizer.encode_plain(&turns[1].content)?,
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

fn generate(
    writer: &Writer,
    prompt: Vec<u32>,
    stop: &[&str],
    sampling: Sampling,
) -> Result<String> {
    let request = Request {
        prompt,
        max_tokens: writer.max_tokens,
        sampling,
        stop: stop.iter().map(|&stop| stop.to_owned()).collect(),
        ..Request::default()
    };
    Ok(writer.engine.generate(request).context("the base writes on its own")?.text)
}

/// The texts of a finished artifact.
pub(crate) fn read(artifact: &Artifact) -> Result<Vec<Text>> {
    Ok(store::lines::read(&artifact.path.join(FILE))?)
}
