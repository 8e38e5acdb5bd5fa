//! The background stage: text that the base writes itself, on nobody's business in particular.
//! Training shows it to the gate as what no expert shall touch.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use engine::{Engine, Limits, Request, Sampling};
use model::{ExpertSet, Message, Model};
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
    /// The prompt in the chat template, then the text.
    pub(crate) tokens: Vec<u32>,
}

/// Asked in many ways and of many matters, and other ones than those `eval` measures forgetting on.
const PROMPTS: [&str; 32] = [
    "What is a good way to clean windows?",
    "Tell me about the history of bread.",
    "How do vaccines work?",
    "Write a short dialogue between two old friends who meet at a station.",
    "What is the difference between a lake and a pond?",
    "Give me three ideas for a birthday present.",
    "Explain the rules of chess in a few sentences.",
    "What is 144 divided by 12?",
    "Write a thank-you note to a teacher.",
    "Who wrote Don Quixote, and what is it about?",
    "How do I boil an egg?",
    "Describe a thunderstorm.",
    "What does an accountant do?",
    "List the planets of the solar system.",
    "Why do cats purr?",
    "Write a limerick about a baker.",
    "How is paper made?",
    "What are some good habits for studying?",
    "Explain what a loop is in programming, with an example.",
    "What is the largest ocean?",
    "Write an invitation to a garden party.",
    "How does a bicycle stay upright?",
    "Give me a summary of Romeo and Juliet.",
    "What should I know before adopting a dog?",
    "Translate into French: Where is the nearest bakery?",
    "What is democracy?",
    "How can I save water at home?",
    "Tell me a riddle and its answer.",
    "What causes the seasons?",
    "Compare tea and coffee.",
    "Write the opening of a detective story.",
    "How do I tie a knot that does not slip?",
];

pub(crate) fn recipe_config(stages: &Stages) -> Value {
    let background = &stages.config.background;
    json!({
        "texts": background.texts.unwrap_or(4 * PROMPTS.len()),
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

fn write_one(engine: &Engine, index: usize, max_tokens: usize, seed: u64) -> Result<Text> {
    let prompt = PROMPTS[index % PROMPTS.len()];
    let message = Message { role: "user".into(), content: prompt.into() };
    let mut tokens = engine::chat_prompt(engine.model(), &[message])?;
    let sampling = Sampling { seed: seed.wrapping_add(1 + index as u64), ..Sampling::default() };
    let completion = engine
        .generate(Request {
            prompt: tokens.clone(),
            max_tokens,
            sampling,
            stop: Vec::new(),
            logprobs: None,
            echo: false,
            experts: ExpertSet::NONE,
        })
        .with_context(|| format!("writing on {prompt:?}"))?;
    tokens.extend(completion.tokens.iter().map(|token| token.id));
    Ok(Text { prompt: prompt.into(), text: completion.text, tokens })
}

/// The texts of a finished artifact.
pub(crate) fn read(artifact: &Artifact) -> Result<Vec<Text>> {
    Ok(store::lines::read(&artifact.path.join(FILE))?)
}
