use std::time::Instant;

use anyhow::{Result, ensure};
use kernel::Readable;

use super::{median, subject};
use crate::Setup;

/// Tokens written between two readings of the memory.
const TURN: usize = 16;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    subject: subject::SubjectArgs,
    /// How often to write 16 tokens, and to read the memory
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Megabytes of memory to read at a time
    #[arg(long, default_value_t = 512)]
    memory: usize,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    ensure!(args.rounds > 0 && args.memory > 0, "--rounds and --memory must be at least 1");
    let subject = args.subject.load(setup.pool())?;
    eprintln!("{}", subject.describe(args.subject.path()));
    let weights = subject.model.decoder.bytes_of_a_token() as f64;
    let memory = Readable::new(args.memory << 20);
    let prompt = subject.prompt(TURN)?;
    let mut cache = subject.cache();
    let (mut decode, mut read) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let first = subject.read(&prompt, &mut cache);
        let (_, times) = subject.write(first, TURN, &mut cache);
        decode.extend(times.iter().map(|time| weights / time.as_secs_f64() / 1e9));
        let start = Instant::now();
        std::hint::black_box(memory.read(subject.pool()));
        read.push(memory.bytes() as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    let (decode, read) = (median(&mut decode), median(&mut read));
    println!("weights while decoding {decode:.2} GB/s");
    println!("memory alone {read:.2} GB/s");
    println!("ratio {:.3}", decode / read);
    Ok(())
}
