//! `artel chat`: the model in the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use anyhow::{Context, Result, anyhow, bail};
use engine::{Answers, Engine, Event, Flow, Limits, Request, Sampling};
use kernel::Precision;
use model::{ExpertSet, Message, Model, Purpose};
use store::{Kind, Workspace};

use super::eval::expert_names;
use crate::Setup;
use crate::config::{Config, Serve, check_name};
use crate::failure::Hint;
use crate::progress::Progress;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A model under models/ [default: the joined one]
    #[arg(long)]
    model: Option<String>,
    /// The experts that may answer [default: all]; an empty list is the base alone
    #[arg(long, value_delimiter = ',')]
    experts: Option<Vec<String>>,
    /// 0 always takes the likeliest word
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// The longest answer, in tokens
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let config = setup.config()?;
    let folder = model_folder(&config, args.model.as_deref())?;
    let model = load(&folder, &config.serve)?;
    let names = expert_names(&model);
    let experts = permitted(&names, args.experts.as_deref())?;
    let kv_format = config.serve.kv_type.format();
    let limits = Limits { answers: Answers::ReadAgain, kv_format, ..Limits::default() };
    let engine = Engine::start(Arc::new(model), setup.pool(), limits);
    if std::io::stdin().is_terminal() {
        eprintln!("Experts: {}. An empty line or Ctrl-D ends it.", list(&names, experts));
    }
    let mut messages: Vec<Message> = Vec::new();
    while let Some(line) = ask()? {
        messages.push(Message { role: "user".into(), content: line });
        let prompt = fitting_prompt(&engine, &mut messages, args.max_tokens)?;
        let request = Request {
            prompt,
            max_tokens: args.max_tokens,
            sampling: Sampling { temperature: args.temperature, ..Sampling::default() },
            experts,
            ..Request::default()
        };
        let answer = stream(&engine, request, &names)?;
        messages.push(Message { role: "assistant".into(), content: answer });
    }
    Ok(())
}

/// Where the joined model, or another one, is.
pub(crate) fn model_folder(config: &Config, name: Option<&str>) -> Result<PathBuf> {
    let name = name.unwrap_or(&config.name);
    check_name("--model", name)?;
    let hint =
        if name == config.name { "`artel run` makes it" } else { "`artel pull` fetches models" };
    let artifact = Workspace::at(&config.root)
        .open(Kind::Model, name)
        .with_context(|| format!("there is no model {name:?}"))
        .context(Hint::new(hint))?;
    Ok(artifact.path)
}

/// To generate text, with weights in the memory that `[serve]` leaves them.
pub(crate) fn load(folder: &std::path::Path, serve: &Serve) -> Result<Model> {
    let progress = Progress::new("load", "");
    progress.say(&folder.display().to_string());
    let memory = serve.weights_memory();
    let model = Model::load_within(Purpose::Generation, folder, Precision::best(), memory)?;
    let held = (model.decoder.bytes() - model.decoder.bytes_in_file()) as u64;
    if serve.memory_mb > 0 && held > memory {
        let (path, held, memory) = (folder.display(), held.div_ceil(1 << 20), memory >> 20);
        let error =
            anyhow!("{path}: its weights take {held} MiB, memory_mb less kv_mb is {memory} MiB");
        return Err(error.context(Hint::new(
            "raise serve.memory_mb, lower serve.kv_mb, or make a smaller file by `artel quantize`",
        )));
    }
    Ok(model)
}

/// The set of the experts named; all of them if no names are given.
pub(crate) fn permitted(names: &[String], wanted: Option<&[String]>) -> Result<ExpertSet> {
    let Some(wanted) = wanted else { return Ok(ExpertSet::all(names.len())) };
    let mut set = ExpertSet::NONE;
    for expert in wanted.iter().filter(|expert| !expert.is_empty()) {
        let index = names.iter().position(|name| name == expert).ok_or_else(|| {
            anyhow!("the model has no expert {expert:?}")
                .context(Hint::new(format!("its experts: {}", names.join(", "))))
        })?;
        set = set.with(index);
    }
    Ok(set)
}

fn list(names: &[String], experts: ExpertSet) -> String {
    let names: Vec<&str> = names
        .iter()
        .enumerate()
        .filter(|(index, _)| experts.contains(*index))
        .map(|(_, name)| name.as_str())
        .collect();
    if names.is_empty() { "none, the base alone".into() } else { names.join(", ") }
}

/// The next line the user wrote; none at the end.
fn ask() -> Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        eprint!("> ");
    }
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line).context("read from the terminal")?;
    let line = line.trim();
    Ok((read > 0 && !line.is_empty()).then(|| line.to_owned()))
}

/// The conversation as tokens; its oldest exchanges are dropped when the context is full.
fn fitting_prompt(
    engine: &Engine,
    messages: &mut Vec<Message>,
    max_tokens: usize,
) -> Result<Vec<u32>> {
    let context = engine.model().config().context;
    loop {
        let prompt = engine::chat_prompt(engine.model(), messages)?;
        if prompt.len() + max_tokens <= context {
            return Ok(prompt);
        }
        if messages.len() < 3 {
            bail!(
                "the question has {} tokens; with an answer of {max_tokens} that is more than the \
                 model's context of {context}",
                prompt.len()
            );
        }
        messages.drain(..2);
    }
}

/// Prints the answer as it comes, and then who answered.
fn stream(engine: &Engine, request: Request, names: &[String]) -> Result<String> {
    let (sender, events) = mpsc::channel();
    let sink = move |event| match sender.send(event) {
        Ok(()) => Flow::Continue,
        Err(_) => Flow::Stop,
    };
    engine.submit(request, Box::new(sink))?;
    let mut answer = String::new();
    let mut gates = vec![0.0f32; names.len()];
    let mut tokens = 0;
    for event in events {
        let text = match event {
            Event::Token(token) => {
                tokens += 1;
                gates.iter_mut().zip(&token.gates).for_each(|(sum, gate)| *sum += gate);
                token.text
            }
            Event::Done { text, .. } => text,
            Event::Failed(reason) => bail!("{reason}"),
            _ => continue,
        };
        print!("{text}");
        std::io::stdout().flush().context("write to the terminal")?;
        answer += &text;
    }
    println!();
    if tokens > 0 && !names.is_empty() {
        let shares: Vec<String> = names
            .iter()
            .zip(&gates)
            .map(|(name, sum)| format!("{name} {:.0} %", 100.0 * sum / tokens as f32))
            .collect();
        eprintln!("[{}]", shares.join(", "));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_by_name() {
        let names = ["a".to_owned(), "b".to_owned()];
        let check = |wanted: Option<&[&str]>, expected: Option<ExpertSet>| {
            let wanted = wanted.map(|w| w.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
            assert_eq!(permitted(&names, wanted.as_deref()).ok(), expected);
        };
        check(None, Some(ExpertSet::all(2)));
        check(Some(&["b"]), Some(ExpertSet::single(1)));
        check(Some(&[""]), Some(ExpertSet::NONE));
        check(Some(&["c"]), None);
    }
}
