use std::time::Instant;

use anyhow::{Result, ensure};

use super::{median, subject};
use crate::Setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    subject: subject::SubjectArgs,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// How often to read it
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    ensure!(args.rounds > 0, "--rounds is 0: the prompt must be read once");
    let subject = args.subject.load(setup.pool())?;
    eprintln!("{}", subject.describe(args.subject.path()));
    let prompt = subject.prompt(args.prompt)?;
    let mut cache = subject.cache();
    // Once before, so that memory is there.
    subject.read(&prompt, &mut cache);
    let mut seconds: Vec<f64> = (0..args.rounds)
        .map(|_| {
            let start = Instant::now();
            subject.read(&prompt, &mut cache);
            start.elapsed().as_secs_f64()
        })
        .collect();
    println!("prefill {:.1} tokens/s", prompt.len() as f64 / median(&mut seconds));
    Ok(())
}
