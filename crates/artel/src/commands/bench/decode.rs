use anyhow::{Result, ensure};

use super::{median, subject};
use crate::Setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    subject: subject::SubjectArgs,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 32)]
    prompt: usize,
    /// Tokens to write
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Print the tokens written, too
    #[arg(long)]
    show: bool,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    ensure!(args.tokens > 0, "--tokens is 0: there must be one to write");
    let subject = args.subject.load(setup.pool())?;
    eprintln!("{}", subject.describe(args.subject.path()));
    let prompt = subject.prompt(args.prompt)?;
    let mut cache = subject.cache();
    let first = subject.read(&prompt, &mut cache);
    let room = subject.model.config().context - prompt.len();
    ensure!(args.tokens <= room, "--tokens is {}: the context has room for {room}", args.tokens);
    let (tokens, times) = subject.write(first, args.tokens, &mut cache);
    if args.show {
        println!("{}", subject.model.tokenizer.decode(&tokens));
        println!("{tokens:?}");
    }
    let mut seconds: Vec<f64> = times.iter().map(|time| time.as_secs_f64()).collect();
    println!("decode {:.2} tokens/s", 1.0 / median(&mut seconds));
    Ok(())
}
