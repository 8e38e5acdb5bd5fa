//! Writing with drafts looked up in what stands there already, against writing without.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use engine::{Engine, Event, Flow, Limits, Request, Sampling, chat_prompt};
use kernel::Precision;
use model::{ExpertSet, KvFormat, Message, Model, Purpose};

use super::median;
use crate::Setup;

const REPORT: &str = "On Tuesday at 06:40 the night shift found compressor K-402 stopped with fault \
    code E17, oil temperature too high. The oil cooler was covered with dust from the packing line. \
    It was cleaned with compressed air, the oil level was topped up with 1.5 litres, and the \
    thermostatic valve was checked and found in order. The machine was started again at 08:15 and \
    ran at 78 degrees for the rest of the shift. The cooler should be cleaned every two weeks \
    instead of every month, and a filter mat should be ordered for the air inlet.";

const RECORD: &str = r#"{
  "machine": "K-402",
  "location": "hall 3",
  "status": "stopped",
  "valves": [
    {"id": "V-11", "position": "open", "pressure": 6.5},
    {"id": "V-12", "position": "open", "pressure": 6.1},
    {"id": "V-13", "position": "closed", "pressure": 0.0}
  ],
  "next_service": "2026-12-04"
}"#;

const PROGRAM: &str = "def mean_pressure(readings):\n    total = 0\n    count = 0\n    \
    for reading in readings:\n        if reading is None:\n            continue\n        \
    total = total + reading\n        count = count + 1\n    if count == 0:\n        \
    return None\n    return total / count\n";

/// A task's name, its question, and the text that it is about.
type Task = (&'static str, &'static str, &'static str);

const COPYING: [Task; 4] = [
    ("quote", "Repeat the following text word for word:", REPORT),
    ("summary", "Summarise the following report:", REPORT),
    ("json", "Set the status to \"running\" and print the whole JSON again:", RECORD),
    ("code", "Print this program again with a comment above the loop:", PROGRAM),
];

const OTHER: [Task; 4] = [
    ("story", "Write a story about a lighthouse keeper who finds a map.", ""),
    ("explanation", "Explain how a heat pump works and where it is used.", ""),
    ("letter", "Write a letter to a neighbour whose cat sleeps on your roof.", ""),
    ("beside", "Write a poem about the sea. Do not mention the following report:", REPORT),
];

/// Pieces of a text, and tokens of each.
const PIECES: usize = 6;
const PIECE: usize = 48;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file, or a model's folder
    model: PathBuf,
    /// Tokens of a draft, at most
    #[arg(long, default_value_t = 16)]
    lookup: usize,
    /// The same of drafts by the model's own block for the token after the next (`serve.mtp`)
    #[arg(long, default_value_t = 0)]
    mtp: usize,
    /// Go on with pieces of this file instead: the likeliest tokens, and drawn ones
    #[arg(long)]
    text: Option<PathBuf>,
    /// Tokens of an answer, at most
    #[arg(long, default_value_t = 160)]
    tokens: usize,
    /// Answers that are written at once
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Of what is no copy; copies take the likeliest tokens
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// How often each is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let drafts = args.lookup + args.mtp > 0;
    ensure!(drafts, "--lookup and --mtp are 0: there would be nothing to compare");
    ensure!(args.rounds > 0 && args.clients > 0, "--rounds and --clients must be at least 1");
    let model = Model::load_for(Purpose::Generation, &args.model, Precision::best())?;
    let model = Arc::new(model);
    ensure!(args.mtp == 0 || model.config().mtp, "the model has no block for --mtp");
    let engines = [[0, 0], [args.lookup, args.mtp]].map(|[lookup, mtp]| {
        let limits = Limits { lookup, mtp, kv_format: KvFormat::F16, ..Limits::default() };
        Engine::start(Arc::clone(&model), setup.pool(), limits)
    });
    let seeded = Sampling { temperature: args.temperature, ..Sampling::default() };
    let groups = match &args.text {
        None => [("copying", asked(&model, &COPYING)?), ("other text", asked(&model, &OTHER)?)],
        Some(text) => {
            let pieces = pieces(&model, text)?;
            [("likeliest", pieces.clone()), ("drawn", pieces)]
        }
    };
    let mut last = Vec::new();
    for ((kind, prompts), sampling) in groups.into_iter().zip([Sampling::greedy(), seeded]) {
        let mut ratios = Vec::new();
        for (name, prompt) in &prompts {
            let request = Request {
                prompt: prompt.clone(),
                max_tokens: args.tokens,
                sampling: sampling.clone(),
                experts: ExpertSet::all(model.decoder.experts()),
                ..Request::default()
            };
            ratios.push(compare(args, &engines, &request, name)?);
        }
        let product: f64 = ratios.iter().product();
        last.push(format!("{kind} {:.2}", product.powf(1.0 / ratios.len() as f64)));
    }
    println!("lookup/without {}", last.join(", "));
    Ok(())
}

