//! The time to the first token of a conversation's second turn, where the first answer was read
//! again meanwhile, against where it is forgotten.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use engine::{Answers, Engine, Event, Flow, Limits, Request, Sampling, chat_prompt};
use kernel::Precision;
use model::{ExpertSet, KvFormat, Message, Model, Purpose};

use super::median;
use crate::Setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file, or a model's folder
    model: PathBuf,
    /// Tokens of the first answer, at most
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Conversations
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    ensure!(args.rounds > 0, "--rounds is 0: there must be a conversation");
    let model = Arc::new(Model::load_for(Purpose::Generation, &args.model, Precision::best())?);
    let engines = [Answers::Forget, Answers::ReadAgain].map(|answers| {
        let limits = Limits { answers, kv_format: KvFormat::F16, ..Limits::default() };
        Engine::start(Arc::clone(&model), setup.pool(), limits)
    });
    let (mut seconds, mut reused) = ([Vec::new(), Vec::new()], [0; 2]);
    let mut ratios = Vec::new();
    for round in 0..args.rounds {
        let mut times = [0.0; 2];
        for at in [round % 2, 1 - round % 2] {
            let (time, tokens) = second_turn(&engines[at], round, args.tokens)?;
            times[at] = time.as_secs_f64();
            seconds[at].push(times[at]);
            reused[at] = tokens;
        }
        ratios.push(times[0] / times[1]);
    }
    for (at, name) in ["forgotten", "read again"].into_iter().enumerate() {
        let time = 1e3 * median(&mut seconds[at]);
        println!("{name}: {time:.1} ms to the second turn's first token, {} reused", reused[at]);
    }
    println!("forgotten/read again {:.2}", median(&mut ratios));
    Ok(())
}

/// How long the second turn takes to its first token, and how much of its prompt was there.
fn second_turn(engine: &Engine, round: usize, tokens: usize) -> Result<(Duration, usize)> {
    let message = |role: &str, content: String| Message { role: role.to_owned(), content };
    // Another one each time, so that nothing is there from before.
    let question = format!("Tell me {} stories about pumps, at length.", round + 2);
    let mut messages = vec![message("user", question)];
    let answer = engine.generate(request(engine, &messages, tokens)?)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.load().running + engine.load().unread_answers > 0 {
        ensure!(Instant::now() < deadline, "the answer was not read within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    messages.push(message("assistant", answer.text));
    messages.push(message("user", "Which of them is true?".to_owned()));
    let request = request(engine, &messages, 1)?;
    let (sender, events) = mpsc::channel();
    let start = Instant::now();
    let sink = move |event| match sender.send((start.elapsed(), event)) {
        Ok(()) => Flow::Continue,
        Err(_) => Flow::Stop,
    };
    engine.submit(request, Box::new(sink))?;
    let (mut reused, mut first) = (0, None);
    for (time, event) in events {
        match event {
            Event::Prompt(prompt) => reused = prompt.reused,
            Event::Token(_) | Event::Done { .. } => first = first.or(Some(time)),
            Event::Waiting | Event::Prefill { .. } | Event::Failed(_) => {}
        }
    }
    Ok((first.context("the second turn was not answered")?, reused))
}

fn request(engine: &Engine, messages: &[Message], max_tokens: usize) -> Result<Request> {
    let model = engine.model();
    Ok(Request {
        prompt: chat_prompt(model, messages)?,
        max_tokens,
        sampling: Sampling::default(),
        experts: ExpertSet::all(model.decoder.experts()),
        ..Request::default()
    })
}