/// A prompt with its name.
type Named = (String, Vec<u32>);

fn asked(model: &Model, tasks: &[Task]) -> Result<Vec<Named>> {
    let ask = |&(name, question, text): &Task| {
        let content = format!("{question}\n\n{text}").trim_end().to_owned();
        let message = Message { role: "user".to_owned(), content };
        Ok((name.to_owned(), chat_prompt(model, &[message])?))
    };
    tasks.iter().map(ask).collect()
}

/// Pieces of a text, far from each other.
fn pieces(model: &Model, path: &Path) -> Result<Vec<Named>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let tokens = model.tokenizer.encode_plain(&text)?;
    ensure!(tokens.len() >= PIECES * PIECE, "{}: the text is too short", path.display());
    let piece = |index: usize| {
        let from = index * (tokens.len() / PIECES);
        (format!("piece {}", index + 1), tokens[from..from + PIECE].to_vec())
    };
    Ok((0..PIECES).map(piece).collect())
}

/// Runs the request with each engine in turn; gives the ratio of their speeds.
fn compare(args: &Args, engines: &[Engine; 2], request: &Request, name: &str) -> Result<f64> {
    // The first round reads the prompt, and shows that the answers are the same.
    let written = [measure(&engines[0], request, args)?, measure(&engines[1], request, args)?];
    ensure!(written[0].answers == written[1].answers, "{name}: the answers differ");
    let before = engines[1].load();
    let (mut speeds, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    for round in 0..args.rounds {
        let mut speed = [0.0; 2];
        // Each goes first in turn.
        for engine in [round % 2, 1 - round % 2] {
            speed[engine] = measure(&engines[engine], request, args)?.speed;
            speeds[engine].push(speed[engine]);
        }
        ratios.push(speed[1] / speed[0]);
    }
    let (load, ratio) = (engines[1].load(), median(&mut ratios));
    let rounds = args.rounds as u64;
    println!(
        "{name}: {} tokens, {:.1} tokens/s without, {:.1} with, ratio {ratio:.3}; {} drafted, {} right",
        written[0].answers.iter().map(Vec::len).sum::<usize>(),
        median(&mut speeds[0]),
        median(&mut speeds[1]),
        (load.drafted_tokens - before.drafted_tokens) / rounds,
        (load.accepted_tokens - before.accepted_tokens) / rounds,
    );
    Ok(ratio)
}

/// What all clients got.
struct Written {
    answers: Vec<Vec<u32>>,
    /// Tokens a second from when all prompts were read.
    speed: f64,
}

fn measure(engine: &Engine, request: &Request, args: &Args) -> Result<Written> {
    let (sender, events) = mpsc::channel();
    for client in 0..args.clients {
        let mut request = request.clone();
        request.sampling.seed = client as u64;
        engine.submit(request, sink(client, sender.clone()))?;
    }
    drop(sender);
    let mut answers = vec![Vec::new(); args.clients];
    let (mut begun, mut ended) = (None, None);
    for (client, time, event) in events {
        match event {
            Event::Prompt(_) => begun = Some(time),
            Event::Token(token) => answers[client].push(token.id),
            Event::Done { .. } => ended = Some(time),
            Event::Failed(problem) => bail!("generation failed: {problem}"),
            Event::Waiting | Event::Prefill { .. } => {}
        }
    }
    let tokens: usize = answers.iter().map(Vec::len).sum();
    let time = ended.zip(begun).map(|(ended, begun): (Instant, Instant)| ended - begun);
    let time = time.context("the engine was stopped")?;
    Ok(Written { answers, speed: tokens as f64 / time.as_secs_f64() })
}

type Sent = (usize, Instant, Event);

fn sink(client: usize, sender: Sender<Sent>) -> Box<dyn FnMut(Event) -> Flow + Send> {
    Box::new(move |event| match sender.send((client, Instant::now(), event)) {
        Ok(()) => Flow::Continue,
        Err(_) => Flow::Stop,
    })
}
